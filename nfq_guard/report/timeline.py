# SPDX-License-Identifier: MIT
"""Packets over time, from events that each stand for packets between two moments.

The times of the packets of one event are not recorded. They count as evenly spread from the first
to the last, so that an event of ten seconds is not a burst in one of them. Memory is bounded by the
number of different seconds at which events begin or end.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple, final

_MOST_EDGES: Final = 500_000
# Possible widths of a bar, in seconds.
WIDTHS: Final = (
    1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400,
    172_800, 604_800,
)  # fmt: skip


class Bars(NamedTuple):
    """The bars of a timeline.

    Attributes:
        start: When the first bar begins, seconds since the epoch.
        width: Seconds of each.
        heights: Packets of each bar by class; fractions where events were spread.
    """

    start: int
    width: int
    heights: list[list[float]]


@final
class Timeline:
    """Packets by second and class.

    Attributes:
        left_out: Packets of events beyond the bound on memory.
    """

    def __init__(self, classes: int) -> None:
        """Count `classes` classes of packets, numbered from 0."""
        self.left_out = 0
        self._classes = classes
        # Change of the rate, packets a second, at the beginning of a second.
        self._edges: defaultdict[int, list[float]] = defaultdict(lambda: [0.0] * classes)

    def add(self, first: datetime, last: datetime, packets: int, kind: int) -> None:
        """Add packets of class `kind` between two moments."""
        begin, end = int(first.timestamp()), int(last.timestamp()) + 1
        if len(self._edges) >= _MOST_EDGES and (begin not in self._edges or end not in self._edges):
            self.left_out += packets
            return
        rate = packets / (end - begin)
        self._edges[begin][kind] += rate
        self._edges[end][kind] -= rate

    def bars(self, most: int) -> Bars | None:
        """At most `most` bars over the whole time; None without a packet."""
        if not self._edges:
            return None
        moments = sorted(self._edges)
        begin, end = moments[0], moments[-1]
        width = next(
            (width for width in WIDTHS if _number(begin, end, width) <= most),
            -(-(end - begin) // (most - 1)),
        )
        start = begin - begin % width
        heights = [[0.0] * self._classes for _ in range(_number(begin, end, width))]
        rates = [0.0] * self._classes
        for moment, following in pairwise(moments):
            for kind, change in enumerate(self._edges[moment]):
                rates[kind] += change
            _fill(heights, rates, start, width, moment, following)
        return Bars(start, width, heights)


def _number(begin: int, end: int, width: int) -> int:
    """Bars of `width` seconds that cover `begin` to `end`."""
    return (end - 1) // width - begin // width + 1


def _fill(
    heights: list[list[float]],
    rates: Sequence[float],
    start: int,
    width: int,
    begin: int,
    end: int,
) -> None:
    """Add constant rates from `begin` to `end` to the bars."""
    # Sums of rates end a little beside 0.
    present = [(kind, rate) for kind, rate in enumerate(rates) if rate > 1e-9]
    if not present:
        return
    for index in range((begin - start) // width, (end - 1 - start) // width + 1):
        left = start + index * width
        seconds = min(end, left + width) - max(begin, left)
        for kind, rate in present:
            heights[index][kind] += rate * seconds
