# SPDX-License-Identifier: MIT
"""The rules of a host without those that take INVALID packets by name."""

from collections.abc import Sequence
from dataclasses import replace

from nfq_guard.doctor.follow import Follower
from nfq_guard.doctor.rule_model import TAKES, Act, Rule, Table, Truth


def without_named(tables: Sequence[Table]) -> list[Table]:
    """The tables without the rules that take packets by a conntrack state, INVALID among them."""
    return [_table(table) for table in tables]


def _table(table: Table) -> Table:
    follower = Follower(table)
    return replace(
        table,
        chains={
            name: [rule for rule in rules if not _takes_by_name(rule, follower)]
            for name, rules in table.chains.items()
        },
    )


def _takes_by_name(rule: Rule, follower: Follower) -> bool:
    if rule.own or not rule.when.state or rule.when.truth is Truth.NO:
        return False
    if rule.act in {Act.JUMP, Act.GOTO}:
        return follower.takes(rule.target)
    return rule.act in TAKES
