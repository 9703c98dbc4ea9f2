# SPDX-License-Identifier: MIT
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.wire.packet import Malformed, flow_key
from tests.support.judgments import CLIENT, LOG_REST, SERVER, judgment, segment


def limiter(interval_s: float = 10, events_per_s: int = 1000, table_max: int = 8) -> EventLimiter:
    return EventLimiter(interval_s=interval_s, events_per_s=events_per_s, table_max=table_max)


def test_first_packet_is_logged_and_the_rest_folded() -> None:
    limits = limiter()
    first = judgment()
    assert limits.take(first, 0) == [(first, 1)]
    folded = judgment()
    assert limits.take(folded, 1) == []
    for tick in range(2, 7):
        assert limits.take(judgment(), tick) == []
    assert limits.due(9.9) == []
    ((shown, count),) = limits.due(10)
    assert count == 6
    assert shown is folded
    assert limits.due(30) == []
    again = judgment()
    assert limits.take(again, 31) == [(again, 1)]


def test_late_packet_flushes_folded_packets() -> None:
    """Without a call of `due` in between, as in a busy loop."""
    limits = limiter()
    limits.take(judgment(), 0)
    limits.take(judgment(), 1)
    late = judgment()
    assert limits.take(late, 11) == [(late, 2)]


def test_flows_and_rules_are_limited_separately() -> None:
    limits = limiter()
    assert limits.take(judgment(), 0)
    assert limits.take(judgment(segment(40_001)), 0)
    assert limits.take(judgment(decision=LOG_REST), 0)


def test_both_directions_are_one_flow() -> None:
    there = segment()
    back = segment(src=SERVER, dst=CLIENT)
    back.l4.sport, back.l4.dport = 80, 40_000  # type: ignore[union-attr]  # it is a segment
    assert flow_key(there) == flow_key(back)


def test_malformed_packets_have_a_flow() -> None:
    assert flow_key(Malformed("cut short", 4, CLIENT, SERVER, 6))


def test_table_is_bounded_and_nothing_is_lost() -> None:
    """The flow with the oldest event is evicted first, and its folded packets are logged."""
    limits = limiter(table_max=8)
    limits.take(judgment(segment(1)), 0)
    folded = judgment(segment(1))
    limits.take(folded, 0)
    for port in range(2, 9):
        limits.take(judgment(segment(port)), 0)
    new = judgment(segment(9))
    assert limits.take(new, 0) == [(folded, 1), (new, 1)]
    assert len(limits._flows) == 8  # the bound is on memory, which nothing else shows


def test_forged_flows_cannot_fill_the_log() -> None:
    """Each has a first packet; events beyond the limit of a second are counted."""
    limits = limiter(events_per_s=10)
    shown = [limits.take(judgment(segment(port)), 0.5) for port in range(1000)]
    assert sum(len(one) for one in shown) == 10
    assert limits.suppressed == 990
    assert limits.take(judgment(segment(5000)), 1.5)


def test_interval_of_zero_logs_everything() -> None:
    limits = limiter(interval_s=0)
    assert all(limits.take(judgment(), 0) for _ in range(5))


def test_rest_at_the_end() -> None:
    limits = limiter()
    limits.take(judgment(), 0)
    last = judgment()
    limits.take(last, 1)
    assert limits.rest(2) == [(last, 1)]
    assert limits.rest(2) == []


def test_every_packet_is_accounted_for() -> None:
    limits = limiter(interval_s=3, events_per_s=5, table_max=4)
    shown = 0
    for tick in range(500):
        now = tick / 10
        shown += sum(count for _, count in limits.take(judgment(segment(tick * 7 % 11)), now))
        if tick % 10 == 0:
            shown += sum(count for _, count in limits.due(now))
    shown += sum(count for _, count in limits.rest(1000))
    assert shown + limits.suppressed == 500
