# SPDX-License-Identifier: MIT
"""Finds other programs' rules on INVALID packets in the output of `nft -j list ruleset`.

The output includes the tables of iptables-nft, which are left to `iptables_rules`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.foreign import (
    OUR_HOOKS,
    OUR_NATIVE_PRIORITY,
    OUR_PRIORITIES,
    OUR_PRIORITY,
    PRIORITIES,
    Effect,
    ForeignRule,
    Order,
    earliest,
    order_by_priority,
    owner_of,
)
from nfq_guard.firewall.saved import is_own
from nfq_guard.firewall.spec import OFFLOAD_TABLE, Backend

OUR_TABLE: Final = "nfq_guard"
"""The table that `rules/nftables.nft` creates."""

_IPTABLES_TABLES: Final = frozenset({*PRIORITIES, "nat"})
_FAMILIES: Final = {"ip": "IPv4", "ip6": "IPv6", "inet": "IPv4 and IPv6"}

_OURS_NATIVE: Final = dict.fromkeys(OUR_HOOKS, OUR_NATIVE_PRIORITY)

Statement = Mapping[str, Any]
_Key = tuple[str, str, str]


class _Base(NamedTuple):
    hook: str
    priority: int
    kind: str


@final
class Ruleset:
    """A ruleset as nft lists it.

    Attributes:
        ours: Whether the table of `rules/nftables.nft` is loaded.
        flowtables: Each flow table, as `TABLE NAME`.
    """

    def __init__(self, text: str) -> None:
        """Parse nft's JSON.

        Raises:
            ValueError: `text` is not JSON.
            KeyError: An object lacks a key.
            TypeError: An object has another type than expected.
        """
        self.ours = False
        self.flowtables: list[str] = []
        self._bases: dict[_Key, _Base] = {}
        self._rules: dict[_Key, list[Sequence[Statement]]] = {}
        for item in json.loads(text)["nftables"]:
            for kind, value in item.items():
                self._take(kind, value)

    def _take(self, kind: str, value: Mapping[str, Any]) -> None:
        if kind == "table":
            self.ours = self.ours or value["name"] == OUR_TABLE
        elif kind == "flowtable":
            self.flowtables.append(f"{value['table']} {value['name']}")
        elif kind == "chain":
            key = (value["family"], value["table"], value["name"])
            self._rules.setdefault(key, [])
            if "hook" in value:
                self._bases[key] = _Base(value["hook"], value["prio"], value.get("type", "filter"))
        elif kind == "rule":
            key = (value["family"], value["table"], value["chain"])
            self._rules.setdefault(key, []).append(value["expr"])

    def find(
        self,
        unread: frozenset[tuple[str, str]] = frozenset(),
        backend: Backend = Backend.LEGACY,
    ) -> list[ForeignRule]:
        """Every rule that matches INVALID packets and is not ours.

        Args:
            unread: Tables with the name of an iptables table that iptables-nft cannot list, as
                `("ip", "mangle")`. In all other tables iptables' own chains are skipped.
            backend: The backend of our rules where they are not in our native table.
        """
        ours = _OURS_NATIVE if self.ours else OUR_PRIORITIES[backend]
        foreign: list[ForeignRule] = []
        reached = self._walk(unread)
        for key, rules in self._rules.items():
            family, table, chain = key
            bases = reached.get(key, [])
            if (
                table in {OUR_TABLE, OFFLOAD_TABLE}
                or is_own(chain)
                or family not in _FAMILIES
                or not bases
            ):
                continue
            for expr in rules:
                if any(is_own(target) for target in _targets(expr)):
                    continue
                effect = self._effect(key, expr)
                if effect is not None:
                    foreign.append(
                        ForeignRule(
                            filter="nftables",
                            family=_FAMILIES[family],
                            table=table,
                            chain=chain,
                            hooks=tuple(dict.fromkeys(base.hook for base in bases)),
                            order=earliest([_order(base, ours) for base in bases]),
                            effect=effect,
                            owner=owner_of([chain, table]),
                            text=json.dumps(expr),
                        )
                    )
        return foreign

    def _effect(self, key: _Key, expr: Sequence[Statement]) -> Effect | None:
        """What the rule does to INVALID packets; None if it does not match them."""
        for statement in expr:
            if "vmap" in statement and _is_state(statement["vmap"].get("key")):
                verdict = _mapped(statement["vmap"].get("data"))
                return self._verdict(key, [verdict]) if verdict else None
        if not any(_takes_invalid(s["match"]) for s in expr if "match" in s):
            return None
        return self._verdict(key, expr)

    def _verdict(self, key: _Key, statements: Sequence[Statement]) -> Effect:
        for _ in self._rules:
            names = {name for statement in statements for name in statement}
            if names & {"drop", "reject"}:
                return Effect.DROP
            target = _target(statements)
            if target is None:
                # An accept does not protect a packet from later base chains.
                break
            key = (key[0], key[1], target)
            unconditional = [rule for rule in self._rules.get(key, []) if not _has_match(rule)]
            statements = [statement for rule in unconditional for statement in rule]
        return Effect.LOG

    def _walk(self, unread: frozenset[tuple[str, str]]) -> dict[_Key, list[_Base]]:
        reached: dict[_Key, list[_Base]] = {}
        for start, base in self._bases.items():
            if _is_iptables(start, base) and start[:2] not in unread:
                continue
            waiting = [start]
            seen: set[_Key] = set()
            while waiting:
                key = waiting.pop()
                if key in seen or key not in self._rules:
                    continue
                seen.add(key)
                reached.setdefault(key, []).append(base)
                for expr in self._rules[key]:
                    waiting += [(key[0], key[1], target) for target in _targets(expr)]
        return reached


def flowtables(names: Sequence[str]) -> Iterator[Check]:
    """Flow tables, which bypass conntrack's window checks (kernel.md 2)."""
    if names:
        yield note(
            "offload.flowtable",
            f"flow tables carry flows past the rules: {', '.join(names)}; conntrack sets "
            "be_liberal on offloaded flows, so their packets are rarely INVALID",
            "expect fewer INVALID packets of those flows, and windows that restart",
        )


def _is_iptables(key: _Key, base: _Base) -> bool:
    """Whether a base chain is iptables-nft's, by its table, name, hook and priority."""
    family, table, chain = key
    if family not in {"ip", "ip6"} or table not in _IPTABLES_TABLES:
        return False
    priority = PRIORITIES.get(table, base.priority)
    return chain == base.hook.upper() and base.priority == priority


def _order(base: _Base, ours: Mapping[str, int]) -> Order:
    if base.kind == "nat":
        return Order.NEVER
    return order_by_priority(base.hook, base.priority, ours.get(base.hook, OUR_PRIORITY))


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and value.get("ct", {}).get("key") == "state"


def _takes_invalid(match: Mapping[str, Any]) -> bool:
    if not _is_state(match.get("left")):
        return False
    right = match.get("right")
    states = right.get("set", []) if isinstance(right, dict) else right
    if not isinstance(states, list):
        states = [states]
    return ("invalid" in states) != (match.get("op") == "!=")


def _mapped(data: object) -> Statement | None:
    if isinstance(data, dict):
        for pair in data.get("set", []):
            if isinstance(pair, list) and len(pair) == 2 and pair[0] == "invalid":
                verdict = pair[1]
                return verdict if isinstance(verdict, dict) else None
    return None


def _target(statements: Sequence[Statement]) -> str | None:
    return next((name for statement in statements for name in _targets([statement])), None)


def _targets(expr: Sequence[Statement]) -> list[str]:
    """Chains that a rule may jump or go to, including through verdict maps."""
    targets: list[str] = []
    for statement in expr:
        verdicts = [statement.get(name) for name in ("jump", "goto")]
        targets += [verdict["target"] for verdict in verdicts if isinstance(verdict, dict)]
        data = statement["vmap"].get("data") if "vmap" in statement else None
        if isinstance(data, dict):
            pairs = [pair for pair in data.get("set", []) if isinstance(pair, list)]
            targets += [name for pair in pairs for name in _targets([pair[-1]])]
    return targets


def _has_match(expr: Sequence[Statement]) -> bool:
    return any("match" in statement or "vmap" in statement for statement in expr)
