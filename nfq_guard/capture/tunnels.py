# SPDX-License-Identifier: MIT
"""Packets inside packets: VXLAN, GENEVE, GRE and IP in IP (RFC 7348, 8926, 2784, 2890, 2003, 2473).

A host that decapsulates has two conntrack entries, one for the outer packets and one for the inner.
Between GRE or UDP and the packet there may be MPLS (RFC 4023, 7510). Packets inside ESP, GTP-U,
GUE, VXLAN-GPE, ERSPAN, L2TP and PPTP are not read; such a tunnel is only named.
"""

from typing import Final, NamedTuple

from nfq_guard.capture.links import ETHERNET, NO_PACKET, RAW, below_labels
from nfq_guard.wire.packet import UDP_HEADER, Datagram, GreHeader, Packet

# Maximum depth of nested tunnels that are followed.
MOST_NESTED: Final = 4

_IPIP: Final = 4
_IPV6_IN_IP: Final = 41
# The port of IANA, and the one that Linux used before.
_VXLAN_PORTS: Final = (4789, 8472)
_GENEVE_PORT: Final = 6081
_VXLAN_GPE_PORT: Final = 4790
_GTP_U_PORT: Final = 2152
_GUE_PORT: Final = 6080
_MPLS_PORT: Final = 6635
_L2TP_PORT: Final = 1701
_ESP_PORT: Final = 4500
# Datagrams to other ports carry no packet.
PORTS: Final = (
    *_VXLAN_PORTS,
    _GENEVE_PORT,
    _VXLAN_GPE_PORT,
    _GTP_U_PORT,
    _GUE_PORT,
    _MPLS_PORT,
    _L2TP_PORT,
    _ESP_PORT,
)
_TRANSPARENT_ETHERNET: Final = 0x6558
_INNER_LINKS: Final = {0x0800: RAW, 0x86DD: RAW, _TRANSPARENT_ETHERNET: ETHERNET}
_ERSPAN: Final = (0x88BE, 0x22EB)
_MPLS: Final = (0x8847, 0x8848)
_ESP: Final = 50
_L2TP: Final = 115
# GTP version 1 with a user packet (3GPP TS 29.281 5.1).
_GTP_VERSION: Final = 0x30
_GTP_USER_PACKET: Final = 255
# Link type of a packet that is not read.
UNREAD: Final = -1


_UNREAD_NAMES: Final = {
    _GTP_U_PORT: "GTP-U",
    _VXLAN_GPE_PORT: "VXLAN-GPE",
    _GUE_PORT: "GUE",
    _L2TP_PORT: "L2TP",
    _ESP_PORT: "ESP",
}


class Inner(NamedTuple):
    """The packet inside another packet.

    Attributes:
        tunnel: Usual name of the tunnel.
        linktype: LINKTYPE_* number of the inner packet; `UNREAD` if it is not read.
        start: Its offset in the octets of the outer packet.
    """

    tunnel: str
    linktype: int
    start: int


def inner_of(packet: Packet, octets: bytes) -> Inner | None:
    """The inner packet; None without a tunnel, or if the tunnel's header cannot be read.

    Args:
        packet: The outer packet, decoded and whole.
        octets: The octets of the outer packet, IP header first.
    """
    start = packet.l4_offset
    l4 = packet.l4
    if isinstance(l4, Datagram):
        return _inner_of_datagram(l4, octets, start + UDP_HEADER)
    if packet.fragment_offset or packet.more_fragments:
        return None
    if isinstance(l4, GreHeader):
        return _inner_of_gre(octets, start)
    if l4 is not None:
        return None
    if packet.proto == _IPIP:
        return Inner("IPIP", RAW, start)
    if packet.proto == _IPV6_IN_IP:
        return Inner("IP6IP", RAW, start)
    if packet.proto == _L2TP:
        return Inner("L2TPv3", UNREAD, start)
    if packet.proto == _ESP:
        return Inner("ESP", UNREAD, start)
    return None


def _inner_of_datagram(datagram: Datagram, octets: bytes, start: int) -> Inner | None:
    if len(octets) < start + 8:
        return None
    if datagram.dport in _VXLAN_PORTS:
        # The flag says that the network identifier is valid; VXLAN has no other use.
        return Inner("VXLAN", ETHERNET, start + 8) if octets[start] & 0x08 else None
    if datagram.dport == _GENEVE_PORT and octets[start] >> 6 == 0:
        kind = octets[start + 2] << 8 | octets[start + 3]
        link = _INNER_LINKS.get(kind)
        size = 8 + ((octets[start] & 0x3F) << 2)
        return None if link is None else Inner("GENEVE", link, start + size)
    if datagram.dport == _MPLS_PORT:
        return _inner_of_labels("MPLS in UDP", octets, start)
    if datagram.dport in PORTS and _is_unread(datagram.dport, octets, start):
        return Inner(_UNREAD_NAMES[datagram.dport], UNREAD, start)
    return None


def _inner_of_labels(tunnel: str, octets: bytes, start: int) -> Inner:
    """The packet below the stack of labels at `start`; unread unless it is IP."""
    inside = below_labels(octets, start)
    return Inner(tunnel, UNREAD, start) if inside == NO_PACKET else Inner(tunnel, RAW, inside)


def _is_unread(port: int, octets: bytes, start: int) -> bool:
    """Whether a datagram has the header of a tunnel whose packets are not read."""
    first = octets[start]
    if port == _GTP_U_PORT:
        return first & 0xF0 == _GTP_VERSION and octets[start + 1] == _GTP_USER_PACKET
    if port == _VXLAN_GPE_PORT:
        return first & 0x08 != 0
    if port == _L2TP_PORT:
        # L2TPv2 with data (RFC 2661 3.1).
        return first & 0x80 == 0 and octets[start + 1] & 0x0F == 2
    if port == _ESP_PORT:
        # Not IKE, which has a marker of zeros there (RFC 3948 2.2).
        return octets[start : start + 4] != bytes(4)
    # GUE (draft-ietf-intarea-gue): version 0 with data, or version 1, which is an IP header.
    return port == _GUE_PORT and (first >> 6 == 1 or first & 0xE0 == 0)


def _inner_of_gre(octets: bytes, start: int) -> Inner | None:
    if len(octets) < start + 4:
        return None
    flags = octets[start]
    kind = octets[start + 2] << 8 | octets[start + 3]
    version = octets[start + 1] & 0x07
    if version:
        # An acknowledgement of PPTP carries no packet (RFC 2637 4.1).
        return Inner("PPTP", UNREAD, start) if version == 1 and flags & 0x10 else None
    if kind in _ERSPAN:
        return Inner("ERSPAN", UNREAD, start)
    link = _INNER_LINKS.get(kind)
    if (link is None and kind not in _MPLS) or flags & 0x40:
        return None
    # Checksum, key and sequence number, four octets each.
    size = 4 + 4 * ((flags >> 7 & 1) + (flags >> 5 & 1) + (flags >> 4 & 1))
    if link is None:
        return _inner_of_labels("GRE", octets, start + size)
    return Inner("GRE", link, start + size)
