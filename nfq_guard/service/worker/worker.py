# SPDX-License-Identifier: MIT
"""One queue's packets, batch by batch: read, judge, send verdicts, and only then log.

A verdict never waits for a log, a metric, a heal or the offload.
"""

import errno
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Protocol, final

from nfq_guard.engine import VERDICT_DROP, Judgment, Mode
from nfq_guard.flow import Evidence, FlowKey
from nfq_guard.nfqueue.counters import CounterFile, QueueCounters
from nfq_guard.policy.decision import Action, Policy
from nfq_guard.policy.shadow import Difference
from nfq_guard.raw_rules import RawRules
from nfq_guard.resets import Passed, Resets
from nfq_guard.service.ledger import PAGE_BYTES, Left, Page
from nfq_guard.service.worker.heal import Healer
from nfq_guard.service.worker.history import Pending
from nfq_guard.service.worker.offload import Offloader
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.service.worker.safe_judge import Failure, Judge, SafeJudge
from nfq_guard.telemetry.events import (
    AllowedUnrecorded,
    AnsweredPacket,
    EventFailed,
    EventsSuppressed,
    JudgingFailed,
    KernelDroppedPackets,
    LookupsFailed,
    PacketJudged,
    PacketsUnjudged,
    PacketsUnrecorded,
    Pod,
    exception_texts,
    timestamp,
)
from nfq_guard.telemetry.limiter import EventLimiter, Fold
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import LONGEST, Stats
from nfq_guard.telemetry.packet_event import packet_judged, with_pods
from nfq_guard.wire.packet import RST, Packet, Queued, Segment, flow_key

# Minimum time between two log lines about failed lookups, seconds.
_LOG_LOOKUP_ERRORS_S: Final = 60.0
# Minimum time between two log lines about packets without an event because of a limit, seconds.
_LOG_SUPPRESSED_S: Final = 60.0
# Minimum time between two log lines about allowed packets without an event, seconds.
_LOG_UNRECORDED_S: Final = 60.0
# A queue whose last id has not changed for this time, in seconds, has no packet in transit.
_QUIET_S: Final = 0.1
# Consecutive readings of the two clocks differ by less, unless the clock was set.
_SAME_EPOCH_S: Final = 0.001
_ID_MASK: Final = 0xFFFFFFFF
# Events that are written before the next packets are judged.
_SLICE: Final = 64
# One batch in so many is timed: a single packet costs a tenth less without timing.
_SAMPLED: Final = 8
# Counters of the ways in which a policy on trial differs from the acting one.
_DIFFERENCES: Final = {
    Difference.ONLY_ACTING_DROPS: "shadow_would_pass",
    Difference.ONLY_SHADOW_DROPS: "shadow_would_drop",
    Difference.OTHER: "shadow_differs_otherwise",
}


class Reader(Protocol):
    """The part of `nfqueue.reader.QueueReader` that a worker uses."""

    queue_num: int
    taken_over: bool
    lost: int
    wants_stamp: bool
    stamp_us: int
    verdict_errors: int
    unread: int
    missing: int
    last_id: int

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        """Read at most `budget` packets; returns ids and packets, in the order of the queue."""

    def forget_names(self) -> None:
        """Forget the cached names of interfaces."""


class Verdicts(Protocol):
    """The part of `nfqueue.verdicts.VerdictSender` that a worker uses."""

    messages: int

    def send(self, ids: list[int], verdicts: list[int], marks: list[int | None]) -> None:
        """Send the verdicts of one batch; None leaves a packet's mark unchanged."""

    def send_up_to(self, last: int, verdict: int) -> None:
        """Send one verdict for all waiting packets with an id up to `last`."""


class FlowHistory(Protocol):
    """The part of `history.History` that a worker uses."""

    def add(self, key: FlowKey, event: PacketJudged, at: float) -> None:
        """Add one event of the flow `key`, whose last packet was judged `at` monotonic seconds."""


@final
class Worker:
    """Processes the packets of one queue.

    Attributes:
        stats: The numbers of this queue.
        unheard: Whether the process that writes what this one logs has ended.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        verdicts: Verdicts,
        judge: Judge,
        stats: Stats,
        events: EventLog,
        limiter: EventLimiter,
        budget: int,
        history: FlowHistory | None = None,
        log_allowed: bool = False,
        offloader: Offloader | None = None,
        ring: PacketRing | None = None,
        healer: Healer | None = None,
        counter_file: CounterFile | None = None,
        page: Page | None = None,
        left: Left | None = None,
    ) -> None:
        """Read no packet before `process_batch`.

        Args:
            reader: Reads packets from the queue.
            verdicts: Sends verdicts to the kernel.
            judge: Judges the packets; its mode and policy may change between two batches.
            stats: Holds the counters of the queue.
            events: The log of events.
            limiter: Limits the events of packets.
            budget: Maximum number of packets in one batch.
            history: Keeps the last events of each flow; None to keep none.
            log_allowed: Whether packets that the policy allows have events.
            offloader: Has the kernel drop floods; None without offload.
            ring: Keeps the last packets; None to keep none.
            healer: Heals flows; None if that is not possible.
            counter_file: The kernel's counters, closed by `close`; None for those of this thread's
                network namespace.
            page: Has the number of packets without a record in case this process is killed; None
                for nowhere.
            left: What an earlier process of this queue left there; its events are held already.
        """
        self.stats = stats
        self.unheard = False
        self._reader = reader
        self._verdicts = verdicts
        self._judge = judge
        self._safe_judge = SafeJudge(judge, report=self._report)
        self._events = events
        self._epoch = 0.0
        self._limiter = limiter
        self._budget = budget
        self._history = history
        self._offloader = offloader
        self._ring = ring
        self._healer = healer
        self._log_allowed = log_allowed
        self._pods: Mapping[bytes, Pod] | None = None
        self._resets = Resets()
        self._until_sample = _SAMPLED
        # Where the flows of the packets that the limiter holds were looked up.
        self._evidence = stats.evidence
        self._allowed = 0
        self._log_unrecorded_at = float("-inf")
        self._last_id = 0
        self._quiet_since = time.monotonic()
        self._logged_suppressed = 0
        self._logged_file_full = 0
        self._log_suppressed_at = float("-inf")
        self._logged_unread = 0
        self._logged_failures = 0
        self._logged_lookup_errors = 0
        self._log_lookup_errors_at = float("-inf")
        self._counter_file = counter_file or _readable_counters()
        # The kernel counts since the queue was bound, and the daemon that bound it has logged that.
        earlier = self.kernel_counters() if reader.taken_over else None
        self._user_dropped_before = 0 if earlier is None else earlier.user_dropped
        self._logged_drops = 0 if earlier is None else _drops(earlier)
        if left is not None and earlier is not None and left.port_id == earlier.port_id:
            self._logged_drops = left.drops  # it was killed before it logged the others
        self._left = left
        # Packets that neither have an event nor are counted by one so far.
        self._unstated = 0 if left is None else left.unrecorded + left.judging
        self._page = Page(bytearray(PAGE_BYTES)) if page is None else page
        if left is None:
            self._page.judged(0)
        else:
            self._page.resume(left)  # should this one be killed too

    def keep_unreported(self) -> None:
        """Keep in the page what is judged between two calls of `reported`."""
        self.stats.also = self._page

    def reported(self) -> None:
        """Note that the numbers in `stats` were reported."""
        self._page.reported(self.stats.counters["packets"])

    @property
    def mode(self) -> Mode:
        """The mode in which the next packet is judged."""
        return self._judge.mode

    @property
    def unjudged_mark(self) -> int:
        """The mark bits that accepted packets lose."""
        return self._judge.unjudged_mark

    def set_mode(self, mode: Mode, unjudged_mark: int) -> None:
        """Switch the mode, and the mark that the rules set, between two batches."""
        self._emit_folded()
        self._judge.unjudged_mark = unjudged_mark
        self._judge.mode = mode
        self.stats.gauges["enforcing"] = float(mode is Mode.ENFORCE)
        self._resync()

    def set_raw_rules(self, rules: RawRules | None) -> None:
        """Allow packets that these rules before conntrack hide, from the next batch on."""
        self._emit_folded()
        self._judge.raw_rules = rules
        self._resync()

    def adopt(self, policy: Policy) -> None:
        """Judge by another policy from the next batch on."""
        self._emit_folded()
        self._judge.policy = policy
        self._resync()

    def set_pods(self, pods: Mapping[bytes, Pod]) -> None:
        """Name the pods at the ends of packets, by the octets of addresses, in events."""
        self._pods = pods

    def process_batch(self) -> int:
        """Judge at most `budget` waiting packets and send their verdicts. Returns their number."""
        ids, batch = self._reader.drain(self._budget)
        if not ids:
            return 0
        if self._reader.unread > 0:
            self._answer_unread(self._reader.unread)
        self._page.judging(len(ids))
        now = time.monotonic()
        judged = self._safe_judge.judge(batch, now=now)
        verdicts: list[int] = []
        marks: list[int | None] = []
        judgments: list[Judgment] = []
        for index, judgment in enumerate(judged):
            if judgment is None:
                verdict, mark = self._judge.fail_verdict(batch[index])
            else:
                verdict = judgment.verdict
                mark = judgment.mark
                judgments.append(judgment)
            verdicts.append(verdict)
            marks.append(mark)
        self._verdicts.send(ids, verdicts, marks)
        self._until_sample -= 1
        if self._until_sample <= 1:
            self._sample_times(now, len(ids))
        if self._healer is not None:
            self._healer.process_batch(judgments, now)
        self._unstated += len(ids)
        self.stats.counters["packets"] += len(ids)
        self.stats.count(judgments)
        self._log_judgments(judgments, now)
        self._page.judged(self.unrecorded())  # right behind the write of its events
        if self._ring is not None:
            self._ring.add(judgments, now)
        if self._offloader is not None:
            self._offloader.process_batch(judgments, now)
        return len(ids)

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second."""
        self._reader.forget_names()
        if self._reader.unread < 0:
            self._look_for_unread()
        self._log_left()
        self._emit_between(self._limiter.due(now))
        self.refresh()
        if self._offloader is not None:
            self._offloader.tick(now)
        if self._healer is not None:
            self._healer.tick(now)
        self._log_unjudged()
        self._log_lookup_errors(now)
        if now >= self._log_unrecorded_at:
            self._log_unrecorded(now)
        if now >= self._log_suppressed_at:
            self._log_suppressed(now)
        self._events.log_lost(now)
        self._events.push(now)
        self._page.judged(self.unrecorded())

    def _look_for_unread(self) -> None:
        """Send verdicts for what a killed daemon had read, even without a later packet."""
        kernel = self.kernel_counters()
        # The id of the next packet that can be read shows how many could not.
        if not self.process_batch() and kernel is not None and kernel.waiting:
            self._answer_unread(kernel.last_id)

    def _answer_unread(self, last: int) -> None:
        """Send verdicts for unread packets up to `last`, before a batch verdict covers them."""
        reader = self._reader
        reader.unread = 0
        if (last - reader.last_id) & _ID_MASK <= _ID_MASK >> 1:  # it is not before
            reader.last_id = last
        before = self.kernel_counters()
        self._verdicts.send_up_to(last, self._judge.unread_verdict)
        after = self.kernel_counters()
        if before is not None and after is not None:
            came = (after.last_id - before.last_id) & _ID_MASK
            answered = max(0, before.waiting + came - after.waiting)
            self.stats.counters["unread_packets"] += answered
            self._unstated += answered

    def refresh(self) -> QueueCounters | None:
        """Copy the counters of the kernel and of the parts into `stats`.

        Returns the kernel's counters of this queue; None if they cannot be read.
        """
        if self._offloader is not None:
            self._offloader.refresh()
        counters = self.stats.counters
        reader = self._reader
        counters["verdict_messages"] = self._verdicts.messages
        counters["verdict_errors"] = reader.verdict_errors
        counters["judging_failures"] = self._safe_judge.failures
        counters["lookup_errors"] = self._judge.lookup_errors
        counters["buffer_overruns"] = reader.lost
        counters["events_suppressed"] = self._limiter.suppressed + self._unrecorded
        counters["log_lines_dropped"] = self._events.dropped
        counters["log_errors"] = self._events.errors
        kernel = self.kernel_counters()
        if kernel is not None:
            counters["queue_full_drops"] = kernel.queue_dropped
            counters["buffer_full_drops"] = kernel.user_dropped
            self._count_passed(kernel)
            self.stats.gauges["queue_waiting_packets"] = kernel.waiting
            self._log_drops(kernel)
        return kernel

    def kernel_counters(self) -> QueueCounters | None:
        """The kernel's counters of this queue; None if they cannot be read."""
        if self._counter_file is None:
            return None
        try:
            return self._counter_file.read(self._reader.queue_num)
        except OSError:
            return None

    def unbinds(self, *, drops_waiting: bool) -> None:
        """Note how many packets of the rules the queue has taken; it is unbound next.

        Args:
            drops_waiting: Whether the fail mode drops packets, as the kernel drops those that
                wait: the next daemon counts them.
        """
        kernel = self.kernel_counters()
        if kernel is None:
            self._page.numbered(None)
            return
        left = kernel.waiting if drops_waiting else 0
        self._page.numbered(kernel.last_id + kernel.queue_dropped - left)

    def pending(self) -> list[Pending]:
        """The packets whose event is not due yet, because it will stand for several."""
        epoch = self._epoch = _epoch(self._epoch)
        return [
            Pending(
                flow_key(fold.judgment.packet),
                fold.judgment.finding.reason,
                fold.count,
                timestamp(epoch + fold.last),
                0 if fold.judgment.cause is None else fold.count,
                fold.last,
            )
            for fold in self._limiter.pending()
        ]

    def unrecorded(self) -> int:
        """The judged packets that neither have an event nor are counted by one so far."""
        return self._unstated + self._unrecorded - self._logged_file_full

    def _stated(self, packets: int) -> None:
        """Note that packets have an event or are counted by one."""
        if not self.unheard:
            self._unstated -= packets

    def close(self, now: float) -> None:
        """Log what the limiter still holds, undo offloads and heals, and close files."""
        self._log_left()
        self._emit(self._limiter.rest(now), self._evidence)
        self._log_unjudged()
        self._log_unrecorded(now)
        self._log_suppressed(now)
        if self._healer is not None:
            self._healer.close()
        if self._offloader is not None:
            self._offloader.close(now)
        self._events.push(now)
        self._events.log_lost(now, ending=True)
        self._page.judged(self.unrecorded())
        self.stats.counters["log_lines_dropped"] = self._events.dropped
        self.stats.counters["log_errors"] = self._events.errors
        if self._counter_file is not None:
            self._counter_file.close()
            self._counter_file = None

    def _sample_times(self, read_at: float, packets: int) -> None:
        """Record the judging time and, if known, the waiting time of the first packet.

        The batch before a timed one makes the reader extract the next timestamp. The waiting time
        ends when the batch is read, so it excludes judging.
        """
        reader = self._reader
        if self._until_sample == 1:
            reader.wants_stamp = True
            return
        self._until_sample = _SAMPLED
        reader.wants_stamp = False
        took_us = int((time.monotonic() - read_at) * 1e6)
        self.stats.judge_us.add(took_us, packets)
        stamp_us = reader.stamp_us
        if stamp_us:
            now_us = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000
            waited_us = now_us - took_us - stamp_us
            self.stats.queue_us.add(min(max(0, waited_us), LONGEST), 1)

    def _resync(self) -> None:
        """Undo offloads and heals that another mode, policy or raw rules asked for."""
        if self._offloader is not None:
            self._offloader.resync(time.monotonic())
        if self._healer is not None:
            self._healer.resync()

    def _log_judgments(self, judgments: list[Judgment], now: float) -> None:
        if self.stats.evidence is not self._evidence:
            self._emit(self._limiter.rest(now), self._evidence)
            self._events.push(now)
            self._evidence = self.stats.evidence
        due: list[Fold] = []
        for judgment in judgments:
            shadow = judgment.shadow
            if shadow is not None:
                self.stats.counters[_DIFFERENCES[shadow.difference]] += 1
            self._link_reset(judgment, now)
            if (
                self._log_allowed
                or shadow is not None
                or judgment.cause is not None
                or judgment.decision.action is not Action.ALLOW
            ):
                due += self._limiter.take(judgment, now)
            else:
                self._allowed += 1
        if due:
            self._emit(due, self._evidence)
            self._events.push(now)

    def _link_reset(self, judgment: Judgment, now: float) -> None:
        """Remember an accepted packet; find the packet that an RST answers."""
        packet = judgment.packet
        if not isinstance(packet, Packet):
            return
        segment = packet.l4
        if not isinstance(segment, Segment):
            return
        if segment.flags & RST:
            judgment.cause = self._resets.cause_of(packet, segment, now)
            if judgment.cause is not None:
                self.stats.counters["caused_resets"] += 1
        elif judgment.verdict != VERDICT_DROP:
            passed = Passed(now, judgment.finding.reason, judgment.decision.rule)
            self._resets.add(packet, segment, passed)

    def _emit_folded(self) -> None:
        """Emit what the limiter holds, before what judges the packets changes."""
        self._emit_between(self._limiter.rest(time.monotonic()))
        # And what was judged between the slices.
        self._emit(self._limiter.rest(time.monotonic()), self._evidence)
        self._push_stated()

    def _emit_between(self, due: list[Fold]) -> None:
        """Emit in slices, with packets in between: a thousand events take tens of milliseconds."""
        evidence = self._evidence
        for begin in range(0, len(due), _SLICE):
            if begin:
                self._push_stated()
                self.process_batch()
            self._emit(due[begin : begin + _SLICE], evidence)
        if due:
            self._push_stated()

    def _push_stated(self) -> None:
        """Write events, and say that their packets have one: together, should a kill follow."""
        self._events.push(time.monotonic())
        self._page.judged(self.unrecorded())

    def _emit(self, due: list[Fold], evidence: Evidence) -> None:
        """Emit events; `evidence` is where the flows of their packets were looked up."""
        if not due:
            return
        epoch = self._epoch = _epoch(self._epoch)
        for fold in due:
            judgment = fold.judgment
            self._stated(fold.count)
            try:
                event = packet_judged(
                    judgment,
                    mode=self._judge.mode,
                    queue_num=self._reader.queue_num,
                    evidence=evidence,
                    when=timestamp(epoch + fold.last),
                    count=fold.count,
                    first=timestamp(epoch + fold.first) if fold.count > 1 else None,
                    distances=fold.distances,
                    caused_by=_answered(fold, epoch),
                )
                if self._pods is not None:
                    event = with_pods(event, judgment, self._pods)
                self._events.emit(event)
                if self._history is not None:
                    self._history.add(flow_key(judgment.packet), event, fold.last)
            except Exception as error:  # noqa: BLE001 - a failed event must not end the daemon
                self._failed_event(error)

    def _failed_event(self, error: Exception) -> None:
        """Count an event that failed because of a bug; log the first with its traceback."""
        counters = self.stats.counters
        counters["event_failures"] += 1
        if counters["event_failures"] == 1:
            _, trace = exception_texts(error)
            self._events.emit(EventFailed(problem=repr(error), traceback=trace))

    def _count_passed(self, kernel: QueueCounters) -> None:
        """Count packets that got an id but were neither read nor dropped, and so passed unjudged.

        The gap after the last read packet shows only in the kernel's last id, once no packet is in
        transit.
        """
        missing = self._reader.missing
        now = time.monotonic()
        if kernel.last_id != self._last_id or kernel.waiting:
            self._last_id = kernel.last_id
            self._quiet_since = now
        elif self._reader.unread >= 0 and now - self._quiet_since >= _QUIET_S:
            missing += (kernel.last_id - self._reader.last_id) & _ID_MASK
        counters = self.stats.counters
        passed = missing - (kernel.user_dropped - self._user_dropped_before)
        counters["buffer_full_passes"] = max(counters["buffer_full_passes"], passed)

    def _log_drops(self, kernel: QueueCounters) -> None:
        """Log packets that the kernel dropped since the last call, if any."""
        drops = _drops(kernel)
        if drops > self._logged_drops:
            self._events.emit(
                KernelDroppedPackets(
                    queue=self._reader.queue_num,
                    queue_full=kernel.queue_dropped,
                    buffer_full=kernel.user_dropped,
                    since_last=drops - self._logged_drops,
                    waiting=kernel.waiting,
                )
            )
        self._logged_drops = drops
        self._page.dropped(kernel.port_id, drops)

    def _log_left(self) -> None:
        """Log the packets that an earlier process of this queue did not record, once."""
        left = self._left
        if left is None:
            return
        self._left = None
        # Of the packets that it was judging, those without a verdict have got one from this daemon.
        unread = min(left.judging, self.stats.counters["unread_packets"])
        packets = left.unrecorded + left.judging - unread
        if packets:
            self._events.emit(PacketsUnrecorded(queue=self._reader.queue_num, packets=packets))
        self._stated(left.unrecorded + left.judging)

    def _log_unjudged(self) -> None:
        """Log packets that got the verdict of the fail mode since the last call, if any."""
        counters = self.stats.counters
        unread = counters["unread_packets"] - self._logged_unread
        failed = self._safe_judge.failures - self._logged_failures
        if unread or failed:
            self._events.emit(
                PacketsUnjudged(queue=self._reader.queue_num, unread=unread, failed=failed)
            )
        self._stated(unread + failed)
        self._logged_unread += unread
        self._logged_failures += failed

    def _log_lookup_errors(self, now: float) -> None:
        """Log lookups that failed since the last such line, at most once a minute."""
        errors = self._judge.lookup_errors
        if errors == self._logged_lookup_errors or now < self._log_lookup_errors_at:
            return
        code = self._judge.last_lookup_error
        self._events.emit(
            LookupsFailed(
                queue=self._reader.queue_num,
                lookups=errors - self._logged_lookup_errors,
                last_error=errno.errorcode.get(code, str(code)),
            )
        )
        self._logged_lookup_errors = errors
        self._log_lookup_errors_at = now + _LOG_LOOKUP_ERRORS_S

    def _log_unrecorded(self, now: float) -> None:
        """Log the number of packets that were allowed without an event since the last such line."""
        if self._allowed:
            self._events.emit(AllowedUnrecorded(packets=self._allowed))
            self._stated(self._allowed)
            self._allowed = 0
        self._log_unrecorded_at = now + _LOG_UNRECORDED_S

    def _log_suppressed(self, now: float) -> None:
        """Log the number of packets without an event because of a limit."""
        suppressed = self._limiter.suppressed
        file_full = self._unrecorded
        by_rate = suppressed - self._logged_suppressed
        by_size = file_full - self._logged_file_full
        if by_rate:
            self._events.emit(EventsSuppressed(packets=by_rate))
        if by_size:
            self._events.emit(EventsSuppressed(packets=by_size, file_full=True))
        if by_rate or by_size:
            self._log_suppressed_at = now + _LOG_SUPPRESSED_S
        self._stated(by_rate)
        self._logged_suppressed = suppressed
        self._logged_file_full = file_full

    @property
    def _unrecorded(self) -> int:
        """Packets without an event because the events file had reached its maximum size."""
        recording = self._events.recording
        return 0 if recording is None else recording.suppressed

    def _report(self, failure: Failure) -> None:
        self._events.emit(
            JudgingFailed(
                queue=self._reader.queue_num,
                problem=failure.problem,
                where=failure.where,
                hook=failure.hook,
                octets=failure.octets,
                traceback=failure.trace,
            )
        )


def _epoch(before: float) -> float:
    """The zero of the monotonic clock, in seconds of the time of day.

    It stays `before` unless the clock was set, so that all events give a packet the same time.
    """
    epoch = datetime.now(UTC).timestamp() - time.monotonic()
    return before if abs(epoch - before) < _SAME_EPOCH_S else epoch


def _answered(fold: Fold, epoch: float) -> AnsweredPacket | None:
    """The packet that the first RST of an event answers; `epoch` is the zero of the clock."""
    cause = fold.judgment.cause
    if cause is None:
        return None
    delay_us = round((fold.first - cause.at) * 1_000_000)
    return AnsweredPacket(timestamp(epoch + cause.at), cause.reason, cause.rule, delay_us)


def _drops(kernel: QueueCounters) -> int:
    """Packets that the kernel dropped since the queue was bound."""
    return kernel.queue_dropped + kernel.user_dropped


def _readable_counters() -> CounterFile | None:
    """The kernel's counters; None if this user cannot read them, and events lack them."""
    try:
        return CounterFile()
    except OSError:
        return None
