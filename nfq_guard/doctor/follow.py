# SPDX-License-Identifier: MIT
"""Follows an INVALID segment through the rules of one table, along every possible path."""

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

from nfq_guard.doctor.rule_model import ALWAYS, ENDS, TAKES, Act, MarkTest, Rule, Table, Truth


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
        marks: The tests of the packet's mark among these conditions.
        untracked: Whether it takes the remaining packets, of all interfaces or of some, and an
            earlier rule would have accepted the segment if it had a conntrack entry.
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
    marks: tuple[MarkTest, ...] = ()
    untracked: bool = False

    @property
    def certain(self) -> bool:
        """Whether every such segment meets this rule."""
        return self.truth is Truth.YES and not self.spared

    @property
    def by_interface(self) -> bool:
        """Whether the match depends on the packet's interfaces only."""
        return all(_INTERFACE.fullmatch(word) for word in self.on)


class Walk(NamedTuple):
    """The result of following the segment through a chain.

    Attributes:
        findings: The rules that it may match there, in order.
        ends: Whether a rule there decides, so that the segment does not return.
        accepts: The interfaces on which rules there would accept the segment if it had an entry.
    """

    findings: tuple[Finding, ...]
    ends: Truth
    accepts: frozenset[str] = frozenset()


_NOTHING: Final = Walk((), Truth.NO)
_INTERFACE: Final = re.compile(r"(! )?-[io] \S+|[io]if(name)?( \. [io]if(name)?)* (?!\. ).+")
_Found = dict[tuple[str, int], Finding]
_ALL: Final = frozenset({""})
"""The interfaces of a rule that names none."""


@final
class Follower:
    """Follows the segment through one table; each chain is followed once."""

    def __init__(self, table: Table) -> None:
        """Start before any chain."""
        self._table = table
        self._walks: dict[str, Walk] = {}

    def base(self, chain: str, start: int = 0, end: int | None = None) -> Walk:
        """Follow a part of a base chain; the policy applies if the part includes the end."""
        walk = self._walk(chain, range(len(self._table.chains[chain]))[start:end])
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
        return Walk((*walk.findings, deny), Truth.YES)

    def _chain(self, name: str) -> Walk:
        walk = self._walks.get(name)
        if walk is None:
            # A loop of jumps decides nothing; the kernel refuses it anyway.
            self._walks[name] = _NOTHING
            walk = self._walk(name, range(len(self._table.chains.get(name, ()))))
            self._walks[name] = walk
        return walk

    def _walk(self, name: str, places: Iterable[int]) -> Walk:
        found: _Found = {}
        accepts: set[str] = set()
        passed: set[str] = set()
        may_end = may_return = spared = False
        for place in places:
            rule = self._table.chains[name][place]
            truth = rule.when.truth
            if rule.when.tracked is not None:
                lost = _interfaces(rule.when.tracked, self._accepts(rule))
                accepts |= lost
                passed |= _interfaces(rule.when.tracked, _ALL) if rule.act is Act.RETURN else lost
            if truth is Truth.NO or rule.own:
                continue
            ends = Truth.NO
            writes = rule.mark is not None or rule.tracking is not None or rule.fills
            if rule.act in ENDS or writes:
                here = Finding(
                    self._table,
                    name,
                    _readable(rule, rule.when.lost),
                    truth=truth,
                    on=rule.when.on,
                    marks=rule.when.marks,
                )
                _record(found, (name, place), here, rule, passed, spared=spared)
            if rule.act in ENDS:
                ends = Truth.YES
            elif rule.act in {Act.JUMP, Act.GOTO}:
                inner = self._chain(rule.target)
                _lift(found, inner, rule, name, passed, spared=spared)
                ends = inner.ends
                lost = _interfaces(rule.when.on, inner.accepts)
                accepts |= lost
                passed |= lost
            leaves = rule.act in {Act.RETURN, Act.GOTO}
            may_end = may_end or ends is not Truth.NO
            may_return = may_return or (leaves and ends is not Truth.YES)
            if truth is Truth.YES and (ends is Truth.YES or leaves):
                done = _ends(may_end, may_return=may_return)
                return Walk(tuple(found.values()), done, frozenset(accepts))
            spared = spared or leaves or ends is not Truth.NO
        return Walk(tuple(found.values()), _ends(may_end, may_return=True), frozenset(accepts))

    def _accepts(self, rule: Rule) -> frozenset[str]:
        """The interfaces on which a rule, or the chain that it leads to, accepts."""
        if rule.act is Act.ACCEPT:
            return _ALL
        if rule.act not in {Act.JUMP, Act.GOTO}:
            return frozenset()
        inner = self._chain(rule.target)
        accepting = [each for each in inner.findings if each.rule.act is Act.ACCEPT]
        return inner.accepts.union(*(_interfaces(each.on, _ALL) for each in accepting))


def _interfaces(on: Iterable[str], inner: frozenset[str]) -> frozenset[str]:
    """The interfaces on which these conditions can hold; empty for none."""
    words = frozenset(word for word in on if _INTERFACE.fullmatch(word))
    return (inner - _ALL) | words if words and inner else inner


def _ends(may_end: bool, *, may_return: bool) -> Truth:  # noqa: FBT001 - a truth value
    if not may_end:
        return Truth.NO
    return Truth.DEPENDS if may_return else Truth.YES


def _readable(rule: Rule, lost: str) -> Rule:
    """A rule, which cannot be followed if a match that leads to it cannot be read."""
    return replace(rule, act=Act.UNKNOWN, target=lost) if lost and rule.act in TAKES else rule


def _lift(
    found: _Found, inner: Walk, jump: Rule, name: str, passed: AbstractSet[str], *, spared: bool
) -> None:
    """Add the findings of a chain, under the conditions of the jump to it."""
    for finding in inner.findings:
        key = (finding.chain, id(finding.rule))
        lifted = Finding(
            finding.table,
            finding.chain,
            _readable(finding.rule, jump.when.lost),
            path=(*finding.path, name),
            truth=min(finding.truth, jump.when.truth),
            on=(*jump.when.on, *finding.on),
            spared=finding.spared,
            state=finding.state,
            marks=(*jump.when.marks, *finding.marks),
            untracked=finding.untracked,
        )
        _record(found, key, lifted, jump, passed, spared=spared)


def _record(
    found: _Found,
    key: tuple[str, int],
    finding: Finding,
    rule: Rule,
    passed: AbstractSet[str],
    *,
    spared: bool,
) -> None:
    """Keep the most certain path to a rule."""
    here = Finding(
        finding.table,
        finding.chain,
        finding.rule,
        finding.path,
        finding.truth,
        finding.on,
        spared=finding.spared or spared,
        state=finding.state or rule.when.state,
        marks=finding.marks,
        untracked=_is_default(finding, passed),
    )
    known = found.get(key)
    if known is None or _certainty(here) > _certainty(known):
        found[key] = here


def _is_default(finding: Finding, passed: AbstractSet[str]) -> bool:
    """Whether a rule takes the packets that remain after these accepts.

    A rule with another condition, such as a banned address, does not.
    """
    if not finding.by_interface:
        return False
    if not passed or finding.untracked:
        return finding.untracked
    return not finding.on or not passed.isdisjoint((*finding.on, ""))


def _certainty(finding: Finding) -> tuple[bool, Truth, bool]:
    return (finding.certain, finding.truth, finding.state)
