# SPDX-License-Identifier: MIT
"""Limits the rate of events, of each flow and in total, so that a flood cannot fill the log.

The first packet of a flow under a rule becomes an event at once. Further packets within the
interval are folded into one event with their number, due at the end of the interval. Two bounds
hold against a flood of forged flows, each with a first packet: the table evicts the flow whose
last event is the oldest, and all flows together have a limit of events per second.
"""

from collections import OrderedDict
from typing import Final, final

from nfq_guard.engine import Judgment
from nfq_guard.flow import FlowKey
from nfq_guard.wire.packet import flow_key

_TABLE_MAX: Final = 4096

Key = tuple[str, FlowKey]


@final
class _Folded:
    """The packets of one flow under one rule since its last event."""

    __slots__ = ("count", "first", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.count = 0
        # The first packet represents all. Keeping the last one would free a judgment that has left
        # the CPU's caches with every packet, which costs as much as judging it.
        self.first: Judgment | None = None


@final
class EventLimiter:
    """Decides which judgments become an event at once, later as one of several, or not at all.

    Attributes:
        suppressed: Packets without an event because of the limit on all events.
    """

    def __init__(
        self, *, interval_s: float, events_per_s: int, table_max: int = _TABLE_MAX
    ) -> None:
        """Set the limits.

        Args:
            interval_s: Least time between two events of a flow under a rule; 0 for no limit.
            events_per_s: Limit of all events.
            table_max: Size of the table, in flows.
        """
        self.suppressed = 0
        self._interval_s = interval_s
        self._events_per_s = events_per_s
        self._table_max = table_max
        self._flows: OrderedDict[Key, _Folded] = OrderedDict()
        self._second = float("-inf")
        self._left = events_per_s

    def take(self, judgment: Judgment, now: float) -> list[tuple[Judgment, int]]:
        """Account for a judgment; returns the events due, each with its number of packets.

        Args:
            judgment: The judgment of a packet that is to be logged.
            now: Monotonic seconds.
        """
        if self._interval_s <= 0:
            return [(judgment, 1)] if self._may_log(1, now) else []
        key = judgment.decision.rule, flow_key(judgment.packet)
        folded = self._flows.get(key)
        if folded is not None and now < folded.until:
            folded.count += 1
            if folded.first is None:
                folded.first = judgment
            return []
        due: list[tuple[Judgment, int]] = []
        count = 1
        if folded is not None:
            count += folded.count
            del self._flows[key]
        elif len(self._flows) >= self._table_max:
            _, victim = self._flows.popitem(last=False)
            self._add(victim, due, now)
        self._flows[key] = _Folded(now + self._interval_s)
        if self._may_log(count, now):
            due.append((judgment, count))
        return due

    def due(self, now: float) -> list[tuple[Judgment, int]]:
        """The events of intervals that are over; to be called about once a second.

        After such an event another interval begins. A flow without packets in its interval is
        forgotten, so that its next packet counts as its first.
        """
        due: list[tuple[Judgment, int]] = []
        while self._flows:
            key, folded = next(iter(self._flows.items()))
            if now < folded.until:
                break
            del self._flows[key]
            if folded.count:
                self._add(folded, due, now)
                self._flows[key] = _Folded(now + self._interval_s)
        return due

    def rest(self, now: float) -> list[tuple[Judgment, int]]:
        """The events of all folded packets, at the end."""
        due: list[tuple[Judgment, int]] = []
        for folded in self._flows.values():
            self._add(folded, due, now)
        self._flows.clear()
        return due

    def _add(self, folded: _Folded, due: list[tuple[Judgment, int]], now: float) -> None:
        if folded.first is not None and self._may_log(folded.count, now):
            due.append((folded.first, folded.count))

    def _may_log(self, packets: int, now: float) -> bool:
        if now - self._second >= 1:
            self._second = now
            self._left = self._events_per_s
        if self._left > 0:
            self._left -= 1
            return True
        self.suppressed += packets
        return False
