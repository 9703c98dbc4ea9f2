# SPDX-License-Identifier: MIT
"""Replaces the addresses of a packet, also of one quoted by an ICMP error, with keyed hashes.

Under one key an address always has the same replacement, so flows remain recognisable. IPv4
addresses map into 64.0.0.0/2, IPv6 addresses into fd00::/8. Correct checksums stay correct, and
wrong ones stay wrong. A packet that cannot be decoded is reduced to its IP header. What else may
contain addresses becomes zeros: IP options, and messages between neighbours and routers.
"""

import hashlib
from typing import Final, final

from nfq_guard.flow import IPV4, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP
from nfq_guard.wire.icmp import REDIRECT_V6
from nfq_guard.wire.ip import decode
from nfq_guard.wire.ipv6 import (
    AUTHENTICATION,
    DESTINATION,
    EXTENSIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
)
from nfq_guard.wire.packet import IcmpMessage, Packet

# Offsets of the source address, and lengths of the fixed header, by the version of IP.
_ADDRESSES_AT: Final = {4: 12, 6: 8}
_FIXED: Final = {4: 20, 6: 40}
_IPV4_SUM_AT: Final = 10
# Offsets of checksums in transport headers.
_SUM_AT: Final = {PROTO_TCP: 16, PROTO_UDP: 6, PROTO_ICMP: 2, PROTO_ICMPV6: 2}
_ICMP_HEADER: Final = 8
_ICMP_CHECKED: Final = 4
_REDIRECT: Final = 5
# Echo, timestamp and information messages.
_WITHOUT_ADDRESSES: Final = {
    PROTO_ICMP: frozenset({0, 8, 13, 14, 15, 16}),
    PROTO_ICMPV6: frozenset({128, 129}),
}
# Octets of IPv6 extension headers that stay: next header, length, and those of routing.
_KEPT: Final = {HOP_BY_HOP: 2, DESTINATION: 2, ROUTING: 4}


@final
class Anonymiser:
    """Replaces addresses with hashes under one key."""

    def __init__(self, key: bytes) -> None:
        """Use the secret `key`, at most 64 bytes."""
        self._key = key

    def address(self, address: bytes) -> bytes:
        """The replacement of an address of 4 or 16 octets."""
        hashed = hashlib.blake2b(address, key=self._key, digest_size=len(address)).digest()
        # 127 is the loopback network, which never appears on a wire.
        first = 0xFD if len(address) == 16 else 64 + hashed[0] % 63
        return bytes((first,)) + hashed[1:]

    def packet(self, octets: bytes) -> bytes:
        """The packet with replaced addresses; both begin with the IP header."""
        found = bytearray(octets)
        version = octets[0] >> 4 if octets else 0
        fixed = _FIXED.get(version, 0)
        if len(octets) < fixed or not fixed:
            return b""
        packet = decode(octets)
        changed = self._replace(found, 0, version)
        if not isinstance(packet, Packet):
            return bytes(found[:fixed])
        if packet.fragment_offset:
            return bytes(found)
        # An ICMP checksum of IPv4 does not cover the addresses.
        covered = 0 if packet.proto == PROTO_ICMP else changed
        if isinstance(packet.l4, IcmpMessage):
            covered += self._message(found, packet.proto, packet.l4, packet.l4_offset)
        at = _SUM_AT.get(packet.proto)
        if at is not None:
            self._adjust_transport(found, packet, packet.l4_offset + at, covered)
        return bytes(found)

    def _replace(self, octets: bytearray, start: int, version: int) -> int:
        """Replace both addresses of the IP header at `start`, and blank its options.

        Returns the change of the sum of the addresses.
        """
        size = 4 if version == 4 else 16
        begin = start + _ADDRESSES_AT[version]
        end = begin + 2 * size
        before = _sum_of(octets[begin:end])
        for at in (begin, begin + size):
            octets[at : at + size] = self.address(bytes(octets[at : at + size]))
        changed = _sum_of(octets[begin:end]) - before
        if version == 4:
            options = slice(start + _FIXED[4], start + ((octets[start] & 15) << 2))
            _adjust(octets, start + _IPV4_SUM_AT, changed + _blank(octets, options))
        else:
            _blank_extensions(octets, start)
        return changed

    def _message(self, octets: bytearray, proto: int, message: IcmpMessage, start: int) -> int:
        """Replace or blank the addresses in an ICMP message; returns the change of its sum."""
        rest = start + _ICMP_CHECKED
        # An IPv6 redirect quotes a packet in an option, behind two addresses.
        if not message.is_error or (proto, message.type) == (PROTO_ICMPV6, REDIRECT_V6):
            known = message.type in _WITHOUT_ADDRESSES[proto]
            return 0 if known else _blank(octets, slice(rest, len(octets)))
        changed = self._quoted(octets, start + _ICMP_HEADER)
        if (proto, message.type) == (PROTO_ICMP, _REDIRECT) and len(octets) >= rest + 4:
            before = _sum_of(octets[rest : rest + 4])
            octets[rest : rest + 4] = self.address(bytes(octets[rest : rest + 4]))
            changed += _sum_of(octets[rest : rest + 4]) - before
        return changed

    def _quoted(self, octets: bytearray, start: int) -> int:
        """Replace the addresses of a quoted packet; returns the change of its word sum.

        It has the version of the packet around it: conntrack does not look at its own.
        """
        version = octets[0] >> 4
        if len(octets) < start + _FIXED[version]:
            del octets[start:]
            return 0
        before = _sum_of(octets[start:])
        self._replace(octets, start, version)
        return _sum_of(octets[start:]) - before

    def _adjust_transport(self, octets: bytearray, packet: Packet, at: int, changed: int) -> None:
        absent = (
            packet.family == IPV4 and packet.proto == PROTO_UDP and octets[at : at + 2] == b"\0\0"
        )
        if len(octets) >= at + 2 and not absent:
            _adjust(octets, at, changed)


def _blank(octets: bytearray, part: slice) -> int:
    """Set octets to zero, from an even one on; returns the change of their word sum."""
    before = octets[part]
    octets[part] = bytes(len(before))
    return -_sum_of(before)


def _blank_extensions(octets: bytearray, start: int) -> None:
    """Blank options, which are padding then, and routes; no checksum covers them."""
    header, at = octets[start + 6], start + _FIXED[6]
    while header in EXTENSIONS and at + 8 <= len(octets):
        following, size = octets[at], (octets[at + 1] + 1) << 3
        if header == FRAGMENT:
            if octets[at + 2] or octets[at + 3] & 0xF8:
                return  # data follows
            size = 8
        elif header == AUTHENTICATION:
            size = (octets[at + 1] + 2) << 2
        else:
            _blank(octets, slice(at + _KEPT[header], at + size))
        header, at = following, at + size


def _sum_of(octets: bytes | bytearray) -> int:
    """The sum of 16-bit words; an odd last octet is a high half."""
    padded = bytes(octets) + bytes(len(octets) & 1)
    return sum(padded[at] << 8 | padded[at + 1] for at in range(0, len(padded), 2))


def _adjust(octets: bytearray, at: int, changed: int) -> None:
    """Update the checksum at `at` by the change of the words that it covers (RFC 1624)."""
    total = (0xFFFF - int.from_bytes(octets[at : at + 2]) + changed) % 0xFFFF
    octets[at : at + 2] = (0xFFFF - total).to_bytes(2)
