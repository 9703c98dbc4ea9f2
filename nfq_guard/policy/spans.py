# SPDX-License-Identifier: MIT
"""Sets of whole numbers as sorted bounds: what every condition of a rule comes down to.

`(a, b, c, d)` holds a <= n < b and c <= n < d. The number -1 stands for "the packet has no such
thing" in every field, so a set can hold that too, and the negation of a condition is the plain
complement: a packet without ports is not from port 80.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

Spans = tuple[int, ...]

ABSENT: Final = -1


def from_intervals(intervals: Sequence[tuple[int, int]]) -> Spans:
    """The numbers in any of `intervals`, each with both its ends."""
    bounds: list[int] = []
    for low, high in sorted(intervals):
        if bounds and low <= bounds[-1]:
            bounds[-1] = max(bounds[-1], high + 1)
        else:
            bounds += (low, high + 1)
    return tuple(bounds)


def everything(highest: int) -> Spans:
    """Every number of a field that goes up to `highest`, and its absence."""
    return (ABSENT, highest + 1)


def holds(spans: Spans, number: int) -> bool:
    """Whether `number` is in the set."""
    return bisect_right(spans, number) & 1 == 1


def complement(spans: Spans, highest: int) -> Spans:
    """What a field that goes up to `highest` can be beside `spans`."""
    return tuple(sorted(set(spans) ^ {ABSENT, highest + 1}))


def union(first: Spans, second: Spans) -> Spans:
    """The numbers in either."""
    pairs = [(low, high - 1) for low, high in _pairs(first)]
    return from_intervals(pairs + [(low, high - 1) for low, high in _pairs(second)])


def intersection(first: Spans, second: Spans) -> Spans:
    """The numbers in both."""
    return from_intervals(
        [
            (max(low, other_low), min(high, other_high) - 1)
            for low, high in _pairs(first)
            for other_low, other_high in _pairs(second)
            if max(low, other_low) < min(high, other_high)
        ]
    )


def covers(outer: Spans, inner: Spans) -> bool:
    """Whether every number of `inner` is in `outer`."""
    for low, high in _pairs(inner):
        place = bisect_right(outer, low)
        if place & 1 == 0 or outer[place] < high:
            return False
    return True


def _pairs(spans: Spans) -> list[tuple[int, int]]:
    return list(zip(spans[::2], spans[1::2], strict=True))
