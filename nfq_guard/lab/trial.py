# SPDX-License-Identifier: MIT
"""One trial: build the network, exchange data, send the strays, and judge the outcome."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import IPV4, IPV6
from nfq_guard.lab import strays
from nfq_guard.lab.addresses import PLANS, Family
from nfq_guard.lab.guard import Guard, Report
from nfq_guard.lab.mitigations import counted_invalid, dropped_by_rules, install
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import ENFORCING, GUARDED, Mitigation, Outcome, Result
from nfq_guard.lab.pace import limit, slowness
from nfq_guard.lab.peers import Client, serve, wait_for_server
from nfq_guard.lab.scenarios.base import RUNNING_KERNEL, Change, Scenario, Stage
from nfq_guard.lab.wiretap import Segment, Tap, read_segment, settle
from nfq_guard.outfile import replacing

# Time limit for an answer. TCP retransmits after 0.2, 0.6 and 1.4 s. That suffices on a busy
# machine, but not on an emulated one, where the guard's verdict takes longer and retransmissions
# come no later.
_ANSWER_LIMIT_S: Final = 2.0
# A stray and the segments that it provokes pass within a millisecond, the guard's verdict within
# a few.
_QUIET_S: Final = 0.06
# Both suffice on a machine that is slower by this factor.
_BUSY: Final = 4.0
_GUARD_LIMIT_S: Final = 5.0
_SETTLE_LIMIT_S: Final = 2.0

# Followed by the pid of the creator, as in the names of namespaces.
DIRECTORY_PREFIX: Final = "nfq-guard-lab-"


MakeGuard = Callable[[Namespace, Mitigation, Path, str], Guard]


class CancelledError(NfqGuardError):
    """The trial was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Directories for the recordings of a trial; None for no recording.

    Attributes:
        pcap: For captures, named `SCENARIO-MITIGATION-LINK.pcap`, or with IPv6
            `SCENARIO-MITIGATION-ipv6-LINK.pcap`.
        events: For the guard's log, named `SCENARIO-MITIGATION.jsonl`, or with IPv6
            `SCENARIO-MITIGATION-ipv6.jsonl`.
    """

    pcap: Path | None = None
    events: Path | None = None


def run(
    scenario: Scenario,
    mitigation: Mitigation,
    *,
    family: Family = IPV4,
    keep: Keep,
    cancelled: threading.Event,
    policy: str = "",
    make_guard: MakeGuard = Guard,
) -> Result:
    """Run `scenario` with `mitigation`.

    Args:
        scenario: The scenario.
        mitigation: The mitigation.
        family: Of the addresses.
        keep: Where to leave recordings.
        cancelled: Ends the trial early once set.
        policy: The guard's table `[policy]` as TOML; empty for the default policy. The expected
            outcome is always that of the default policy.
        make_guard: Starts the daemon.

    Raises:
        UnavailableError: The lab lacks a program or a kernel feature.
        PrivilegeError: Not root.
        CancelledError: `cancelled` was set.
    """
    with _Trial(scenario, mitigation, family, cancelled, policy, make_guard) as trial:
        result = trial.result()
        trial.save(keep)
    return result


def _paced(seconds: float) -> float:
    """A time that suffices on a busy machine, longer on an emulated one."""
    return seconds * max(1.0, slowness() / _BUSY)


class _Trial:
    """One trial; the end of `with` removes everything that it created."""

    def __init__(
        self,
        scenario: Scenario,
        mitigation: Mitigation,
        family: Family,
        cancelled: threading.Event,
        policy: str,
        make_guard: MakeGuard,
    ) -> None:
        self._make_guard = make_guard
        self._cancelled = cancelled
        self._policy = policy
        self._scenario = scenario
        self._mitigation = mitigation
        self._plan = PLANS[family]
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._guard: Guard | None = None
        self._taps: list[Tap] = []
        self._sent: list[Segment] = []
        self._replies: list[str] = []

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
        """Run the trial."""
        stage = self._scenario.build(self._namespace, self._plan)
        install(stage.router, self._plan, self._mitigation, stage.nat)
        if self._mitigation in GUARDED:
            directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY_PREFIX}{os.getpid()}-"))
            self._stack.callback(shutil.rmtree, directory)
            self._guard = self._stack.enter_context(
                self._make_guard(stage.router, self._mitigation, directory, self._policy)
            )
        self._taps = [Tap(link.namespace, link.interface, link.label) for link in stage.links]
        for tap in self._taps:
            self._stack.callback(tap.close)
        with ExitStack() as peers:
            self._converse(stage, peers)
        settle(self._taps, quiet_s=0.01, limit_s=limit(_SETTLE_LIMIT_S))
        dropped = dropped_by_rules(stage.router, self._plan, self._mitigation)
        invalid = counted_invalid(stage.router)
        report = Report(0, 0, ())
        if self._guard:
            self._guard.close()
            report = self._guard.report()
            dropped = report.drops if self._mitigation in ENFORCING else 0
        return self._judge(stage, invalid=invalid, dropped=dropped, report=report)

    def _converse(self, stage: Stage, peers: ExitStack) -> None:
        size = stage.reply_bytes
        server = peers.enter_context(serve(stage.server, *stage.listen_on, size))
        other = None
        if stage.extra_listener:
            other = peers.enter_context(serve(stage.server, *stage.extra_listener, size))
        if self._guard:
            self._guard.wait_until_ready()
        for listener in filter(None, (server, other)):
            wait_for_server(listener)
        self._check_cancelled()
        client = peers.enter_context(
            Client(
                stage.client,
                *stage.connect_to,
                size,
                stage.client_rcvbuf,
                is_fast=stage.is_fast_open,
            )
        )
        self._replies.append(client.connected())
        if self._replies[-1] != "connected":
            return
        answer_limit_s = stage.answer_limit_s or _paced(_ANSWER_LIMIT_S)
        self._replies.append(client.ask(answer_limit_s))
        for step in stage.strays:
            if self._replies[-1] != "answered":
                return
            self._check_cancelled()
            if isinstance(step, Change):
                step.make()
            else:
                self._send(step)
            for _ in range(2):
                if self._replies[-1] == "answered":
                    self._replies.append(client.ask(answer_limit_s))

    def _send(self, stray: strays.Stray) -> None:
        """Send one stray and wait until the segments that it provokes have passed."""
        time.sleep(stray.pause_s)
        settle(self._taps, quiet_s=_paced(_QUIET_S), limit_s=limit(_SETTLE_LIMIT_S))
        tap = next(tap for tap in self._taps if tap.label == stray.tap)
        octets = strays.build(stray, *strays.follow(tap.segments))
        segment = read_segment(octets, time_ns=0, link=stray.tap)
        if segment is not None:
            self._sent.append(segment)
        strays.send(stray.sender, octets)
        settle(self._taps, quiet_s=_paced(_QUIET_S), limit_s=limit(_SETTLE_LIMIT_S))
        if self._guard:
            guard = self._guard
            settle(
                self._taps,
                quiet_s=_paced(_QUIET_S),
                limit_s=limit(_GUARD_LIMIT_S),
                until=lambda: guard.waiting() == 0,
            )
            settle(self._taps, quiet_s=_paced(_QUIET_S), limit_s=limit(_SETTLE_LIMIT_S))

    def _judge(self, stage: Stage, *, invalid: int, dropped: int, report: Report) -> Result:
        passed = sorted((s for tap in self._taps for s in tap.segments), key=lambda s: s.time_ns)
        resets = [s for s in passed if s.is_rst and not self._is_ours(s)]
        leaks = [s for s in passed if s.link == stage.outer and _is_hidden(s, stage)]
        last = self._replies[-1]
        if last == "reset":
            outcome = Outcome.RESET
        elif last == "timeout":
            outcome = Outcome.BLOCKED if dropped else Outcome.STALLED
        else:
            outcome = Outcome.LEAKED if leaks else Outcome.SURVIVED
        expectation = self._scenario.expected(RUNNING_KERNEL)[self._mitigation]
        return Result(
            scenario=self._scenario.name,
            family=self._plan.family,
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

    def _first_stray(self, passed: Sequence[Segment]) -> int:
        for index, segment in enumerate(passed):
            if any(sent.seq == segment.seq for sent in self._sent):
                return index
        return len(passed)

    def _is_ours(self, segment: Segment) -> bool:
        return any(sent.is_rst and sent.seq == segment.seq for sent in self._sent)

    def save(self, keep: Keep) -> None:
        """Write the recordings that `keep` selects."""
        name = f"{self._scenario.name}-{self._mitigation}"
        if self._plan.family == IPV6:
            name += "-ipv6"
        if keep.pcap:
            for tap in self._taps:
                tap.write_pcap(keep.pcap / f"{name}-{tap.label}.pcap")
        if keep.events and self._guard:
            with replacing(keep.events / f"{name}.jsonl") as file:
                file.write(self._guard.log())


def _is_hidden(segment: Segment, stage: Stage) -> bool:
    address, port = segment.src
    return any(
        address == hidden and hidden_port in (None, port) for hidden, hidden_port in stage.hidden
    )
