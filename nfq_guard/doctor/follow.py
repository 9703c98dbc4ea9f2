# SPDX-License-Identifier: MIT
"""Follows an INVALID segment through the rules of one table, along every possible path."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

from nfq_guard.doctor.default_deny import (
    Words,
    bounded,
    is_interface,
    is_of_header,
    some,
    takes_the_rest,
)
from nfq_guard.doctor.packet_mark import Marks
from nfq_guard.doctor.rule_model import (
    ALWAYS,
    ENDS,
    FINAL,
    TAKES,
    UNCERTAIN,
    Act,
    Condition,
    Rule,
    Table,
    Truth,
)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that the segment may match, and the conditions under which it reaches the rule.

    Attributes:
        table: The rule's table.
        chain: Its chain.
        rule: The rule; a rule without matches stands for the policy of a base chain.
        path: The chains that lead to it, the nearest first.
        truth: Whether the rule and the jumps that lead to it match: YES or DEPENDS.
        on: The conditions of that.
        spared: Whether an earlier rule may decide, so that the segment does not reach this one.
        state: Whether the rule, or a jump that leads to it, selects by conntrack state.
        default: Whether it is the policy of a base chain.
        listed: Whether it is for packets of a set to which a rule adds INVALID ones.
        only: Whether the rule, or a jump that leads to it, is for INVALID packets only.
        untracked: Whether it takes the remaining packets (`default_deny`), and an earlier rule
            would have accepted the segment if it had a conntrack entry.
    """

    table: Table
    chain: str
    rule: Rule
    path: tuple[str, ...] = ()
    truth: Truth = Truth.YES
    on: tuple[str, ...] = ()
    spared: bool = False
    state: bool = False
    default: bool = False
    listed: bool = False
    only: bool = False
    untracked: bool = False

    @property
    def certain(self) -> bool:
        """Whether every such segment meets this rule."""
        return self.truth is Truth.YES and not self.spared

    @property
    def by_interface(self) -> bool:
        """Whether the match depends on the packet's interfaces only."""
        return all(map(is_interface, self.on))


class Walk(NamedTuple):
    """The result of following the segment through a chain.

    Attributes:
        findings: The rules that it may match there, in order.
        ends: Whether a rule there decides, so that the segment does not return.
        accepts: The conditions under which rules there would accept the segment if it had an entry.
        other: The conditions under which rules there accept it as it is.
        left: The marks of packets that return; None if none does.
        passed: The marks of packets that are accepted there; None if none is.
        writes: The bits of the mark that rules there may write.
    """

    findings: tuple[Finding, ...]
    ends: Truth
    accepts: frozenset[Words] = frozenset()
    other: frozenset[Words] = frozenset()
    left: Marks | None = Marks()
    passed: Marks | None = None
    writes: int = 0

    @property
    def out(self) -> Marks | None:
        """The marks of packets that go on to the next base chain; None if none does."""
        return self.passed if self.left is None else self.left.either(self.passed)


_END: Final = dict.fromkeys(ENDS - UNCERTAIN, Truth.YES) | dict.fromkeys(UNCERTAIN, Truth.DEPENDS)
"""Whether an act ends the base chain."""
_Found = dict[tuple[str, int], Finding]
_MOST_MARKS: Final = 6
"""The different marks for which a chain is followed; for more it is followed once, for all."""


@final
class Follower:
    """Follows the segment through one table; each chain is followed once for the same marks."""

    def __init__(self, table: Table) -> None:
        """Start before any chain."""
        self._table = table
        self._walks: dict[str, dict[Marks, Walk]] = {}

    def base(
        self, chain: str, start: int = 0, end: int | None = None, marks: Marks | None = None
    ) -> Walk:
        """Follow a part of a base chain; the policy applies if the part includes the end."""
        places = range(len(self._table.chains[chain]))[start:end]
        walk = _Walker(self, self._table, chain, marks or Marks()).walk(places)
        if end is not None or walk.ends is Truth.YES or not self._table.bases[chain].denies:
            return walk
        deny = Finding(
            self._table,
            chain,
            Rule("policy drop", ALWAYS, Act.DROP),
            spared=walk.ends is not Truth.NO,
            default=True,
            untracked=bool(walk.accepts),
        )
        return walk._replace(findings=(*walk.findings, deny), ends=Truth.YES, left=None)

    def chain(self, name: str, marks: Marks) -> Walk:
        """Follow a chain to which a rule leads."""
        walks = self._walks.setdefault(name, {})
        if marks not in walks and len(walks) >= _MOST_MARKS:
            marks = marks.vague()
        walk = walks.get(marks)
        if walk is None:
            # A loop of jumps decides nothing; the kernel refuses it anyway.
            walks[marks] = Walk((), Truth.NO, left=marks)
            places = range(len(self._table.chains.get(name, ())))
            walk = _Walker(self, self._table, name, marks).walk(places)
            walks[marks] = walk
        return walk


@final
class _Walker:
    """One walk through a chain."""

    def __init__(self, follower: Follower, table: Table, name: str, marks: Marks) -> None:
        self._follower = follower
        self._table = table
        self._name = name
        self._marks = marks
        self._left: Marks | None = None
        self._passed: Marks | None = None
        self._writes = 0
        self._found: _Found = {}
        self._accepts: frozenset[Words] = frozenset()
        self._before: frozenset[Words] = frozenset()
        """The conditions under which a packet of a known connection gets no further."""
        self._other: frozenset[Words] = frozenset()
        self._spared = False

    def walk(self, places: Iterable[int]) -> Walk:
        """Follow the rules at these places."""
        may_end = may_return = False
        for place in places:
            rule = self._table.chains[self._name][place]
            when = self._marks.under(rule.when)
            leads = rule.act in {Act.JUMP, Act.GOTO} and not rule.own
            inner = self._follower.chain(rule.target, self._marks) if leads else None
            self._count_accepts(rule, when, inner)
            seen = when.truth is not Truth.NO and not rule.own
            if seen:
                self._add(rule, place, when, inner)
            self._follow_marks(rule, when, inner)
            if not seen:
                continue
            ends = _END.get(rule.act, Truth.NO) if inner is None else inner.ends
            leaves = rule.act in {Act.RETURN, Act.GOTO}
            may_end = may_end or ends is not Truth.NO
            may_return = may_return or (leaves and ends is not Truth.YES)
            if when.truth is Truth.YES and (ends is Truth.YES or leaves):
                return self._done(_ends(may_end, may_return=may_return))
            self._spared = self._spared or leaves or ends is not Truth.NO
        self._left = self._marks.either(self._left)
        return self._done(_ends(may_end, may_return=True))

    def _done(self, ends: Truth) -> Walk:
        return Walk(
            tuple(self._found.values()),
            ends,
            self._accepts,
            self._other,
            self._left,
            self._passed,
            self._writes,
        )

    def _count_accepts(self, rule: Rule, when: Condition, inner: Walk | None) -> None:
        """Note who is accepted by a rule: a packet of a known connection, or any."""
        if rule.own:
            return
        accepts, other = frozenset[Words](), frozenset[Words]()
        if rule.act is Act.ACCEPT:
            other = frozenset({frozenset()})
        elif inner is not None:
            accepts, other = inner.accepts, inner.other
        if when.tracked is not None:
            conditions = frozenset(when.tracked)
            every = {conditions | each for each in accepts | other}
            self._accepts = bounded(self._accepts | every)
            returned = {conditions} if rule.act is Act.RETURN else set()
            self._before = bounded(self._before | every | returned)
        if when.truth is Truth.NO:
            return
        conditions = frozenset(when.on)
        every = {conditions | each for each in accepts}
        self._accepts = bounded(self._accepts | every)
        self._before = bounded(self._before | every)
        if when.tracked is None:
            self._other = some(self._other | {conditions | each for each in other})

    def _add(self, rule: Rule, place: int, when: Condition, inner: Walk | None) -> None:
        """Add what the segment may meet by a rule."""
        writes = rule.mark is not None or rule.tracking is not None or rule.template or rule.fills
        if rule.act in ENDS or writes or rule.redirects:
            here = Finding(
                self._table,
                self._name,
                _readable(rule, when.lost),
                truth=when.truth,
                on=when.on,
                only=rule.when.only,
            )
            self._record((self._name, place), here, when)
        for finding in () if inner is None else inner.findings:
            key = (finding.chain, id(finding.rule))
            lifted = replace(
                finding,
                rule=_readable(finding.rule, when.lost),
                path=(*finding.path, self._name),
                truth=min(finding.truth, when.truth),
                on=(*when.on, *finding.on),
                only=finding.only or rule.when.only,
            )
            self._record(key, lifted, when)

    def _record(self, key: tuple[str, int], finding: Finding, when: Condition) -> None:
        """Keep the most certain path to a rule."""
        here = replace(
            finding,
            spared=finding.spared or self._spared,
            state=finding.state or when.state,
            untracked=(finding.untracked and all(map(is_of_header, when.on)))
            or takes_the_rest(finding.on, self._before, self._other),
        )
        known = self._found.get(key)
        if known is None or _certainty(here) > _certainty(known):
            self._found[key] = here

    def _follow_marks(self, rule: Rule, when: Condition, inner: Walk | None) -> None:
        """The marks of the packets that go on behind a rule."""
        here = None if rule.own else self._marks.of(when)
        if here is None:
            return
        if rule.restores and when.known_truth is not Truth.NO:
            self._writes |= rule.restores
            self._marks = self._marks.with_restored(rule.restores)
        if rule.mark is not None:
            self._writes |= rule.mark.bits
            self._marks = self._marks.after(rule.mark, when)
        if inner is not None:
            self._writes |= inner.writes
            selects = inner.writes and (when.state or when.truth is not when.known_truth)
            self._passed = _joined(self._passed, _of(inner.passed, when))
            back = _of(inner.left, when)
            if selects:
                self._passed = _differing(self._passed, inner.writes)
                back = _differing(back, inner.writes)
            rest = self._marks.without(when)
            if rule.act is Act.GOTO:
                self._left = _joined(self._left, back)
                back = None
            self._marks = rest.either(back)
        elif rule.act in ENDS:
            if rule.act not in FINAL:
                self._passed = here.either(self._passed)
            if rule.act not in UNCERTAIN:
                self._marks = self._marks.without(when)
        elif rule.act is Act.RETURN:
            self._left = here.either(self._left)
            self._marks = self._marks.without(when)


def _joined(one: Marks | None, other: Marks | None) -> Marks | None:
    return other if one is None else one.either(other)


def _of(marks: Marks | None, when: Condition) -> Marks | None:
    return None if marks is None else marks.of(when)


def _differing(marks: Marks | None, bits: int) -> Marks | None:
    return None if marks is None else marks.that_differ(bits)


def _readable(rule: Rule, lost: str) -> Rule:
    """A rule, which cannot be followed if a match that leads to it cannot be read."""
    return replace(rule, act=Act.UNKNOWN, target=lost) if lost and rule.act in TAKES else rule


def _ends(may_end: bool, *, may_return: bool) -> Truth:  # noqa: FBT001 - a truth value
    if not may_end:
        return Truth.NO
    return Truth.DEPENDS if may_return else Truth.YES


def _certainty(finding: Finding) -> tuple[bool, Truth, bool]:
    return (finding.certain, finding.truth, finding.state)
