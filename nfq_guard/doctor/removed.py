# SPDX-License-Identifier: MIT
"""The rules by whose removal INVALID packets pass, and a host's rules without them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple, final

from nfq_guard.doctor import fate
from nfq_guard.doctor.follow import Finding
from nfq_guard.doctor.path import Met, walk
from nfq_guard.doctor.rule_model import Act, Rule, Table, Truth
from nfq_guard.firewall import BOTH_FAMILIES

_LEADS: Final = frozenset({Act.JUMP, Act.GOTO})


@final
class Place(NamedTuple):
    """A rule in its chain."""

    table: Table
    chain: str
    rule: Rule


@final
class Removal(NamedTuple):
    """The rules by whose removal INVALID packets no longer meet a rule that names them.

    Attributes:
        places: The rules.
        obstacle: Why their removal would change more than that; empty if it would not.
    """

    places: tuple[Place, ...]
    obstacle: str = ""


def both(tables: Sequence[Table]) -> list[Met]:
    """The rules that an INVALID packet of each family meets in every hook."""
    return [met for family in BOTH_FAMILIES for met in walk(tables, int(family))]


def without(tables: Iterable[Table], places: Iterable[Place]) -> list[Table]:
    """The tables without some of their rules; the others stay the same objects."""
    gone: dict[tuple[str, ...], dict[str, set[int]]] = {}
    for place in places:
        chains = gone.setdefault(key_of(place.table), {})
        chains.setdefault(place.chain, set()).add(id(place.rule))
    return [_without(table, gone.get(key_of(table), {})) for table in tables]


def _without(table: Table, gone: dict[str, set[int]]) -> Table:
    if not gone:
        return table
    chains = {
        name: [rule for rule in rules if id(rule) not in gone.get(name, ())]
        for name, rules in table.chains.items()
    }
    return replace(table, chains=chains)


def key_of(table: Table) -> tuple[str, ...]:
    """What tells a table from all others, also where rules of it were removed."""
    return (table.filter, table.nft_family, table.name, str(table.family))


def without_takers(tables: Sequence[Table]) -> list[Met]:
    """The path without the first rule of each hook that surely takes INVALID packets by name."""
    path = both(tables)
    findings = [met.finding for met in fate.named_takers(path)]
    places = [place for each in findings for place in removal_of(each, each.table).places]
    return both(without(tables, places)) if places else path


def removal_of(finding: Finding, whole: Table) -> Removal:
    """The removal for one rule, by the nearest rules on the way to it that can be removed.

    Args:
        finding: The rule, in its table or in what is left of that.
        whole: The table with all its rules.
    """
    chains = (finding.chain, *finding.path)
    levels = [[Place(whole, finding.chain, finding.rule)]]
    levels += [
        [
            Place(whole, outer, rule)
            for rule in finding.table.chains[outer]
            if rule.act in _LEADS and rule.target == inner
        ]
        for inner, outer in pairwise(chains)
    ]
    named = [[place for place in level if _names(place.rule)] for level in levels]
    removals = [_removal(places) for places in named if places]
    if not removals:
        return Removal(tuple(levels[0]), "packets get there by a mark, a list or a chain of others")
    return next((each for each in removals if not each.obstacle), removals[0])


def _names(rule: Rule) -> bool:
    """Whether a rule selects by the conntrack state, and INVALID packets match."""
    return rule.when.state and rule.when.truth is not Truth.NO and not rule.own


def _removal(places: Sequence[Place]) -> Removal:
    for place in places:
        obstacle = _obstacle(place)
        if obstacle:
            return Removal(tuple(places), obstacle)
    return Removal(tuple(each for place in places for each in _whole(place)))


def _whole(place: Place) -> list[Place]:
    """The rule as the packet filter has it; one of nftables may have several verdicts."""
    table, chain, rule = place
    same = [
        each
        for each in table.chains[chain]
        if each is rule or (rule.handle and each.handle == rule.handle)
    ]
    return [Place(table, chain, each) for each in same]


def _obstacle(place: Place) -> str:
    """Why the removal of a rule would do more than let INVALID packets pass."""
    table, chain, rule = place
    rules = table.chains[chain]
    whole = _whole(place)
    if not any(each.rule is rule for each in whole):
        if rule.act is Act.UNTRACKS:
            return f"the packets are not tracked behind `{rule.text}`"
        return f"what leads to `{rule.text}` is not listed in full"
    if not all(each.rule.when.only for each in whole):
        return f"`{rule.text}` is not for INVALID packets only"
    if any(_fills(table, each.rule) for each in whole):
        return f"`{rule.text}` also fills a list"
    if not rule.handle and sum(each.text == rule.text for each in rules) > 1:
        return f"chain {chain} has `{rule.text}` more than once"
    if rule.handle and _is_unnamed(table, chain, rule.handle):
        return f"`{rule.text}` is in a chain without a name"
    return ""


def _fills(table: Table, rule: Rule) -> bool:
    """Whether a rule, or the chains that it leads to, add packets to a set."""
    waiting, seen = [rule], set[str]()
    while waiting:
        one = waiting.pop()
        if one.fills:
            return True
        if one.act in _LEADS and one.target not in seen:
            seen.add(one.target)
            waiting += table.chains.get(one.target, ())
    return False


def _is_unnamed(table: Table, chain: str, handle: int) -> bool:
    """Whether a chain is part of a rule, `jump { ... }`: its rules have the handle of that rule."""
    return any(
        rule.target == chain and rule.handle == handle
        for rules in table.chains.values()
        for rule in rules
    )
