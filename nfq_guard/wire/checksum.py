# SPDX-License-Identifier: MIT
"""Transport checksums (RFC 1071, RFC 9293 3.1, RFC 8200 8.1).

A ones' complement sum of 16-bit words is the remainder of the whole number by 65535, which
Python computes for a packet in one division.
"""

from typing import Final

from nfq_guard.flow import PROTO_ICMP
from nfq_guard.wire.packet import Datagram, IcmpMessage, Packet, Segment

_ONES: Final = 0xFFFF


def _sum(octets: bytes) -> int:
    number = int.from_bytes(octets, "big")
    if len(octets) & 1:
        number <<= 8
    return number


def _pseudo_header(packet: Packet, wire_len: int) -> int:
    return _sum(packet.src) + _sum(packet.dst) + packet.proto + wire_len


def checksum_ok(packet: Packet, octets: bytes) -> bool | None:
    """Whether the transport checksum is right; None when it cannot be told.

    A datagram without one is right, also in IPv6: conntrack says so, whatever RFC 8200 says.

    It cannot for a fragment, a protocol without transport header here, or a packet of which not
    every octet was captured.
    """
    l4 = packet.l4
    if l4 is None or packet.more_fragments or len(octets) < packet.length:
        return None
    start = packet.l4_offset
    end = packet.length
    if isinstance(l4, Datagram):
        if l4.checksum == 0:
            return True
        end = start + l4.length
    total = _sum(octets[start:end])
    if packet.proto != PROTO_ICMP:
        total += _pseudo_header(packet, end - start)
    return total != 0 and total % _ONES == 0


def checksum_unfinished(packet: Packet) -> bool:
    """Whether the field holds the sum of the pseudo-header alone, as a NIC is handed it."""
    l4 = packet.l4
    if not isinstance(l4, Segment | Datagram | IcmpMessage):
        return False
    return l4.checksum == _pseudo_header(packet, packet.length - packet.l4_offset) % _ONES
