# SPDX-License-Identifier: MIT
from nfq_guard.engine import Judgment
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.policy.shadow import disagreement
from nfq_guard.resets import Passed
from nfq_guard.seqno import seq
from nfq_guard.telemetry.limiter import DISTANCES_MAX, EventLimiter, Fold
from nfq_guard.wire.packet import SYN, Datagram, Malformed, SctpPacket, Segment, flow_key
from tests.support.judgments import (
    CLIENT,
    DROP_TRANSLATED,
    LOG_REST,
    SERVER,
    judgment,
    queued,
    segment,
    snapshot,
)


def limiter(interval_s: float = 10, events_per_s: int = 1000, table_max: int = 8) -> EventLimiter:
    return EventLimiter(interval_s=interval_s, events_per_s=events_per_s, table_max=table_max)


def shown(folds: list[Fold]) -> list[tuple[Judgment, int]]:
    return [(fold.judgment, fold.count) for fold in folds]


def beyond(distance: int) -> Judgment:
    """A packet `distance` octets beyond its bound."""
    made = judgment()
    made.finding = Finding(Reason.SEQ_OVER, Breach(Reason.SEQ_OVER, seq(9), seq(1), distance))
    return made


def test_first_packet_is_logged_and_the_rest_folded() -> None:
    limits = limiter()
    first = judgment()
    assert shown(limits.take(first, 0)) == [(first, 1)]
    folded = judgment()
    assert limits.take(folded, 1) == []
    for tick in range(2, 7):
        assert limits.take(judgment(), tick) == []
    assert limits.due(9.9) == []
    (fold,) = limits.due(10)
    assert (fold.judgment, fold.count) == (folded, 6)
    assert (fold.first, fold.last, fold.distances) == (1, 6, None)
    assert limits.take(judgment(), 11) == [], "another interval has begun"
    assert [fold.count for fold in limits.due(20)] == [1]
    assert limits.due(30) == []
    again = judgment()
    assert shown(limits.take(again, 31)) == [(again, 1)]


def test_late_packet_flushes_folded_packets() -> None:
    """Without a call of `due` in between, as in a busy loop."""
    limits = limiter()
    limits.take(judgment(), 0)
    folded = judgment()
    limits.take(folded, 1)
    late = judgment()
    assert shown(limits.take(late, 11)) == [(folded, 1), (late, 1)]
    assert shown(limits.take(late, 22)) == [(late, 1)]


def test_flows_and_rules_are_limited_separately() -> None:
    limits = limiter()
    assert limits.take(judgment(), 0)
    assert limits.take(judgment(segment(40_001)), 0)
    assert limits.take(judgment(decision=LOG_REST), 0)


def test_packets_that_a_policy_can_tell_apart_are_limited_separately() -> None:
    limits = limiter(table_max=99)
    syn = segment()
    assert isinstance(syn.l4, Segment)
    syn.l4.flags = SYN
    without_data = segment()
    assert isinstance(without_data.l4, Segment)
    without_data.l4.payload_len = 0
    udp = segment()
    udp.proto, udp.l4 = 17, Datagram(40_000, 80, 8, 0)
    udp_with_data = segment()
    udp_with_data.proto, udp_with_data.l4 = 17, Datagram(40_000, 80, 9, 0)
    sctp = segment()
    sctp.proto, sctp.l4 = 132, SctpPacket(40_000, 80, 1, 2, (), whole=True)
    other_port = segment()
    other_port.proto, other_port.l4 = 132, SctpPacket(40_001, 80, 1, 2, (), whole=True)
    protocol = segment()
    protocol.proto, protocol.l4 = 47, None
    dying = snapshot()
    dying.status = 0
    on_trial = judgment()
    on_trial.shadow = disagreement(DROP_TRANSLATED, LOG_REST)
    answers = [judgment() for _ in range(3)]
    answers[0].cause = Passed(0, Reason.SEQ_OVER, "rest")
    answers[1].cause = Passed(0, Reason.ACK_OVER, "rest")
    answers[2].cause = Passed(0, Reason.SEQ_OVER, "other")
    spared = judgment()
    spared.spared = True
    without_numbers = judgment()
    without_numbers.finding = Finding(Reason.SEQ_OVER)
    kinds = [
        judgment(),
        judgment(syn),
        judgment(without_data),
        judgment(udp),
        judgment(udp_with_data),
        judgment(sctp),
        judgment(other_port),
        judgment(protocol),
        judgment(segment(src=SERVER, dst=CLIENT)),
        judgment(Malformed("cut short", 4, CLIENT, SERVER, 6)),
        judgment(reason=Reason.RACED),
        without_numbers,
        judgment(flow=snapshot()),
        judgment(flow=dying),
        judgment(verdict=1),
        judgment(came_as=queued(b"", mark=1)),
        judgment(lookup_error=12),
        on_trial,
        spared,
        *answers,
    ]
    for first in kinds:
        assert shown(limits.take(first, 0)) == [(first, 1)]
    for again in kinds:
        assert limits.take(again, 1) == []
    assert len(limits.rest(2)) == len(kinds)


def test_each_distance_has_its_number_of_packets() -> None:
    limits = limiter()
    limits.take(beyond(7), 0)
    for distance in (7, 7, 9, 7, 9, 1):
        assert limits.take(beyond(distance), 1) == []
    (fold,) = limits.due(10)
    assert fold.count == 6
    assert fold.distances == {7: 3, 9: 2, 1: 1}


def test_more_distances_than_an_event_may_have_begin_another() -> None:
    limits = limiter()
    limits.take(beyond(1), 0)
    events = [fold for distance in range(1, 200) for fold in limits.take(beyond(distance), 1)]
    events += limits.rest(2)
    assert [len(fold.distances or ()) for fold in events] == [DISTANCES_MAX] * 3 + [7]
    assert sum(fold.count for fold in events) == 199


def test_both_directions_are_one_flow() -> None:
    there = segment()
    back = segment(src=SERVER, dst=CLIENT)
    back.l4.sport, back.l4.dport = 80, 40_000  # type: ignore[union-attr]  # it is a segment
    assert flow_key(there) == flow_key(back)


def test_malformed_packets_have_a_flow() -> None:
    assert flow_key(Malformed("cut short", 4, CLIENT, SERVER, 6))


def test_table_is_bounded_and_nothing_is_lost() -> None:
    """The kind with the oldest event is evicted first, and its folded packets are logged."""
    limits = limiter(table_max=8)
    limits.take(judgment(segment(1)), 0)
    folded = judgment(segment(1))
    limits.take(folded, 0)
    for port in range(2, 9):
        limits.take(judgment(segment(port)), 0)
    new = judgment(segment(9))
    assert shown(limits.take(new, 0)) == [(folded, 1), (new, 1)]
    newer = judgment(segment(10))
    assert shown(limits.take(newer, 0)) == [(newer, 1)]
    assert shown(limits.take(folded, 0)) == [(folded, 1)]


def test_forged_flows_cannot_fill_the_log() -> None:
    """Each flow has a first packet; events beyond the limit per second are only counted."""
    limits = limiter(events_per_s=10)
    events = [limits.take(judgment(segment(port)), 0.5) for port in range(1000)]
    assert sum(len(one) for one in events) == 10
    assert limits.suppressed == 990
    assert limits.take(judgment(segment(5000)), 1.5)


def test_interval_of_zero_logs_everything() -> None:
    limits = limiter(interval_s=0)
    assert all(limits.take(judgment(), 0) for _ in range(5))


def test_rest_is_logged_at_the_end() -> None:
    limits = limiter()
    limits.take(judgment(), 0)
    limits.take(judgment(), 1)
    limits.take(judgment(), 2)
    ((_, count),) = shown(limits.rest(3))
    assert count == 2
    assert limits.rest(4) == []


def test_suppressed_events_count_their_packets() -> None:
    limits = limiter(events_per_s=1)
    limits.take(judgment(), 0)
    limits.take(judgment(), 0)
    limits.take(judgment(), 0)
    assert limits.rest(0.5) == []
    assert limits.suppressed == 2
