# SPDX-License-Identifier: MIT
"""INVALID rules of others in what `nft -j list ruleset` printed.

The tables of iptables-nft are in there too; `iptables_rules` reads those.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.foreign import (
    OUR_NATIVE_PRIORITY,
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
from nfq_guard.firewall.spec import OFFLOAD_TABLE

OUR_TABLE: Final = "nfq_guard"
"""The table that `rules/nftables.nft` makes."""

_IPTABLES_TABLES: Final = frozenset({*PRIORITIES, "nat"})
_FAMILIES: Final = {"ip": "IPv4", "ip6": "IPv6", "inet": "IPv4 and IPv6"}

Statement = Mapping[str, Any]
_Key = tuple[str, str, str]


class _Base(NamedTuple):
    hook: str
    priority: int
    kind: str


@final
class Ruleset:
    """What nft listed, by table and chain.

    Attributes:
        ours: Whether the table of `rules/nftables.nft` is loaded.
        flowtables: Names of flow tables, with their tables.
    """

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            ValueError: It is not what nft prints.
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

    def find(self, unread: frozenset[tuple[str, str]] = frozenset()) -> list[ForeignRule]:
        """Every rule of others that INVALID packets match.

        Args:
            unread: Tables, as `("ip", "mangle")`, that bear the name of one of iptables' and that
                iptables cannot show; of the others, chains of iptables are left to it.
        """
        ours = OUR_NATIVE_PRIORITY if self.ours else OUR_PRIORITY
        found: list[ForeignRule] = []
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
                    found.append(
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
        return found

    def _effect(self, key: _Key, expr: Sequence[Statement]) -> Effect | None:
        """What the rule does to INVALID packets; None when they do not match it."""
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
                # Another base chain may still drop what one accepts.
                break
            key = (key[0], key[1], target)
            plain = [one for one in self._rules.get(key, []) if not _asks(one)]
            statements = [statement for one in plain for statement in one]
        return Effect.TELL

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
    """What flow tables mean for the guard (kernel.md 2)."""
    if names:
        yield note(
            "offload.flowtable",
            f"flow tables take flows past the rules: {', '.join(names)}; what they carried has "
            "be_liberal set and is seldom INVALID",
            "expect fewer INVALID packets of those flows, and windows that restart",
        )


def _is_iptables(key: _Key, base: _Base) -> bool:
    """Whether a base chain is one of iptables-nft's own, by its table, name, hook and priority."""
    family, table, chain = key
    if family not in {"ip", "ip6"} or table not in _IPTABLES_TABLES:
        return False
    priority = PRIORITIES.get(table, base.priority)
    return chain == base.hook.upper() and base.priority == priority


def _order(base: _Base, ours: int) -> Order:
    return Order.NEVER if base.kind == "nat" else order_by_priority(base.hook, base.priority, ours)


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
    """Chains that a rule may lead to, those of its maps included."""
    found: list[str] = []
    for statement in expr:
        verdicts = [statement.get(name) for name in ("jump", "goto")]
        found += [verdict["target"] for verdict in verdicts if isinstance(verdict, dict)]
        data = statement["vmap"].get("data") if "vmap" in statement else None
        if isinstance(data, dict):
            pairs = [pair for pair in data.get("set", []) if isinstance(pair, list)]
            found += [name for pair in pairs for name in _targets([pair[-1]])]
    return found


def _asks(expr: Sequence[Statement]) -> bool:
    return any("match" in statement or "vmap" in statement for statement in expr)
