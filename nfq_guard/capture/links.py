# SPDX-License-Identifier: MIT
"""Link headers: the start of the IP packet in a frame (tcpdump.org/linktypes.html)."""

import struct
from collections.abc import Callable
from typing import Final

NULL: Final = 0
ETHERNET: Final = 1
RAW_DLT_12: Final = 12
RAW_DLT_14: Final = 14
RAW: Final = 101
LOOP: Final = 108
LINUX_SLL: Final = 113
IPV4: Final = 228
IPV6: Final = 229
NFLOG: Final = 239
LINUX_SLL2: Final = 276

NO_PACKET: Final = -1

_ETHERTYPE_IPV4: Final = b"\x08\x00"
_ETHERTYPE_IPV6: Final = b"\x86\xdd"
# 802.1Q, 802.1ad and its predecessors.
_TAGS: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00", b"\x92\x00"})
_NFLOG_PAYLOAD: Final = 9
_NFLOG_ALIGN: Final = 4


def _if_version(octets: bytes, start: int, version: int) -> int:
    """`start` if an IP header of that version begins there, else `NO_PACKET`.

    If the version contradicts the link header, the kernel drops the packet before conntrack.
    """
    if start < len(octets) and octets[start] >> 4 == version:
        return start
    return NO_PACKET


def _after_ethertype(octets: bytes, start: int) -> int:
    """Start of the packet behind the EtherType at `start` and any VLAN tags."""
    kind = octets[start : start + 2]
    while kind in _TAGS:
        start += 4
        kind = octets[start : start + 2]
    if kind == _ETHERTYPE_IPV4:
        return _if_version(octets, start + 2, 4)
    if kind == _ETHERTYPE_IPV6:
        return _if_version(octets, start + 2, 6)
    return NO_PACKET


def _ethernet(octets: bytes) -> int:
    return _after_ethertype(octets, 12)


def _sll(octets: bytes) -> int:
    return _after_ethertype(octets, 14)


def _sll2(octets: bytes) -> int:
    # The protocol is the first field of the header of 20 octets. The rest of a VLAN tag follows
    # the header.
    kind = octets[:2]
    if kind in _TAGS:
        return _after_ethertype(octets, 22)
    if kind == _ETHERTYPE_IPV4:
        return _if_version(octets, 20, 4)
    return _if_version(octets, 20, 6) if kind == _ETHERTYPE_IPV6 else NO_PACKET


def _any_version(octets: bytes, start: int) -> int:
    version = octets[start] >> 4 if start < len(octets) else 0
    return start if version in {4, 6} else NO_PACKET


def _raw(octets: bytes) -> int:
    return _any_version(octets, 0)


def _loopback(octets: bytes) -> int:
    # The header is an address family in the capturing host's byte order and numbering. The IP
    # version of the packet identifies the family as well.
    return _any_version(octets, 4)


def _ipv4(octets: bytes) -> int:
    return _if_version(octets, 0, 4)


def _ipv6(octets: bytes) -> int:
    return _if_version(octets, 0, 6)


def _nflog(octets: bytes) -> int:
    # Attributes are in the capturing host's byte order, which the header does not state. It
    # follows from the length of the first attribute, which is always below 256.
    start, end = 4, len(octets)
    order = ">" if end >= 8 and octets[4] == 0 and octets[5] else "<"
    head = struct.Struct(order + "HH")
    while start + 4 <= end:
        length, kind = head.unpack_from(octets, start)
        if length < 4:
            break
        if kind & 0x7FFF == _NFLOG_PAYLOAD:
            return _any_version(octets, start + 4)
        start += length + _NFLOG_ALIGN - 1 & -_NFLOG_ALIGN
    return NO_PACKET


# By link type: a function from a frame to the start of its IP packet, or `NO_PACKET`.
LINKS: Final[dict[int, Callable[[bytes], int]]] = {
    NULL: _loopback,
    ETHERNET: _ethernet,
    RAW_DLT_12: _raw,
    RAW_DLT_14: _raw,
    RAW: _raw,
    LOOP: _loopback,
    LINUX_SLL: _sll,
    IPV4: _ipv4,
    IPV6: _ipv6,
    NFLOG: _nflog,
    LINUX_SLL2: _sll2,
}
