# SPDX-License-Identifier: MIT
"""Rules of others that hand packets to the guard's own queues, as those of a host without ours."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, final

from nfq_guard.doctor.rule_model import (
    ENDS,
    FAMILIES,
    Act,
    Rule,
    Table,
    Truth,
    runs_before_conntrack,
)

# As `iptables_rules` and `nft_rules` name the target: one queue, or the first and the last.
_QUEUES: Final = re.compile(r"queue (\d+)(?:[-:](\d+))?")
# The acts after which a packet does not get to the next rule of the chain.
_LEAVES: Final = ENDS | {Act.RETURN, Act.GOTO}


@final
class ToUs(NamedTuple):
    """Rules of others that lead to our queues.

    Attributes:
        places: Each rule with its place.
        in_prerouting: Whether one may be in PREROUTING, which all packets of other hosts pass.
        valid: Each rule that hands packets to them that are not INVALID, with its place; it may
            lead to other queues as well.
    """

    places: tuple[str, ...] = ()
    in_prerouting: bool = False
    valid: tuple[str, ...] = ()


NONE: Final = ToUs()


def adopt(tables: Iterable[Table], queues: Container[int]) -> ToUs:
    """Take the rules that lead to these queues for ours, in place."""
    found: dict[str, set[int]] = {}
    valid: dict[str, set[int]] = {}
    hooks: set[str] = set()
    for table in tables:
        for name, rule in _met_by_valid_packets(table):
            if not rule.own and _leads_to_one_of(rule, queues):
                valid.setdefault(_place(rule, table, name), set()).add(table.family)
        for name, rules in _tracked_chains(table):
            for place, rule in enumerate(rules):
                if not rule.own and leads_to(rule, queues):
                    rules[place] = replace(rule, own=True)
                    found.setdefault(_place(rule, table, name), set()).add(table.family)
                    # A chain that is not a base chain may be reached from any.
                    base = table.bases.get(name)
                    hooks |= {one.hook for one in ([base] if base else table.bases.values())}
    return ToUs(_with_families(found), "prerouting" in hooks, _with_families(valid))


def _place(rule: Rule, table: Table, chain: str) -> str:
    return f"`{rule.text}` ({table.filter} table {table.name}, chain {chain}"


def _with_families(places: Mapping[str, set[int]]) -> tuple[str, ...]:
    return tuple(
        f"{place}, {' and '.join(FAMILIES[one] for one in sorted(families))})"
        for place, families in places.items()
    )


def _met_by_valid_packets(table: Table) -> Iterator[tuple[str, Rule]]:
    """The rules that packets of another conntrack state than INVALID may match, with the chain."""
    if table.own:
        return
    seen: set[str] = set()
    waiting = [name for name, base in table.bases.items() if not runs_before_conntrack(base)]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for rule in table.chains.get(name, ()):
            if not _is_for_invalid(rule):
                yield name, rule
                if rule.act in {Act.JUMP, Act.GOTO}:
                    waiting.append(rule.target)
            if rule.when.known_truth is Truth.YES and rule.act in _LEAVES:
                break


def _tracked_chains(table: Table) -> Iterator[tuple[str, list[Rule]]]:
    """The chains of others in which packets are tracked: before that, every packet is INVALID."""
    before = {name for name, base in table.bases.items() if runs_before_conntrack(base)}
    if not table.own and before != set(table.bases):
        yield from ((name, rules) for name, rules in table.chains.items() if name not in before)


def _is_for_invalid(rule: Rule) -> bool:
    """Whether a rule is for INVALID packets, and perhaps for some others, but not for most."""
    when = rule.when
    excludes = when.state and when.truth is not Truth.NO and when.known_truth is Truth.NO
    return when.only or excludes


def leads_to(rule: Rule, queues: Container[int]) -> bool:
    """Whether a rule leads to these queues alone."""
    led = _led_to(rule)
    return bool(led) and led[0] in queues and led[-1] in queues


def _leads_to_one_of(rule: Rule, queues: Container[int]) -> bool:
    return any(one in queues for one in _led_to(rule))


def _led_to(rule: Rule) -> range:
    """The queues to which a rule leads; empty for none."""
    match = _QUEUES.fullmatch(rule.target) if rule.act is Act.ELSEWHERE else None
    if match is None:
        return range(0)
    first, last = match.groups()
    return range(int(first), int(last or first) + 1)
