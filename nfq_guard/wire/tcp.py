# SPDX-License-Identifier: MIT
"""Decodes TCP headers and options (RFC 9293 3.1, RFC 2018, RFC 7323)."""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from nfq_guard.seqno import Seq, later
from nfq_guard.wire.packet import Packet, Segment

if TYPE_CHECKING:
    from mypy_extensions import i64

_EDGE: Final = struct.Struct("!I")
_EDGES: Final = struct.Struct("!II")

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_MSS: Final = 2
OPTION_WINDOW_SCALE: Final = 3
OPTION_SACK_PERMITTED: Final = 4
OPTION_SACK: Final = 5
OPTION_TIMESTAMPS: Final = 8

# Larger shifts count as this one (RFC 7323 2.3).
MAX_WINDOW_SCALE: Final = 14
# The options of most segments: two NOPs and timestamps.
_TIMESTAMPS_ONLY: Final = b"\x01\x01\x08\x0a"


@final
@dataclass(init=False, slots=True)
class TcpOptions:
    """The options that conntrack or a replay needs; None for an absent one.

    Attributes:
        mss: Maximum segment size, octets.
        window_scale: Shift of the windows to come, at most 14.
        sack_permitted: Whether SACK was offered.
        sack_blocks: Left and right edges, in the order of the header.
        timestamps: TSval and TSecr.
    """

    mss: int | None
    window_scale: int | None
    sack_permitted: bool
    sack_blocks: tuple[tuple[Seq, Seq], ...]
    timestamps: tuple[int, int] | None

    def __init__(
        self,
        mss: int | None = None,
        window_scale: int | None = None,
        sack_permitted: bool = False,  # noqa: FBT001, FBT002 - positional on the packet path
        sack_blocks: tuple[tuple[Seq, Seq], ...] = (),
        timestamps: tuple[int, int] | None = None,
    ) -> None:
        self.mss = mss
        self.window_scale = window_scale
        self.sack_permitted = sack_permitted
        self.sack_blocks = sack_blocks
        self.timestamps = timestamps


def decode_segment(octets: bytes, offset: int, wire_len: int) -> Segment | str:
    """Decode the TCP header at `offset` of `octets`.

    Does not verify the checksum, which the NIC may still have to compute.

    Args:
        octets: The captured packet; its tail may be missing.
        offset: Offset of the segment.
        wire_len: Octets of the segment on the wire, from the IP header.

    Returns:
        The segment, or a fixed phrase that names the problem.
    """
    if wire_len < 20:
        return "TCP header cut short"
    if len(octets) < offset + 20:
        return SNAPPED_IN_HEADER
    at: i64 = offset
    header_len = octets[at + 12] >> 4 << 2
    if header_len < 20:
        return "TCP data offset below 5"
    if header_len > wire_len:
        return "TCP header longer than the segment"
    options = octets[offset + 20 : offset + header_len] if header_len > 20 else b""
    # By index instead of `struct`: in compiled code that takes a third of the time.
    return Segment(
        octets[at] << 8 | octets[at + 1],
        octets[at + 2] << 8 | octets[at + 3],
        Seq(_word(octets, offset + 4)),
        Seq(_word(octets, offset + 8)),
        octets[at + 13],
        octets[at + 14] << 8 | octets[at + 15],
        wire_len - header_len,
        options,
        octets[at + 16] << 8 | octets[at + 17],
    )


def decode_into(segment: Segment, octets: bytes, offset: int, wire_len: int) -> bool:
    """`decode_segment` into an existing segment.

    Options that are only timestamps are omitted, because conntrack does not read them.

    Args:
        segment: Changed in place.
        octets: Octets that contain the whole segment.
        offset: Offset of the segment.
        wire_len: Its length in octets.

    Returns:
        False for a segment that `decode_segment` refuses; `segment` is then unchanged.
    """
    if wire_len < 20:
        return False
    at: i64 = offset
    header_len = octets[at + 12] >> 4 << 2
    if header_len < 20 or header_len > wire_len:
        return False
    segment.sport = octets[at] << 8 | octets[at + 1]
    segment.dport = octets[at + 2] << 8 | octets[at + 3]
    segment.seq = Seq(_word(octets, offset + 4))
    segment.ack = Seq(_word(octets, offset + 8))
    segment.flags = octets[at + 13]
    segment.window = octets[at + 14] << 8 | octets[at + 15]
    segment.payload_len = wire_len - header_len
    segment.checksum = octets[at + 16] << 8 | octets[at + 17]
    plain = header_len == 20 or (
        header_len == 32
        and octets[at + 20] == OPTION_NOP
        and octets[at + 21] == OPTION_NOP
        and octets[at + 22] == OPTION_TIMESTAMPS
        and octets[at + 23] == 10
    )
    segment.options = b"" if plain else octets[offset + 20 : offset + header_len]
    return True


def _word(octets: bytes, at: int) -> int:
    first: i64 = octets[at]
    second: i64 = octets[at + 1]
    third: i64 = octets[at + 2]
    fourth: i64 = octets[at + 3]
    return first << 24 | second << 16 | third << 8 | fourth


# The capture is truncated, not the packet.
SNAPPED_IN_HEADER: Final = "capture ends inside the TCP header"


def options_are_cut(packet: Packet, segment: Segment) -> bool:
    """Whether the capture ends inside the options of `segment`."""
    header_len = packet.length - packet.l4_offset - segment.payload_len
    return header_len - 20 != len(segment.options)


def parse_options(options: bytes) -> TcpOptions:
    """Parse options like conntrack: up to END, a length below 2, or an option that overruns.

    Options of the wrong length are skipped.
    """
    mss: int | None = None
    scale: int | None = None
    permitted = False
    blocks: list[tuple[Seq, Seq]] = []
    timestamps: tuple[int, int] | None = None
    at = _next_option(options, 0)
    while at >= 0:
        kind = options[at]
        length = options[at + 1]
        if kind == OPTION_MSS and length == 4:
            mss = options[at + 2] << 8 | options[at + 3]
        elif kind == OPTION_WINDOW_SCALE and length == 3:
            scale = min(options[at + 2], MAX_WINDOW_SCALE)
        elif kind == OPTION_SACK_PERMITTED and length == 2:
            permitted = True
        elif kind == OPTION_SACK and length >= 10 and (length - 2) % 8 == 0:
            for edge in range(at + 2, at + length, 8):
                left, right = _EDGES.unpack_from(options, edge)
                blocks.append((Seq(left), Seq(right)))
        elif kind == OPTION_TIMESTAMPS and length == 10:
            timestamps = (_word(options, at + 2), _word(options, at + 6))
        at = _next_option(options, at + length)
    return TcpOptions(mss, scale, permitted, tuple(blocks), timestamps)


def timestamp_value(options: bytes) -> int | None:
    """TSval of the timestamp option; None without one."""
    at = _next_option(options, 0)
    while at >= 0:
        length = options[at + 1]
        if options[at] == OPTION_TIMESTAMPS and length == 10:
            return _word(options, at + 2)
        at = _next_option(options, at + length)
    return None


def highest_acknowledged(options: bytes, ack: Seq) -> Seq:
    """The later of `ack` and the right edges of all SACK blocks (kernel.md 1.6 a)."""
    size = len(options)
    if size < 10 or (size == 12 and options.startswith(_TIMESTAMPS_ONLY)):
        return ack
    highest = ack
    at = _next_option(options, 0)
    while at >= 0:
        length = options[at + 1]
        if options[at] == OPTION_SACK and length >= 10 and (length - 2) % 8 == 0:
            for edge in range(at + 6, at + length, 8):
                right = Seq(_EDGE.unpack_from(options, edge)[0])
                highest = later(right, highest)
        at = _next_option(options, at + length)
    return highest


def _next_option(options: bytes, at: int) -> int:
    """Offset of the first option at or after `at` that has a length octet; -1 without one."""
    size = len(options)
    while at + 1 < size:
        kind = options[at]
        if kind == OPTION_NOP:
            at += 1
            continue
        length = options[at + 1]
        if kind == OPTION_END or length < 2 or at + length > size:
            break
        return at
    return -1
