# SPDX-License-Identifier: MIT
"""Transport checksums (RFC 1071, RFC 9293 3.1, RFC 8200 8.1; of SCTP RFC 9260 6.8).

A ones' complement sum of 16-bit words is the remainder of the whole number by 65535.
"""

from typing import TYPE_CHECKING, Final

from nfq_guard.flow import IPV4, PROTO_ICMP, PROTO_TCP
from nfq_guard.wire.ipv6 import checksum_addresses
from nfq_guard.wire.packet import Datagram, GreHeader, IcmpMessage, Packet, SctpPacket, Segment

if TYPE_CHECKING:
    # In compiled code, an integer in a register. Uncompiled, local annotations are not evaluated.
    from mypy_extensions import i64

_ONES: Final = 0xFFFF

# The polynomial of CRC32C, bits in reverse order (RFC 9260 appendix A).
_POLYNOMIAL: Final = 0x82F63B78
_SCTP_CHECKSUM_AT: Final = 8


def _crc_of_octet(octet: int) -> int:
    crc = octet
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


_CRC_TABLE: Final = tuple(_crc_of_octet(octet) for octet in range(256))


def crc32c(octets: bytes) -> int:
    """The CRC of SCTP; the checksum field has its lowest octet first."""
    table = _CRC_TABLE
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = table[(crc ^ octet) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _sum(octets: bytes, start: int, end: int) -> int:
    """The ones' complement sum from `start` to `end`: 0 for zeros only, else 1 to 65535."""
    number = _added(octets, start, end)
    if number == 0:
        return 0
    return number % _ONES or _ONES


def _added(octets: bytes, start: int, end: int) -> int:
    """The sum of all 16-bit words."""
    # By index, which in compiled code is faster than a large integer or Adler-32 over slices.
    high: i64 = 0
    low: i64 = 0
    at: i64 = start
    stop: i64 = end
    while at + 4 <= stop:
        high += octets[at] + octets[at + 2]
        low += octets[at + 1] + octets[at + 3]
        at += 4
    if at + 2 <= stop:
        high += octets[at]
        low += octets[at + 1]
        at += 2
    if at < stop:
        high += octets[at]
    return (high << 8) + low


def _pseudo_header(packet: Packet, wire_len: int) -> int:
    src = packet.src
    dst = packet.dst
    return _sum(src, 0, len(src)) + _sum(dst, 0, len(dst)) + packet.proto + wire_len


def header_checksum_ok(octets: bytes, at: int = 0) -> bool:
    """Whether the checksum of an IPv4 header is correct, or left to the NIC (RFC 791 3.1).

    Args:
        octets: Octets that contain a packet, at least as long as its header states.
        at: Offset of the packet.
    """
    if octets[at + 10] == 0 and octets[at + 11] == 0:
        return True
    if octets[at] != 0x45:
        return _sum(octets, at, at + ((octets[at] & 15) << 2)) == _ONES
    return _added(octets, at, at + 20) % _ONES == 0


def checksum_ok(packet: Packet, octets: bytes) -> bool | None:
    """Whether the transport checksum is correct for conntrack; None if that is unknown.

    It is unknown for a fragment without a transport header, for a protocol that is not decoded or
    whose checksum conntrack does not verify, and for a packet that was not captured whole. A
    datagram without a checksum is correct, also in IPv6: conntrack accepts it, contrary to RFC
    8200. Conntrack includes octets beyond the length of a datagram, and an IPv6 fragment that Linux
    does not reassemble.
    """
    l4 = packet.l4
    if l4 is None or len(octets) < packet.length:
        return None
    if packet.more_fragments and packet.family == IPV4:
        return None
    start = packet.l4_offset
    end = packet.length
    if isinstance(l4, SctpPacket):
        at = start + _SCTP_CHECKSUM_AT
        return l4.checksum == crc32c(octets[start:at] + bytes(4) + octets[at + 4 : end])
    if isinstance(l4, GreHeader):
        return None
    if isinstance(l4, Datagram) and l4.checksum == 0:
        return True
    if packet.proto == PROTO_ICMP:
        return _sum(octets, start, end) == _ONES
    if start == (20 if packet.family == IPV4 else 40):
        # The addresses directly precede the segment in nearly every packet.
        addresses = 8 if packet.family == IPV4 else 32
        return sum_is_right(octets, start - addresses, start, end, packet.proto)
    total = _sum(octets, start, end) + _pseudo_header(packet, end - start)
    return total % _ONES == 0


def may_be_right_for_receiver(packet: Packet, octets: bytes) -> bool:
    """Whether a checksum that is wrong for conntrack may be correct for the receiver.

    It may if the receiver takes other addresses (`ipv6.checksum_addresses`), and with these the
    checksum is correct, or that cannot be computed.
    """
    start = packet.l4_offset
    if packet.family == IPV4 or start == 40 or isinstance(packet.l4, SctpPacket):
        return False
    src, dst = checksum_addresses(octets, start)
    if src == packet.src and dst == packet.dst:
        return False
    end = packet.length
    if not dst or len(octets) < end:
        return True
    total = _sum(octets, start, end) + _sum(src, 0, 16) + _sum(dst, 0, 16)
    return (total + packet.proto + end - start) % _ONES == 0


def sum_is_right(octets: bytes, addresses: int, start: int, end: int, proto: int) -> bool:
    """Whether the transport checksum is correct if the addresses directly precede the segment.

    Args:
        octets: Octets that contain the packet.
        addresses: Offset of its addresses.
        start: Offset of its segment.
        end: Offset of the segment's end.
        proto: Its protocol.
    """
    return (_added(octets, addresses, end) + proto + end - start) % _ONES == 0


def sum_is_unfinished(octets: bytes, addresses: int, start: int, end: int, proto: int) -> bool:
    """`checksum_unfinished`, with the arguments of `sum_is_right`."""
    at = start + (16 if proto == PROTO_TCP else 6)
    field = octets[at] << 8 | octets[at + 1]
    without_length = _added(octets, addresses, start) + proto
    return field == (without_length + end - start) % _ONES or field == without_length % _ONES


def right_once_finished(packet: Packet, octets: bytes, inside: int, field: int) -> bool:
    """Whether a checksum will be right once the NIC has finished one inside the payload.

    Linux computes the checksum of a tunnel's datagram ahead of that: the segment inside will add up
    to the opposite of its pseudo-header.

    Args:
        packet: The outer packet.
        octets: The same.
        inside: Where the transport header of the inner packet starts.
        field: The checksum there, which is unfinished.
    """
    start = packet.l4_offset
    total = _sum(octets, start, inside) + _pseudo_header(packet, packet.length - start)
    return (total - field) % _ONES == 0


def checksum_unfinished(packet: Packet) -> bool:
    """Whether the field holds the sum of the pseudo-header alone, for the NIC to complete.

    With the length, as Linux leaves it, or without, for a packet that the NIC also segments. For
    SCTP the field is left 0.
    """
    l4 = packet.l4
    if isinstance(l4, SctpPacket):
        return l4.checksum == 0
    if not isinstance(l4, Segment | Datagram | IcmpMessage):
        return False
    without_length = _pseudo_header(packet, 0)
    field = l4.checksum
    return (
        field == (without_length + packet.length - packet.l4_offset) % _ONES
        or field == without_length % _ONES
    )
