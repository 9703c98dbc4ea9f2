# SPDX-License-Identifier: MIT
"""Reachability: no packet matches a rule that is reported as unreachable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.conntrack.kernel_rules import KERNEL_5_15, KERNEL_6_1
from nfq_guard.finding import BOUNDS
from nfq_guard.flow import EvidenceChoice
from nfq_guard.policy.decision import Action
from nfq_guard.policy.default import DEFAULT_TABLE
from nfq_guard.policy.lint import cautions, lets_nothing_pass, value_covers
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.model import Interval, MarkBits, Pattern
from nfq_guard.policy.parse import parse_policy
from tests.support.policies import Case, cases, tables


@pytest.mark.compiled
@given(table=tables(with_rates=True), packets=st.lists(cases(), min_size=1, max_size=10))
def test_no_packet_matches_an_unreachable_rule(
    table: dict[str, object], packets: list[Case]
) -> None:
    model = parse_policy(table, source="test")
    unreachable = {caution.rule for caution in cautions(model, KERNEL_5_15)}
    policy = compile_policy(model)
    for case in packets:
        _, packet, _, _ = case
        decision = policy.decide(*case, 0.0)
        assert decision.rule not in unreachable, packet
        assert decision.action is Action.DROP or not lets_nothing_pass(model)


def _cautions(*rules: dict[str, object]) -> list[str]:
    table = {
        "default": "allow",
        "i_know": "drops everything",
        "rule": [{"action": "drop", **rule} for rule in rules],
    }
    return [str(caution) for caution in cautions(parse_policy(table, source="x"), KERNEL_6_1)]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({}, {"reason": "seq-over"}),
        ({"reason": ["seq-over", "ack-over"]}, {"reason": "ack-over", "sport": 1}),
        ({"src": "10.0.0.0/8"}, {"src": ["10.1.0.0/16", "10.2.3.4"]}),
        ({"dport": "1..1024"}, {"dport": [80, 443], "proto": "tcp"}),
        ({"tcp_flags": "rst"}, {"tcp_flags": "rst ack"}),
        ({"not": {"dport": 80}}, {"dport": 443}),
        ({"in": "eth*"}, {"in": "eth0"}),
        ({"in": "*"}, {"in": "e?h0"}),
        ({"in": "e?h*"}, {"in": "e?h*", "dport": 80}),
        ({"in": "eth*"}, {"in": ["eth0", "eth1*"]}),
        ({"not": {"in": "eth0"}}, {"not": {"in": ["eth*"]}}),
        ({"ct_mark": "0x1/0x1"}, {"ct_mark": "0x3"}),
        ({"not": {"packet_mark": "0x3"}}, {"not": {"packet_mark": "0x1/0x1"}}),
        ({"distance": "..100"}, {"distance": 7, "rate": {"over": 1, "in_s": 1, "by": "flow"}}),
    ],
)
def test_shadowed(earlier: dict[str, object], later: dict[str, object]) -> None:
    assert _cautions(earlier, later) == [
        "policy.rule[1] (rule[1]): can never match: policy.rule[0] (rule[0]) already matches all"
        " its packets"
    ]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"reason": "ack-over"}, {"reason": ["ack-over", "seq-over"]}),
        ({"rate": {"over": 1, "in_s": 1, "by": "flow"}}, {}),
        ({"sport": 80}, {"dport": 80}),
        ({"in": "eth*"}, {"in": "e*"}),
        ({"in": "e*0"}, {"in": "e*1"}),
        ({"in": "eth0"}, {"out": "eth0"}),
        ({"in": "eth0"}, {"not": {"in": "eth0"}}),
        ({"ct_mark": "0x3"}, {"ct_mark": "0x1/0x1"}),
        ({"ct_mark": 3}, {"in": "eth0"}),
    ],
)
def test_not_shadowed(earlier: dict[str, object], later: dict[str, object]) -> None:
    assert _cautions(earlier, later) == []


def test_shadowed_by_several() -> None:
    """Rules for each half of the addresses shadow a third one together."""
    assert _cautions(
        {"name": "low", "src": "10.0.0.0/9"},
        {"name": "high", "src": "10.128.0.0/9"},
        {"name": "none", "src": "10.0.0.0/8", "dport": 80},
    ) == [
        "policy.rule[2] (none): can never match: policy.rule[0] (low) and policy.rule[1] (high)"
        " already match all its packets"
    ]


def test_not_shadowed_by_several_with_a_gap() -> None:
    assert _cautions({"src": "10.0.0.0/9"}, {"src": "10.128.0.0/10"}, {"src": "10.0.0.0/8"}) == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"dport": 80, "not": {"dport": "1..100"}}, "its conditions on dport contradict"),
        ({"distance": 5, "reason": "no-entry"}, "a packet of these reasons has no distance"),
        ({"tcp_flags": "rst", "proto": "udp"}, "a packet of this protocol has no TCP flags"),
        ({"payload": True, "proto": "icmp"}, "payload is known for TCP and UDP only"),
        ({"sport": 80, "proto": 47}, "a packet of this protocol has no ports"),
        ({"src": "10.0.0.0/8", "family": 6}, "src has no network of family 6"),
        ({"dst": "fd00::/8", "family": 4}, "dst has no network of family 4"),
        ({"dst": "fd00::/8", "not": {"family": 6}}, "dst has no network of family 4"),
        (
            {"distance": 5, "not": {"reason": sorted(BOUNDS)}},
            "a packet of these reasons has no distance",
        ),
        ({"reason": ["seq-under", "ack-under"]}, "kernels like 6.1 never report these reasons"),
    ],
)
def test_can_never_match(rule: dict[str, object], why: str) -> None:
    (caution,) = _cautions(rule)
    assert f"can never match: {why}" in caution


def test_old_kernels_report_old_reasons() -> None:
    table = {"default": "allow", "rule": [{"reason": "seq-under", "action": "drop"}]}
    assert cautions(parse_policy(table, source="x"), KERNEL_5_15) == []


@pytest.mark.parametrize(
    "table",
    [
        {"default": "drop", "on_unknown": "drop"},
        {"default": "allow", "rule": [{"action": "drop"}]},
        {"default": "drop", "on_unknown": "drop", "rule": [{"reason": "raced", "action": "drop"}]},
        {
            "default": "drop",
            "on_unknown": "log",
            "rule": [{"reason": "unsupported", "action": "drop"}],
        },
        {
            "default": "allow",
            "rule": [
                {"direction": "reply", "action": "drop"},
                {"not": {"direction": "reply"}, "action": "drop"},
                {"dport": 80, "action": "allow"},
            ],
        },
        {
            "default": "drop",
            "on_unknown": "drop",
            "rule": [{"dport": 80, "not": {"dport": 80}, "action": "allow"}],
        },
    ],
)
def test_lets_nothing_pass(table: dict[str, object]) -> None:
    known = {**table, "i_know": "drops everything"}
    assert lets_nothing_pass(parse_policy(known, source="x"))


def test_values_of_different_kinds_do_not_cover_each_other() -> None:
    mark = MarkBits(text="1", bits=1, mask=1)
    assert not value_covers(mark, Pattern(text="*"))
    assert not value_covers(Interval(text="1", low=1, high=1), mark)


def test_addresses_of_both_families_contradict_neither() -> None:
    assert _cautions({"src": ["10.0.0.0/8", "fd00::/8"], "family": 6}) == []


@pytest.mark.parametrize(
    ("choice", "rule", "warned"),
    [
        ("auto", {"action": "heal"}, False),
        ("bpf", {"action": "heal"}, False),
        ("kernel-log", {"action": "heal"}, True),
        ("ctnetlink", {"action": "heal"}, True),
        ("ctnetlink", {"action": "drop", "evidence": "kernel-log"}, True),
        ("kernel-log", {"action": "drop", "evidence": "kernel-log"}, False),
        ("ctnetlink", {"action": "drop", "dport": 1}, False),
    ],
)
def test_a_rule_that_takes_a_window_needs_evidence_with_one(
    choice: EvidenceChoice, rule: dict[str, object], warned: bool
) -> None:
    model = parse_policy({"default": "allow", "rule": [rule]}, source="x")
    found = [str(caution) for caution in cautions(model, KERNEL_6_1, choice)]
    why = f"the setting daemon.evidence is {choice!r}, with which no window is read"
    expected = f"policy.rule[0] (rule[0]): can never match: {why}"
    assert found == ([expected] if warned else [])


def test_presets_serve_every_evidence() -> None:
    table = {"include": "preset:default"}
    included = parse_policy(
        table, source="x", includes=lambda _reference, _within: ("preset:default", DEFAULT_TABLE)
    )
    assert cautions(included, KERNEL_6_1, "ctnetlink") == []
