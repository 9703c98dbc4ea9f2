# SPDX-License-Identifier: MIT
"""What a rule with the action `heal` matches, and what it cannot say."""

from collections.abc import Mapping
from typing import Any

import pytest

from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_DYING,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    TcpState,
)
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELD_BY_NAME
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy, read_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Packet, Queued, Segment

_SETTLED = IPS_SEEN_REPLY | IPS_ASSURED


def _table(**rule: object) -> dict[str, object]:
    return {"default": "allow", "rule": [{"action": "heal", **rule}]}


def _action(
    *,
    reason: Reason = Reason.ACK_OVER,
    distance: int = 8,
    status: int = _SETTLED,
    state: int = TcpState.ESTABLISHED,
    flags: int = ACK,
    rule: Mapping[str, object] | None = None,
) -> Action:
    """What a policy with one rule that heals does with a packet."""
    way = FlowTuple(6, b"\n\0\0\1", b"\n\0\0\2", 5, 6)
    snapshot = FlowSnapshot(Evidence.BPF, 1, way, way, status, 0, 0, 60, state, None)
    segment = Segment(6, 5, seq(1), seq(2), flags, 100, 0, b"", 0)
    packet = Packet(4, way.dst, way.src, 6, 40, 20, 64, 0, False, segment)
    finding = Finding(reason, Breach(reason, seq(distance), seq(0), distance))
    policy = compile_policy(parse_policy(_table(**(rule or {})), source="test"))
    queued = Queued(b"", 0, "eth0", "", 0, 0)
    return policy.decide(queued, packet, snapshot, finding, 0.0).action


@pytest.mark.parametrize(
    "reason", [Reason.SEQ_OVER, Reason.ACK_OVER, Reason.SEQ_UNDER, Reason.ACK_UNDER]
)
def test_a_settled_flow_near_its_window_is_healed(reason: Reason) -> None:
    assert _action(reason=reason) is Action.HEAL
    assert _action(reason=reason, flags=ACK | FIN, state=TcpState.LAST_ACK) is Action.HEAL


@pytest.mark.parametrize(
    "packet",
    [
        {"reason": Reason.RST_OUTSIDE},
        {"flags": RST},
        {"flags": RST | ACK},
        {"flags": SYN | ACK},
        {"distance": 65_536},
        {"status": IPS_SEEN_REPLY},
        {"status": _SETTLED | IPS_DYING},
        {"status": _SETTLED | IPS_OFFLOAD},
        {"state": TcpState.SYN_RECV},
        {"state": TcpState.TIME_WAIT},
    ],
)
def test_any_other_packet_goes_on(packet: dict[str, Any]) -> None:
    assert _action(**packet) is Action.ALLOW


def test_the_rule_sets_the_distance() -> None:
    assert _action(distance=65_535) is Action.HEAL
    assert _action(distance=9, rule={"distance": "..8"}) is Action.ALLOW
    assert _action(distance=100_000, rule={"distance": "..100000"}) is Action.HEAL


def test_what_the_file_names_is_kept() -> None:
    table = _table(reason="ack-over", distance="..100000", **{"not": {"tcp_flags": ["fin", "rst"]}})
    (rule,) = parse_policy(table, source="test").rules
    words = {
        (condition.field.name, condition.negated): [value.text for value in condition.values]
        for condition in rule.conditions
    }
    assert words == {
        ("reason", False): ["ack-over"],
        ("distance", False): ["..100000"],
        ("tcp_flags", True): ["fin", "rst", "syn"],
        ("state", False): ["ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"],
        ("status", False): ["assured"],
        ("evidence", False): ["bpf", "replay"],
        ("status", True): ["dying", "offload"],
    }


def test_limits_are_added_once() -> None:
    (rule,) = parse_policy(_table(), source="test").rules
    keys = [(condition.field.name, condition.negated) for condition in rule.conditions]
    assert len(keys) == len(set(keys)) == 7
    assert {name for name, _ in keys} <= FIELD_BY_NAME.keys()


@pytest.mark.parametrize(
    ("key", "found", "said"),
    [
        (
            "reason",
            "rst-outside",
            "only a segment outside of its window can be healed, found 'rst-",
        ),
        ("reason", ["ack-over", "bad-flags"], "found 'ack-over' and 'bad-flags'"),
        ("reason", "unsupported", "seq-over, ack-over, seq-under or ack-under: only a segment"),
        (
            "state",
            ["ESTABLISHED", "CLOSE"],
            "CLOSE_WAIT or LAST_ACK: only an open flow can be healed",
        ),
        ("status", "seen-reply", "assured: only an assured flow can be healed, found 'seen-reply'"),
        ("evidence", "ctnetlink", "bpf or replay: other evidence has no window to measure with"),
    ],
)
def test_what_cannot_be_healed_is_a_mistake(key: str, found: object, said: str) -> None:
    reading = read_policy(_table(**{key: found}), source="test")
    assert reading.model is None
    (mistake,) = reading.mistakes
    assert mistake.key == f"policy.rule[0].{key}"
    assert said in str(mistake)


def test_every_mistake_is_told() -> None:
    reading = read_policy(_table(reason="raced", state="CLOSE", status="dying"), source="test")
    assert len(reading.mistakes) == 3


@pytest.mark.parametrize("key", ["default", "on_unknown"])
def test_only_a_rule_heals(key: str) -> None:
    reading = read_policy({"default": "allow", key: "heal"}, source="test")
    (mistake,) = reading.mistakes
    assert str(mistake) == f"policy.{key}: expected drop, log or allow, found 'heal'"


def test_a_heal_drops() -> None:
    assert Action.HEAL.drops
