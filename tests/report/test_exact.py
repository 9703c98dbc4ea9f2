# SPDX-License-Identifier: MIT
"""The totals of `report` over a recording equal the daemon's live counts."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.report.summary import Counts, Fate, Summary, add_event
from tests.support.policies import Case, tables
from tests.support.recording import CASES, LIMITS, TRAFFIC, Limits, Live, Traffic, compiled


def assert_counted(found: Mapping[str, int], live: Mapping[str, int], missing: int) -> None:
    """All numbers together are short of the live ones by just `missing`, and none is larger."""
    assert found.keys() <= live.keys()
    assert all(found.get(key, 0) <= number for key, number in live.items())
    assert sum(found.values()) + missing == sum(live.values())


@settings(max_examples=40)
@given(
    table=tables(),
    packets=CASES,
    traffic=TRAFFIC,
    limits=LIMITS,
    mode=st.sampled_from([Mode.DRY_RUN, Mode.ENFORCE]),
)
def test_report_equals_the_live_counters(
    table: dict[str, object], packets: list[Case], traffic: Traffic, limits: Limits, mode: Mode
) -> None:
    """To the packet, short of what the limit on all events suppressed, which is counted."""
    live = Live(compiled(table), compiled(table), limits, mode)
    live.run(packets, traffic)
    summary = Summary()
    for read in live.recorded():
        add_event(summary, read)
    missing = live.limiter.suppressed
    counts = summary.counts

    judged = live.stats.judged
    reasons = {reason: counted.packets for reason, counted in summary.reasons.items()}
    assert_counted(
        reasons, {str(reason): sum(actions.values()) for reason, actions in judged.items()}, missing
    )
    rules: Counter[str] = Counter()
    by_action: Counter[str] = Counter()
    for (rule, action), number in summary.rules.items():
        rules[rule] += number
        by_action[action] += number
    assert_counted(rules, live.stats.rules, missing)
    live_actions: Counter[str] = Counter()
    for actions in judged.values():
        live_actions.update(actions)
    assert_counted(by_action, live_actions, missing)

    escaped = live.stats.counters["escaped_packets"] + live.leaks
    for number, number_live in (
        (counts.packets, live.packets),
        (counts.drops, live.drops[0]),
        (counts.fates[Fate.DROPPED], live.drops[0] if mode is Mode.ENFORCE else 0),
        (counts.fates[Fate.ESCAPED], escaped),
        (counts.resets, live.resets.total()),
        *(
            (summary.reasons.get(cause, Counts()).resets, packets)
            for cause, packets in live.resets.items()
        ),
    ):
        assert number_live - missing <= number <= number_live
    live_distances = {
        (bound, bits): number
        for bound, buckets in live.stats.distances.items()
        for bits, number in enumerate(buckets.counts)
    }
    for key, number_live in live_distances.items():
        assert number_live - missing <= summary.distances[key] <= number_live

    # However packets are grouped, none is lost and none is counted twice.
    bars = summary.timeline.bars(60)
    heights = [] if bars is None else bars.heights
    assert [sum(height[fate] for height in heights) for fate in Fate] == pytest.approx(counts.fates)
    assert summary.modes.total() == summary.modes[mode]
    for total in (
        summary.modes.total(),
        sum(counts.fates),
        counts.nats.total(),
        counts.reasons.total(),
        sum(service.packets for service in summary.services.values()),
        sum(flow.counts.packets for flow in summary.flows.values()),
    ):
        assert total == counts.packets
