# SPDX-License-Identifier: MIT
"""Link headers: where the IP packet begins in a frame (tcpdump.org/linktypes.html)."""

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
# 802.1Q, 802.1ad and what was in use before it.
_TAGS: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00", b"\x92\x00"})
_NFLOG_PAYLOAD: Final = 9
_NFLOG_ALIGN: Final = 4


def _if_version(octets: bytes, start: int, version: int) -> int:
    """`start` if a header of that IP version begins there.

    The kernel drops a packet whose version contradicts its link header before conntrack sees it.
    """
    if start < len(octets) and octets[start] >> 4 == version:
        return start
    return NO_PACKET


def _after_ethertype(octets: bytes, start: int) -> int:
    """The packet behind the EtherType at `start`, past any VLAN tags."""
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
    # The protocol comes first here, the packet behind the whole header of 20 octets; a VLAN tag
    # stands in front of the packet.
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
    # An address family in the byte order and numbering of the host that captured, which the
    # version of the packet tells as well.
    return _any_version(octets, 4)


def _ipv4(octets: bytes) -> int:
    return _if_version(octets, 0, 4)


def _ipv6(octets: bytes) -> int:
    return _if_version(octets, 0, 6)


def _nflog(octets: bytes) -> int:
    # Attributes in the byte order of the host that captured. The family of the header is a
    # single octet and says nothing of it, but the first attribute is never 256 octets long.
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


# By link type: where the IP packet begins in a frame, or `NO_PACKET`.
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
