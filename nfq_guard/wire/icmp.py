# SPDX-License-Identifier: MIT
"""Decodes ICMP and ICMPv6 headers, and the packet that an error or redirect quotes.

RFC 792, RFC 4443, RFC 4861 4.5.
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
    FlowTuple,
)
from nfq_guard.wire.gre import decode_header
from nfq_guard.wire.ipv6 import skip_extensions
from nfq_guard.wire.packet import GreHeader, IcmpMessage, Packet

_HEADER: Final = struct.Struct("!BBHH")
_PORTS: Final = struct.Struct("!HH")
_WITH_PORTS: Final = (PROTO_TCP, PROTO_UDP, PROTO_SCTP)
_ICMP: Final = (PROTO_ICMP, PROTO_ICMPV6)

# Errors quote the packet that caused them (kernel.md 2).
ERRORS_V4: Final = (3, 4, 5, 11, 12)
REDIRECT_V6: Final = 137
# Messages that carry an identifier: requests and their replies.
_IDENTIFIED_V4: Final = (0, 8, 13, 14, 15, 16, 17, 18)
_IDENTIFIED_V6: Final = (128, 129, 139, 140)
LAST_TYPE_V4: Final = 18

# An IPv6 redirect has two addresses behind its header, then options. Conntrack reads the quoted
# packet behind the eight octets of an option's header, if that is the first option.
_REDIRECT_HEADER: Final = 40
_OPTION_HEADER: Final = 8
_REDIRECTED: Final = 4

# The capture is truncated, not the packet.
SNAPPED_IN_HEADER: Final = "capture ends inside the ICMP header"
SNAPPED_IN_QUOTE: Final = "capture ends inside the headers that an ICMP error quotes"


def is_error_v6(message_type: int) -> bool:
    """Whether conntrack relates an ICMPv6 message to a flow by the packet that it quotes."""
    return message_type < 128 or message_type == REDIRECT_V6


def comes_from_link(packet: Packet) -> bool:
    """Whether an IPv6 redirect can have come from a router on the link (RFC 4861 8.1)."""
    return packet.hop_limit == 255 and packet.src[0] == 0xFE and packet.src[1] & 0xC0 == 0x80


def decode_message(octets: bytes, offset: int, wire_len: int, family: int) -> IcmpMessage | str:
    """Decode the ICMP header at `offset` of `octets`; returns a fixed phrase if it is malformed."""
    if wire_len < 8:
        return "ICMP header cut short"
    if len(octets) < offset + 8:
        return SNAPPED_IN_HEADER
    kind, code, checksum, identifier = _HEADER.unpack_from(octets, offset)
    if family == IPV4:
        is_error = kind in ERRORS_V4
        identified = kind in _IDENTIFIED_V4
    else:
        is_error = is_error_v6(kind)
        identified = kind in _IDENTIFIED_V6
    quoted: FlowTuple | None = None
    if is_error:
        end = offset + wire_len
        if family != IPV4 and kind == REDIRECT_V6:
            if wire_len < _REDIRECT_HEADER:
                return "ICMPv6 redirect cut short"
            found = _redirected_tuple(octets[offset:end], code, end > len(octets))
        else:
            found = _quoted_tuple(octets[offset + 8 : end], family, end > len(octets))
        if isinstance(found, str):
            return found
        quoted = found
    return IcmpMessage(kind, code, identifier if identified else 0, checksum, is_error, quoted)


def _redirected_tuple(
    message: bytes,
    code: int,
    snapped: bool,  # noqa: FBT001 - positional on the packet path
) -> FlowTuple | str | None:
    """`_quoted_tuple` for an IPv6 redirect.

    Args:
        message: The whole message, as far as captured.
        code: Its code.
        snapped: Whether it is longer than that.
    """
    if code:
        return None
    if len(message) < _REDIRECT_HEADER + 2:
        return SNAPPED_IN_QUOTE if snapped else None
    if message[_REDIRECT_HEADER] != _REDIRECTED or message[_REDIRECT_HEADER + 1] == 0:
        return None
    return _quoted_tuple(message[_REDIRECT_HEADER + _OPTION_HEADER :], IPV6, snapped)


def _quoted_tuple(
    inner: bytes,
    family: int,
    snapped: bool,  # noqa: FBT001 - positional on the packet path
) -> FlowTuple | str | None:
    """The tuple of a quoted packet; None if too little is quoted.

    Args:
        inner: The quoted packet, as far as captured.
        family: `flow.IPV4` or `flow.IPV6`.
        snapped: Whether more was quoted than captured.

    Returns:
        `SNAPPED_IN_QUOTE` if what was not captured may have held the tuple.
    """
    short = SNAPPED_IN_QUOTE if snapped else None
    if family == IPV4:
        if len(inner) < 20:
            return short
        # Conntrack checks neither the version of a quoted packet nor that its header has 20 octets
        # (kernel.md 2).
        at = (inner[0] & 15) << 2
        if (inner[6] & 0x1F) or inner[7]:
            return None
        proto = inner[9]
        src = inner[12:16]
        dst = inner[16:20]
    else:
        if len(inner) < 40:
            return short
        src = inner[8:24]
        dst = inner[24:40]
        extensions = skip_extensions(inner)
        if extensions is None:
            return short
        if extensions.fragment_offset:
            return None
        proto = extensions.proto
        at = extensions.offset
    return _with_ends(inner, at, proto, src, dst, short)


def _with_ends(
    inner: bytes, at: int, proto: int, src: bytes, dst: bytes, short: str | None
) -> FlowTuple | str | None:
    """The tuple of a quoted packet with its transport header at `at`; `short` if that is cut."""
    if proto in _WITH_PORTS:
        if len(inner) < at + 4:
            return short
        sport, dport = _PORTS.unpack_from(inner, at)
        return FlowTuple(proto, src, dst, sport, dport)
    if proto in _ICMP:
        if len(inner) < at + 8:
            return short
        kind, code, _, identifier = _HEADER.unpack_from(inner, at)
        return FlowTuple(proto, src, dst, identifier, kind << 8 | code)
    if proto == PROTO_GRE:
        if short is not None and len(inner) < at + 8:
            return short
        header = decode_header(inner, at, len(inner) - at)
        return FlowTuple(proto, src, dst, 0, header.call) if isinstance(header, GreHeader) else None
    return FlowTuple(proto, src, dst, 0, 0)
