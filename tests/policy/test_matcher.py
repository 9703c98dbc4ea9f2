# SPDX-License-Identifier: MIT
"""The compiled policy decides as one that is interpreted rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Hook
from nfq_guard.policy.matcher import MOST_REMEMBERED, compile_policy, matches_name
from nfq_guard.policy.model import Pattern
from nfq_guard.policy.parse import parse_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import (
    ACK,
    Datagram,
    IcmpMessage,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)
from tests.support.policies import Case, Interpreter, cases, tables


@pytest.mark.compiled
@given(table=tables(), packets=st.lists(cases(), min_size=1, max_size=8))
def test_compiled_and_interpreted_agree(table: dict[str, object], packets: list[Case]) -> None:
    model = parse_policy(table, source="test")
    policy = compile_policy(model)
    interpreter = Interpreter(table, model)
    for case in packets:
        decision = policy.decide(*case, 0.0)
        assert (decision.action, decision.rule) == interpreter.decide(case, 0.0)


@pytest.mark.compiled
@given(
    table=tables(with_rates=True),
    packets=st.lists(cases(), min_size=1, max_size=3),
    order=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.6, 5.0])), max_size=20
    ),
)
def test_compiled_and_interpreted_agree_over_time(
    table: dict[str, object], packets: list[Case], order: list[tuple[int, float]]
) -> None:
    """Rates count the packets that meet the rest of their rule only."""
    model = parse_policy(table, source="test")
    policy = compile_policy(model)
    interpreter = Interpreter(table, model)
    now = 100.0
    for number, pause in order:
        case = packets[number % len(packets)]
        now += pause
        decision = policy.decide(*case, now)
        assert (decision.action, decision.rule) == interpreter.decide(case, now)


def test_mark_goes_with_the_decision(judge_case: Case) -> None:
    table = {"default": "allow", "rule": [{"action": "log", "mark": 0x10}]}
    decision = compile_policy(parse_policy(table, source="test")).decide(*judge_case, 0.0)
    assert decision.mark == 0x10
    assert decision.rule == "rule[0]"


def test_cache_of_names_and_marks_is_bounded(judge_case: Case) -> None:
    """Ever new marks or interfaces do not fill memory, and are matched correctly."""
    table = {
        "default": "allow",
        "rule": [
            {"name": "mark", "packet_mark": "0x1/0x1", "action": "drop"},
            {"name": "name", "in": "veth*", "action": "log"},
        ],
    }
    policy = compile_policy(parse_policy(table, source="test"))
    _, packet, flow, finding = judge_case
    for number in range(2 * MOST_REMEMBERED + 2):
        queued = Queued(b"", 0, f"veth{number}", "", number, 0)
        decision = policy.decide(queued, packet, flow, finding, 0.0)
        assert decision.rule == ("mark" if number % 2 else "name")
    plan = policy.plans[finding.reason]
    assert len(plan.marks[0]._known) <= MOST_REMEMBERED
    assert len(plan.names[0]._known) <= MOST_REMEMBERED


def test_many_packets_at_once(judge_case: Case) -> None:
    """Those within the rate go on to the next rule."""
    table = {
        "default": "allow",
        "rule": [
            {
                "name": "flood",
                "action": "drop",
                "rate": {"over": 2, "in_s": 10.0, "by": "source"},
            },
            {"name": "rest", "action": "log", "dport": [80]},
        ],
    }
    policy = compile_policy(parse_policy(table, source="test"))
    assert policy.has_rates
    assert [decision.rule for decision in policy.possible(*judge_case)] == ["flood", "rest"]

    def decided(count: int) -> dict[str, int]:
        return {
            decision.rule: packets
            for decision, packets in policy.decide_all(*judge_case, 0.0, count)
        }

    assert decided(1) == {"rest": 1}
    assert decided(5) == {"flood": 4, "rest": 1}
    assert decided(3) == {"flood": 3}


def test_many_packets_that_no_rule_matches(judge_case: Case) -> None:
    table = {"default": "allow", "rule": [{"action": "drop", "dport": [81]}]}
    policy = compile_policy(parse_policy(table, source="test"))
    assert not policy.has_rates
    assert [decision.rule for decision in policy.possible(*judge_case)] == ["default"]
    ((decision, count),) = policy.decide_all(*judge_case, 0.0, 3)
    assert (decision.rule, count) == ("default", 3)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("eth0", "eth0", True),
        ("eth0", "eth00", False),
        ("eth*", "eth", True),
        ("*", "", False),
        ("*", "lo", True),
        ("e?h.0", "eth.0", True),
        ("e?h.0", "eth00", False),
        ("a*c", "abbc", True),
    ],
)
def test_patterns(pattern: str, name: str, *, expected: bool) -> None:
    assert matches_name(Pattern(text=pattern), name) is expected


def test_fields_of_a_transport_header() -> None:
    """A datagram has no flags, SCTP no payload either, and broken headers none of these fields."""
    rules: list[dict[str, object]] = [
        {"name": "flags", "action": "log", "tcp_flags": "ack"},
        {"name": "payload", "action": "log", "payload": True},
        {"name": "port", "action": "log", "dport": 53},
    ]
    policy = compile_policy(parse_policy({"default": "allow", "rule": rules}, source="test"))
    queued = Queued(b"", int(Hook.PREROUTING), "", "", 0, 0)
    ends = (b"\n\0\0\1", b"\n\0\0\2")

    def rule(packet: Packet | Malformed) -> str:
        return policy.decide(queued, packet, None, Finding(Reason.RACED), 0.0).rule

    def datagram(dport: int, length: int) -> Packet:
        l4 = Datagram(1, dport, length, 0)
        return Packet(4, *ends, PROTO_UDP, 60, 20, 64, 0, False, l4)

    assert rule(datagram(53, 8)) == "port"
    assert rule(datagram(54, 9)) == "payload"
    assert rule(datagram(54, 8)) == "default"
    for dport, name in ((53, "port"), (54, "default")):
        sctp = SctpPacket(1, dport, 7, 0, (), True)
        assert rule(Packet(4, *ends, PROTO_SCTP, 60, 20, 64, 0, False, sctp)) == name
    icmp = IcmpMessage(3, 4, 0, 0, True, None)
    assert rule(Packet(4, *ends, PROTO_ICMP, 60, 20, 64, 0, False, icmp)) == "default"
    assert rule(Malformed("cut", 4, *ends, PROTO_UDP)) == "default"
    segment = Segment(1, 53, seq(1), seq(2), ACK, 100, 0, b"", 0)
    assert rule(Packet(4, *ends, PROTO_TCP, 60, 20, 64, 0, False, segment)) == "flags"


def test_marks_are_remembered() -> None:
    table = {"default": "allow", "rule": [{"name": "m", "action": "log", "packet_mark": 16}]}
    policy = compile_policy(parse_policy(table, source="test"))
    segment = Segment(1, 53, seq(1), seq(2), ACK, 100, 0, b"", 0)
    packet = Packet(4, b"\n\0\0\1", b"\n\0\0\2", PROTO_TCP, 60, 20, 64, 0, False, segment)
    for mark, rule in ((16, "m"), (16, "m"), (17, "default")):
        queued = Queued(b"", int(Hook.PREROUTING), "", "", mark, 0)
        assert policy.decide(queued, packet, None, Finding(Reason.RACED), 0.0).rule == rule
