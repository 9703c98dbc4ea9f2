# SPDX-License-Identifier: MIT
"""What `whatif` says of a recording is what a policy on trial counted live."""

from hypothesis import given

from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.shadow import Difference
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.tally import Tally
from nfq_guard.whatif.trial import Trial
from tests.support.policies import Case, tables
from tests.support.recording import CASES, LIMITS, TRAFFIC, Limits, Live, Traffic, compiled


def asked_again(live: Live, acting: CompiledPolicy, trial: CompiledPolicy) -> Trial:
    """Both policies over the recording."""
    again = Trial([acting, trial])
    for read in live.recorded():
        for packets in recorded(read):
            again.take(packets)
    again.end()
    return again


def pairs(again: Trial, live: Live) -> list[tuple[Tally, int]]:
    """Each tally, with the drops that were counted live."""
    only_a, only_b = again.differences
    return [
        (again.tallies[0], live.drops[0]),
        (again.tallies[1], live.drops[1]),
        (only_a, live.differences[Difference.ONLY_ACTING_DROPS]),
        (only_b, live.differences[Difference.ONLY_SHADOW_DROPS]),
    ]


@given(acting=tables(), trial=tables(), packets=CASES, traffic=TRAFFIC, limits=LIMITS)
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
    again = asked_again(live, compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    assert again.packets + suppressed == live.packets
    for tally, drops in pairs(again, live):
        assert tally.exact
        assert tally.least_drops == tally.drops
        assert drops - suppressed <= tally.drops <= drops


@given(
    acting=tables(with_rates=True),
    trial=tables(with_rates=True),
    packets=CASES,
    traffic=TRAFFIC,
    limits=LIMITS,
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
    again = asked_again(live, compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    for tally, drops in pairs(again, live):
        assert tally.least_drops <= tally.drops <= tally.most_drops
        assert tally.least_drops <= drops <= tally.most_drops + suppressed
