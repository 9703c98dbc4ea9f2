# SPDX-License-Identifier: MIT
"""Packets and findings as people write them."""

import socket
from typing import Final

from nfq_guard.finding import Bound, Breach, Finding
from nfq_guard.flow import (
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    FlowTuple,
    TcpState,
)
from nfq_guard.wire.packet import ACK, Datagram, IcmpMessage, Malformed, Packet, Segment

_PROTOCOLS: Final = {
    PROTO_ICMP: "icmp",
    PROTO_TCP: "tcp",
    PROTO_UDP: "udp",
    PROTO_ICMPV6: "icmpv6",
}
_FLAGS: Final = "FSRPAUEC"

# What a breach says: the number that breaks, the side of the limit, and what the limit is.
_BREACHES: Final = {
    Bound.SEQ_OVER: ("seq", "beyond", "the last the receiver agreed to take"),
    Bound.SEQ_UNDER: ("end", "before", "the sender's highest end less the receiver's window"),
    Bound.ACK_OVER: ("ack", "beyond", "the last the other side has sent"),
    Bound.ACK_UNDER: ("ack", "before", "the oldest that may still be acknowledged"),
    Bound.RST_OUTSIDE: ("seq", "before", "what the other side has acknowledged already"),
}


def protocol(number: int) -> str:
    """The name of an IP protocol, or its number."""
    return _PROTOCOLS.get(number, str(number))


def address(octets: bytes) -> str:
    """An address as text; empty where a broken packet gave none."""
    if len(octets) == 4:
        return socket.inet_ntop(socket.AF_INET, octets)
    return socket.inet_ntop(socket.AF_INET6, octets) if len(octets) == 16 else ""


def endpoint(octets: bytes, port: int | None) -> str:
    """An address with its port, IPv6 in brackets."""
    if port is None:
        return address(octets)
    return f"[{address(octets)}]:{port}" if len(octets) == 16 else f"{address(octets)}:{port}"


def ports(packet: Packet | Malformed) -> tuple[int | None, int | None]:
    """Source and destination port; None where the protocol has none."""
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if isinstance(l4, Segment | Datagram):
        return l4.sport, l4.dport
    return None, None


def way(packet: Packet | Malformed) -> str:
    """Both ends: `10.0.0.1:40000 > 10.0.0.2:80`."""
    sport, dport = ports(packet)
    return f"{endpoint(packet.src, sport)} > {endpoint(packet.dst, dport)}"


def tuple_way(flow: FlowTuple) -> str:
    """Both ends of one direction of a flow."""
    if flow.proto in {PROTO_TCP, PROTO_UDP}:
        return f"{endpoint(flow.src, flow.sport)} > {endpoint(flow.dst, flow.dport)}"
    return f"{address(flow.src)} > {address(flow.dst)}"


def flag_letters(flags: int) -> str:
    """TCP flags by their letters in the order of the bits, `SA` for SYN and ACK; `-` for none."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1) or "-"


def gist(packet: Packet | Malformed) -> str:
    """What a packet is, in a few words."""
    if isinstance(packet, Malformed):
        return packet.problem
    l4 = packet.l4
    if isinstance(l4, Segment):
        ack = f" ack {l4.ack}" if l4.flags & ACK else ""
        return f"{flag_letters(l4.flags):<2} seq {l4.seq}{ack} len {l4.payload_len}"
    if isinstance(l4, Datagram):
        return f"udp len {l4.length - 8}"
    if isinstance(l4, IcmpMessage):
        quoted = "" if l4.quoted is None else f" about {tuple_way(l4.quoted)}"
        return f"{protocol(packet.proto)} type {l4.type} code {l4.code}{quoted}"
    return protocol(packet.proto)


def state_name(state: int) -> str | None:
    """A `TcpState` by its number; None for 0, which is no state."""
    return TcpState(state).name if state else None


def octets_of(count: int) -> str:
    """A count with its unit."""
    return "1 octet" if count == 1 else f"{count} octets"


def breach_sentence(breach: Breach) -> str:
    """The proof in one sentence."""
    what, side, limit = _BREACHES[breach.bound]
    distance = octets_of(breach.distance)
    return f"{what} {breach.actual} is {distance} {side} {breach.limit}, {limit}"


def breach_gist(breach: Breach) -> str:
    """The proof beside `gist`, which has the number itself."""
    what, side, _ = _BREACHES[breach.bound]
    return f"{what} {octets_of(breach.distance)} {side} {breach.limit}"


def finding_sentence(finding: Finding) -> str:
    """Why a packet is INVALID, without the reason's name; may be empty."""
    return breach_sentence(finding.breach) if finding.breach is not None else finding.detail
