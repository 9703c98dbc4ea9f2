# SPDX-License-Identifier: MIT
"""One run: build the network, talk, send the stray, talk on, and say what became of it."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_guard.errors import NfqGuardError
from nfq_guard.lab import strays
from nfq_guard.lab.guard import Guard, Report
from nfq_guard.lab.mitigations import counted_invalid, dropped_by_rules, install
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import GUARDED, Mitigation, Outcome, Result
from nfq_guard.lab.peers import Client, serve, wait_for_server
from nfq_guard.lab.scenarios.base import RUNNING_KERNEL, Scenario, Stage
from nfq_guard.lab.wiretap import Seen, Tap, settle

# How long an answer may take. TCP sends again after 0.2, 0.6 and 1.4 s.
_ANSWER_LIMIT_S: Final = 2.0
# A stray and all that it sets off pass within a millisecond; the guard's verdict within a few.
_QUIET_S: Final = 0.06
_GUARD_LIMIT_S: Final = 5.0
_SETTLE_LIMIT_S: Final = 2.0

# The id of the process that made it follows, as in the names of namespaces.
DIRECTORY_PREFIX: Final = "nfq-guard-lab-"


class CancelledError(NfqGuardError):
    """The run was told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Directories in which to leave what a run recorded; None keeps nothing.

    Attributes:
        pcap: For the captures, `SCENARIO-MITIGATION-LINK.pcap`.
        events: For the guard's log, `SCENARIO-MITIGATION.jsonl`.
    """

    pcap: Path | None = None
    events: Path | None = None


def run(
    scenario: Scenario,
    mitigation: Mitigation,
    *,
    keep: Keep,
    cancelled: threading.Event,
    policy: str = "",
) -> Result:
    """Try `mitigation` on `scenario`; ends early once `cancelled` is set.

    With `policy`, the table `[policy]` as TOML, the guard goes by it instead of by its default
    policy; what is expected stays what is expected of the default one.

    Raises:
        UnavailableError: Something that the lab needs is missing.
        PrivilegeError: Not root.
        CancelledError: `cancelled` was set.
    """
    with _Trial(scenario, mitigation, cancelled, policy) as trial:
        result = trial.result()
        trial.leave(keep)
    return result


class _Trial:
    """One run, from the empty machine to the result; `with` removes everything again."""

    def __init__(
        self,
        scenario: Scenario,
        mitigation: Mitigation,
        cancelled: threading.Event,
        policy: str,
    ) -> None:
        self._cancelled = cancelled
        self._policy = policy
        self._scenario = scenario
        self._mitigation = mitigation
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._guard: Guard | None = None
        self._taps: list[Tap] = []
        self._sent: list[bytes] = []
        self._words: list[str] = []

    def __enter__(self) -> "_Trial":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _namespace(self, label: str) -> Namespace:
        self._check_cancelled()
        return self._stack.enter_context(Namespace(label))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("interrupted")

    def result(self) -> Result:
        """Do it all."""
        stage = self._scenario.build(self._namespace)
        install(stage.router, self._mitigation, stage.nat)
        if self._mitigation in GUARDED:
            directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY_PREFIX}{os.getpid()}-"))
            self._stack.callback(shutil.rmtree, directory)
            self._guard = self._stack.enter_context(
                Guard(stage.router, self._mitigation, directory, self._policy)
            )
        self._taps = [Tap(link.namespace, link.interface, link.label) for link in stage.links]
        for tap in self._taps:
            self._stack.callback(tap.close)
        with ExitStack() as peers:
            self._talk(stage, peers)
        settle(self._taps, quiet_s=0.01, limit_s=_SETTLE_LIMIT_S)
        dropped = dropped_by_rules(stage.router, self._mitigation)
        invalid = counted_invalid(stage.router)
        report = Report(0, 0, ())
        if self._guard:
            self._guard.close()
            report = self._guard.report()
            dropped = report.drops if self._mitigation is Mitigation.GUARD else 0
        return self._judge(stage, invalid=invalid, dropped=dropped, report=report)

    def _talk(self, stage: Stage, peers: ExitStack) -> None:
        octets = stage.reply_octets
        server = peers.enter_context(serve(stage.server, *stage.listen_on, octets))
        other = None
        if stage.extra_listener:
            other = peers.enter_context(serve(stage.server, *stage.extra_listener, octets))
        if self._guard:
            self._guard.wait_until_ready()
        for listener in filter(None, (server, other)):
            wait_for_server(listener)
        self._check_cancelled()
        client = peers.enter_context(
            Client(stage.client, *stage.connect_to, octets, stage.client_rcvbuf)
        )
        self._words.append(client.connected())
        if self._words[-1] != "connected":
            return
        self._words.append(client.ask(_ANSWER_LIMIT_S))
        for stray in stage.strays:
            if self._words[-1] != "answered":
                return
            self._check_cancelled()
            self._send(stray)
            for _ in range(2):
                if self._words[-1] == "answered":
                    self._words.append(client.ask(_ANSWER_LIMIT_S))

    def _send(self, stray: strays.Stray) -> None:
        """Send one stray and wait until everything that it sets off has passed."""
        settle(self._taps, quiet_s=_QUIET_S, limit_s=_SETTLE_LIMIT_S)
        tap = next(tap for tap in self._taps if tap.label == stray.tap)
        octets = strays.build(stray, *strays.follow(tap.seen))
        self._sent.append(octets)
        strays.send(stray.sender, octets)
        settle(self._taps, quiet_s=_QUIET_S, limit_s=_SETTLE_LIMIT_S)
        if self._guard:
            guard = self._guard
            settle(
                self._taps,
                quiet_s=_QUIET_S,
                limit_s=_GUARD_LIMIT_S,
                until=lambda: guard.waiting() == 0,
            )
            settle(self._taps, quiet_s=_QUIET_S, limit_s=_SETTLE_LIMIT_S)

    def _judge(self, stage: Stage, *, invalid: int, dropped: int, report: Report) -> Result:
        passed = sorted((s for tap in self._taps for s in tap.seen), key=lambda s: s.time_ns)
        resets = [s for s in passed if s.is_rst and not self._is_ours(s)]
        leaks = [s for s in passed if s.link == stage.outer and _is_hidden(s, stage)]
        last = self._words[-1]
        if last == "reset":
            outcome = Outcome.RESET
        elif last == "timeout":
            outcome = Outcome.BLOCKED if dropped else Outcome.STALLED
        else:
            outcome = Outcome.LEAKED if leaks else Outcome.SURVIVED
        expectation = self._scenario.expected(RUNNING_KERNEL)[self._mitigation]
        return Result(
            scenario=self._scenario.name,
            mitigation=self._mitigation,
            expected=expectation.outcome,
            outcome=outcome,
            why=expectation.why,
            invalid=invalid,
            queued=report.queued,
            dropped=dropped,
            would_drop=report.drops if self._mitigation is Mitigation.GUARD_DRY_RUN else 0,
            seconds=time.monotonic() - self._began,
            rst=tuple(dict.fromkeys(f"{s.link}: {s}" for s in resets)),
            leaks=tuple(dict.fromkeys(str(s) for s in leaks)),
            wire=tuple(passed[self._first_stray(passed) :]),
            events=report.judged,
        )

    def _first_stray(self, passed: Sequence[Seen]) -> int:
        for index, segment in enumerate(passed):
            if any(octets[24:28] == segment.seq.to_bytes(4) for octets in self._sent):
                return index
        return len(passed)

    def _is_ours(self, segment: Seen) -> bool:
        number = segment.seq.to_bytes(4)
        return any(octets[24:28] == number and octets[33] & 4 for octets in self._sent)

    def leave(self, keep: Keep) -> None:
        """Write what is to be kept of the run."""
        name = f"{self._scenario.name}-{self._mitigation}"
        if keep.pcap:
            for tap in self._taps:
                tap.write_pcap(keep.pcap / f"{name}-{tap.label}.pcap")
        if keep.events and self._guard:
            (keep.events / f"{name}.jsonl").write_bytes(self._guard.log())


def _is_hidden(segment: Seen, stage: Stage) -> bool:
    address, port = segment.src
    return any(address == one and which in (None, port) for one, which in stage.hidden)
