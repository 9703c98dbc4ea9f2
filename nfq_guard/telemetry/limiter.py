# SPDX-License-Identifier: MIT
"""How many events a flow, and all flows together, may cause (a flood must not write the log).

The first packet of a flow under a rule is shown at once. Those that follow within the interval
are folded into one event with their number, which is due when the interval ends. Two bounds hold
against a flood of made-up flows, each of which has a first packet: the table forgets the flow
that was shown longest ago, and no more than so many events a second come out in all.
"""

from collections import OrderedDict
from typing import Final, final

from nfq_guard.engine import Judgment
from nfq_guard.wire.packet import Datagram, IcmpMessage, Packet, Segment

_TABLE_MAX: Final = 4096
# A tuple of classes: a union would be made anew for each packet.
_WITH_PORTS: Final = (Segment, Datagram)

Key = tuple[str, int, bytes, bytes, int, int]


@final
class _Folded:
    """What is known of one flow under one rule since it was shown last."""

    __slots__ = ("count", "first", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.count = 0
        # The first of them stands for all. To keep the last one instead would free a judgment
        # that has gone cold for every packet, which costs as much as judging it.
        self.first: Judgment | None = None


@final
class EventLimiter:
    """Decides which judgments become an event at once, later as one of several, or never.

    Attributes:
        suppressed: Packets without any event, because all events of that second were used up.
    """

    def __init__(
        self, *, interval_s: float, events_per_s: int, table_max: int = _TABLE_MAX
    ) -> None:
        """Set the limits.

        Args:
            interval_s: How long a flow keeps silent after it was shown; 0 shows every packet.
            events_per_s: Events in all.
            table_max: Flows that are remembered.
        """
        self.suppressed = 0
        self._interval_s = interval_s
        self._events_per_s = events_per_s
        self._table_max = table_max
        self._flows: OrderedDict[Key, _Folded] = OrderedDict()
        self._second = float("-inf")
        self._left = events_per_s

    def take(self, judgment: Judgment, now: float) -> list[tuple[Judgment, int]]:
        """What to show because of this packet: judgments, with how many packets each stands for.

        Args:
            judgment: Of a packet that is worth an event.
            now: Monotonic seconds.
        """
        if self._interval_s <= 0:
            return [(judgment, 1)] if self._may_show(1, now) else []
        key = flow_key(judgment)
        folded = self._flows.get(key)
        if folded is not None and now < folded.until:
            folded.count += 1
            if folded.first is None:
                folded.first = judgment
            return []
        shown: list[tuple[Judgment, int]] = []
        count = 1
        if folded is not None:
            count += folded.count
            del self._flows[key]
        elif len(self._flows) >= self._table_max:
            _, victim = self._flows.popitem(last=False)
            self._show(victim, shown, now)
        self._flows[key] = _Folded(now + self._interval_s)
        if self._may_show(count, now):
            shown.append((judgment, count))
        return shown

    def due(self, now: float) -> list[tuple[Judgment, int]]:
        """What was folded in intervals that are over; call it about once a second.

        A flow that was folded to the end stays quiet for another interval; one that sent nothing
        is forgotten, so that its next packet counts as its first.
        """
        shown: list[tuple[Judgment, int]] = []
        while self._flows:
            key, folded = next(iter(self._flows.items()))
            if now < folded.until:
                break
            del self._flows[key]
            if folded.count:
                self._show(folded, shown, now)
                self._flows[key] = _Folded(now + self._interval_s)
        return shown

    def rest(self, now: float) -> list[tuple[Judgment, int]]:
        """Everything that is folded, at the end."""
        shown: list[tuple[Judgment, int]] = []
        for folded in self._flows.values():
            self._show(folded, shown, now)
        self._flows.clear()
        return shown

    def _show(self, folded: _Folded, shown: list[tuple[Judgment, int]], now: float) -> None:
        if folded.first is not None and self._may_show(folded.count, now):
            shown.append((folded.first, folded.count))

    def _may_show(self, packets: int, now: float) -> bool:
        if now - self._second >= 1:
            self._second = now
            self._left = self._events_per_s
        if self._left > 0:
            self._left -= 1
            return True
        self.suppressed += packets
        return False


def flow_key(judgment: Judgment) -> Key:
    """The rule and the flow of a packet, the same for both of its directions."""
    packet = judgment.packet
    sport = dport = 0
    if isinstance(packet, Packet):
        l4 = packet.l4
        if isinstance(l4, _WITH_PORTS):
            sport = l4.sport
            dport = l4.dport
        elif isinstance(l4, IcmpMessage) and l4.quoted is not None:
            quoted = l4.quoted
            sport = quoted.sport
            dport = quoted.dport
    src = packet.src
    dst = packet.dst
    if src < dst or (src == dst and sport <= dport):
        return judgment.decision.rule, packet.proto, src, dst, sport, dport
    return judgment.decision.rule, packet.proto, dst, src, dport, sport
