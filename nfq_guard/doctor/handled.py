# SPDX-License-Identifier: MIT
"""A host's rules for INVALID packets, and whether the policy would decide without them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, final

from nfq_guard.doctor import fate, owners, removed
from nfq_guard.doctor.follow import Finding
from nfq_guard.doctor.owners import PLAIN, Owner, owner_of
from nfq_guard.doctor.path import ON_THE_WAY, Met, Order
from nfq_guard.doctor.removed import Place
from nfq_guard.doctor.rule_model import TAKES, Act, Table

# The hooks in which a packet that a rule has spared may meet the next one.
_ONWARD: Final = {
    "ingress": ("ingress", "prerouting", "input", "forward", "postrouting", "egress"),
    "prerouting": ("prerouting", "input", "forward", "postrouting", "egress"),
    "input": ("input",),
    "forward": ("forward", "postrouting", "egress"),
    "output": ("output", "postrouting", "egress"),
    "postrouting": ("postrouting", "egress"),
    "egress": ("egress",),
}
_UNTRACKED: Final = {
    False: "no packet is tracked there, so every packet is INVALID to it",
    True: "it may run before connection tracking, and every packet is INVALID to it then",
}
_HIDING: Final = frozenset({Order.BEFORE, Order.UNTRACKED, Order.TIED})


@final
@dataclass(slots=True)
class Handled:
    """A rule that takes INVALID packets by name.

    Attributes:
        finding: The rule; its table has all rules of the host.
        owner: The program that installs it.
        mets: Where INVALID packets meet it, by hook and family.
        places: The rules by whose removal they would not.
        obstacle: Why these cannot be removed for INVALID packets alone; empty if they can.
        behind: The rule that takes the packets although everything that the plan removes is
            removed; None if the policy decides then.
        others: Rules that take some of them then.
    """

    finding: Finding
    owner: Owner
    mets: dict[tuple[str, int], Met] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    obstacle: str = ""
    behind: Met | None = None
    others: tuple[str, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether the guard does not see the packets."""
        return any(met.order in _HIDING for met in self.mets.values())

    @property
    def todo(self) -> str:
        """The recommended action on it."""
        return fate.advice(self.finding, self.behind)

    @property
    def stays(self) -> bool:
        """Whether it stays where the plan is followed."""
        if self.owner is not PLAIN:
            return fate.leaves(owners.todo(self.finding))
        return bool(self.obstacle) or self.behind is not None

    @property
    def movable(self) -> bool:
        """Whether the same rule in INPUT and FORWARD takes the same packets, behind the guard."""
        finding = self.finding
        (place, *more) = self.places
        return (
            self.hidden
            and not finding.table.nft_family
            and not more
            and place.rule is finding.rule
            and not finding.spared
            and finding.on == finding.rule.when.on
            and {hook for hook, _ in self.mets} == {"prerouting"}
            and finding.rule.act in {Act.DROP, Act.REJECT}
        )

    def add(self, met: Met, whole: Table) -> Sequence[Place]:
        """Add where packets meet it; returns the rules to remove there.

        Args:
            met: The rule, in what is left of its table.
            whole: The table with all its rules.
        """
        self.mets.setdefault((met.hook, whole.family), met)
        places, obstacle = removed.removal_of(met.finding, whole)
        if met.order is Order.UNTRACKED:
            obstacle = obstacle or _UNTRACKED[met.beside_conntrack]
        self.obstacle = self.obstacle or obstacle
        known = {id(place.rule) for place in self.places}
        self.places += [place for place in places if id(place.rule) not in known]
        return places


def handled(tables: Sequence[Table]) -> list[Handled]:
    """The rules of a host that take INVALID packets by name, each behind the one before it too.

    Args:
        tables: The tables of all packet filters.
    """
    found = list(_found(tables))
    goes = [each for each in found if not each.stays]
    while True:
        left = removed.without(tables, chain.from_iterable(each.places for each in goes))
        path = removed.both(left)
        takers = fate.takers(path)
        for each in goes:
            each.behind = _behind(each, path, takers)
            each.others = tuple(dict.fromkeys(_others(each, path)))
        still = [each for each in goes if not each.stays]
        if len(still) == len(goes):
            break
        goes = still
    _look_behind(tables, found, goes)
    return found


def _look_behind(
    tables: Sequence[Table], found: Sequence[Handled], goes: Iterable[Handled]
) -> None:
    """Have each rule that stays for another one tell the first that takes its packets."""
    gone = [place for one in goes for place in one.places]
    for one in found:
        gone += one.places
        if one.behind is not None and one.owner is PLAIN:
            path = removed.both(removed.without(tables, gone))
            one.behind = _behind(one, path, fate.takers(path)) or one.behind


def _found(tables: Sequence[Table]) -> Iterable[Handled]:
    """All rules: also those that packets meet only once an earlier one is gone."""
    whole = {removed.key_of(table): table for table in tables}
    found: dict[tuple[object, ...], Handled] = {}
    left, count = list(tables), -1
    while count != _count(left):
        count = _count(left)
        gone: list[Place] = []
        for met in removed.both(left):
            finding = met.finding
            if not finding.state or finding.default or finding.rule.act not in TAKES:
                continue
            if met.order is Order.NEVER:
                continue
            table = whole[removed.key_of(finding.table)]
            key = _key(finding)
            if key not in found:
                in_whole = replace(finding, table=table)
                found[key] = Handled(in_whole, owner_of(in_whole))
            one = found[key]
            places = one.add(met, table)
            if one.owner is PLAIN or not one.stays:
                gone += places
        left = removed.without(left, gone)
    return found.values()


def _count(tables: Iterable[Table]) -> int:
    return sum(len(rules) for table in tables for rules in table.chains.values())


def _key(finding: Finding) -> tuple[object, ...]:
    """A rule of nftables stands for both families; one of iptables for itself."""
    table, rule = finding.table, finding.rule
    if table.filter == "nftables":
        return (table.nft_family, table.name, finding.chain, rule.handle, rule.text)
    return (table.filter, table.family, table.name, finding.chain, id(rule))


def _behind(one: Handled, path: Iterable[Met], takers: Mapping[tuple[str, int], Met]) -> Met | None:
    """The rule that takes its packets on a path, all of them or with an RST."""
    sure = (takers[at] for at in _onward(one) if at in takers)
    resets = (met for met in _aimed(one, path) if met.finding.rule.act is Act.RESET)
    return next(chain(sure, resets), None)


def _others(one: Handled, path: Iterable[Met]) -> Iterator[str]:
    for met in _aimed(one, path):
        yield f"`{met.finding.rule.text}` ({owners.place(met.finding)}) {met.finding.rule.act} them"


def _aimed(one: Handled, path: Iterable[Met]) -> Iterator[Met]:
    """The rules that take packets of its kind because they are INVALID."""
    onward = set(_onward(one))
    for met in path:
        finding = met.finding
        aimed = (finding.state or finding.untracked) and finding.rule.act in TAKES
        if aimed and met.order in ON_THE_WAY and (met.hook, finding.table.family) in onward:
            yield met


def _onward(one: Handled) -> Iterator[tuple[str, int]]:
    for hook, family in one.mets:
        for later in _ONWARD[hook]:
            yield later, family
