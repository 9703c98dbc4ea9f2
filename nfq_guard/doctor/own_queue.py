# SPDX-License-Identifier: MIT
"""Rules of others that hand packets to the guard's own queues, as those of a host without ours."""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple, final

from nfq_guard.doctor.rule_model import FAMILIES, Act, Rule, Table, runs_before_conntrack

# As `iptables_rules` and `nft_rules` name the target: one queue, or the first and the last.
_QUEUES: Final = re.compile(r"queue (\d+)(?:[-:](\d+))?")


@final
class ToUs(NamedTuple):
    """Rules of others that lead to our queues.

    Attributes:
        places: Each rule with its place.
        in_prerouting: Whether one may be in PREROUTING, which all packets of other hosts pass.
    """

    places: tuple[str, ...] = ()
    in_prerouting: bool = False


NONE: Final = ToUs()


def adopt(tables: Iterable[Table], queues: Container[int]) -> ToUs:
    """Take the rules that lead to these queues for ours, in place."""
    found: dict[str, set[int]] = {}
    hooks: set[str] = set()
    for table in tables:
        for name, rules in _tracked_chains(table):
            for place, rule in enumerate(rules):
                if not rule.own and leads_to(rule, queues):
                    rules[place] = replace(rule, own=True)
                    where = f"`{rule.text}` ({table.filter} table {table.name}, chain {name}"
                    found.setdefault(where, set()).add(table.family)
                    # A chain that is not a base chain may be reached from any.
                    base = table.bases.get(name)
                    hooks |= {one.hook for one in ([base] if base else table.bases.values())}
    places = (
        f"{where}, {' and '.join(FAMILIES[one] for one in sorted(families))})"
        for where, families in found.items()
    )
    return ToUs(tuple(places), "prerouting" in hooks)


def _tracked_chains(table: Table) -> Iterator[tuple[str, list[Rule]]]:
    """The chains of others in which packets are tracked: before that, every packet is INVALID."""
    before = {name for name, base in table.bases.items() if runs_before_conntrack(base)}
    if not table.own and before != set(table.bases):
        yield from ((name, rules) for name, rules in table.chains.items() if name not in before)


def leads_to(rule: Rule, queues: Container[int]) -> bool:
    """Whether a rule leads to these queues alone."""
    match = _QUEUES.fullmatch(rule.target) if rule.act is Act.ELSEWHERE else None
    return match is not None and all(int(one) in queues for one in match.groups() if one)
