# SPDX-License-Identifier: MIT
"""Rules that run before conntrack and hide one half of the traffic from it (kernel.md 2).

`notrack` for replies, or a conntrack zone for one direction, leaves conntrack with the other
direction alone, whose packets it then calls INVALID. A rule that queues INVALID packets before
conntrack has seen them queues every packet. What such rules make INVALID says nothing about the
packet, so the guard does not drop it:

- A packet that the guard gets was tracked. If a rule may hide the packets that answer it, its half
  is the visible one of a hidden pair.
- A zone counts by what conntrack compares: the zone of the reply direction. Two zones that surely
  differ hide a half; where they may differ, a flow that conntrack has seen in both directions shows
  that they do not.
- Only reasons that depend on other packets of the flow count. A wrong checksum or contradicting
  flags are the packet's own.

Rules whose conditions a header does not show (marks, sets, the interface of an answer) may match.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple, final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import IPS_SEEN_REPLY, FlowSnapshot, FlowTuple, Hook, answering
from nfq_guard.names import counted
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.model import RULE_HIDDEN_HALF
from nfq_guard.wire.packet import ACK, RST, SYN, Malformed, Packet, Queued, Segment, tuple_of

UNTRACKED: Final = -1
"""In the place of a zone: the packet is kept from conntrack."""

UNKNOWN_ZONE: Final = 1 << 16
"""A zone that the rule takes from the packet."""

_OWN_REASONS: Final = frozenset(
    {Reason.BAD_FLAGS, Reason.BAD_CHECKSUM, Reason.MALFORMED, Reason.ICMP_MISMATCH}
)
# TCP flags that rules for SYNs alone treat differently: in a packet, and in what answers it.
_EACH_OPENING: Final = (ACK, SYN, RST)
ALLOWED: Final = Decision(Action.ALLOW, RULE_HIDDEN_HALF)

MOST_RULES: Final = 256
"""Rules that are distinguished; the next one represents all that follow."""


class Field(IntEnum):
    """A field of the header that a rule may name; the value is its place in `values_of`."""

    SRC = 0
    DST = 1
    SPORT = 2
    DPORT = 3


class RawAct(StrEnum):
    """What a rule before conntrack does."""

    TRACKING = "tracking"
    QUEUE = "queue"
    END = "end"


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A condition of a rule: a field within one of some intervals, or outside of all.

    Attributes:
        field: The field.
        within: The intervals, both ends included, as in the header.
        negated: Whether the value is outside.
    """

    field: Field
    within: tuple[tuple[bytes, bytes], ...]
    negated: bool = False

    def holds(self, values: Sequence[bytes]) -> bool:
        """Whether a packet with these values meets it."""
        value = values[self.field]
        return any(low <= value <= high for low, high in self.within) is not self.negated


@final
@dataclass(frozen=True, slots=True)
class RawRule:
    """One rule before conntrack, for one family and protocol.

    Attributes:
        text: The rule as listed, with its table.
        family: 4 or 6.
        proto: IP protocol number.
        hook: `Hook` number: PREROUTING or OUTPUT.
        chain: Its base chain; packets that an END takes skip the rest of it.
        act: What it does.
        zone: For TRACKING: the zone of replies, or `UNTRACKED`.
        spans: Conditions on the header.
        devices: Conditions on the interface: its name, with `+` at the end for any rest, and
            whether the condition is negated.
        certain: Whether there are no other conditions.
        opening: Whether it is for SYNs alone, as those in front of SYNPROXY.
        others: The other conditions, if these alone make it uncertain.
    """

    text: str
    family: int
    proto: int
    hook: int
    chain: str
    act: RawAct
    zone: int = 0
    spans: tuple[Span, ...] = ()
    devices: tuple[tuple[str, bool], ...] = ()
    certain: bool = True
    opening: bool = False
    others: tuple[str, ...] = ()


class RawReading(NamedTuple):
    """What was read of the rules before conntrack.

    Attributes:
        rules: The rules.
        one_sided: Those that hide one half of the traffic, one sentence each.
        problems: What could not be read, one sentence each.
    """

    rules: tuple[RawRule, ...] = ()
    one_sided: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def bounded(rules: Sequence[RawRule]) -> tuple[RawRule, ...]:
    """At most about `MOST_RULES` rules; one that may match everything stands for the rest."""
    kept, rest = tuple(rules[:MOST_RULES]), rules[MOST_RULES:]
    places = dict.fromkeys((rule.family, rule.proto, rule.hook) for rule in rest)
    return kept + tuple(
        RawRule(
            f"one of {counted(len(rest), 'more rule')}",
            *place,
            chain="",
            act=RawAct.TRACKING,
            zone=UNTRACKED,
            certain=False,
        )
        for place in places
    )


class Match(IntEnum):
    """Whether a packet meets a rule's conditions."""

    NO = 0
    MAY = 1
    YES = 2


class Place(NamedTuple):
    """Where a packet meets the rules.

    Attributes:
        hook: `Hook` number.
        device: Its interface there; None where that is not known.
        opening: Whether it may be a SYN without ACK.
        holds: Conditions among `RawRule.others` that it is known to meet.
        fails: Those that it is known not to meet.
    """

    hook: int
    device: str | None
    opening: bool = False
    holds: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset()


class _Treatment(NamedTuple):
    """What may become of a packet: the zone, or `UNTRACKED`; and the rule, None for no rule."""

    zone: int
    rule: RawRule | None


_NO_RULE: Final = _Treatment(0, None)


@final
class RawRules:
    """The rules of this host that run before conntrack, in their order.

    Attributes:
        rules: The rules.
    """

    def __init__(self, rules: Iterable[RawRule]) -> None:
        """Take the rules."""
        self.rules = tuple(rules)
        self._places: dict[tuple[int, int, int], list[RawRule]] = {}
        for rule in self.rules:
            self._places.setdefault((rule.family, rule.proto, rule.hook), []).append(rule)

    def at(self, family: int, proto: int, hook: int) -> Sequence[RawRule]:
        """The rules that packets of one kind meet in a hook, in their order."""
        return self._places.get((family, proto, hook), ())

    def spares(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
    ) -> bool:
        """Whether no policy drops the packet, because these rules hide its other half."""
        if finding.reason in _OWN_REASONS or isinstance(packet, Malformed):
            return False
        return self.hiding(queued, packet, snapshot) is not None

    def hiding(
        self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None
    ) -> RawRule | None:
        """The rule that may hide the other half of a packet's flow; None if no rule does."""
        flags = packet.l4.flags if isinstance(packet.l4, Segment) else 0
        return self._hiding(queued, packet, snapshot, flags)

    def hides_some(self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None) -> bool:
        """Whether a rule may hide the other half for a packet of this flow with other flags."""
        return any(
            self._hiding(queued, packet, snapshot, flags) is not None for flags in _EACH_OPENING
        )

    def _hiding(
        self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None, flags: int
    ) -> RawRule | None:
        """`hiding`, for a packet with these TCP flags in place of its own; 0 if it is not TCP."""
        way = tuple_of(packet)
        if way is None:
            return None
        leaving = queued.hook == Hook.OUTPUT
        device = queued.outdev if leaving else queued.indev
        here = Place(queued.hook, device, opening=flags & (SYN | ACK) == SYN)
        values = values_of(way)
        answers = bool(flags & (SYN | RST))
        for rule in self._places.get((packet.family, way.proto, queued.hook), ()):
            if rule.act is RawAct.QUEUE and match_of(rule, values, here) is not Match.NO:
                return rule
        own = self._treatments(packet.family, way, here)
        mine = {one.zone for one in own if one.zone != UNTRACKED} or {0}
        back = _back(way, snapshot)
        places = [Place(Hook.PREROUTING, queued.outdev if leaving else None, opening=answers)]
        if not leaving:
            places.append(Place(Hook.OUTPUT, queued.indev, opening=answers))
        theirs = [self._treatments(packet.family, back, place) for place in places]
        hidden = [one.rule for each in theirs for one in each if one.zone == UNTRACKED]
        if hidden:
            return hidden[0]
        zones = [{one.zone for one in each} for each in theirs]
        differ = all(mine.isdisjoint(each) and UNKNOWN_ZONE not in mine | each for each in zones)
        unsure = any(len(mine | each) > 1 or UNKNOWN_ZONE in mine for each in zones)
        both_ways = snapshot is not None and snapshot.status & IPS_SEEN_REPLY
        if not differ and (both_ways or not unsure):
            return None
        return next(
            one.rule
            for each in (*theirs, own)
            for one in each
            if one.rule is not None and one.zone != UNTRACKED
        )

    def zones(self, family: int, way: FlowTuple, place: Place) -> set[int]:
        """The zones in which a packet may be, or `UNTRACKED`."""
        return {one.zone for one in self._treatments(family, way, place)}

    def _treatments(self, family: int, way: FlowTuple, place: Place) -> list[_Treatment]:
        """All that may become of a packet; the first rule about tracking that matches decides."""
        found: list[_Treatment] = []
        ended: set[str] = set()
        values = values_of(way)
        for rule in self._places.get((family, way.proto, place.hook), ()):
            match = match_of(rule, values, place)
            if match is Match.NO or rule.chain in ended:
                continue
            if rule.act is RawAct.TRACKING:
                found.append(_Treatment(rule.zone, rule))
                if match is Match.YES:
                    return found
            elif match is Match.YES:
                ended.add(rule.chain)
            else:
                found.append(_NO_RULE)
        return [*found, _NO_RULE]


def _back(way: FlowTuple, snapshot: FlowSnapshot | None) -> FlowTuple:
    """The tuple of the packets that answer those of `way`, before they are translated back."""
    if snapshot is None:
        return answering(way)
    return snapshot.original if snapshot.direction else snapshot.reply


def unless_spared(decision: Decision) -> Decision:
    """What `decision` is about a packet that `RawRules.spares`."""
    return ALLOWED if decision.drops else decision


def values_of(way: FlowTuple) -> tuple[bytes, bytes, bytes, bytes]:
    """The values of each `Field`."""
    return way.src, way.dst, way.sport.to_bytes(2, "big"), way.dport.to_bytes(2, "big")


def match_of(rule: RawRule, values: Sequence[bytes], place: Place) -> Match:
    """Whether a packet with these values of each `Field` meets a rule's conditions in a place."""
    if (rule.opening and not place.opening) or not all(span.holds(values) for span in rule.spans):
        return Match.NO
    match = Match.YES
    if not rule.certain:
        if not place.fails.isdisjoint(rule.others):
            return Match.NO
        if not rule.others or not place.holds.issuperset(rule.others):
            match = Match.MAY
    for name, negated in rule.devices:
        if place.device is None:
            match = Match.MAY
        elif _is_device(place.device, name) is negated:
            return Match.NO
    return match


def _is_device(device: str, name: str) -> bool:
    return device.startswith(name[:-1]) if name.endswith("+") else device == name
