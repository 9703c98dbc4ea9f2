# SPDX-License-Identifier: MIT
"""Judging a turn's packets so that each has a verdict, also when judging raises.

This holds the one broad `except` of the program: a bug that a packet can reach must not cost
other packets their verdict, nor end the daemon.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, final

from nfq_guard.engine import VERDICT_ACCEPT, VERDICT_DROP, Judgment, Mode
from nfq_guard.wire.packet import Queued

# Places in the code that raised; a bug has one, and nobody has so many bugs.
_SITES_MAX: Final = 64
_SHOWN_OCTETS: Final = 128


class Judge(Protocol):
    """The part of `engine.Engine` that is needed here."""

    mode: Mode

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        """One judgment a packet, in order."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Judging one packet raised.

    Attributes:
        where: File and line of the code that raised.
        problem: The exception, in one line.
        trace: The traceback; empty when this place raised before.
        octets: The packet's first octets, in hex.
        hook: Where it was queued.
    """

    where: str
    problem: str
    trace: str
    octets: str
    hook: int


@final
class SafeJudge:
    """Judges batches; where the engine raises, packet by packet.

    Attributes:
        failures: Packets whose judging raised, since the start.
    """

    def __init__(self, judge: Judge, *, drops: bool, report: Callable[[Failure], None]) -> None:
        """Judge by `judge`.

        Args:
            judge: The engine.
            drops: Whether a packet that cannot be judged is dropped; never in dry-run.
            report: Called once for each place in the code that raised.
        """
        self.failures = 0
        self._judge = judge
        self._drops = drops
        self._report = report
        self._sites: set[str] = set()

    @property
    def fail_verdict(self) -> int:
        """The verdict of a packet that cannot be judged."""
        drops = self._drops and self._judge.mode is Mode.ENFORCE
        return VERDICT_DROP if drops else VERDICT_ACCEPT

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
                octets=queued.octets[:_SHOWN_OCTETS].hex(),
                hook=queued.hook,
            )
        )


def _site(trace: TracebackType | None) -> str:
    """The innermost place of a traceback."""
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
