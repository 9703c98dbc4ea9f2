# SPDX-License-Identifier: MIT
"""Rules before conntrack that hide one direction of a flow, and packets of the other one."""

from dataclasses import replace
from typing import Any

import pytest

from nfq_guard.engine import VERDICT_ACCEPT, VERDICT_DROP, Engine, Mode
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import (
    IPS_SEEN_REPLY,
    IPV4,
    PROTO_ICMP,
    PROTO_TCP,
    Direction,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
)
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.raw_rules import (
    MOST_RULES,
    UNKNOWN_ZONE,
    UNTRACKED,
    Field,
    Place,
    RawAct,
    RawRule,
    RawRules,
    Span,
    bounded,
    unless_spared,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import ACK, CHECKSUM_GOOD, RST, SYN, Packet, Queued, Segment
from tests.support.judgments import CLIENT, SERVER, FirstByte, NoFlows, segment, snapshot
from tests.support.packets import A4, B4, ip, udp


def port(field: Field, number: int) -> Span:
    value = number.to_bytes(2, "big")
    return Span(field, ((value, value),))


REPLIES, REQUESTS = port(Field.SPORT, 80), port(Field.DPORT, 80)
DROP = Decision(Action.DROP, "all")


def rule(*spans: Span, **changes: Any) -> RawRule:  # noqa: ANN401 - fields of the rule
    plain = RawRule(
        "hides", IPV4, PROTO_TCP, Hook.PREROUTING, "raw", RawAct.TRACKING, UNTRACKED, spans
    )
    return replace(plain, **changes)


def end(*spans: Span, **changes: Any) -> RawRule:  # noqa: ANN401 - as above
    return rule(*spans, **({"act": RawAct.END, "zone": 0, "text": "ends"} | changes))


def came(hook: Hook = Hook.PREROUTING, indev: str = "eth0", outdev: str = "") -> Queued:
    return Queued(b"", hook, indev, outdev, 0, CHECKSUM_GOOD)


def hiding(
    *rules: RawRule,
    queued: Queued | None = None,
    packet: Packet | None = None,
    flow: FlowSnapshot | None = None,
) -> str | None:
    """The text of the rule that hides the answers to a segment to port 80."""
    found = RawRules(rules).hiding(queued or came(), packet or segment(), flow)
    return None if found is None else found.text


def test_hidden_replies() -> None:
    assert hiding(rule(REPLIES)) == "hides"
    # The rule is for the packet's own direction, so the packet would not be here.
    assert hiding(rule(REQUESTS)) is None
    assert hiding() is None


@pytest.mark.parametrize("changes", [{"family": 6}, {"proto": PROTO_ICMP}, {"hook": Hook.FORWARD}])
def test_rules_for_other_packets(changes: dict[str, Any]) -> None:
    assert hiding(rule(REPLIES, **changes)) is None


def test_the_answer_of_a_translated_flow() -> None:
    """The flow's own reply tuple counts: it comes from a port that the packet does not show."""
    flow = snapshot()
    pod = port(Field.SPORT, flow.reply.sport)
    assert flow.reply.sport != 80
    assert hiding(rule(pod), flow=flow) == "hides"
    assert hiding(rule(REPLIES), flow=flow) is None
    flow.direction = Direction.REPLY
    assert hiding(rule(REQUESTS), flow=flow) == "hides"


def test_addresses() -> None:
    assert hiding(rule(Span(Field.SRC, ((SERVER, SERVER),)))) == "hides"
    assert hiding(rule(Span(Field.SRC, ((SERVER, SERVER),), negated=True))) is None
    assert (
        hiding(
            rule(
                Span(Field.DST, ((CLIENT[:3] + b"\0", CLIENT[:3] + b"\xff"), (bytes(4), bytes(4))))
            )
        )
        == "hides"
    )


@pytest.mark.parametrize(
    ("device", "hides"),
    [("eth0", True), ("eth+", True), ("eth1", False), ("wlan+", False)],
)
def test_the_answer_of_a_packet_that_this_host_sends(device: str, *, hides: bool) -> None:
    """It comes in where the packet leaves."""
    sent = came(Hook.OUTPUT, indev="", outdev="eth0")
    found = hiding(rule(REPLIES, devices=((device, False),)), queued=sent)
    assert (found is not None) is hides


def test_an_interface_that_is_not_known_may_be_the_one() -> None:
    assert hiding(rule(REPLIES, devices=(("eth1", False),))) == "hides"
    assert hiding(rule(REPLIES, devices=(("eth1", True),))) == "hides"


def test_the_answer_of_this_host() -> None:
    """It leaves where the packet came in."""
    answer = rule(REPLIES, hook=Hook.OUTPUT, devices=(("eth0", False),))
    assert hiding(answer) == "hides"
    assert hiding(answer, queued=came(indev="eth1")) is None
    assert hiding(replace(answer, devices=(("eth0", True),))) is None


def test_rules_in_front() -> None:
    assert hiding(end(REPLIES), rule(REPLIES)) is None
    # It ends its own chain only, and only where it matches for certain.
    assert hiding(end(REPLIES, chain="other"), rule(REPLIES)) == "hides"
    assert hiding(end(REPLIES, certain=False), rule(REPLIES)) == "hides"
    # The first rule about tracking decides.
    assert hiding(rule(REPLIES, zone=0), rule(REPLIES)) is None


def test_zones() -> None:
    both_ways = snapshot()
    both_ways.status |= IPS_SEEN_REPLY
    for one in (REPLIES, REQUESTS):
        for flow in (None, both_ways):
            # Neither a reply to the request that came in, nor one that another host sends.
            rules = (
                rule(one, zone=7, text="seven"),
                rule(one, zone=7, text="seven", hook=Hook.OUTPUT),
            )
            flow_of = None if flow is None else untranslated(flow)
            assert hiding(*rules, flow=flow_of) == "seven"
    everything = (rule(zone=7), rule(zone=7, hook=Hook.OUTPUT))
    assert hiding(*everything) is None
    assert hiding(rule(REQUESTS, zone=0)) is None


def untranslated(flow: FlowSnapshot) -> FlowSnapshot:
    packet = segment()
    flow.original = FlowTuple(PROTO_TCP, packet.src, packet.dst, 40_000, 80)
    flow.reply = FlowTuple(PROTO_TCP, packet.dst, packet.src, 80, 40_000)
    return flow


def test_zones_that_may_differ() -> None:
    """A flow that conntrack has seen in both directions has both in one zone."""
    by_mark = rule(zone=7, certain=False)
    assert hiding(by_mark) == "hides"
    flow = untranslated(snapshot())
    flow.status &= ~IPS_SEEN_REPLY
    assert hiding(by_mark, flow=flow) == "hides"
    flow.status |= IPS_SEEN_REPLY
    assert hiding(by_mark, flow=flow) is None


def test_a_zone_that_the_rule_takes_from_the_packet() -> None:
    """Both directions have the rule, and may have different zones."""
    by_mark = rule(zone=UNKNOWN_ZONE)
    assert hiding(by_mark) == "hides"
    flow = untranslated(snapshot())
    flow.status &= ~IPS_SEEN_REPLY
    assert hiding(by_mark, flow=flow) == "hides"
    flow.status |= IPS_SEEN_REPLY
    assert hiding(by_mark, flow=flow) is None
    assert hiding(rule(REQUESTS, zone=UNKNOWN_ZONE), flow=flow) is None, "it may be zone 0"


def test_a_rule_in_front_that_may_keep_a_packet_from_its_zone() -> None:
    zone = (rule(zone=7, text="seven"), rule(zone=7, hook=Hook.OUTPUT))
    assert hiding(*zone) is None
    assert hiding(end(REPLIES, certain=False), *zone) == "seven"


@pytest.mark.parametrize(
    ("flags", "hides"), [(ACK, False), (SYN, True), (SYN | ACK, True), (RST, True)]
)
def test_a_rule_for_syns_alone(flags: int, *, hides: bool) -> None:
    """Only a packet that may answer a SYN is INVALID because of it."""
    packet = segment()
    assert isinstance(packet.l4, Segment)
    packet.l4.flags = flags
    rules = RawRules([rule(REPLIES, opening=True)])
    assert (rules.hiding(came(), packet, None) is not None) is hides
    assert rules.hides_some(came(), packet, None), "another packet of the flow may answer one"


def test_no_packet_of_a_flow_has_a_hidden_half() -> None:
    assert not RawRules([rule(REQUESTS)]).hides_some(came(), segment(), None)


def test_conditions_that_only_the_text_shows() -> None:
    """Where they are known to hold, or not to, the rule is certain."""
    one = rule(certain=False, others=("@web",))
    rules = RawRules([one, rule(certain=False)])
    assert rules.at(IPV4, PROTO_TCP, Hook.PREROUTING) == [*rules.rules]
    assert rules.at(IPV4, PROTO_TCP, Hook.OUTPUT) == ()
    way = FlowTuple(PROTO_TCP, CLIENT, SERVER, 40_000, 80)
    here = Place(Hook.PREROUTING, None)
    holds, fails = (
        here._replace(holds=frozenset({"@web"})),
        here._replace(fails=frozenset({"@web"})),
    )
    web = RawRules([one])
    assert web.zones(IPV4, way, here) == {UNTRACKED, 0}
    assert web.zones(IPV4, way, holds) == {UNTRACKED}
    assert web.zones(IPV4, way, fails) == {0}
    assert RawRules([rule(certain=False)]).zones(IPV4, way, holds) == {UNTRACKED, 0}


def test_everything_is_queued_too_early() -> None:
    assert hiding(rule(REQUESTS, act=RawAct.QUEUE, zone=0, text="queues")) == "queues"
    assert hiding(rule(REPLIES, act=RawAct.QUEUE, zone=0)) is None


@pytest.mark.parametrize(
    ("flags", "queued"), [(SYN, "hides"), (SYN | ACK, None), (ACK, None), (RST, None)]
)
def test_every_syn_is_queued_too_early(flags: int, queued: str | None) -> None:
    packet = segment()
    assert isinstance(packet.l4, Segment)
    packet.l4.flags = flags
    assert hiding(rule(REQUESTS, act=RawAct.QUEUE, opening=True), packet=packet) == queued


def test_packets_without_a_tuple() -> None:
    fragment = decode(udp(A4, B4, 1, 2)[:6] + b"\0\7" + udp(A4, B4, 1, 2)[8:])
    assert isinstance(fragment, Packet)
    assert hiding(rule(proto=fragment.proto), packet=fragment) is None


@pytest.mark.parametrize("reason", Reason)
def test_reasons(reason: Reason) -> None:
    """Reasons that do not depend on a flow are judged as usual."""
    rules = RawRules([rule(REPLIES)])
    own = {Reason.BAD_FLAGS, Reason.BAD_CHECKSUM, Reason.MALFORMED, Reason.ICMP_MISMATCH}
    assert rules.spares(came(), segment(), None, Finding(reason)) is (reason not in own)


def test_decisions_that_stay() -> None:
    rules, finding = RawRules([rule(REPLIES)]), Finding(Reason.NO_ENTRY)
    for action in (Action.ALLOW, Action.LOG):
        passes = Decision(action, "rest")
        assert unless_spared(passes) is passes
    spared = unless_spared(DROP)
    assert (spared.action, spared.rule) == (Action.ALLOW, "hidden-half")
    assert not RawRules([]).spares(came(), segment(), None, finding)
    broken = decode(ip(A4, B4, PROTO_TCP, b"")[:12])
    assert not rules.spares(came(), broken, None, finding)


def test_the_engine_does_not_drop() -> None:
    engine = Engine(policy=FirstByte(), flows=NoFlows(), mode=Mode.ENFORCE)
    queued = Queued(b"D", Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
    finding = Finding(Reason.NO_ENTRY)

    def verdict() -> tuple[int, str]:
        packet = segment()
        found = engine.judge_packet(queued, packet, None, Evidence.NONE, 0.0, finding=finding)
        return found.verdict, found.decision.rule

    dropped = verdict()
    assert dropped[0] == VERDICT_DROP
    engine.raw_rules = RawRules([rule(REPLIES)])
    assert verdict() == (VERDICT_ACCEPT, "hidden-half")
    engine.raw_rules = RawRules([rule(REQUESTS)])
    assert verdict() == dropped


def test_a_packet_that_passes_anyway_is_marked_too() -> None:
    """Another policy, which would drop it, may be tried on its event."""
    engine = Engine(policy=FirstByte(), flows=NoFlows(), mode=Mode.DRY_RUN)
    engine.raw_rules = RawRules([rule(REPLIES)])
    queued = Queued(b"A", Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
    for reason, spared in ((Reason.NO_ENTRY, True), (Reason.BAD_CHECKSUM, False)):
        finding = Finding(reason)
        found = engine.judge_packet(queued, segment(), None, Evidence.NONE, 0.0, finding=finding)
        assert not found.decision.drops
        assert found.decision.rule != "hidden-half"
        assert found.spared is spared


def test_many_rules() -> None:
    """Rules beyond the bound may hide everything."""
    few = [end(text=str(number)) for number in range(MOST_RULES)]
    assert bounded(few) == tuple(few)
    more = bounded([*few, rule(REQUESTS), rule(REQUESTS), rule(REQUESTS, hook=Hook.OUTPUT)])
    assert len(more) == MOST_RULES + 2
    assert hiding(*more[MOST_RULES:]) == "one of 3 more rules"
    assert hiding(*bounded([*few, rule(REQUESTS)])[MOST_RULES:]) == "one of 1 more rule"


def test_a_policy_on_trial_does_not_drop_either() -> None:
    policy = FirstByte()
    policy.shadow = FirstByte()
    engine = Engine(policy=policy, flows=NoFlows(), mode=Mode.DRY_RUN)
    engine.raw_rules = RawRules([rule(REPLIES)])
    queued = Queued(b"D", Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
    found = engine.judge_packet(
        queued, segment(), None, Evidence.NONE, 0.0, finding=Finding(Reason.NO_ENTRY)
    )
    assert found.decision.rule == "hidden-half"
    assert found.shadow is None
