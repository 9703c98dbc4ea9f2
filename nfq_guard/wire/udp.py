# SPDX-License-Identifier: MIT
"""Decodes UDP headers (RFC 768)."""

import struct
from typing import Final

from nfq_guard.wire.packet import UDP_HEADER, Datagram

_HEADER: Final = struct.Struct("!HHHH")

# The capture is truncated, not the packet.
SNAPPED_IN_HEADER: Final = "capture ends inside the UDP header"


def decode_datagram(
    octets: bytes,
    offset: int,
    wire_len: int,
    more_fragments: bool,  # noqa: FBT001 - positional on the packet path
) -> Datagram | str:
    """Decode the UDP header at `offset` of `octets`; returns a fixed phrase if it is malformed.

    The length field may exceed `wire_len` only in a first fragment of IPv4; such a fragment at a
    rule has bypassed conntrack. It may be below `wire_len`: conntrack treats the rest as part of
    the datagram.
    """
    if wire_len < UDP_HEADER:
        return "UDP header cut short"
    if len(octets) < offset + UDP_HEADER:
        return SNAPPED_IN_HEADER
    sport, dport, length, checksum = _HEADER.unpack_from(octets, offset)
    if length < UDP_HEADER:
        return "UDP length below 8"
    if length > wire_len and not more_fragments:
        return "UDP length beyond the packet"
    return Datagram(sport, dport, length, checksum)
