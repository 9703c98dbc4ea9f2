# SPDX-License-Identifier: MIT
"""A flow is offloadable only when the policy drops every packet that it can bring."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfq_guard.finding import Reason
from nfq_guard.flow import IPS_SRC_NAT, PROTO_TCP, Evidence, FlowSnapshot, FlowTuple, Hook
from nfq_guard.policy.decision import Action
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.offloadable import OffloadCheck
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policyfile import load_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, Malformed, Packet, Queued, Segment
from tests.support.policies import Case, cases, tables

SEGMENT = Segment(1, 2, seq(1), seq(2), ACK, 100, 10, b"", 0)
LAST_WORDS = {"default": "drop", "on_unknown": "drop", "i_know": "drops everything"}


@pytest.mark.compiled
@given(
    table=tables(with_rates=True),
    dropping=st.booleans(),
    first=cases(),
    others=st.lists(cases(), min_size=1, max_size=10),
)
def test_offloadable_flows_are_dropped_whole(
    table: dict[str, object], dropping: bool, first: Case, others: list[Case]
) -> None:
    """The other packets take the first one's interface, addresses and ports, and keep the rest."""
    queued, packet, snapshot, _ = first
    assume(isinstance(packet, Packet))
    assert isinstance(packet, Packet)
    if not isinstance(packet.l4, Segment):
        packet.l4 = SEGMENT
    packet.proto = PROTO_TCP
    if snapshot is not None:
        snapshot.original.proto = PROTO_TCP
    model = parse_policy({**table, **(LAST_WORDS if dropping else {})}, source="test")
    if not OffloadCheck(compile_policy(model)).all_dropped(queued, packet, snapshot):
        return
    policy = compile_policy(model)
    for other_queued, other, other_snapshot, finding in others:
        here = Queued(b"", queued.hook, queued.indev, queued.outdev, other_queued.mark, 0)
        if finding.reason in {Reason.ICMP_MISMATCH, Reason.ICMP_UNRELATED}:
            continue
        if finding.reason is Reason.MALFORMED:
            cut = Malformed("TCP header cut short", packet.family, packet.src, packet.dst, 6)
            found = policy.decide(here, cut, None, finding, 0.0)
        elif snapshot is not None and finding.reason is Reason.NO_ENTRY:
            continue
        else:
            segment = packet.l4
            if isinstance(other, Packet) and isinstance(other.l4, Segment):
                segment = other.l4
            assert isinstance(segment, Segment)
            flow = other_snapshot if snapshot is None else _changed(snapshot, other_snapshot)
            found = policy.decide(here, _like(packet, segment), flow, finding, 0.0)
        assert found.action is Action.DROP


def _like(packet: Packet, segment: Segment) -> Packet:
    """The other's flags and lengths with the first packet's addresses and ports."""
    assert isinstance(packet.l4, Segment)
    mixed = Segment(
        packet.l4.sport, packet.l4.dport, segment.seq, segment.ack, segment.flags,
        segment.window, segment.payload_len, segment.options, segment.checksum,
    )  # fmt: skip
    return Packet(
        packet.family, packet.src, packet.dst, packet.proto, packet.length, packet.l4_offset,
        packet.hop_limit, packet.fragment_offset, packet.more_fragments, mixed,
    )  # fmt: skip


def _changed(flow: FlowSnapshot, other: FlowSnapshot | None) -> FlowSnapshot:
    """The same entry some packets later: translation and direction are unchanged.

    So is the evidence with a window; the kernel's log may have some of the packets only.
    """
    if other is None:
        return flow
    nat = flow.status & 0x30
    evidence = flow.evidence if flow.evidence is Evidence.BPF else other.evidence
    return FlowSnapshot(
        evidence, flow.direction, flow.original, flow.reply, other.status & ~0x30 | nat,
        other.mark, flow.zone, flow.timeout_s, other.state, None,
    )  # fmt: skip


def offloadable(
    policy: str | list[dict[str, Any]],
    *,
    nat: bool,
    hook: Hook = Hook.PREROUTING,
    evidence: Evidence = Evidence.BPF,
) -> bool:
    """Whether a flow from 10.0.0.1 port 1 to 10.0.0.2 port 2 is offloadable under a policy."""
    if isinstance(policy, str):
        model = load_policy(f"preset:{policy}")
    else:
        table = {**LAST_WORDS, "default": "allow", "on_unknown": "allow", "rule": policy}
        model = parse_policy(table, source="test")
    one, other = b"\n\0\0\1", b"\n\0\0\2"
    packet = Packet(4, one, other, 6, 60, 20, 64, 0, False, SEGMENT)
    flow = FlowTuple(PROTO_TCP, one, other, 1, 2)
    snapshot = FlowSnapshot(evidence, 0, flow, flow, IPS_SRC_NAT if nat else 0, 0, 0, 100, 3, None)
    check = OffloadCheck(compile_policy(model))
    return check.all_dropped(Queued(b"", hook, "eth0", "", 0, 0), packet, snapshot)


@pytest.mark.parametrize(
    ("preset", "nat", "expected"),
    [
        # Heals flows that lose their window, which must see the packets for that.
        ("default", True, False),
        ("default", False, False),
        ("strict", False, True),
        ("strict", True, True),
        ("istio", False, True),
        ("observe", True, False),
        # Lets packets with broken headers pass, those of translated flows included.
        ("router", True, False),
    ],
)
def test_presets(preset: str, nat: bool, expected: bool) -> None:
    assert offloadable(preset, nat=nat) is expected


def test_without_a_window_a_stuck_flow_may_pass() -> None:
    """The kernel's log may have a text about one packet and none about the next."""
    for evidence in (Evidence.CTNETLINK, Evidence.KERNEL_LOG):
        assert not offloadable("default", nat=True, evidence=evidence)
        assert offloadable("strict", nat=True, evidence=evidence)


def test_hook_of_the_rule_decides() -> None:
    assert not offloadable("istio", nat=False, hook=Hook.OUTPUT)


BROKEN = {"name": "broken", "reason": ["malformed"], "action": "drop"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, True),
        ({"sport": 1}, True),
        ({"sport": 3}, False),
        ({"src": "10.0.0.0/8"}, True),
        ({"in": "eth*"}, True),
        ({"in": "wlan0"}, False),
        ({"nat": "snat", "direction": "original"}, True),
        ({"reason": "seq-over"}, False),
        ({"tcp_flags": "ack"}, False),
        ({"payload": True}, False),
        ({"distance": "1.."}, False),
        ({"state": "ESTABLISHED"}, False),
        ({"packet_mark": "0x1"}, False),
        ({"ct_mark": "0x0"}, False),
        ({"rate": {"over": 5, "in_s": 1, "by": "flow"}}, False),
    ],
)
def test_conditions_of_a_dropping_rule(rule: dict[str, Any], expected: bool) -> None:
    rules = [BROKEN, {"name": "one", "action": "drop", **rule}]
    assert offloadable(rules, nat=True) is expected


def test_earlier_rule_that_lets_some_pass() -> None:
    watched = {"name": "watched", "tcp_flags": "rst", "action": "log"}
    rest = {"name": "rest", "action": "drop"}
    assert not offloadable([watched, rest], nat=True)
    assert offloadable([rest, watched, {**watched, "name": "again"}], nat=True)
    assert offloadable([{**watched, "sport": 3}, rest], nat=True)


def test_a_rule_that_may_heal() -> None:
    heals = {"name": "heals", "action": "heal"}
    rest = {"name": "rest", "action": "drop"}
    assert not offloadable([heals, rest], nat=True)
    assert offloadable([rest, heals], nat=True)
    assert offloadable([{**heals, "sport": 3}, rest], nat=True)


def test_flow_without_an_entry() -> None:
    """An entry may appear at any moment, so only a policy that drops all of both will do."""
    one, other = b"\n\0\0\1", b"\n\0\0\2"
    packet = Packet(4, one, other, 6, 60, 20, 64, 0, False, SEGMENT)
    queued = Queued(b"", Hook.PREROUTING, "eth0", "", 0, 0)
    for preset, expected in (("strict", True), ("default", False)):
        check = OffloadCheck(compile_policy(load_policy(f"preset:{preset}")))
        assert check.all_dropped(queued, packet, None) is expected
