# SPDX-License-Identifier: MIT
"""The chain of IPv6 extension headers (RFC 8200 4), walked as far as conntrack walks it."""

from dataclasses import dataclass
from typing import Final, final

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
NO_NEXT_HEADER: Final = 59
DESTINATION: Final = 60

_EXTENSIONS: Final = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
_JUMBO_OPTION: Final = 0xC2
# An attacker may chain headers to the end of the packet; no real packet has more than these.
_MOST_EXTENSIONS: Final = 32


@final
@dataclass(init=False, slots=True)
class Extensions:
    """What the chain says.

    Attributes:
        proto: The header after the last extension.
        offset: Where that starts, octets from the IPv6 header.
        fragment_offset: In octets, 0 without a fragment header.
        more_fragments: Whether further fragments follow.
    """

    proto: int
    offset: int
    fragment_offset: int
    more_fragments: bool

    def __init__(
        self,
        proto: int,
        offset: int,
        fragment_offset: int,
        more_fragments: bool,  # noqa: FBT001 - positional on the packet path
    ) -> None:
        self.proto = proto
        self.offset = offset
        self.fragment_offset = fragment_offset
        self.more_fragments = more_fragments


def skip_extensions(octets: bytes, next_header: int, offset: int) -> Extensions | None:
    """Walk to the transport header; None when the octets end inside an extension.

    Stops at a fragment other than the first: what follows it is data.
    """
    size = len(octets)
    fragment_offset = 0
    more = False
    for _ in range(_MOST_EXTENSIONS):
        if next_header not in _EXTENSIONS:
            return Extensions(next_header, offset, fragment_offset, more)
        if offset + 8 > size:
            return None
        following = octets[offset]
        if next_header == FRAGMENT:
            field = octets[offset + 2] << 8 | octets[offset + 3]
            fragment_offset = field & 0xFFF8
            more = field & 1 == 1
            offset += 8
            if fragment_offset:
                return Extensions(following, offset, fragment_offset, more)
        elif next_header == AUTHENTICATION:
            offset += (octets[offset + 1] + 2) << 2
        else:
            offset += (octets[offset + 1] + 1) << 3
        next_header = following
    return None


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
