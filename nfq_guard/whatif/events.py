# SPDX-License-Identifier: MIT
"""Reconstructs the input of a policy from the daemon's events.

Events have every field that a rule can match. The bytes of the packet are not recorded.
"""

from collections.abc import Iterator
from typing import Final

from nfq_guard.conntrack.bounds import BoundCheck, rst_check, window_checks
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    NAT_STATUS,
    PROTO_SCTP,
    PROTO_TCP,
    FlowSnapshot,
    FlowTuple,
    Peer,
)
from nfq_guard.names import (
    address_bytes,
    direction_number,
    flow_status_bits,
    hook_number,
    protocol_number,
    tcp_flag_bits,
    tcp_state_number,
)
from nfq_guard.policy.model import RULE_HIDDEN_HALF
from nfq_guard.seqno import Seq, add, seq
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.reader import ReadEvent
from nfq_guard.whatif.recorded import Judged, Recorded
from nfq_guard.wire.packet import (
    UDP_HEADER,
    Datagram,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)

_UPPER: Final = frozenset({Reason.SEQ_OVER, Reason.ACK_OVER})
_OF_ACK: Final = frozenset({Reason.ACK_OVER, Reason.ACK_UNDER})


def recorded(read: ReadEvent) -> Iterator[Recorded]:
    """The input of a policy for the packets of an event, once for each distance."""
    event = read.event
    breach = event.breach
    queued = Queued(b"", hook_number(event.hook), event.indev, event.outdev, event.mark, 0)
    snapshot = _snapshot(event, protocol_number(event.proto))
    # Early daemons folded all packets of one rule, which may differ.
    alike = event.count == 1 or event.first is not None
    distance = 0 if breach is None else breach.distance
    for each, count in event.distances or ((distance, event.count),):
        proof = None
        if breach is not None:
            proof = Breach(breach.bound, seq(breach.actual), seq(breach.limit), each)
        yield Recorded(
            number=read.line,
            first_s=read.first.timestamp(),
            time_s=read.when.timestamp(),
            count=count,
            alike=count if alike else 1,
            packet=_packet(event, each - distance),
            judged=Judged(
                queued=queued,
                snapshot=snapshot,
                finding=Finding(event.reason, proof),
                # Earlier daemons have the field for no packet.
                spared=event.hidden_half or event.rule == RULE_HIDDEN_HALF,
            ),
            passed=event.verdict == "accept",
        )


def bounds_of(event: PacketJudged) -> list[BoundCheck]:
    """The bounds for which the first packet of an event was checked; none without a window."""
    window = event.window
    packet = _packet(event)
    snapshot = _snapshot(event, packet.proto)
    segment = packet.l4 if isinstance(packet, Packet) else None
    if window is None or snapshot is None or not isinstance(segment, Segment):
        return []
    if event.reason is Reason.RST_OUTSIDE:
        check = rst_check(segment, snapshot)
        return [] if check is None else [check]
    return window_checks(segment, snapshot, seq(window.acknowledged))


def _packet(event: PacketJudged, further: int = 0) -> Packet | Malformed:
    """The first packet of an event, or another one of its packets.

    Args:
        event: The event.
        further: Bytes by which its distance from the bound is greater. Packets with different
            distances are different segments, which rates may count apart.
    """
    src = b"" if event.src is None else address_bytes(event.src)
    dst = b"" if event.dst is None else address_bytes(event.dst)
    proto = protocol_number(event.proto)
    malformed = event.reason is Reason.MALFORMED and not event.leak
    if malformed or not src or not dst:
        return Malformed("", event.family, src, dst, proto)
    l4: Segment | Datagram | SctpPacket | None = None
    if event.sport is not None and event.dport is not None:
        if event.tcp_flags is not None:
            flags = tcp_flag_bits(event.tcp_flags)
            l4 = Segment(
                event.sport,
                event.dport,
                *_numbers(event, further),
                flags,
                0,
                event.payload or 0,
                b"",
                0,
            )
        elif proto == PROTO_SCTP:
            l4 = SctpPacket(event.sport, event.dport, 0, 0, (), False)  # noqa: FBT003 - whole
        else:
            l4 = Datagram(event.sport, event.dport, UDP_HEADER + (event.payload or 0), 0)
    return Packet(event.family, src, dst, proto, 0, 0, 0, 0, False, l4)  # noqa: FBT003 - more_fragments


def _numbers(event: PacketJudged, further: int) -> tuple[Seq, Seq]:
    """`seq` and `ack` of a packet; that of the broken bound is by `further` bytes farther off."""
    number, acknowledged = seq(event.seq or 0), seq(event.ack or 0)
    if event.breach is None or not further:
        return number, acknowledged
    bound = event.breach.bound
    change = further if bound in _UPPER else -further
    if bound in _OF_ACK:
        return number, add(acknowledged, change)
    return add(number, change), acknowledged


def _snapshot(event: PacketJudged, proto: int) -> FlowSnapshot | None:
    if event.direction is None:
        return None
    # An ICMP error has the state of the quoted flow.
    way = FlowTuple(proto if event.state is None else PROTO_TCP, b"", b"", 0, 0)
    status = NAT_STATUS.get(event.nat, 0) | flow_status_bits(event.status or ())
    state = 0 if event.state is None else tcp_state_number(event.state)
    direction = direction_number(event.direction)
    return FlowSnapshot(
        event.evidence, direction, way, way, status, event.ct_mark or 0, 0, 0, state,
        _peers(event, direction),
    )  # fmt: skip


def _peers(event: PacketJudged, direction: int) -> tuple[Peer, Peer] | None:
    """The senders of the original and of the reply direction, as far as events contain them."""
    window = event.window
    if window is None:
        return None
    sender = Peer(
        seq(window.sender_td_end),
        seq(window.sender_td_maxend),
        window.sender_td_maxwin,
        seq(window.sender_td_maxack),
        0,
        0,
    )
    receiver = Peer(
        seq(window.receiver_td_end),
        seq(window.receiver_td_maxend),
        window.receiver_td_maxwin,
        seq(window.receiver_td_maxack),
        0,
        0,
    )
    return (receiver, sender) if direction else (sender, receiver)
