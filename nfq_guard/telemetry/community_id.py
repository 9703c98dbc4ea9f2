# SPDX-License-Identifier: MIT
"""Community ID version 1: the flow identifier that Zeek, Suricata, Wireshark and others share.

It is "1:" and the SHA-1 of the flow's tuple in base64, the same for both directions, with seed 0
(github.com/corelight/community-id-spec). For an ICMP message its own type and code stand in place
of ports, also for an error that quotes a packet of another flow.
"""

import base64
import hashlib
import struct
from typing import Final

from nfq_guard.flow import PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP
from nfq_guard.wire.packet import Datagram, IcmpMessage, Malformed, Packet, SctpPacket, Segment

_SEED: Final = b"\0\0"
_WITH_PORTS: Final = frozenset({PROTO_TCP, PROTO_UDP, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP})
# Types of a request and of its reply, in both orders. All other messages are one-way.
_ICMP_PAIRS: Final = ((8, 0), (13, 14), (15, 16), (10, 9), (17, 18))
_ICMPV6_PAIRS: Final = ((128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145))
_REPLIES: Final = {
    proto: dict(pairs) | {reply: request for request, reply in pairs}
    for proto, pairs in ((PROTO_ICMP, _ICMP_PAIRS), (PROTO_ICMPV6, _ICMPV6_PAIRS))
}


def community_id(packet: Packet | Malformed) -> str | None:
    """The Community ID of a packet's flow; None if its addresses or ports cannot be read."""
    if isinstance(packet, Malformed):
        return None
    one_way = False
    ports: tuple[int, int] | None = None
    l4 = packet.l4
    if isinstance(l4, Segment | Datagram | SctpPacket):
        ports = l4.sport, l4.dport
    elif isinstance(l4, IcmpMessage):
        reply = _REPLIES[packet.proto].get(l4.type)
        one_way = reply is None
        ports = l4.type, l4.code if reply is None else reply
    elif packet.proto in _WITH_PORTS:
        return None  # a later fragment has no ports
    ends = [(packet.src, ports[0] if ports else 0), (packet.dst, ports[1] if ports else 0)]
    if not one_way:
        ends.sort()
    (one, one_port), (other, other_port) = ends
    hashed = _SEED + one + other + bytes((packet.proto, 0))
    if ports is not None:
        hashed += struct.pack("!HH", one_port, other_port)
    digest = hashlib.sha1(hashed, usedforsecurity=False).digest()
    return "1:" + base64.b64encode(digest).decode("ascii")
