# SPDX-License-Identifier: MIT
"""Decodes captured octets to a `Packet`, and checks every length.

Lengths come from the IP header, never from the captured length: the queue copies the first octets
only, captures are snapped, and Ethernet pads. The header of a super-packet over 65,535 octets, as
by segmentation offload, has no length; that of the frame or message that it came in counts there.
"""

import struct
from typing import Final

from nfq_guard.flow import (
    IPV4,
    IPV6,
    PROTO_GRE,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_TCP,
    PROTO_UDP,
)
from nfq_guard.wire import gre, icmp, sctp, tcp, udp
from nfq_guard.wire.ipv6 import HOP_BY_HOP, jumbo_length, skip_extensions
from nfq_guard.wire.packet import Malformed, Packet, Transport

_IPV6: Final = struct.Struct("!IHBB16s16s")

# Problems of the IP header itself, for which the IP layer of a receiver drops the packet.
_NO_VERSION: Final = "IP version neither 4 nor 6"
_V4_CUT: Final = "IPv4 header cut short"
_V4_SHORT: Final = "IPv4 header length below 5"
_V4_LONG: Final = "IPv4 header longer than the packet"
_V6_CUT: Final = "IPv6 header cut short"
BAD_HEADER: Final = frozenset({_NO_VERSION, _V4_CUT, _V4_SHORT, _V4_LONG, _V6_CUT})

_V4_SNAPPED: Final = "capture ends inside the IPv4 header"
_V6_SNAPPED: Final = "capture ends inside the IPv6 header"
_SNAPPED: Final = (
    tcp.SNAPPED_IN_HEADER,
    udp.SNAPPED_IN_HEADER,
    icmp.SNAPPED_IN_HEADER,
    icmp.SNAPPED_IN_QUOTE,
    sctp.SNAPPED_IN_HEADER,
    gre.SNAPPED_IN_HEADER,
)


def decode(octets: bytes, wire_len: int = 0) -> Packet | Malformed:
    """Decode one packet from its IP header on. Never raises, whatever the octets.

    Args:
        octets: The packet; its tail may be missing.
        wire_len: Length of the whole packet, for a header that states none or was not captured
            whole; 0 if the octets are all of it.
    """
    if not octets:
        return Malformed("no octets")
    version = octets[0] >> 4
    if version == 4:
        return _decode_ipv4(octets, wire_len)
    if version == 6:
        return _decode_ipv6(octets, wire_len)
    return Malformed(_NO_VERSION)


def _decode_ipv4(octets: bytes, wire_len: int) -> Packet | Malformed:
    if len(octets) < 20:
        if wire_len >= 20:
            return Malformed(_V4_SNAPPED, IPV4, snapped=True)
        return Malformed(_V4_CUT, IPV4)
    # By index instead of `struct`: in compiled code that takes a third of the time.
    length = octets[2] << 8 | octets[3]
    fragment = octets[6] << 8 | octets[7]
    hop_limit = octets[8]
    proto = octets[9]
    src = octets[12:16]
    dst = octets[16:20]
    header_len = (octets[0] & 15) << 2
    if header_len < 20:
        return Malformed(_V4_SHORT, IPV4, src, dst, proto)
    if length == 0:
        length = max(len(octets), wire_len)
    if header_len > length:
        return Malformed(_V4_LONG, IPV4, src, dst, proto)
    if header_len > len(octets):
        return Malformed(_V4_SNAPPED, IPV4, src, dst, proto, snapped=True)
    more = fragment & 0x2000 != 0
    fragment_offset = (fragment & 0x1FFF) << 3
    return _with_transport(
        octets, IPV4, src, dst, proto, length, header_len, hop_limit, fragment_offset, more
    )


def _decode_ipv6(octets: bytes, wire_len: int) -> Packet | Malformed:
    if len(octets) < 40:
        if wire_len >= 40:
            return Malformed(_V6_SNAPPED, IPV6, snapped=True)
        return Malformed(_V6_CUT, IPV6)
    _, payload_len, next_header, hop_limit, src, dst = _IPV6.unpack_from(octets)
    if payload_len == 0 and next_header == HOP_BY_HOP:
        payload_len = jumbo_length(octets)
    length = 40 + payload_len if payload_len else max(len(octets), wire_len)
    extensions = skip_extensions(octets)
    if extensions is None or extensions.offset > length:
        snapped = len(octets) < length
        return Malformed(
            "IPv6 extension header cut short", IPV6, src, dst, next_header, snapped=snapped
        )
    return _with_transport(
        octets,
        IPV6,
        src,
        dst,
        extensions.proto,
        length,
        extensions.offset,
        hop_limit,
        extensions.fragment_offset,
        extensions.more_fragments,
    )


def _with_transport(
    octets: bytes,
    family: int,
    src: bytes,
    dst: bytes,
    proto: int,
    length: int,
    offset: int,
    hop_limit: int,
    fragment_offset: int,
    more: bool,  # noqa: FBT001 - positional on the packet path
) -> Packet | Malformed:
    l4: Transport = None
    if fragment_offset == 0:
        read = _transport(octets, family, proto, offset, length - offset, more and family == IPV4)
        if isinstance(read, str):
            return Malformed(read, family, src, dst, proto, snapped=read in _SNAPPED)
        l4 = read
    return Packet(family, src, dst, proto, length, offset, hop_limit, fragment_offset, more, l4)


def _transport(
    octets: bytes,
    family: int,
    proto: int,
    offset: int,
    wire_len: int,
    more: bool,  # noqa: FBT001 - positional on the packet path
) -> Transport | str:
    if proto == PROTO_TCP:
        return tcp.decode_segment(octets, offset, wire_len)
    if proto == PROTO_UDP:
        return udp.decode_datagram(octets, offset, wire_len, more)
    if proto == (PROTO_ICMP if family == IPV4 else PROTO_ICMPV6):
        return icmp.decode_message(octets, offset, wire_len, family)
    if proto == PROTO_SCTP:
        return sctp.decode_packet(octets, offset, wire_len)
    if proto == PROTO_GRE:
        return gre.decode_header(octets, offset, wire_len)
    return None
