# SPDX-License-Identifier: MIT
"""Rates: windows, keys, and eviction when the table is full."""

import pytest

from nfq_guard.finding import Finding, Reason
from nfq_guard.policy.decision import Action
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.model import PolicyModel, Rate, RateKey, Rule
from nfq_guard.policy.rates import MOST_KEYS, MOST_KEYS_IN_ALL, RateLimit
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, FIN, PSH, Datagram, Malformed, Packet, Segment, flow_key
from tests.support.judgments import queued


def _packet(
    src: bytes = b"\n\0\0\1", dst: bytes = b"\n\0\0\2", sport: int = 5, dport: int = 6
) -> Packet:
    return Packet(4, src, dst, 17, 28, 20, 64, 0, False, Datagram(sport, dport, 8, 0))


def _limit(by: RateKey, *, negated: bool = False, most_keys: int = 4) -> RateLimit:
    return RateLimit(Rate(over=2, in_s=10.0, by=by, negated=negated), most_keys)


def test_window() -> None:
    """Two packets are within the limit, until the window that the first one began has ended."""
    limit = _limit(RateKey.FLOW)
    times = (0.0, 1.0, 9.9, 10.0, 10.1, 10.2, 9.0, 9.1, 9.2)
    # The last three are before the start of the window: a clock that jumps back starts a new one.
    expected = [False, False, True, False, False, True, False, False, True]
    assert [limit.matches(_packet(), now) for now in times] == expected


def test_within_the_limit() -> None:
    limit = _limit(RateKey.FLOW, negated=True)
    assert [limit.matches(_packet(), 0.0) for _ in range(3)] == [True, True, False]


def test_both_directions_are_one_flow() -> None:
    there = _packet()
    back = _packet(src=there.dst, dst=there.src, sport=6, dport=5)
    assert flow_key(there) == flow_key(back)
    assert flow_key(there) != flow_key(_packet(sport=7))


def test_sources_count_all_their_flows() -> None:
    limit = _limit(RateKey.SOURCE)
    assert [limit.matches(_packet(sport=port), 0.0) for port in range(3)] == [False, False, True]
    assert not limit.matches(_packet(src=b"\n\0\0\3"), 0.0)


def test_malformed_packets_count() -> None:
    """Packets whose addresses could not be read count as one source."""
    limit = _limit(RateKey.FLOW)
    assert [limit.matches(Malformed("short"), 0.0) for _ in range(3)] == [False, False, True]


def test_least_recently_seen_is_evicted() -> None:
    """A flood of forged sources evicts counts; it does not fill memory."""
    limit = _limit(RateKey.SOURCE, most_keys=2)
    a, b, c = (_packet(src=bytes([10, 0, 0, number])) for number in (1, 2, 3))
    for packet in (a, b, a, c):
        assert not limit.matches(packet, 0.0)
    assert len(limit._windows) == 2  # the bound is on memory, which nothing else shows
    assert limit.matches(a, 0.0)
    assert not limit.matches(b, 0.0)


@pytest.mark.compiled
@pytest.mark.parametrize("rules", [1, 16, 17, 1000])
def test_all_rules_share_a_bound(rules: int) -> None:
    """A source that comes again within a window is forgotten once too many others came."""
    kept = min(MOST_KEYS, MOST_KEYS_IN_ALL // rules)
    rate = Rate(over=1, in_s=60.0, by=RateKey.SOURCE, negated=False)
    rule = Rule(name="r", key="", source="", action=Action.DROP, rate=rate)
    model = PolicyModel(
        source="", rules=(rule,) * rules, on_unknown=Action.ALLOW, default=Action.ALLOW
    )
    finding = Finding(Reason.NO_ENTRY)
    for others, expected in ((kept - 1, Action.DROP), (kept, Action.ALLOW)):
        policy = compile_policy(model)
        sources = [bytes([10, 0, *divmod(number, 256)]) for number in (0, *range(1, others + 1), 0)]
        decisions = [
            policy.decide(queued(b""), _packet(src=source), None, finding, 0.0)
            for source in sources
        ]
        assert decisions[-1].action is expected


@pytest.mark.parametrize("negated", [False, True])
def test_many_packets_count_as_each_of_them(*, negated: bool) -> None:
    rate = Rate(over=3, in_s=10.0, by=RateKey.SOURCE, negated=negated)
    one_by_one, at_once = RateLimit(rate), RateLimit(rate)
    packet = _packet()
    for count in (1, 4, 2):
        matched = sum(one_by_one.matches(packet, 0.0) for _ in range(count))
        assert at_once.matches_of(packet, 0.0, count) == matched


def _segment(
    number: int = 1, ack: int = 2, flags: int = ACK, length: int = 8, src: bytes = b"\n\0\0\1"
) -> Packet:
    segment = Segment(5, 6, seq(number), seq(ack), flags, 100, length, b"", 0)
    return Packet(4, src, b"\n\0\0\2", 6, 40 + length, 20, 64, 0, False, segment)


@pytest.mark.parametrize(
    "other",
    [
        _segment(number=2),
        _segment(ack=3),
        _segment(flags=ACK | FIN),
        _segment(length=9),
        _segment(src=b"\n\0\0\3"),
        _packet(),
    ],
)
def test_only_copies_are_one_segment(other: Packet) -> None:
    limit = _limit(RateKey.SEGMENT)
    assert [limit.matches(_segment(), 0.0) for _ in range(2)] == [False, False]
    assert not limit.matches(other, 0.0)
    assert limit.matches(_segment(), 0.0)


def test_a_retransmission_may_be_pushed() -> None:
    limit = _limit(RateKey.SEGMENT)
    copies = (_segment(), _segment(flags=ACK | PSH), _segment())
    assert [limit.matches(copy, 0.0) for copy in copies] == [False, False, True]


@pytest.mark.parametrize("packet", [_packet(), Malformed("too short", 4, b"\n\0\0\1", b"\n\0\0\2")])
def test_without_a_segment_the_flow_counts(packet: Packet | Malformed) -> None:
    limit = _limit(RateKey.SEGMENT)
    assert [limit.matches(packet, 0.0) for _ in range(3)] == [False, False, True]
