# SPDX-License-Identifier: MIT
"""One queue's packets, turn by turn: read, judge, answer, and only then tell (design 3)."""

import errno
import time
import traceback
from typing import Final, Protocol, final

from nfq_guard.engine import VERDICT_ACCEPT, Engine, Judgment, Mode
from nfq_guard.flow import Evidence
from nfq_guard.nfqueue.counters import CounterFile, QueueCounters
from nfq_guard.policy.decision import Action
from nfq_guard.policy.shadow import Difference
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.offload import Offloader
from nfq_guard.service.worker.safe_judge import Failure, SafeJudge
from nfq_guard.telemetry.events import EventLog, packet_fields, timestamp
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import Queued

# Seconds between two log lines about failed lookups.
_LOOKUPS_FAILED_EVERY_S: Final = 60.0
# What counts each difference of a policy on trial.
_DIFFERENCES: Final = {
    Difference.ONLY_ACTING_DROPS: "shadow_would_pass",
    Difference.ONLY_SHADOW_DROPS: "shadow_would_drop",
    Difference.OTHER: "shadow_differs_otherwise",
}


class Reader(Protocol):
    """What is needed of `nfqueue.reader.QueueReader`."""

    queue_num: int
    lost: int
    verdict_errors: int

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        """Ids and packets, in order."""

    def forget_names(self) -> None:
        """Look up interface names anew."""


class Verdicts(Protocol):
    """What is needed of `nfqueue.verdicts.VerdictSender`."""

    messages: int

    def send(self, ids: list[int], verdicts: list[int], marks: list[int | None]) -> None:
        """Answer the packets of one turn."""


@final
class Worker:
    """Serves one queue.

    Attributes:
        engine: Its policy and mode may be swapped between two turns.
        stats: The numbers.
        offloader: What leaves repeats to the kernel; None when nothing does.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        verdicts: Verdicts,
        engine: Engine,
        evidence: Evidence,
        events: EventLog,
        sink: LineSink,
        limiter: EventLimiter,
        budget: int,
        drops_failures: bool,
        judged_mark: int,
        history: History | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            reader: Where packets come from.
            verdicts: Where verdicts go.
            engine: What judges them.
            evidence: Where the engine looks flows up.
            events: Where events go.
            sink: The lines under `events`, pushed out once a turn.
            limiter: How many events there may be.
            budget: Packets a turn at most.
            drops_failures: Whether a packet is dropped when judging it raises.
            judged_mark: Mark bits to set on every accepted packet that was judged; 0 for none.
            history: Where events are remembered by flow.
        """
        self.engine = engine
        self.stats = Stats()
        self._reader = reader
        self._verdicts = verdicts
        self._evidence = evidence
        self._events = events
        self._sink = sink
        self._limiter = limiter
        self._budget = budget
        self._judged_mark = judged_mark
        self._history = history
        self._judge = SafeJudge(engine, drops=drops_failures, report=self._report)
        self.offloader: Offloader | None = None
        self._drops_seen = 0
        self._suppressed_seen = 0
        self._lines_seen = 0
        self._lookup_errors_seen = 0
        self._lookup_errors_due = float("-inf")
        try:
            self._counter_file: CounterFile | None = CounterFile()
        except OSError:  # not ours to read; events go without the kernel's counts
            self._counter_file = None

    def process_batch(self) -> int:
        """Answer what waits, up to the budget; how many packets that were."""
        ids, batch = self._reader.drain(self._budget)
        if not ids:
            return 0
        now = time.monotonic()
        judged = self._judge.judge(batch, now=now)
        verdicts: list[int] = []
        marks: list[int | None] = []
        good: list[Judgment] = []
        judged_mark = self._judged_mark
        enforcing = self.engine.mode is Mode.ENFORCE
        for index, judgment in enumerate(judged):
            if judgment is None:
                verdicts.append(self._judge.fail_verdict)
                # The rule that drops what nobody judged must not do so in dry-run.
                harmless = judged_mark and not enforcing
                marks.append(batch[index].mark | judged_mark if harmless else None)
                continue
            verdict = judgment.verdict
            mark = judgment.decision.mark if enforcing else None
            if judged_mark and verdict == VERDICT_ACCEPT:
                mark = (judgment.queued.mark if mark is None else mark) | judged_mark
            verdicts.append(verdict)
            marks.append(mark)
            good.append(judgment)
        self._verdicts.send(ids, verdicts, marks)
        self.stats.counters["packets"] += len(ids)
        self.stats.count(good)
        self._tell(good, now)
        if self.offloader is not None:
            self.offloader.process_batch(good, now)
        return len(ids)

    def tick(self, now: float) -> None:
        """What is done about once a second, whether packets come or not."""
        self._reader.forget_names()
        self._emit(self._limiter.due(now))
        self.refresh()
        if self.offloader is not None:
            self.offloader.tick(now)
        self._tell_lookup_errors(now)
        self._tell_gaps()
        self._sink.push(now)

    def resync_offload(self) -> None:
        """What the kernel does for us was for another mode or policy: take it back."""
        if self.offloader is not None:
            self.offloader.resync(time.monotonic())

    def refresh(self) -> QueueCounters | None:
        """Bring the numbers up to date that others count; the kernel's line if we may read it."""
        if self.offloader is not None:
            self.offloader.refresh()
        counters = self.stats.counters
        reader = self._reader
        counters["verdict_messages"] = self._verdicts.messages
        counters["verdict_errors"] = reader.verdict_errors
        counters["judging_failures"] = self._judge.failures
        counters["lookup_errors"] = self.engine.lookup_errors
        counters["buffer_overruns"] = reader.lost
        counters["events_suppressed"] = self._limiter.suppressed
        counters["log_lines_dropped"] = self._sink.dropped
        counters["log_errors"] = self._sink.errors
        found = self.kernel_counters()
        if found is not None:
            counters["queue_full_drops"] = found.queue_dropped
            counters["buffer_full_drops"] = found.user_dropped
            self.stats.gauges["queue_waiting_packets"] = found.waiting
            self._tell_drops(found)
        return found

    def kernel_counters(self) -> QueueCounters | None:
        """The kernel's own line about this queue; None if it is not to be read."""
        if self._counter_file is None:
            return None
        try:
            return self._counter_file.read(self._reader.queue_num)
        except OSError:
            return None

    def close(self, now: float) -> None:
        """Tell what was still folded, and let go of files."""
        self._emit(self._limiter.rest(now))
        if self.offloader is not None:
            self.offloader.close(now)
        if self._counter_file is not None:
            self._counter_file.close()
            self._counter_file = None

    def _tell(self, judgments: list[Judgment], now: float) -> None:
        shown: list[tuple[Judgment, int]] = []
        for judgment in judgments:
            shadow = judgment.shadow
            if shadow is not None:
                self.stats.counters[_DIFFERENCES[shadow.difference]] += 1
            if judgment.decision.action is not Action.ALLOW or shadow is not None:
                shown += self._limiter.take(judgment, now)
        if shown:
            self._emit(shown)
            self._sink.push(now)

    def _emit(self, shown: list[tuple[Judgment, int]]) -> None:
        if not shown:
            return
        when = timestamp()
        for judgment, count in shown:
            try:
                fields = packet_fields(
                    judgment,
                    mode=self.engine.mode,
                    queue_num=self._reader.queue_num,
                    evidence=self._evidence,
                    when=when,
                )
                self._events.packet(fields, count)
                if self._history is not None:
                    self._history.add(fields, count)
            except Exception as error:  # noqa: BLE001 - an event that fails must not end the guard
                self._failed_event(error)

    def _failed_event(self, error: Exception) -> None:
        """Count it, and show the first with its traceback: it is a bug of ours."""
        counters = self.stats.counters
        counters["event_failures"] += 1
        if counters["event_failures"] == 1:
            trace = "".join(traceback.format_exception(error))
            self._events.error("event_failed", problem=repr(error), traceback=trace)

    def _tell_drops(self, found: QueueCounters) -> None:
        """One event a second at most, and only when the kernel dropped more packets."""
        drops = found.queue_dropped + found.user_dropped
        if drops > self._drops_seen:
            self._events.warning(
                "kernel_dropped_packets",
                queue=self._reader.queue_num,
                queue_full=found.queue_dropped,
                buffer_full=found.user_dropped,
                since_last=drops - self._drops_seen,
                waiting=found.waiting,
            )
        self._drops_seen = drops

    def _tell_lookup_errors(self, now: float) -> None:
        """One event a minute at most, and only when more lookups failed."""
        errors = self.engine.lookup_errors
        if errors == self._lookup_errors_seen or now < self._lookup_errors_due:
            return
        code = self.engine.last_lookup_error
        self._events.warning(
            "lookups_failed",
            queue=self._reader.queue_num,
            lookups=errors - self._lookup_errors_seen,
            last_error=errno.errorcode.get(code, str(code)),
        )
        self._lookup_errors_seen = errors
        self._lookup_errors_due = now + _LOOKUPS_FAILED_EVERY_S

    def _tell_gaps(self) -> None:
        """Say in the log what is not in it; the lines that the log did not take, once it does."""
        suppressed = self._limiter.suppressed
        dropped = self._sink.dropped
        if suppressed > self._suppressed_seen:
            self._events.warning("events_suppressed", packets=suppressed - self._suppressed_seen)
            self._suppressed_seen = suppressed
        if dropped > self._lines_seen and not self._sink.waiting:
            self._events.warning(
                "log_lines_dropped",
                lines=dropped - self._lines_seen,
                last_error=self._sink.last_error,
            )
            self._lines_seen = dropped

    def _report(self, failure: Failure) -> None:
        self._events.error(
            "judging_failed",
            queue=self._reader.queue_num,
            problem=failure.problem,
            where=failure.where,
            hook=failure.hook,
            octets=failure.octets,
            traceback=failure.trace,
        )
