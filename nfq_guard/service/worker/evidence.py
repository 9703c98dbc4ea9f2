# SPDX-License-Identifier: MIT
"""Keeps the evidence of a served queue up to date: reads the kernel's log, and follows changes."""

from typing import Final, final

from nfq_guard.engine import Engine
from nfq_guard.flows.source import EvidenceSource
from nfq_guard.service.loop import Loop
from nfq_guard.telemetry.events import EvidenceChanged
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats

_FOLLOW_S: Final = 1.0


@final
class EvidenceFollower:
    """Switches the engine of a queue to the evidence that the host offers."""

    def __init__(
        self,
        source: EvidenceSource,
        engine: Engine,
        stats: Stats,
        queue_num: int,
        events: EventLog,
        loop: Loop,
    ) -> None:
        """Record the evidence in `stats`; do nothing else before `begin`.

        Args:
            source: The evidence.
            engine: Judges the packets of the queue.
            stats: The numbers of the queue.
            queue_num: Its number.
            events: The log of events.
            loop: The loop that serves the queue.
        """
        self._source = source
        self._engine = engine
        self._stats = stats
        self._queue_num = queue_num
        self._events = events
        self._loop = loop
        self._lost_before = 0
        self._report()

    def begin(self) -> None:
        """Read the log from the loop, and follow changes of the host."""
        if self._source.log is not None:
            self._loop.watch(self._source.log.fileno(), self._source.log.read)
        self._loop.every(_FOLLOW_S, self._tick)

    def end(self) -> None:
        """Stop reading the log; the source stays open."""
        if self._source.log is not None:
            self._loop.forget_if_watched(self._source.log.fileno())

    def _tick(self, _now: float) -> None:
        source = self._source
        before, flows, log = source.evidence, source.flows, source.log
        source.follow()
        if source.log is not log:
            if log is not None:
                self._loop.forget_if_watched(log.fileno())
                self._lost_before += log.lost
                log.close()
            if source.log is not None:
                self._loop.watch(source.log.fileno(), source.log.read)
        if source.flows is not flows or source.log is not log:
            self._engine.look_up_in(source.flows, source.log)
        self._report()
        if source.evidence is not before:
            self._events.emit(
                EvidenceChanged(
                    queue=self._queue_num,
                    before=before,
                    evidence=source.evidence,
                    evidence_reason=source.reason,
                )
            )

    def _report(self) -> None:
        stats, source = self._stats, self._source
        stats.evidence = source.evidence
        stats.evidence_reason = source.reason
        lost = 0 if source.log is None else source.log.lost
        stats.counters["kernel_log_lost"] = self._lost_before + lost
