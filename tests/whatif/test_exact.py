# SPDX-License-Identifier: MIT
"""What `whatif` says of a recording is what a policy on trial counted live."""

import io

import orjson
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.engine import VERDICT_ACCEPT, Judgment, Mode
from nfq_guard.flow import Evidence
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policy.shadow import Difference, disagreement
from nfq_guard.telemetry.events import all_fields, timestamp
from nfq_guard.telemetry.limiter import EventLimiter, Fold
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.trial import Trial
from tests.support.policies import Case, diagnosed_cases, tables

_EPOCH = 1_767_323_045.0

Traffic = list[tuple[int, float]]
Limits = tuple[float, int, int]

# Which of a few packets comes, and the time since the one before.
_TRAFFIC = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 0.1, 1.5])), max_size=60)
_CASES = st.lists(diagnosed_cases(), min_size=1, max_size=8)
_LIMITS = st.tuples(
    st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([1, 3, 1000]), st.sampled_from([1, 3, 4096])
)


class Live:
    """Counts what a daemon with a policy on trial counts, and makes its recording."""

    def __init__(self, acting: CompiledPolicy, trial: CompiledPolicy, limits: Limits) -> None:
        interval_s, events_per_s, table_max = limits
        self.acting = acting
        self.trial = trial
        self.limiter = EventLimiter(
            interval_s=interval_s, events_per_s=events_per_s, table_max=table_max
        )
        self.packets = 0
        self.drops = [0, 0]
        self.differences = dict.fromkeys(Difference, 0)
        self.lines: list[bytes] = []

    def run(self, packets: list[Case], traffic: Traffic) -> None:
        now = 0.0
        for number, pause in traffic:
            now += pause
            self._emit(self.limiter.due(now))
            queued, packet, snapshot, finding = packets[number % len(packets)]
            acting = self.acting.decide(queued, packet, snapshot, finding, now)
            other = self.trial.decide(queued, packet, snapshot, finding, now)
            differs = disagreement(acting, other)
            self.packets += 1
            self.drops[0] += acting.drops
            self.drops[1] += other.drops
            if differs is not None:
                self.differences[differs.difference] += 1
            judgment = Judgment(
                queued, packet, snapshot, finding, acting, VERDICT_ACCEPT, shadow=differs
            )
            self._emit(self.limiter.take(judgment, now))
        self._emit(self.limiter.rest(now))

    def _emit(self, folds: list[Fold]) -> None:
        for fold in folds:
            event = packet_judged(
                fold.judgment,
                mode=Mode.DRY_RUN,
                queue_num=0,
                evidence=Evidence.BPF,
                when=timestamp(_EPOCH + fold.last),
                count=fold.count,
                first=timestamp(_EPOCH + fold.first) if fold.count > 1 else None,
                distances=fold.distances,
            )
            self.lines.append(orjson.dumps(all_fields(event)) + b"\n")

    def asked_again(self, acting: CompiledPolicy, trial: CompiledPolicy) -> Trial:
        again = Trial([acting, trial])
        reader = EventReader()
        for read in reader.read(io.BytesIO(b"".join(self.lines))):
            for packets in recorded(read):
                again.take(packets)
        assert reader.skipped == 0
        again.end()
        return again


def compiled(table: dict[str, object]) -> CompiledPolicy:
    """A policy that has counted nothing yet."""
    return compile_policy(parse_policy(table, source="test"))


@given(acting=tables(), trial=tables(), packets=_CASES, traffic=_TRAFFIC, limits=_LIMITS)
def test_whatif_equals_the_live_counters(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    traffic: Traffic,
    limits: Limits,
) -> None:
    """To the packet, short of what the limit on all events suppressed, which is counted."""
    live = Live(compiled(acting), compiled(trial), limits)
    live.run(packets, traffic)
    again = live.asked_again(compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    assert again.packets + suppressed == live.packets
    only_a, only_b = again.differences
    counted = [
        (again.tallies[0], live.drops[0]),
        (again.tallies[1], live.drops[1]),
        (only_a, live.differences[Difference.ONLY_ACTING_DROPS]),
        (only_b, live.differences[Difference.ONLY_SHADOW_DROPS]),
    ]
    for tally, drops in counted:
        assert tally.exact
        assert tally.least_drops == tally.drops
        assert drops - suppressed <= tally.drops <= drops


@given(
    acting=tables(with_rates=True),
    trial=tables(with_rates=True),
    packets=_CASES,
    traffic=_TRAFFIC,
    limits=_LIMITS,
)
def test_estimates_are_within_their_bounds(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    traffic: Traffic,
    limits: Limits,
) -> None:
    """A rate depends on times that a recording does not have."""
    live = Live(compiled(acting), compiled(trial), limits)
    live.run(packets, traffic)
    again = live.asked_again(compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    only_a, only_b = again.differences
    counted = [
        (again.tallies[0], live.drops[0]),
        (again.tallies[1], live.drops[1]),
        (only_a, live.differences[Difference.ONLY_ACTING_DROPS]),
        (only_b, live.differences[Difference.ONLY_SHADOW_DROPS]),
    ]
    for tally, drops in counted:
        assert tally.least_drops <= tally.drops <= tally.most_drops
        assert tally.least_drops <= drops <= tally.most_drops + suppressed
