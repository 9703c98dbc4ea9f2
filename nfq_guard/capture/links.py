# SPDX-License-Identifier: MIT
"""Link headers: the start of the IP packet in a frame (tcpdump.org/linktypes.html)."""

import struct
from collections.abc import Callable
from typing import Final

NULL: Final = 0
ETHERNET: Final = 1
PPP: Final = 9
RAW_DLT_12: Final = 12
RAW_DLT_14: Final = 14
PPP_HDLC: Final = 50
PPP_ETHER: Final = 51
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
_ETHERTYPE_PPPOE: Final = b"\x88\x64"
# The least octets of Ethernet with PPPoE before the packet.
_ETHERNET_PPPOE: Final = 21
# Version and type 1 with code 0.
_PPPOE_SESSION: Final = b"\x11\x00"
_MPLS: Final = frozenset({b"\x88\x47", b"\x88\x48"})
_MOST_LABELS: Final = 16
# 802.1Q, 802.1ad and its predecessors.
_TAGS: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00", b"\x92\x00"})
_NFLOG_PAYLOAD: Final = 9
# Attributes of NFLOG that say where a packet was: hook, interfaces and the rule's prefix.
_NFLOG_PLACE: Final = frozenset({1, 4, 5, 6, 7, 10})
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
    return _of_ethertype(octets, kind, start + 2)


def _of_ethertype(octets: bytes, kind: bytes, start: int) -> int:
    """Start of the packet in a payload at `start` with the EtherType `kind`, no VLAN tag."""
    if kind == _ETHERTYPE_IPV4:
        return _if_version(octets, start, 4)
    if kind == _ETHERTYPE_IPV6:
        return _if_version(octets, start, 6)
    if kind == _ETHERTYPE_PPPOE:
        return _pppoe(octets, start)
    return below_labels(octets, start) if kind in _MPLS else NO_PACKET


def below_labels(octets: bytes, start: int) -> int:
    """Start of the packet below a stack of labels, four octets each (RFC 3032)."""
    for _ in range(_MOST_LABELS):
        if len(octets) < start + 4:
            break
        start += 4
        if octets[start - 2] & 1:
            return _any_version(octets, start)
    return NO_PACKET


def _pppoe(octets: bytes, start: int) -> int:
    """Start of the packet in a PPPoE session frame (RFC 2516)."""
    session = len(octets) > start + 6 and octets[start] == 0x11 and octets[start + 1] == 0
    return _ppp(octets, start + 6) if session else NO_PACKET


def _ppp(octets: bytes, start: int) -> int:
    """Start of the packet behind a PPP protocol number, which may be compressed (RFC 1661)."""
    if octets[start : start + 2] == b"\xff\x03":
        start += 2
    if octets[start : start + 1] == b"\0":
        start += 1
    kind = octets[start : start + 1]
    if kind == b"\x21":
        return _if_version(octets, start + 1, 4)
    return _if_version(octets, start + 1, 6) if kind == b"\x57" else NO_PACKET


def _ppp_frame(octets: bytes) -> int:
    return _ppp(octets, 0)


def _pppoe_frame(octets: bytes) -> int:
    return _pppoe(octets, 0)


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
    return _of_ethertype(octets, kind, 20)


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


def steady(linktype: int, header: bytes) -> bytes:
    """A link header without what differs from packet to packet in one place, such as a length.

    Args:
        linktype: LINKTYPE_* number.
        header: The octets before the IP packet.
    """
    if linktype == NFLOG:
        return _nflog_place(header)
    if linktype == PPP_ETHER or (linktype == ETHERNET and len(header) >= _ETHERNET_PPPOE):
        # The PPP protocol number behind the header of PPPoE has two octets, or one if compressed.
        for size in (8, 7):
            start = len(header) - size
            if header[max(start, 0) :][:2] == _PPPOE_SESSION and (
                start == 0 or header[start - 2 : start] == _ETHERTYPE_PPPOE
            ):
                return header[: start + 4] + header[start + 6 :]
    return header


def _nflog_order(octets: bytes) -> str:
    """The byte order of the attributes, for `struct`.

    It is the capturing host's, which the header does not state. The length of the first attribute
    shows it, because it is always below 256.
    """
    return ">" if len(octets) >= 8 and octets[4] == 0 and octets[5] else "<"


def _nflog_place(header: bytes) -> bytes:
    head = struct.Struct(_nflog_order(header) + "HH")
    start, place = 4, header[:4]
    while start + 4 <= len(header):
        length, kind = head.unpack_from(header, start)
        if length < 4:
            break
        if kind & 0x7FFF in _NFLOG_PLACE:
            place += header[start : start + length]
        start += length + _NFLOG_ALIGN - 1 & -_NFLOG_ALIGN
    return place


def _nflog(octets: bytes) -> int:
    start, end = 4, len(octets)
    head = struct.Struct(_nflog_order(octets) + "HH")
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
    PPP: _ppp_frame,
    PPP_HDLC: _ppp_frame,
    PPP_ETHER: _pppoe_frame,
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

# Names of link types for messages: the supported ones, and common ones that are not.
NAMES: Final[dict[int, str]] = {
    NULL: "BSD loopback",
    ETHERNET: "Ethernet",
    6: "Token Ring",
    8: "SLIP",
    PPP: "PPP",
    10: "FDDI",
    RAW_DLT_12: "raw IP",
    RAW_DLT_14: "raw IP",
    PPP_HDLC: "PPP in HDLC",
    PPP_ETHER: "PPPoE",
    100: "ATM of RFC 1483",
    RAW: "raw IP",
    104: "Cisco HDLC",
    105: "IEEE 802.11",
    107: "Frame Relay",
    LOOP: "OpenBSD loopback",
    109: "OpenBSD IPsec encapsulation",
    LINUX_SLL: "Linux cooked",
    117: "pflog",
    119: "IEEE 802.11 with Prism header",
    122: "IP over Fibre Channel",
    127: "radiotap",
    138: "IP over FireWire",
    143: "DOCSIS",
    147: "user 0",
    163: "IEEE 802.11 with AVS header",
    166: "PPP of pppd with direction",
    187: "Bluetooth HCI",
    189: "USB",
    192: "PPI",
    195: "IEEE 802.15.4",
    201: "Bluetooth HCI with direction",
    204: "PPP with direction",
    205: "Cisco HDLC with direction",
    206: "Frame Relay with direction",
    220: "USB with padding",
    224: "Fibre Channel",
    227: "SocketCAN",
    IPV4: "IPv4",
    IPV6: "IPv6",
    NFLOG: "NFLOG",
    240: "netANALYZER",
    242: "IP over InfiniBand",
    247: "InfiniBand",
    249: "USBPcap",
    251: "Bluetooth LE",
    253: "netlink",
    258: "pktap of macOS",
    271: "vsock",
    LINUX_SLL2: "Linux cooked v2",
    281: "Broadcom switch tag",
    282: "Broadcom switch tag in front",
    284: "Marvell DSA tag",
    285: "Marvell EDSA tag",
}


def name_of(linktype: int) -> str:
    """A link type by number and, if known, name: `127 (radiotap)`."""
    name = NAMES.get(linktype)
    return str(linktype) if name is None else f"{linktype} ({name})"
