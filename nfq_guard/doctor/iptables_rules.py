# SPDX-License-Identifier: MIT
"""Finds other programs' rules on INVALID packets in the output of iptables-save."""

from collections.abc import Iterator
from typing import Final, final

from nfq_guard.doctor.foreign import (
    OUR_PRIORITIES,
    OUR_PRIORITY,
    PLAIN,
    PRIORITIES,
    Effect,
    ForeignRule,
    Order,
    Owner,
    earliest,
    order_by_priority,
    owner_of,
)
from nfq_guard.firewall.saved import Saved, SavedRule, SavedTable, is_own, split
from nfq_guard.firewall.spec import Backend, Family

_DROPS: Final = frozenset({"DROP", "REJECT"})
_OUR_TABLES: Final = {
    Backend.LEGACY: {"PREROUTING": "mangle", "OUTPUT": "mangle"},
    Backend.NFT: {"PREROUTING": "mangle", "OUTPUT": "security"},
}


def matches_invalid(rule: str) -> bool:
    """Whether the rule selects INVALID by conntrack state, by naming or not excluding it."""
    words = split(rule)
    for option in ("--ctstate", "--state"):
        if option in words[:-1]:
            at = words.index(option)
            states = words[at + 1].split(",")
            return ("INVALID" in states) != (at > 0 and words[at - 1] == "!")
    return False


def find(
    saved: Saved, backend: Backend, family: Family, *, elsewhere: int | None
) -> list[ForeignRule]:
    """Every rule that matches INVALID packets and is not ours.

    Args:
        saved: The tables of one family in one backend.
        backend: The backend.
        family: The family.
        elsewhere: The priority of our chains in another packet filter; None if there are none.
    """
    return [
        rule
        for table in saved.values()
        for rule in _in_table(_Table(table), backend, family, elsewhere=elsewhere)
    ]


@final
class _Table:
    """A table, and the paths on which each of its chains is reached."""

    def __init__(self, table: SavedTable) -> None:
        self.table = table
        self._by_chain: dict[str, list[SavedRule]] = {name: [] for name in table.policies}
        for rule in table.rules:
            self._by_chain.setdefault(rule.chain, []).append(rule)
        self.entrances = self._walk()

    def rules(self, chain: str) -> list[SavedRule]:
        """The rules of a chain, in order."""
        return self._by_chain.get(chain, [])

    def first_of_ours(self, hook: str) -> int | None:
        """The index of our jump in a built-in chain."""
        for place, rule in enumerate(self.rules(hook)):
            if is_own(rule.target):
                return place
        return None

    def effect(self, rule: SavedRule) -> Effect:
        """What the rule does to an INVALID packet.

        Jumps are followed through unconditional rules only.
        """
        target = rule.target
        for _ in self.table.policies:
            if target in _DROPS:
                return Effect.DROP
            if target == "ACCEPT":
                return Effect.ACCEPT
            targets = [each.target for each in self.rules(target) if not _has_match(each.text)]
            decisive = [
                each for each in targets if each in _DROPS or each == "ACCEPT" or self.rules(each)
            ]
            if not decisive:
                break
            target = decisive[0]
        return Effect.LOG

    def _walk(self) -> dict[str, dict[str, tuple[int, tuple[str, ...]]]]:
        """By chain and hook: the earliest index in the built-in chain, and the chains between.

        The index is -1 for the rules of the built-in chain itself.
        """
        reached: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {}
        for hook, policy in self.table.policies.items():
            if policy == "-":
                continue
            reached.setdefault(hook, {})[hook] = (-1, ())
            for place, rule in enumerate(self.rules(hook)):
                waiting: list[tuple[str, tuple[str, ...]]] = [(rule.target, ())]
                while waiting:
                    chain, path = waiting.pop()
                    here = reached.setdefault(chain, {})
                    if chain not in self.table.policies or hook in here:
                        continue
                    here[hook] = (place, path)
                    waiting += [(each.target, (chain, *path)) for each in self.rules(chain)]
        return reached


def _in_table(
    table: _Table, backend: Backend, family: Family, *, elsewhere: int | None
) -> Iterator[ForeignRule]:
    name = table.table.name
    for chain in table.table.policies:
        if is_own(chain):
            continue
        ways = table.entrances.get(chain, {})
        for place, rule in enumerate(table.rules(chain)):
            if is_own(rule.target) or not matches_invalid(rule.text) or not ways:
                continue
            effect = table.effect(rule)
            orders = []
            for hook, (entrance, _) in ways.items():
                at = place if entrance < 0 else entrance
                orders.append(_order(table, backend, hook, at, effect, elsewhere=elsewhere))
            _, path = next(iter(ways.values()))
            yield ForeignRule(
                filter=str(backend),
                family=f"IPv{family}",
                table=name,
                chain=chain,
                hooks=tuple(hook.lower() for hook in ways),
                order=earliest(orders),
                effect=effect,
                owner=_owner(table.table, (rule.target, chain, *path)),
                text=rule.text,
            )


def _order(
    table: _Table,
    backend: Backend,
    hook: str,
    place: int,
    effect: Effect,
    *,
    elsewhere: int | None,
) -> Order:
    name = table.table.name
    if name == "nat":
        return Order.NEVER
    if _OUR_TABLES[backend].get(hook) == name:
        ours = table.first_of_ours(hook)
        if ours is not None:
            return Order.BEFORE if place < ours else Order.SHADOWED
        if elsewhere is None:
            # `rules install` puts ours behind it.
            return Order.BEFORE
    elif effect is Effect.ACCEPT:
        return Order.AFTER  # it ends its own table only
    own = OUR_PRIORITIES[backend].get(hook.lower(), OUR_PRIORITY)
    return order_by_priority(
        hook.lower(), PRIORITIES.get(name, 0), own if elsewhere is None else elsewhere
    )


def _owner(table: SavedTable, names: tuple[str, ...]) -> Owner:
    """The owner by the names on the path; firewalld adds rules to the built-in chains directly."""
    owner = owner_of(names)
    if owner is PLAIN and "INPUT_ZONES" in table.policies:
        return owner_of(["firewalld"])
    return owner


def _has_match(rule: str) -> bool:
    """Whether a rule has any match other than a comment."""
    options = [word for word in split(rule) if word.startswith("-") and word != "-m"]
    return any(option not in {"-j", "-g", "--comment", "--reject-with"} for option in options)
