# SPDX-License-Identifier: MIT
"""Packet filter rules from the view of one packet: a TCP segment that conntrack calls INVALID.

`iptables_rules` and `nft_rules` translate the rules of a host into these types. Each match has been
evaluated to yes, no or "depends" already, so `follow` depends on neither syntax. The segment did
not arrive on the loopback interface and, like every INVALID packet, has no conntrack entry
attached.
"""

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple, final

PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Priorities of iptables' tables. nat's differs by hook; INVALID packets never reach it."""

CONNTRACK_PRIORITY: Final = -200
"""The priority of conntrack in PREROUTING and OUTPUT."""

INGRESS: Final = "ingress"
"""The hook of single devices, before all others and before conntrack."""

NFT_SECURITY: Final = 150
"""The priority of the table security of iptables-nft."""

TCP: Final = "tcp"
"""The default protocol of the packet that is followed."""

FAMILIES: Final = {4: "IPv4", 6: "IPv6"}
"""The names of the families of packets."""

QUEUE_IS_READ: Final = "a program on the queue"
"""The condition of a queue with bypass: without a program the rules go on."""

ALL_BITS: Final = 0xFFFFFFFF
"""The bits of a packet's mark."""


class Truth(IntEnum):
    """Whether a match holds for the segment; `min` is its conjunction, `max` its disjunction."""

    NO = 0
    DEPENDS = 1
    YES = 2


class MarkTest(NamedTuple):
    """A test of the packet's mark.

    Attributes:
        mask: The bits that are tested: `mark & mask`.
        values: The values that pass.
        negated: Whether all others pass instead.
        ranges: More values that pass, both ends included.
        on: The words of the match in `Condition.on`; empty if it tests more than the mark.
        opaque: Whether it is not known which values pass.
    """

    mask: int
    values: frozenset[int] = frozenset()
    negated: bool = False
    ranges: tuple[tuple[int, int], ...] = ()
    on: str = ""
    opaque: bool = False


@final
class Condition(NamedTuple):
    """The matches of a rule.

    Attributes:
        truth: Whether the segment matches.
        on: The conditions of that, such as `-s 192.0.2.0/24`.
        state: Whether the rule selects or excludes conntrack states.
        marks: The tests of the packet's mark among what it depends on.
        tracked: The conditions under which a packet of a known connection matches, if these are
            others than those of the segment, which lacks a conntrack entry; None if they are not.
        only: Whether no packet of another conntrack state matches.
        lost: A match on the conntrack entry that its program does not list in full.
        known: Whether a packet of a known connection matches; None if as the segment.
    """

    truth: Truth
    on: tuple[str, ...] = ()
    state: bool = False
    marks: tuple[MarkTest, ...] = ()
    tracked: tuple[str, ...] | None = None
    only: bool = False
    lost: str = ""
    known: Truth | None = None

    @property
    def known_truth(self) -> Truth:
        """Whether a packet of a known connection matches."""
        return self.truth if self.known is None else self.known

    @property
    def negated(self) -> "Condition":
        """The negation; a test of the mark that is not the sole condition becomes opaque."""
        sole = len(self.marks) == 1 and self.marks[0].on in self.on
        opposite = tuple(
            test._replace(negated=not test.negated) if sole else MarkTest(test.mask, opaque=True)
            for test in self.marks
        )
        known = None if self.known is None else Truth(Truth.YES - self.known)
        return Condition(Truth(Truth.YES - self.truth), self.on, self.state, opposite, known=known)


ALWAYS: Final = Condition(Truth.YES)
NEVER: Final = Condition(Truth.NO)
NO_ENTRY: Final = Condition(Truth.NO, tracked=(), known=Truth.DEPENDS)
"""A match on the conntrack entry, which an INVALID packet lacks."""


def depends(on: str) -> Condition:
    """A match that depends on the packet."""
    return Condition(Truth.DEPENDS, (on,))


def known(holds: bool, *, established: bool | None = None) -> Condition:  # noqa: FBT001 - a truth value
    """A match whose result is known.

    Args:
        holds: Whether the segment matches.
        established: For a match on the conntrack state: whether it includes ESTABLISHED.
    """
    truth = Truth.YES if holds else Truth.NO
    if established is None:
        return Condition(truth)
    of_known = Truth.YES if established else Truth.NO
    return Condition(truth, state=True, tracked=None if holds else (), known=of_known)


def unreadable(match: str) -> Condition:
    """A match on the conntrack entry of which only the name is known."""
    return Condition(Truth.DEPENDS, (match,), state=True, tracked=(match,), lost=match)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """The conjunction."""
    parts = (ALWAYS, *conditions)
    truth = min(part.truth for part in parts)
    on = tuple(word for part in parts for word in part.on) if truth is Truth.DEPENDS else ()
    marks = tuple(test for part in parts for test in part.marks)
    state = any(part.state for part in parts)
    failed = [part for part in parts if part.truth is Truth.NO]
    tracked: tuple[str, ...] | None = None
    differs = any(part.tracked is not None for part in parts)
    if differs and all(part.tracked is not None for part in failed):
        tracked = tuple(
            word for part in parts for word in (part.on if part.tracked is None else part.tracked)
        )
    alike = all(part.known is None for part in parts)
    return Condition(
        truth,
        on,
        state,
        marks,
        tracked,
        only=any(part.only for part in parts),
        lost=next((part.lost for part in parts if part.lost), "") if on else "",
        known=None if alike else min(part.known_truth for part in parts),
    )


def any_of(conditions: Iterable[Condition]) -> Condition:
    """The disjunction."""
    parts = (NEVER, *conditions)
    truth = max(part.truth for part in parts)
    on = tuple(word for part in parts for word in part.on) if truth is Truth.DEPENDS else ()
    known_one = max(part.known_truth for part in parts)
    return Condition(
        truth,
        tuple(dict.fromkeys(on)),
        any(part.state for part in parts),
        known=None if all(part.known is None for part in parts) else known_one,
    )


class Act(StrEnum):
    """The effect of a rule on a packet that matches."""

    GO_ON = "goes on"
    ACCEPT = "accepts"
    DROP = "drops"
    RESET = "resets"
    REJECT = "rejects"
    ELSEWHERE = "diverts"
    UNKNOWN = "does what cannot be followed"
    UNTRACKS = "untracks"
    RETURN = "returns"
    JUMP = "jumps"
    GOTO = "goes to"


FINAL: Final = frozenset({Act.DROP, Act.RESET, Act.REJECT})
"""The acts after which the packet does not arrive."""

UNCERTAIN: Final = frozenset({Act.UNKNOWN, Act.UNTRACKS})
"""The acts after which the packet is not followed; it may arrive."""

ENDS: Final = FINAL | UNCERTAIN | {Act.ACCEPT, Act.ELSEWHERE}
"""The acts after which no later rule of the base chain applies to the packet, or may not."""

TAKES: Final = ENDS - {Act.ACCEPT}
"""The acts after which the packet may never arrive."""


class MarkWrite(NamedTuple):
    """A write to the packet's mark: `mark = mark & keep ^ flip`, except for bits of any value.

    Attributes:
        keep: The bits that keep their value, or are inverted by `flip`.
        flip: The bits that are set, or inverted.
        unknown: The bits that get a value that is not known; none of them in the other two.
    """

    keep: int
    flip: int
    unknown: int = 0

    def clears(self, bits: int) -> bool:
        """Whether the write can change one of these bits from 1 to 0."""
        return (self.keep ^ self.flip) & bits != bits

    @property
    def bits(self) -> int:
        """The bits that the write can change."""
        return ALL_BITS & (~self.keep | self.flip)

    def sets(self, bits: int) -> bool:
        """Whether the write can change all of these bits from 0 to 1."""
        return (self.flip | self.unknown) & bits == bits


ANY_MARK: Final = MarkWrite(0, 0, ALL_BITS)
"""A write of a value that is not known."""


def one_of(writes: Iterable[MarkWrite]) -> MarkWrite:
    """The write of a value that is one of those that these write."""
    values = list(writes)
    if not values or any(each.keep or each.unknown for each in values):
        return ANY_MARK
    common = functools.reduce(operator.and_, (each.flip for each in values))
    every = functools.reduce(operator.or_, (each.flip for each in values))
    return MarkWrite(0, common, every ^ common)


def in_range(low: int, high: int) -> MarkWrite:
    """The write of a value between these, such as a remainder."""
    if not 0 <= low <= high <= ALL_BITS:
        return ANY_MARK
    unknown = (1 << (low ^ high).bit_length()) - 1
    return MarkWrite(0, low & ~unknown, unknown)


class TrackingWrite(NamedTuple):
    """The effect of a rule before conntrack on tracking: `zone` as in `raw_rules.RawRule`."""

    zone: int


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: The rule as listed.
        when: Its matches.
        act: Its effect.
        target: The chain of a jump or goto; for ELSEWHERE and UNKNOWN the target's name.
        mark: Its write to the packet's mark; None without one.
        restores: The bits of the mark that a packet of a known connection gets from that one.
        fills: The match, in the words of `Condition.on`, that holds once this rule has added the
            packet to a set; empty where it adds nothing.
        tracking: Its effect on tracking; None without one.
        template: Whether conntrack's template is attached to the packet, or the packet is not
            tracked, from here on: the state before conntrack is NEW or UNTRACKED, not INVALID.
        redirects: Whether it writes the destination address, without conntrack.
        own: Whether it is a rule of ours.
        handle: Its handle in nftables; 0 elsewhere.
    """

    text: str
    when: Condition
    act: Act
    target: str = ""
    mark: MarkWrite | None = None
    restores: int = 0
    fills: str = ""
    tracking: TrackingWrite | None = None
    template: bool = False
    redirects: bool = False
    own: bool = False
    handle: int = 0


@final
@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where a chain is attached to the packet's path.

    Attributes:
        hook: `prerouting`, `input`, `forward`, `output` or `postrouting`; of devices also
            `ingress` and `egress`.
        priority: Chains of a lower priority run first.
        kind: `filter`, `nat` or `route`.
        denies: Whether the policy is to drop.
    """

    hook: str
    priority: int
    kind: str
    denies: bool


@final
@dataclass(frozen=True, slots=True)
class Table:
    """The rules of one table for one address family.

    Attributes:
        filter: The packet filter: `legacy`, `nft` (both iptables) or `nftables`.
        name: The table's name.
        family: The family of packets for which it was read: 4 or 6.
        chains: The rules of each chain, in order.
        bases: The base chains among them.
        own: Whether it is a table of ours.
        present: The programs of which there are rules, for `owners`, once they were looked for.
        nft_family: Its family in nftables, such as `inet`; empty elsewhere.
        sets: The elements of its named sets and the keys of its maps, as text.
    """

    filter: str
    name: str
    family: int
    chains: Mapping[str, list[Rule]] = field(default_factory=dict)
    bases: Mapping[str, BaseChain] = field(default_factory=dict)
    own: bool = False
    nft_family: str = ""
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)
    present: set[str] = field(init=False, default_factory=set, compare=False, repr=False)


def runs_before_conntrack(base: BaseChain) -> bool:
    """Whether packets in this chain are not tracked yet."""
    early = base.priority <= CONNTRACK_PRIORITY and base.hook in {"prerouting", "output"}
    return early or base.hook == INGRESS
