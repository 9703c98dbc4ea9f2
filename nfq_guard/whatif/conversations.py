# SPDX-License-Identifier: MIT
"""The fate of a flow after one of its packets.

A packet was *followed by a reset* if an RST of its flow comes within `RESET_WITHIN_S`. Otherwise
its flow *continued* if any later packet of the flow is recorded. Otherwise the fate is *unknown*. A
flow is a pair of addresses and ports, in either direction.

The times of the recording decide, not its order: a daemon writes an event of several packets at the
end of an interval, behind events that are later, and files may be joined in any order. Fates are
therefore determined when a flow ends. Of the packets of one event only the first and the last have
a time; where their fates depend on the others, those are taken to be spread evenly, and the numbers
are estimates. They do not show of each other that the flow continued.

A capture has every packet of its flows. Events have only the INVALID ones, so a flow that continued
with valid packets alone has the fate unknown.
"""

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, Generic, TypeAlias, TypeVar, final

from nfq_guard.flow import FlowKey
from nfq_guard.resets import RESET_WITHIN_S

# Bounds against recordings of floods: flows with an open fate, packets or events of each, and of
# all. Beyond them, the flow that was silent longest, or the oldest packet, gets the fate known so
# far.
MOST_FLOWS: Final = 65_536
MOST_PACKETS: Final = 1_024
MOST_WAITING: Final = 262_144

T = TypeVar("T")
Span: TypeAlias = tuple[float, float]


class Fate(StrEnum):
    """The fate of a packet's flow."""

    LIVED = "lived"
    RESET = "reset"
    UNKNOWN = "unknown"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """When the packets of one frame or event were seen.

    Attributes:
        number: The frame or line; of equal times the higher number is later.
        first_s: When the first was seen, seconds.
        last_s: When the last was.
        is_rst: Whether they are RSTs.
    """

    number: int
    first_s: float
    last_s: float
    is_rst: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Generic[T]):
    """The fate of some packets.

    Attributes:
        packet: What was given to `Conversations.awaits`.
        fate: The fate.
        count: Number of its packets with this fate.
        exact: Whether the number is exact.
        resets_exact: Whether it is exact at least how many of them were followed by a reset.
    """

    packet: T
    fate: Fate
    count: int
    exact: bool
    resets_exact: bool


@final
class _Flow(Generic[T]):
    """One flow whose packets have open fates."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Seen, Span, int, T]] = []
        # Times of RSTs with their numbers, in order, and those of which there are several.
        self._resets: list[tuple[float, int]] = []
        self._series: list[Seen] = []
        self._reset_number = -1
        # Of the other packets, the last one and the last one with another number.
        self._last: Seen | None = None
        self._other: Seen | None = None
        # Packets of the event whose fates are being settled, by fate, less those settled.
        self._owed_number = -1
        self._owed = dict.fromkeys(Fate, 0.0)

    @property
    def is_full(self) -> bool:
        """Whether it has as many RSTs as are kept."""
        return len(self._resets) >= 2 * MOST_PACKETS

    def saw(self, seen: Seen) -> None:
        """Account for packets of the flow."""
        if seen.is_rst:
            if seen.number == self._reset_number:
                return  # the same event, for another of its distances
            self._reset_number = seen.number
            insort(self._resets, (seen.first_s, seen.number))
            if seen.last_s > seen.first_s:
                insort(self._resets, (seen.last_s, seen.number))
                self._series.append(seen)
            return
        last = self._last
        if last is None or (seen.last_s, seen.number) >= (last.last_s, last.number):
            if last is not None and last.number != seen.number:
                self._other = last
            self._last = seen
        elif seen.number != last.number:
            other = self._other
            if other is None or (seen.last_s, seen.number) > (other.last_s, other.number):
                self._other = seen

    def settled(self, seen: Seen, span: Span, count: int, packet: T) -> Iterator[Settled[T]]:
        """The fates of `count` packets of `seen`, those in its part `span`."""
        fates = self._fates(seen, span)
        kinds = {fate for fate, _ in self._fates(seen, (seen.first_s, seen.last_s))}
        resets_exact = kinds == {Fate.RESET} or (Fate.RESET not in kinds and self._is_certain(seen))
        exact = resets_exact and len(kinds) == 1
        for fate, packets in self._shared_out(seen.number, fates, count):
            yield Settled(
                packet=packet,
                fate=fate,
                count=packets,
                exact=exact,
                resets_exact=resets_exact,
            )

    def _shared_out(
        self, number: int, fates: list[tuple[Fate, float]], count: int
    ) -> Iterator[tuple[Fate, int]]:
        """Whole packets for each fate; what is rounded off goes to the next ones of the event."""
        if number != self._owed_number:
            self._owed_number = number
            self._owed = dict.fromkeys(Fate, 0.0)
        owed = self._owed
        for fate, part in fates:
            owed[fate] += count * part
        left = count
        while left:
            fate = max({fate for fate, _ in fates}, key=lambda each: (owed[each], each))
            packets = min(left, max(1, int(owed[fate])))
            owed[fate] -= packets
            left -= packets
            yield fate, packets

    def _fates(self, seen: Seen, span: Span) -> list[tuple[Fate, float]]:
        """The fates of packets that are spread evenly, with the share of each; all sum up to 1."""
        first, last = span
        if first == last:
            return [(self._fate_at(first, seen.number), 1.0)]
        edges = {first, last}
        for at, number in self._resets:
            if number != seen.number:
                edges.update(edge for edge in (at - RESET_WITHIN_S, at) if first < edge < last)
        newest = self._newest(seen.number)
        if newest is not None and first < newest.last_s < last:
            edges.add(newest.last_s)
        ordered = sorted(edges)
        return [
            (self._fate_at((start + end) / 2, seen.number), (end - start) / (last - first))
            for start, end in pairwise(ordered)
        ]

    def _fate_at(self, time_s: float, number: int) -> Fate:
        resets = self._resets
        at = bisect_right(resets, (time_s, number))
        while at < len(resets) and resets[at][1] == number:
            at += 1
        if at < len(resets) and resets[at][0] - time_s <= RESET_WITHIN_S:
            return Fate.RESET
        newest = self._newest(number)
        if newest is not None and (newest.last_s, newest.number) > (time_s, number):
            return Fate.LIVED
        return Fate.UNKNOWN

    def _newest(self, number: int) -> Seen | None:
        """The last packets other than RSTs, without those of `number`."""
        last = self._last
        return self._other if last is not None and last.number == number else last

    def _is_certain(self, seen: Seen) -> bool:
        """Whether no RST between the first and the last of its series may follow the packets."""
        return not any(
            one.number != seen.number
            and one.first_s <= seen.last_s
            and one.last_s > seen.first_s + RESET_WITHIN_S
            for one in self._series
        )


@final
class Conversations(Generic[T]):
    """Determines the fate of packets; `T` represents those of one frame or event."""

    def __init__(self, most_flows: int = MOST_FLOWS, most_waiting: int = MOST_WAITING) -> None:
        """Start without flows."""
        self._flows: OrderedDict[FlowKey, _Flow[T]] = OrderedDict()
        self._most_flows = most_flows
        self._most_waiting = most_waiting
        self._waiting = 0

    def saw(self, key: FlowKey, seen: Seen) -> Iterator[Settled[T]]:
        """Account for packets of the flow `key` whose own fate is not asked for."""
        flow = self._flows.get(key)
        if flow is None:
            return
        self._flows.move_to_end(key)
        flow.saw(seen)
        if flow.is_full:
            yield from self._settle(self._flows.pop(key))

    def awaits(
        self, key: FlowKey, seen: Seen, count: int, packet: T, span: Span | None = None
    ) -> Iterator[Settled[T]]:
        """Account for `count` packets, whose fate is asked for.

        Args:
            key: Their flow.
            seen: Their event.
            count: Their number.
            packet: What the result has for them.
            span: The part of its time over which they are spread; None for all of it.

        Returns:
            The packets evicted for it, with their fate as known so far.
        """
        flows = self._flows
        flow = flows.get(key)
        if flow is None:
            if len(flows) >= self._most_flows:
                yield from self._settle(flows.popitem(last=False)[1])
            flow = flows[key] = _Flow()
        flow.waiting.append((seen, span or (seen.first_s, seen.last_s), count, packet))
        self._waiting += 1
        yield from self.saw(key, seen)
        if len(flow.waiting) > MOST_PACKETS:
            self._waiting -= 1
            yield from flow.settled(*flow.waiting.pop(0))
        while self._waiting > self._most_waiting:
            yield from self._settle(flows.popitem(last=False)[1])

    def end(self) -> Iterator[Settled[T]]:
        """End the recording; returns the remaining packets with their fate."""
        while self._flows:
            yield from self._settle(self._flows.popitem(last=False)[1])

    def _settle(self, flow: _Flow[T]) -> Iterator[Settled[T]]:
        self._waiting -= len(flow.waiting)
        for waiting in flow.waiting:
            yield from flow.settled(*waiting)
        flow.waiting.clear()
