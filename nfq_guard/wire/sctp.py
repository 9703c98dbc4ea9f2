# SPDX-License-Identifier: MIT
"""Decodes SCTP packets: the common header and the chunks behind it (RFC 9260 3)."""

import struct
from typing import Final

from nfq_guard.wire.packet import Chunk, SctpPacket

# Types of chunk (RFC 9260 3.2).
DATA: Final = 0
INIT: Final = 1
INIT_ACK: Final = 2
SACK: Final = 3
HEARTBEAT: Final = 4
HEARTBEAT_ACK: Final = 5
ABORT: Final = 6
SHUTDOWN: Final = 7
SHUTDOWN_ACK: Final = 8
ERROR: Final = 9
COOKIE_ECHO: Final = 10
COOKIE_ACK: Final = 11
SHUTDOWN_COMPLETE: Final = 14

# Flag of ABORT and SHUTDOWN COMPLETE: the tag is the one that the other end sends (RFC 9260 8.5.1).
T_BIT: Final = 1

_HEADER: Final = struct.Struct("!HHI")
_CHECKSUM: Final = struct.Struct("<I")
_TAG: Final = struct.Struct("!I")
_HEADER_LEN: Final = 12
_CHUNK_HEADER_LEN: Final = 4
# The fixed part of INIT and INIT ACK, with the chunk's header.
_INIT_LEN: Final = 20

# The capture is truncated, not the packet.
SNAPPED_IN_HEADER: Final = "capture ends inside the SCTP header"


def decode_packet(octets: bytes, offset: int, wire_len: int) -> SctpPacket | str:
    """Decode the SCTP header at `offset` of `octets`; returns a fixed phrase if it is malformed."""
    if wire_len < _HEADER_LEN:
        return "SCTP header cut short"
    if len(octets) < offset + _HEADER_LEN:
        return SNAPPED_IN_HEADER
    sport, dport, tag = _HEADER.unpack_from(octets, offset)
    (checksum,) = _CHECKSUM.unpack_from(octets, offset + 8)
    chunks: list[Chunk] = []
    at = offset + _HEADER_LEN
    end = offset + wire_len
    captured = min(end, len(octets))
    while at + _CHUNK_HEADER_LEN <= captured:
        kind = octets[at]
        length = octets[at + 2] << 8 | octets[at + 3]
        initiate_tag = -1
        if kind in (INIT, INIT_ACK) and at + _INIT_LEN <= end:
            if at + _INIT_LEN > captured:
                return SNAPPED_IN_HEADER
            (initiate_tag,) = _TAG.unpack_from(octets, at + _CHUNK_HEADER_LEN)
        chunks.append(Chunk(kind, octets[at + 1], length, initiate_tag))
        if length == 0:
            break
        at += length + 3 & ~3
    if not chunks and at + _CHUNK_HEADER_LEN <= end:
        return SNAPPED_IN_HEADER
    return SctpPacket(sport, dport, tag, checksum, tuple(chunks), at + _CHUNK_HEADER_LEN > end)
