# SPDX-License-Identifier: MIT
"""Converts a judgment to its event."""

import errno
from collections.abc import Mapping

import msgspec

from nfq_guard.conntrack.window import acknowledged
from nfq_guard.engine import VERDICT_DROP, Judgment, Mode
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import PROTO_TCP, Evidence, FlowSnapshot, Nat
from nfq_guard.names import (
    DirectionName,
    StatusName,
    address,
    direction,
    flow_status,
    hook,
    protocol,
    tcp_flags,
    tcp_state,
)
from nfq_guard.policy.fields import leaks
from nfq_guard.telemetry.community_id import community_id
from nfq_guard.telemetry.events import (
    AnsweredPacket,
    BrokenBound,
    FlowWindow,
    PacketJudged,
    Pod,
    ShadowDecision,
)
from nfq_guard.wire.packet import UDP_HEADER, Datagram, Packet, SctpPacket, Segment
from nfq_guard.wire.tcp import timestamp_value


def packet_judged(
    judgment: Judgment,
    *,
    mode: Mode,
    queue_num: int,
    evidence: Evidence,
    when: str,
    count: int = 1,
    first: str | None = None,
    distances: dict[int, int] | None = None,
    caused_by: AnsweredPacket | None = None,
) -> PacketJudged:
    """The event of a judgment.

    Args:
        judgment: The packet, judged.
        mode: The mode in which it was judged.
        queue_num: The queue from which it came.
        evidence: Where flows are looked up, for a packet without a snapshot.
        when: `timestamp()` of the packet, or of the last one.
        count: Packets that the event stands for.
        first: `timestamp()` of the first of several packets.
        distances: Packets by distance, where the distances of several packets differ.
        caused_by: The packet that this RST answers.
    """
    queued = judgment.queued
    packet = judgment.packet
    snapshot = judgment.snapshot
    finding = judgment.finding
    decision = judgment.decision
    sport: int | None = None
    dport: int | None = None
    flags: str | None = None
    seq: int | None = None
    ack: int | None = None
    payload: int | None = None
    window: FlowWindow | None = None
    clock: int | None = None
    if isinstance(packet, Packet):
        l4 = packet.l4
        if isinstance(l4, Segment):
            window = _window(l4, snapshot, finding)
            sport = l4.sport
            dport = l4.dport
            flags = tcp_flags(l4.flags)
            seq = l4.seq
            ack = l4.ack
            payload = l4.payload_len
            clock = timestamp_value(l4.options)
        elif isinstance(l4, Datagram):
            sport = l4.sport
            dport = l4.dport
            payload = l4.length - UDP_HEADER
        elif isinstance(l4, SctpPacket):
            sport = l4.sport
            dport = l4.dport
    nat = Nat.UNKNOWN
    state: str | None = None
    way: DirectionName | None = None
    status: tuple[StatusName, ...] | None = None
    ct_mark: int | None = None
    if snapshot is not None:
        nat = snapshot.nat
        evidence = snapshot.evidence
        way = direction(snapshot.direction)
        status = flow_status(snapshot.status)
        ct_mark = snapshot.mark
        if snapshot.original.proto == PROTO_TCP:
            state = tcp_state(snapshot.state)
    lookup_error: str | None = None
    if judgment.lookup_error:
        evidence = Evidence.NONE
        lookup_error = errno.errorcode.get(judgment.lookup_error, str(judgment.lookup_error))
    return PacketJudged(
        timestamp=when,
        mode=mode,
        queue=queue_num,
        hook=hook(queued.hook),
        indev=queued.indev,
        outdev=queued.outdev,
        mark=queued.mark,
        family=packet.family,
        proto=protocol(packet.proto),
        src=address(packet.src),
        dst=address(packet.dst),
        sport=sport,
        dport=dport,
        tcp_flags=flags,
        seq=seq,
        ack=ack,
        payload=payload,
        reason=finding.reason,
        breach=_breach(finding),
        state=state,
        nat=nat,
        evidence=evidence,
        direction=way,
        status=status,
        ct_mark=ct_mark,
        rule=decision.rule,
        action=decision.action,
        verdict="drop" if judgment.verdict == VERDICT_DROP else "accept",
        would="drop" if decision.drops else "accept",
        shadow=_shadow(judgment),
        lookup_error=lookup_error,
        count=count,
        first=first,
        distances=None if distances is None else tuple(distances.items()),
        leak=leaks(packet, snapshot, finding),
        window=window,
        caused_by=caused_by,
        tcp_timestamp=clock,
        community_id=community_id(packet),
        hidden_half=judgment.spared,
    )


def with_pods(event: PacketJudged, judgment: Judgment, pods: Mapping[bytes, Pod]) -> PacketJudged:
    """The event of a judgment with the pods at both ends of the packet, as far as known.

    Args:
        event: The event.
        judgment: The packet, judged.
        pods: Pods by the octets of an address.
    """
    src = pods.get(judgment.packet.src)
    dst = pods.get(judgment.packet.dst)
    if src is None and dst is None:
        return event
    return msgspec.structs.replace(event, src_pod=src, dst_pod=dst)


def _breach(finding: Finding) -> BrokenBound | None:
    breach = finding.breach
    if breach is None:
        return None
    return BrokenBound(breach.bound, breach.actual, breach.limit, breach.distance)


def _window(segment: Segment, snapshot: FlowSnapshot | None, finding: Finding) -> FlowWindow | None:
    """The window against which a segment was checked; None for other reasons."""
    if snapshot is None or snapshot.peers is None:
        return None
    if finding.breach is None and finding.reason is not Reason.RACED:
        return None
    sender = snapshot.peers[snapshot.direction]
    receiver = snapshot.peers[1 - snapshot.direction]
    return FlowWindow(
        sender.td_end,
        sender.td_maxend,
        sender.td_maxwin,
        sender.td_maxack,
        receiver.td_end,
        receiver.td_maxend,
        receiver.td_maxwin,
        receiver.td_maxack,
        acknowledged(segment, receiver),
    )


def _shadow(judgment: Judgment) -> ShadowDecision | None:
    if judgment.shadow is None:
        return None
    decision = judgment.shadow.shadow
    return ShadowDecision(decision.rule, decision.action)
