# SPDX-License-Identifier: MIT
"""Transport checksums (RFC 1071, RFC 9293 3.1, RFC 8200 8.1).

A ones' complement sum of 16-bit words is the remainder of the whole number by 65535, which
Python computes for a packet in one division.
"""

from typing import Final

from nfq_guard.flow import IPV4, PROTO_ICMP
from nfq_guard.wire.packet import Datagram, IcmpMessage, Packet, Segment

_ONES: Final = 0xFFFF

# Adding the halves of a number keeps its remainder and takes a tenth of the time of a division.
# Worth it from 256 octets up to the size of a frame without segmentation offload.
_FOLDED_FROM: Final = 256
_FOLDED_TO: Final = 2048
_LOW_1024: Final = (1 << 8192) - 1
_LOW_512: Final = (1 << 4096) - 1
_LOW_256: Final = (1 << 2048) - 1


def _sum(octets: bytes) -> int:
    """The ones' complement sum: 0 for zeros only, else 1 to 65535."""
    number = int.from_bytes(octets, "big")
    if number == 0:
        return 0
    size = len(octets)
    if _FOLDED_FROM < size <= _FOLDED_TO:
        if size > 1024:
            number = (number >> 8192) + (number & _LOW_1024)
        if size > 512:
            number = (number >> 4096) + (number & _LOW_512)
        number = (number >> 2048) + (number & _LOW_256)
    remainder = number % _ONES
    if size & 1:
        remainder = (remainder << 8) % _ONES
    return remainder or _ONES


def _pseudo_header(packet: Packet, wire_len: int) -> int:
    return _sum(packet.src) + _sum(packet.dst) + packet.proto + wire_len


def header_checksum_ok(octets: bytes) -> bool:
    """Whether the checksum of an IPv4 header is right, or left to the NIC (RFC 791 3.1).

    Args:
        octets: A packet of at least as many octets as its header states.
    """
    size = (octets[0] & 15) << 2
    return (octets[10] == 0 and octets[11] == 0) or _sum(octets[:size]) == _ONES


def checksum_ok(packet: Packet, octets: bytes) -> bool | None:
    """Whether the transport checksum is right; None when that is unknown.

    It is unknown for a fragment, for a protocol that is not decoded, and for a packet that was not
    captured whole. A datagram without a checksum is right, in IPv6 too: conntrack accepts it
    against RFC 8200.
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
    if packet.proto == PROTO_ICMP:
        return _sum(octets[start:end]) == _ONES
    if start == (20 if packet.family == IPV4 else 40):
        # The addresses directly precede the segment, as in nearly every packet.
        addresses = 8 if packet.family == IPV4 else 32
        total = _sum(octets[start - addresses : end]) + packet.proto + end - start
    else:
        total = _sum(octets[start:end]) + _pseudo_header(packet, end - start)
    return total % _ONES == 0


def checksum_unfinished(packet: Packet) -> bool:
    """Whether the field holds the sum of the pseudo-header alone, for the NIC to complete.

    With the length, as Linux leaves it, or without, as for a packet that the NIC also segments.
    """
    l4 = packet.l4
    if not isinstance(l4, Segment | Datagram | IcmpMessage):
        return False
    without_length = _pseudo_header(packet, 0)
    field = l4.checksum
    return (
        field == (without_length + packet.length - packet.l4_offset) % _ONES
        or field == without_length % _ONES
    )
