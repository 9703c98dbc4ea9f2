# SPDX-License-Identifier: MIT
"""Random traffic through the parts of a daemon that count and record, without the daemon."""

import io
from collections import Counter
from collections.abc import Iterator

import orjson
from hypothesis import strategies as st

from nfq_guard.engine import VERDICT_ACCEPT, VERDICT_DROP, Judgment, Mode
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence, FlowKey
from nfq_guard.policy.fields import leaks
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policy.shadow import Difference, disagreement
from nfq_guard.resets import Passed
from nfq_guard.service.worker.history import History, Pending
from nfq_guard.telemetry.events import AnsweredPacket, all_fields, timestamp
from nfq_guard.telemetry.limiter import EventLimiter, Fold
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import EventReader, ReadEvent
from nfq_guard.wire.packet import RST, Packet, Segment, flow_key
from tests.support.policies import Case, diagnosed_cases

EPOCH = 1_767_323_045.0

Traffic = list[tuple[int, float]]
Limits = tuple[float, int, int]

# The index of one of a few packets, and the seconds since the previous one.
TRAFFIC = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 0.1, 1.5])), max_size=60)
CASES = st.lists(diagnosed_cases(), min_size=1, max_size=8)
LIMITS = st.tuples(
    st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([1, 3, 1000]), st.sampled_from([1, 3, 4096])
)


def compiled(table: dict[str, object]) -> CompiledPolicy:
    """A policy whose counters are zero."""
    return compile_policy(parse_policy(table, source="test"))


class Live:
    """Counts as a daemon with a policy on trial does, and makes its recording.

    Attributes:
        limiter: Limits the events.
        packets: Packets judged.
        resets: RSTs in answer to another packet, by the reason of that packet.
        leaks: Packets without a flow that passed with a private address.
        drops: Packets that the policy in force drops, and that the one on trial drops.
        differences: Packets on which the two differ.
        stats: The counters of `status`.
        history: The flows of `dump` and `top`.
        flows: Packets of each flow by reason.
        epoch: The time of day at which its monotonic clock was 0; a step of the clock changes it.
    """

    def __init__(
        self,
        acting: CompiledPolicy,
        trial: CompiledPolicy,
        limits: Limits,
        mode: Mode = Mode.DRY_RUN,
    ) -> None:
        interval_s, events_per_s, table_max = limits
        self.limiter = EventLimiter(
            interval_s=interval_s, events_per_s=events_per_s, table_max=table_max
        )
        self.packets = 0
        self.resets: Counter[Reason] = Counter()
        self.leaks = 0
        self.drops = [0, 0]
        self.differences = dict.fromkeys(Difference, 0)
        self.stats = Stats()
        self.history = History()
        self.flows: dict[FlowKey, Counter[str]] = {}
        self.epoch = EPOCH
        self._now = 0.0
        self._acting = acting
        self._trial = trial
        self._mode = mode
        self._lines: list[bytes] = []

    def run(self, packets: list[Case], traffic: Traffic) -> None:
        """Judge the traffic; packets that the limiter holds at the end have no event yet."""
        for number, pause in traffic:
            self._now += pause
            now = self._now
            self._emit(self.limiter.due(now))
            queued, packet, snapshot, finding = packets[number % len(packets)]
            acting = self._acting.decide(queued, packet, snapshot, finding, now)
            other = self._trial.decide(queued, packet, snapshot, finding, now)
            differs = disagreement(acting, other)
            enforced = self._mode is Mode.ENFORCE and acting.drops
            verdict = VERDICT_DROP if enforced else VERDICT_ACCEPT
            judgment = Judgment(queued, packet, snapshot, finding, acting, verdict, shadow=differs)
            l4 = packet.l4 if isinstance(packet, Packet) else None
            cause = finding.reason if self.packets % 3 else Reason.ACK_UNDER
            if number % 2 and isinstance(l4, Segment) and l4.flags & RST:
                judgment.cause = Passed(now, cause, acting.rule)
                self.resets[cause] += 1
            self.packets += 1
            self.leaks += verdict == VERDICT_ACCEPT and leaks(packet, snapshot, finding)
            self.drops[0] += acting.drops
            self.drops[1] += other.drops
            if differs is not None:
                self.differences[differs.difference] += 1
            self.stats.count([judgment])
            self.flows.setdefault(flow_key(packet), Counter())[finding.reason] += 1
            self._emit(self.limiter.take(judgment, now))

    def pending(self) -> list[Pending]:
        """The packets without an event so far."""
        return [
            Pending(
                flow_key(fold.judgment.packet),
                fold.judgment.finding.reason,
                fold.count,
                timestamp(self.epoch + fold.last),
                0 if fold.judgment.cause is None else fold.count,
                fold.last,
            )
            for fold in self.limiter.pending()
        ]

    def lines(self) -> list[bytes]:
        """Every event as the daemon writes it, including those that the limiter still holds."""
        self._emit(self.limiter.rest(EPOCH))
        return self._lines

    def recorded(self) -> Iterator[ReadEvent]:
        """Every event, read back."""
        reader = EventReader()
        yield from reader.read(io.BytesIO(b"".join(self.lines())))
        assert reader.skipped == 0

    def _emit(self, folds: list[Fold]) -> None:
        for fold in folds:
            judgment = fold.judgment
            cause = judgment.cause
            event = packet_judged(
                judgment,
                mode=self._mode,
                queue_num=0,
                evidence=Evidence.BPF,
                when=timestamp(self.epoch + fold.last),
                count=fold.count,
                first=timestamp(self.epoch + fold.first) if fold.count > 1 else None,
                distances=fold.distances,
                caused_by=cause
                and AnsweredPacket(timestamp(self.epoch + cause.at), cause.reason, cause.rule, 0),
            )
            self.history.add(flow_key(judgment.packet), event, fold.last)
            self._lines.append(orjson.dumps(all_fields(event)) + b"\n")
