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
_ALLOWED: Final = Decision(Action.ALLOW, RULE_HIDDEN_HALF)
# Addresses and ports of an example packet where the rule names none (RFC 5737, RFC 3849).
_EXAMPLE: Final = {
    4: (bytes((198, 51, 100, 1)), bytes((203, 0, 113, 1)), b"\x9c\x40", b"\x9c\x41"),
    6: (
        bytes.fromhex("20010db8") + bytes(12),
        bytes.fromhex("20010db8") + bytes(11) + b"\1",
        b"\x9c\x40",
        b"\x9c\x41",
    ),
}

MOST_RULES: Final = 256
"""Rules that are distinguished; the next one represents all that follow."""


class Field(IntEnum):
    """A field of the header that a rule may name; the value is its place in `_values`."""

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
        opening: Whether it is for SYNs without ACK alone, as those in front of SYNPROXY.
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


class _Match(IntEnum):
    NO = 0
    MAY = 1
    YES = 2


class _Place(NamedTuple):
    """Where a packet meets the rules.

    Attributes:
        hook: `Hook` number.
        device: Its interface there; None where that is not known.
        opening: Whether it may be a SYN without ACK.
    """

    hook: int
    device: str | None
    opening: bool = False


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

    def instead_of(
        self,
        decision: Decision,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
    ) -> Decision:
        """`decision`, or one to allow the packet where it would drop what these rules hide."""
        if not decision.drops or finding.reason in _OWN_REASONS or isinstance(packet, Malformed):
            return decision
        return decision if self.hiding(queued, packet, snapshot) is None else _ALLOWED

    def hiding(
        self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None
    ) -> RawRule | None:
        """The rule that may hide the other half of a packet's flow; None if no rule does."""
        way = tuple_of(packet)
        if way is None:
            return None
        leaving = queued.hook == Hook.OUTPUT
        flags = packet.l4.flags if isinstance(packet.l4, Segment) else 0
        device = queued.outdev if leaving else queued.indev
        here = _Place(queued.hook, device, opening=flags & (SYN | ACK) == SYN)
        answers = bool(flags & (SYN | RST))
        for rule in self._places.get((packet.family, way.proto, queued.hook), ()):
            if rule.act is RawAct.QUEUE and _match(rule, way, here) is not _Match.NO:
                return rule
        own = self._treatments(packet.family, way, here)
        mine = {one.zone for one in own if one.zone != UNTRACKED} or {0}
        back = _back(way, snapshot)
        places = [_Place(Hook.PREROUTING, queued.outdev if leaving else None, opening=answers)]
        if not leaving:
            places.append(_Place(Hook.OUTPUT, queued.indev, opening=answers))
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

    def one_sided(self) -> list[RawRule]:
        """The rules that no other rule makes complete: they hide one direction of what they match.

        Rules for SYNs alone are left out: SYNPROXY needs them to be one-sided.

        Each is tried with a packet that it matches; the answer to that packet is hidden as surely,
        or the rule is one-sided.
        """
        return [rule for rule in self.rules if rule.act is not RawAct.END and self._is_half(rule)]

    def _is_half(self, rule: RawRule) -> bool:
        if rule.act is RawAct.QUEUE or rule.opening:
            return not rule.opening
        back = answering(_example(rule))
        name = next((name for name, negated in rule.devices if not negated), None)
        places = [_Place(Hook.PREROUTING, name if rule.hook == Hook.OUTPUT else None)]
        if rule.hook == Hook.PREROUTING:
            places.append(_Place(Hook.OUTPUT, name))
        found = (self._treatments(rule.family, back, place) for place in places)
        return not any({one.zone for one in each} == {rule.zone} for each in found)

    def _treatments(self, family: int, way: FlowTuple, place: _Place) -> list[_Treatment]:
        """All that may become of a packet; the first rule about tracking that matches decides."""
        found: list[_Treatment] = []
        ended: set[str] = set()
        for rule in self._places.get((family, way.proto, place.hook), ()):
            match = _match(rule, way, place)
            if match is _Match.NO or rule.chain in ended:
                continue
            if rule.act is RawAct.TRACKING:
                found.append(_Treatment(rule.zone, rule))
                if match is _Match.YES:
                    return found
            elif match is _Match.YES:
                ended.add(rule.chain)
            else:
                found.append(_NO_RULE)
        return [*found, _NO_RULE]


def _back(way: FlowTuple, snapshot: FlowSnapshot | None) -> FlowTuple:
    """The tuple of the packets that answer those of `way`, before they are translated back."""
    if snapshot is None:
        return answering(way)
    return snapshot.original if snapshot.direction else snapshot.reply


def _values(way: FlowTuple) -> tuple[bytes, bytes, bytes, bytes]:
    return way.src, way.dst, way.sport.to_bytes(2, "big"), way.dport.to_bytes(2, "big")


def _match(rule: RawRule, way: FlowTuple, place: _Place) -> _Match:
    values = _values(way)
    if (rule.opening and not place.opening) or not all(span.holds(values) for span in rule.spans):
        return _Match.NO
    match = _Match.YES if rule.certain else _Match.MAY
    for name, negated in rule.devices:
        if place.device is None:
            match = _Match.MAY
        elif _is_device(place.device, name) is negated:
            return _Match.NO
    return match


def _is_device(device: str, name: str) -> bool:
    return device.startswith(name[:-1]) if name.endswith("+") else device == name


def _example(rule: RawRule) -> FlowTuple:
    """A packet that the rule matches, as far as its conditions on one field agree."""
    values = list(_EXAMPLE[rule.family])
    for span in rule.spans:
        if not span.negated and not span.holds(values):
            values[span.field] = span.within[0][0]
    src, dst, sport, dport = values
    return FlowTuple(
        rule.proto, src, dst, int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
    )
