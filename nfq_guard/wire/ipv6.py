# SPDX-License-Identifier: MIT
"""Walks the chain of IPv6 extension headers (RFC 8200 4) as far as conntrack does."""

from dataclasses import dataclass
from typing import Final, final

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
NO_NEXT_HEADER: Final = 59
DESTINATION: Final = 60

EXTENSIONS: Final = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
_PAD_1: Final = 0
_PAD_N: Final = 1
_ROUTER_ALERT: Final = 5
_CALIPSO: Final = 7
_JUMBO_OPTION: Final = 0xC2
_HOME_ADDRESS: Final = 0xC9
# Types of routing headers.
_SOURCE_ROUTE: Final = 0
_MOBILITY: Final = 2
_SEGMENT_ROUTING: Final = 4
# Linux drops a packet with more options in its hop-by-hop header (sysctl max_hbh_opts_number), or
# with more padding between two options.
_MOST_OPTIONS: Final = 8
_MOST_PADDING: Final = 7


@final
@dataclass(init=False, slots=True)
class Extensions:
    """The end of a walk, and the fragment header that it passed.

    Attributes:
        proto: The header that ended it, which is the transport header of a whole packet.
        offset: Start of that header, octets from the IPv6 header.
        announced_at: Offset of the octet that names that header.
        fragment_offset: In octets, 0 without a fragment header.
        more_fragments: Whether further fragments follow.
    """

    proto: int
    offset: int
    announced_at: int
    fragment_offset: int
    more_fragments: bool

    def __init__(
        self,
        proto: int,
        offset: int,
        announced_at: int,
        fragment_offset: int,
        more_fragments: bool,  # noqa: FBT001 - positional on the packet path
    ) -> None:
        self.proto = proto
        self.offset = offset
        self.announced_at = announced_at
        self.fragment_offset = fragment_offset
        self.more_fragments = more_fragments


def skip_extensions(
    octets: bytes,
    to_fragment: bool = False,  # noqa: FBT001, FBT002 - positional on the packet path
) -> Extensions | None:
    """Walk to the transport header; None if the octets end inside an extension.

    Stops after the header of a fragment other than the first, because data follows.

    Args:
        octets: The packet from its IPv6 header, which is whole.
        to_fragment: Whether to stop before the first fragment header.
    """
    size = len(octets)
    announced_at = 6
    next_header = octets[6]
    offset = 40
    fragment_offset = 0
    more = False
    while next_header in EXTENSIONS:
        if offset + 8 > size:
            return None
        following = octets[offset]
        announced = announced_at
        announced_at = offset
        if next_header == FRAGMENT:
            if to_fragment:
                return Extensions(next_header, offset, announced, 0, False)  # noqa: FBT003 - as above
            field = octets[offset + 2] << 8 | octets[offset + 3]
            fragment_offset = field & 0xFFF8
            more = field & 1 == 1
            offset += 8
            if fragment_offset:
                return Extensions(following, offset, announced_at, fragment_offset, more)
        elif next_header == AUTHENTICATION:
            offset += (octets[offset + 1] + 2) << 2
        else:
            offset += (octets[offset + 1] + 1) << 3
        next_header = following
    return Extensions(next_header, offset, announced_at, fragment_offset, more)


def checksum_addresses(octets: bytes, transport_at: int) -> tuple[bytes, bytes]:
    """The source and destination that a transport checksum covers; empty for an unknown one.

    They are those of the IPv6 header, but a routing header with segments left holds the final
    destination (RFC 8200 8.1), and the option Home Address the source (RFC 6275 6.3). Conntrack
    takes those of the IPv6 header regardless (kernel.md 2).

    Args:
        octets: The packet from its IPv6 header.
        transport_at: Offset of the transport header, at most the number of octets.
    """
    src = octets[8:24]
    dst = octets[24:40]
    next_header = octets[6]
    at = 40
    while at + 8 <= transport_at:
        following = octets[at]
        if next_header == FRAGMENT:
            size = 8
        elif next_header == AUTHENTICATION:
            size = (octets[at + 1] + 2) << 2
        else:
            size = (octets[at + 1] + 1) << 3
        if next_header == ROUTING and octets[at + 3]:
            dst = _final_destination(octets[at : at + size])
        elif next_header == DESTINATION:
            src = _home_address(octets, at + 2, at + size) or src
        at += size
        next_header = following
    return src, dst


def _final_destination(header: bytes) -> bytes:
    """The last address of a routing header; empty for one that is unknown or too short."""
    if len(header) < 24:
        return b""
    if header[2] == _SEGMENT_ROUTING or header[2] == _MOBILITY:
        return header[8:24]  # segments are listed in reverse order (RFC 8754)
    return header[-16:] if header[2] == _SOURCE_ROUTE else b""


def _home_address(octets: bytes, at: int, end: int) -> bytes:
    """The home address among the destination options from `at` to `end`; empty without one."""
    while at + 2 <= end:
        kind = octets[at]
        if kind == _PAD_1:
            at += 1
        elif kind == _HOME_ADDRESS and octets[at + 1] == 16 and at + 18 <= end:
            return octets[at + 2 : at + 18]
        else:
            at += 2 + octets[at + 1]
    return b""


def jumbo_length(octets: bytes) -> int:
    """Payload length from a jumbo option in a leading hop-by-hop header; 0 without (RFC 2675)."""
    if len(octets) < 48 or octets[6] != HOP_BY_HOP:
        return 0
    end = min(len(octets), 40 + ((octets[41] + 1) << 3))
    at = 42
    while at + 1 < end:
        kind = octets[at]
        if kind == 0:
            at += 1
            continue
        length = octets[at + 1]
        if kind == _JUMBO_OPTION and length == 4 and at + 6 <= end:
            return int.from_bytes(octets[at + 2 : at + 6], "big")
        at += 2 + length
    return 0


def is_discarded(octets: bytes) -> bool:
    """Whether Linux discards a packet for its IPv6 header before conntrack (kernel.md 2).

    It does so for a multicast source, for a multicast destination of a scope that never appears on
    a link, and for a hop-by-hop header that it cannot parse or must not forward.

    Args:
        octets: The packet from its IPv6 header, which is whole.
    """
    if octets[8] == 0xFF or (octets[24] == 0xFF and octets[25] & 15 <= 1):
        return True
    if octets[6] != HOP_BY_HOP:
        return False
    end = 40 + (octets[4] << 8 | octets[5])
    if end == 40:
        end = len(octets)
    if end < 48:
        return True
    if len(octets) < 48:
        return False
    size = (octets[41] + 1) << 3
    if 40 + size > end:
        return True
    return 40 + size <= len(octets) and not _options_pass(octets, 42, 40 + size)


def _options_pass(octets: bytes, at: int, end: int) -> bool:
    """Whether Linux accepts a packet with the hop-by-hop options from `at` to `end`."""
    count = 0
    padding = 0
    while at < end:
        kind = octets[at]
        if kind == _PAD_1:
            padding += 1
            at += 1
        else:
            if at + 2 > end:
                return False
            length = octets[at + 1]
            following = at + 2 + length
            if following > end:
                return False
            if kind == _PAD_N:
                padding += 2 + length
                if any(octets[at + 2 : following]):
                    return False
            else:
                count += 1
                padding = 0
                if not _option_passes(octets, kind, at, length) or count > _MOST_OPTIONS:
                    return False
            at = following
        if padding > _MOST_PADDING:
            return False
    return True


def _option_passes(octets: bytes, kind: int, at: int, length: int) -> bool:
    if kind == _ROUTER_ALERT:
        return length == 2
    if kind == _CALIPSO:
        return False
    if kind == _JUMBO_OPTION:
        stated = octets[4] << 8 | octets[5]
        jumbo = int.from_bytes(octets[at + 2 : at + 6], "big")
        return length == 4 and at & 3 == 2 and stated == 0 and jumbo > 0xFFFF
    # The upper two bits determine the treatment of an unknown option: 0 means to skip it.
    return kind & 0xC0 == 0
