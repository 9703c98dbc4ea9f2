# SPDX-License-Identifier: MIT
"""Judges a batch so that every packet gets a verdict, even if judging raises an exception.

A bug that a packet triggers must neither end the daemon nor keep other packets without a verdict.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, final

from nfq_guard.engine import Judgment, Mode
from nfq_guard.policy.decision import Policy
from nfq_guard.raw_rules import RawRules
from nfq_guard.service.worker.frames import headers_len
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Malformed, Packet, Queued

# Bounds the set of reported crash sites.
_SITES_MAX: Final = 64
_REPORTED_BYTES: Final = 128


class Judge(Protocol):
    """The part of `engine.Engine` that a worker uses.

    Attributes:
        mode: May be switched between two batches.
        unjudged_mark: Mark bits that the rules set (see `Engine`); may be replaced between two
            batches.
        policy: The acting policy; may be replaced between two batches.
        raw_rules: The host's rules before conntrack (see `Engine`).
        lookup_errors: Flow lookups that failed so far.
        last_lookup_error: The errno of the last of them; 0 before the first.
    """

    mode: Mode
    unjudged_mark: int
    policy: Policy
    raw_rules: RawRules | None
    lookup_errors: int
    last_lookup_error: int

    @property
    def enforced_policy(self) -> Policy | None:
        """The policy whose decisions are carried out; None in dry-run."""

    @property
    def unread_verdict(self) -> int:
        """The verdict of a packet that was queued and never read."""

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        """Judge packets seen at `now`, monotonic seconds; one judgment each, in order."""

    def fail_verdict(self, queued: Queued) -> tuple[int, int | None]:
        """Verdict and mark of a packet whose judging raised; None leaves the mark unchanged."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Judging one packet raised.

    Attributes:
        where: Type of the exception, and file and line of the code that raised it.
        problem: The exception in one line.
        trace: The traceback.
        octets: Its headers, in hex; of headers that cannot be read, the first 60 octets.
        hook: The hook at which it was queued.
    """

    where: str
    problem: str
    trace: str
    octets: str
    hook: int


@final
class SafeJudge:
    """Judges batches; if the engine raises, packet by packet.

    Attributes:
        failures: Packets whose judging raised, since the start.
    """

    def __init__(self, judge: Judge, *, report: Callable[[Failure], None]) -> None:
        """Wrap `judge`.

        Args:
            judge: Judges packets; an exception is a bug.
            report: Called once for each place in the code that raised an exception.
        """
        self.failures = 0
        self._judge = judge
        self._report = report
        self._sites: set[str] = set()

    def judge(self, batch: Sequence[Queued], *, now: float) -> Sequence[Judgment | None]:
        """One judgment a packet, in order; None where judging that packet raised."""
        try:
            return self._judge.judge(batch, now=now)
        except Exception:  # noqa: BLE001 - a bug must not cost other packets their verdict
            return [self._judge_alone(queued, now) for queued in batch]

    def _judge_alone(self, queued: Queued, now: float) -> Judgment | None:
        try:
            return self._judge.judge((queued,), now=now)[0]
        except Exception as error:  # noqa: BLE001 - as above
            self.failures += 1
            self._note(queued, error)
            return None

    def _note(self, queued: Queued, error: Exception) -> None:
        where = f"{type(error).__name__} at {_site(error.__traceback__)}"
        if where in self._sites or len(self._sites) >= _SITES_MAX:
            return
        self._sites.add(where)
        self._report(
            Failure(
                where=where,
                problem=f"{type(error).__name__}: {error}",
                trace="".join(traceback.format_exception(error)),
                octets=_headers(queued).hex(),
                hook=queued.hook,
            )
        )


def _headers(queued: Queued) -> bytes:
    """What the event may have of the packet: no payload."""
    packet: Packet | Malformed
    try:
        packet = decode(queued.octets, queued.wire_len)
    except Exception:  # noqa: BLE001 - the bug may be in the decoder
        packet = Malformed("")
    return queued.octets[: min(headers_len(packet, queued.octets), _REPORTED_BYTES)]


def _site(trace: TracebackType | None) -> str:
    """File and line where a traceback ends."""
    if trace is None:
        return "an unknown line"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
