# SPDX-License-Identifier: MIT
"""Interval sets: sets of integers as sorted bounds, the form of most conditions.

`(a, b, c, d)` contains a <= n < b and c <= n < d. The number -1 stands for "the packet has no
value here" in every field, so a set can contain that too, and the negation of a condition is the
plain complement: a packet without ports is not from port 80.

Addresses are numbers as well: those of IPv6 follow those of IPv4, so that one set can hold both.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

IntervalSet = tuple[int, ...]

ABSENT: Final = -1
# Number of the IPv6 address `::`.
IPV6_BASE: Final = 1 << 32
LAST_ADDRESS: Final = IPV6_BASE + (1 << 128) - 1
IPV4_ADDRESSES: Final[IntervalSet] = (0, IPV6_BASE)
IPV6_ADDRESSES: Final[IntervalSet] = (IPV6_BASE, LAST_ADDRESS + 1)


def from_intervals(intervals: Sequence[tuple[int, int]]) -> IntervalSet:
    """The numbers in any of `intervals`, pairs of the first and the last number."""
    bounds: list[int] = []
    for low, high in sorted(intervals):
        if bounds and low <= bounds[-1]:
            bounds[-1] = max(bounds[-1], high + 1)
        else:
            bounds += (low, high + 1)
    return tuple(bounds)


def everything(highest: int) -> IntervalSet:
    """Every number of a field that goes up to `highest`, and `ABSENT`."""
    return (ABSENT, highest + 1)


def present(highest: int) -> IntervalSet:
    """Every number of a field that goes up to `highest`, without `ABSENT`."""
    return (0, highest + 1)


def contains(numbers: IntervalSet, number: int) -> bool:
    """Whether `number` is in the set."""
    return bisect_right(numbers, number) & 1 == 1


def complement(numbers: IntervalSet, highest: int) -> IntervalSet:
    """`everything(highest)` without `numbers`."""
    return tuple(sorted(set(numbers) ^ {ABSENT, highest + 1}))


def union(first: IntervalSet, second: IntervalSet) -> IntervalSet:
    """The numbers in either set."""
    pairs = [(low, high - 1) for low, high in _pairs(first)]
    return from_intervals(pairs + [(low, high - 1) for low, high in _pairs(second)])


def intersection(first: IntervalSet, second: IntervalSet) -> IntervalSet:
    """The numbers in both sets."""
    return from_intervals(
        [
            (max(low, other_low), min(high, other_high) - 1)
            for low, high in _pairs(first)
            for other_low, other_high in _pairs(second)
            if max(low, other_low) < min(high, other_high)
        ]
    )


def covers(outer: IntervalSet, inner: IntervalSet) -> bool:
    """Whether every number of `inner` is in `outer`."""
    for low, high in _pairs(inner):
        place = bisect_right(outer, low)
        if place & 1 == 0 or outer[place] < high:
            return False
    return True


def _pairs(numbers: IntervalSet) -> list[tuple[int, int]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


# RFC 1918 and RFC 6598.
_PRIVATE_V4: Final = from_intervals(
    [
        (0x0A000000, 0x0AFFFFFF),
        (0x64400000, 0x647FFFFF),
        (0xAC100000, 0xAC1FFFFF),
        (0xC0A80000, 0xC0A8FFFF),
    ]
)
# "This network", loopback, link-local, multicast and everything above (RFC 6890).
_LOCAL_V4: Final = from_intervals(
    [
        (0x00000000, 0x00FFFFFF),
        (0x7F000000, 0x7FFFFFFF),
        (0xA9FE0000, 0xA9FEFFFF),
        (0xE0000000, 0xFFFFFFFF),
    ]
)
_NOT_GLOBAL_V4: Final[IntervalSet] = union(_PRIVATE_V4, _LOCAL_V4)


def address_number(address: bytes) -> int:
    """The number of an address; `ABSENT` for one that could not be read."""
    size = len(address)
    if size == 4:
        return int.from_bytes(address, "big")
    return IPV6_BASE + int.from_bytes(address, "big") if size == 16 else ABSENT


def is_private(address: bytes) -> bool:
    """Whether `address`, 4 or 16 octets, is private: RFC 1918, RFC 6598 or RFC 4193."""
    if len(address) == 16:
        return address[0] & 0xFE == 0xFC
    return contains(_PRIVATE_V4, int.from_bytes(address, "big"))


def is_global(address: bytes) -> bool:
    """Whether `address`, 4 or 16 octets, is globally reachable; for IPv6, in 2000::/3."""
    if len(address) == 16:
        return address[0] & 0xE0 == 0x20
    return not contains(_NOT_GLOBAL_V4, int.from_bytes(address, "big"))
