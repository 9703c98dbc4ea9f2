# SPDX-License-Identifier: MIT
"""The rules of a host without those that take INVALID packets by name."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nfq_guard.doctor.rule_model import TAKES, Act, Rule, Table, Truth

_LEADING: Final = TAKES | {Act.JUMP, Act.GOTO}


def without_named(tables: Sequence[Table]) -> list[Table]:
    """The tables without the rules that take packets by a conntrack state, INVALID among them."""
    return [
        replace(
            table,
            chains={
                name: [rule for rule in rules if not _names(rule)]
                for name, rules in table.chains.items()
            },
        )
        for table in tables
    ]


def _names(rule: Rule) -> bool:
    """Whether a rule, or the chain that it leads to, takes INVALID packets by name."""
    selects = rule.when.state and rule.when.truth is not Truth.NO
    return selects and rule.act in _LEADING and not rule.own
