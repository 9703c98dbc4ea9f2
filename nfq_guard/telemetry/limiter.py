# SPDX-License-Identifier: MIT
"""Limits the rate of events, of each flow and in total, so that a flood cannot fill the log.

The first packet of its kind becomes an event at once. Further packets of the same kind within the
interval are folded into one event with their number, due at the end of the interval. Packets of a
kind belong to one flow and have the same value in every policy field, except for the distance from
a bound: the event has the number of packets of each distance. A policy therefore decides about the
event as about each of its packets.

Two bounds limit a flood of forged flows, each with a first packet: the table evicts the kind with
the oldest last event, and all kinds together have a limit of events per second.
"""

from collections import OrderedDict
from typing import Final, TypeAlias, final

from nfq_guard.engine import Judgment
from nfq_guard.flow import Evidence, FlowKey
from nfq_guard.wire.packet import (
    UDP_HEADER,
    Datagram,
    Malformed,
    Packet,
    SctpPacket,
    Segment,
    flow_key,
)

_TABLE_MAX: Final = 4096
# Maximum number of distances in one event. A packet with another distance begins a new event.
DISTANCES_MAX: Final = 64
_BPF: Final = Evidence.BPF

Kind: TypeAlias = tuple[object, ...]


@final
class Fold:
    """Packets of one kind that become one event.

    Attributes:
        judgment: The first packet, which represents all. To keep the last one would free a judgment
            that has left the CPU's caches for every packet, which costs as much as judging it.
        count: Number of packets.
        first: When the first was judged, monotonic seconds.
        last: When the last was judged.
        distances: Packets by distance from the bound; None if all have the same distance or none.
    """

    __slots__ = ("count", "distances", "first", "judgment", "last")

    def __init__(self, judgment: Judgment, now: float) -> None:
        self.judgment = judgment
        self.count = 1
        self.first = now
        self.last = now
        self.distances: dict[int, int] | None = None

    def add(self, judgment: Judgment, now: float) -> bool:
        """Add a packet of the same kind; false if the event would have too many distances."""
        breach = judgment.finding.breach
        if breach is not None and not self._add_distance(breach.distance):
            return False
        self.count += 1
        self.last = now
        return True

    def _add_distance(self, distance: int) -> bool:
        distances = self.distances
        if distances is None:
            breach = self.judgment.finding.breach
            assert breach is not None  # noqa: S101 - either all packets of a kind have one or none has
            if distance == breach.distance:
                return True
            distances = self.distances = {breach.distance: self.count}
        if distance not in distances:
            if len(distances) >= DISTANCES_MAX:
                return False
            distances[distance] = 0
        distances[distance] += 1
        return True


@final
class _Interval:
    """The packets of one kind since its last event."""

    __slots__ = ("fold", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.fold: Fold | None = None


@final
class EventLimiter:
    """Decides whether a judgment becomes an event, is folded into a later one, or is dropped.

    Attributes:
        suppressed: Packets without an event because of the limit on all events.
    """

    def __init__(
        self, *, interval_s: float, events_per_s: int, table_max: int = _TABLE_MAX
    ) -> None:
        """Set the limits.

        Args:
            interval_s: Minimum time between two events of a kind of packets; 0 for no limit.
            events_per_s: Limit of all events.
            table_max: Size of the table, in kinds.
        """
        self.suppressed = 0
        self._interval_s = interval_s
        self._events_per_s = events_per_s
        self._table_max = table_max
        self._kinds: OrderedDict[Kind, _Interval] = OrderedDict()
        self._second = float("-inf")
        self._left = events_per_s

    def take(self, judgment: Judgment, now: float) -> list[Fold]:
        """Account for a judgment; returns the events due.

        Args:
            judgment: The judgment of a packet that is to be logged.
            now: Monotonic seconds.
        """
        if self._interval_s <= 0:
            return self._due([Fold(judgment, now)], now)
        kind = kind_of(judgment)
        interval = self._kinds.get(kind)
        if interval is not None and now < interval.until:
            fold = interval.fold
            if fold is not None and fold.add(judgment, now):
                return []
            interval.fold = Fold(judgment, now)
            return [] if fold is None else self._due([fold], now)
        due: list[Fold] = []
        if interval is not None:
            del self._kinds[kind]
        elif len(self._kinds) >= self._table_max:
            _, interval = self._kinds.popitem(last=False)
        if interval is not None and interval.fold is not None:
            due.append(interval.fold)
        due.append(Fold(judgment, now))
        self._kinds[kind] = _Interval(now + self._interval_s)
        return self._due(due, now)

    def due(self, now: float) -> list[Fold]:
        """The events of intervals that have ended; called about once a second.

        After such an event another interval begins. A kind without packets in its interval is
        forgotten, so that its next packet counts as its first.
        """
        due: list[Fold] = []
        while self._kinds:
            kind, interval = next(iter(self._kinds.items()))
            if now < interval.until:
                break
            del self._kinds[kind]
            if interval.fold is not None:
                due.append(interval.fold)
                self._kinds[kind] = _Interval(now + self._interval_s)
        return self._due(due, now)

    def pending(self) -> list[Fold]:
        """The packets that have no event so far."""
        return [interval.fold for interval in self._kinds.values() if interval.fold is not None]

    def rest(self, now: float) -> list[Fold]:
        """The events of all folded packets: at the end, and before the mode or policy changes."""
        folds = self.pending()
        self._kinds.clear()
        return self._due(folds, now)

    def _due(self, folds: list[Fold], now: float) -> list[Fold]:
        """The elements of `folds` that the limit on all events allows."""
        if now - self._second >= 1:
            self._second = now
            self._left = self._events_per_s
        allowed = folds[: self._left]
        self._left -= len(allowed)
        for fold in folds[len(allowed) :]:
            self.suppressed += fold.count
        return allowed


def kind_of(judgment: Judgment) -> Kind:
    """A key that is equal for packets of one flow that policies distinguish by distance only.

    The rule and the verdict are part of it, and so are the decision of a policy on trial and, of an
    RST that answers a packet, why that packet was INVALID and the rule that let it through.
    Enumeration members are represented by identity, because their hash is computed by Python code.
    """
    packet = judgment.packet
    queued = judgment.queued
    snapshot = judgment.snapshot
    shadow = judgment.shadow
    cause = judgment.cause
    # Small numbers share one integer: each object in a tuple costs an allocation and a hash.
    numbers = packet.proto << 16 | packet.family << 12 | queued.hook << 8 | judgment.verdict
    ports = 0
    flow: FlowKey | None = None
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if isinstance(l4, Segment):
        ports = l4.sport << 16 | l4.dport
        numbers |= l4.flags << 32 | (1 if l4.payload_len > 0 else 0) << 40
    elif isinstance(l4, Datagram):
        ports = l4.sport << 16 | l4.dport
        numbers |= (1 if l4.length > UDP_HEADER else 0) << 40
    elif isinstance(l4, SctpPacket):
        ports = l4.sport << 16 | l4.dport
    else:
        # For an ICMP error, the flow that it quotes.
        flow = flow_key(packet)
        if isinstance(packet, Malformed):
            numbers |= 1 << 41
        elif l4 is None:
            numbers |= 2 << 41
    if judgment.spared:
        numbers |= 1 << 43
    if judgment.finding.breach is not None:
        numbers |= 1 << 44
    entry = -1
    evidence = 0
    if snapshot is not None:
        numbers |= snapshot.direction << 45 | snapshot.state << 46 | snapshot.original.proto << 50
        entry = snapshot.status << 32 | snapshot.mark
        if snapshot.evidence is not _BPF:
            evidence = id(snapshot.evidence)
    return (
        packet.src,
        packet.dst,
        ports,
        flow,
        judgment.decision.rule,
        id(judgment.finding.reason),
        numbers,
        queued.indev,
        queued.outdev,
        judgment.lookup_error << 32 | queued.mark,
        entry,
        evidence,
        None if shadow is None else (shadow.shadow.rule, shadow.shadow.action),
        None if cause is None else (id(cause.reason), cause.rule),
    )
