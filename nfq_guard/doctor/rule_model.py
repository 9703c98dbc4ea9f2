# SPDX-License-Identifier: MIT
"""Packet filter rules as they concern one packet: a TCP segment that conntrack calls INVALID.

`iptables_rules` and `nft_rules` translate the rules of a host into these types. Each match has been
decided already, to yes, no or "depends", so `follow` needs to know neither syntax. The segment did
not arrive on the loopback interface and has no conntrack entry attached, as no INVALID packet has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple, final

PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Priorities of iptables' tables. nat's differs by hook; INVALID packets never reach it."""

CONNTRACK_PRIORITY: Final = -200
"""The priority of conntrack in PREROUTING and OUTPUT."""

NFT_SECURITY: Final = 150
"""The priority of the table security of iptables-nft."""

TCP: Final = "tcp"
"""The protocol of the packet that is followed, where nothing else is said."""

ALL_BITS: Final = 0xFFFFFFFF
"""The bits of a packet's mark."""


class Truth(IntEnum):
    """Whether a match holds for the segment; `min` is its conjunction, `max` its disjunction."""

    NO = 0
    DEPENDS = 1
    YES = 2


class MarkTest(NamedTuple):
    """A test of the packet's mark: whether `mark & mask` is one of the values, or none of them."""

    mask: int
    values: frozenset[int]
    negated: bool = False


@final
class Condition(NamedTuple):
    """The matches of a rule.

    Attributes:
        truth: Whether the segment matches.
        on: What that depends on, such as `-s 192.0.2.0/24`.
        state: Whether the rule selects or excludes conntrack states.
        marks: The tests of the packet's mark among what it depends on.
        tracked: What the rest of the match depends on, where only the segment's lack of a conntrack
            entry, or its state, fails it; a packet of a known connection may match then.
    """

    truth: Truth
    on: tuple[str, ...] = ()
    state: bool = False
    marks: tuple[MarkTest, ...] = ()
    tracked: tuple[str, ...] | None = None

    @property
    def negated(self) -> "Condition":
        """The opposite; a mark that passes one of several tests says nothing of it."""
        tests = self.marks if len(self.marks) == 1 else ()
        opposite = tuple(test._replace(negated=not test.negated) for test in tests)
        return Condition(Truth(Truth.YES - self.truth), self.on, self.state, opposite)


ALWAYS: Final = Condition(Truth.YES)
NEVER: Final = Condition(Truth.NO)
NO_ENTRY: Final = Condition(Truth.NO, tracked=())
"""A match on the conntrack entry, of which an INVALID packet has none."""


def depends(on: str) -> Condition:
    """A match that depends on the packet."""
    return Condition(Truth.DEPENDS, (on,))


def known(holds: bool, *, state: bool = False) -> Condition:  # noqa: FBT001 - a truth value
    """A match whose result is known."""
    tracked = () if state and not holds else None
    return Condition(Truth.YES if holds else Truth.NO, (), state, tracked=tracked)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """The conjunction."""
    parts = (ALWAYS, *conditions)
    truth = min(part.truth for part in parts)
    on = tuple(word for part in parts for word in part.on) if truth is Truth.DEPENDS else ()
    marks = tuple(test for part in parts for test in part.marks) if on else ()
    state = any(part.state for part in parts)
    failed = [part for part in parts if part.truth is Truth.NO]
    tracked: tuple[str, ...] | None = None
    if failed and all(part.tracked is not None for part in failed):
        tracked = tuple(word for part in parts for word in part.tracked or part.on)
    return Condition(truth, on, state, marks, tracked)


def any_of(conditions: Iterable[Condition]) -> Condition:
    """The disjunction."""
    parts = (NEVER, *conditions)
    truth = max(part.truth for part in parts)
    on = tuple(word for part in parts for word in part.on) if truth is Truth.DEPENDS else ()
    return Condition(truth, tuple(dict.fromkeys(on)), any(part.state for part in parts))


class Act(StrEnum):
    """What a rule does to a packet that it matches."""

    GO_ON = "goes on"
    ACCEPT = "accepts"
    DROP = "drops"
    RESET = "resets"
    REJECT = "rejects"
    ELSEWHERE = "diverts"
    UNKNOWN = "does what cannot be followed"
    RETURN = "returns"
    JUMP = "jumps"
    GOTO = "goes to"


ENDS: Final = frozenset({Act.ACCEPT, Act.DROP, Act.RESET, Act.REJECT, Act.ELSEWHERE, Act.UNKNOWN})
"""The acts after which no later rule of the base chain applies to the packet."""

TAKES: Final = ENDS - {Act.ACCEPT}
"""The acts after which it may never arrive."""


class MarkWrite(NamedTuple):
    """A write to the packet's mark: `mark = mark & keep ^ flip`."""

    keep: int
    flip: int

    def clears(self, bits: int) -> bool:
        """Whether one of these bits is 0 afterwards where it was 1."""
        return (self.keep ^ self.flip) & bits != bits

    def passes(self, test: MarkTest) -> bool:
        """Whether a mark passes a test after it, whatever it was before."""
        found = self.flip & test.mask in test.values
        return not self.keep & test.mask and found is not test.negated

    def sets(self, bits: int) -> bool:
        """Whether all of these bits are 1 afterwards where they were 0."""
        return self.flip & bits == bits


class TrackingWrite(NamedTuple):
    """How a rule before conntrack has it treat a packet: `zone` as in `raw_rules.RawRule`."""

    zone: int


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: The rule as listed.
        when: Its matches.
        act: What it does.
        target: The chain of a jump or goto; for ELSEWHERE and UNKNOWN what is named there.
        mark: How it writes the packet's mark.
        tracking: How it has conntrack treat the packet; None where it does not.
        own: Whether it is a rule of ours.
        handle: Its number in nftables; 0 elsewhere.
    """

    text: str
    when: Condition
    act: Act
    target: str = ""
    mark: MarkWrite | None = None
    tracking: TrackingWrite | None = None
    own: bool = False
    handle: int = 0


@final
@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where a chain is attached to the packet's path.

    Attributes:
        hook: `prerouting`, `input`, `forward`, `output` or `postrouting`.
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
        family: The packets that it is read for: 4 or 6.
        chains: The rules of each chain, in order.
        bases: The base chains among them.
        own: Whether it is a table of ours.
        nft_family: Its family in nftables, such as `inet`; empty elsewhere.
    """

    filter: str
    name: str
    family: int
    chains: Mapping[str, list[Rule]] = field(default_factory=dict)
    bases: Mapping[str, BaseChain] = field(default_factory=dict)
    own: bool = False
    nft_family: str = ""


def runs_before_conntrack(base: BaseChain) -> bool:
    """Whether its packets are not tracked yet."""
    return base.priority <= CONNTRACK_PRIORITY and base.hook in {"prerouting", "output"}
