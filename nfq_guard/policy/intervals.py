# SPDX-License-Identifier: MIT
"""Addresses as numbers, and which of them belong to one site."""

from typing import Final

from nfq_guard.policy.fields import IPV6_BASE
from nfq_guard.policy.spans import ABSENT, Spans, from_intervals, holds, union

# RFC 1918 and RFC 6598.
_PRIVATE_V4: Final = from_intervals(
    [
        (0x0A000000, 0x0AFFFFFF),
        (0x64400000, 0x647FFFFF),
        (0xAC100000, 0xAC1FFFFF),
        (0xC0A80000, 0xC0A8FFFF),
    ]
)
# This network, loopback, link-local, and all from multicast on (RFC 6890).
_LOCAL_V4: Final = from_intervals(
    [
        (0x00000000, 0x00FFFFFF),
        (0x7F000000, 0x7FFFFFFF),
        (0xA9FE0000, 0xA9FEFFFF),
        (0xE0000000, 0xFFFFFFFF),
    ]
)
_NOT_GLOBAL_V4: Final[Spans] = union(_PRIVATE_V4, _LOCAL_V4)


def address_number(address: bytes) -> int:
    """An address in the numbering of `fields.IPV6_BASE`; -1 for one that could not be read."""
    size = len(address)
    if size == 4:
        return int.from_bytes(address, "big")
    return IPV6_BASE + int.from_bytes(address, "big") if size == 16 else ABSENT


def is_private(address: bytes) -> bool:
    """Whether `address`, 4 or 16 octets, is of one site: RFC 1918, RFC 6598, RFC 4193."""
    if len(address) == 16:
        return address[0] & 0xFE == 0xFC
    return holds(_PRIVATE_V4, int.from_bytes(address, "big"))


def is_global(address: bytes) -> bool:
    """Whether `address`, 4 or 16 octets, can be reached across sites; IPv6: in 2000::/3."""
    if len(address) == 16:
        return address[0] & 0xE0 == 0x20
    return not holds(_NOT_GLOBAL_V4, int.from_bytes(address, "big"))
