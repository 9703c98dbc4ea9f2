# SPDX-License-Identifier: MIT
"""Translates the output of `nft -j list ruleset` for `follow`: what becomes of an INVALID segment.

The tables of iptables-nft, which the output includes, are left to `iptables_rules`. An expression
that reads the conntrack entry ends its rule, as an INVALID packet has none; only `ct state` has a
value.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from nfq_guard.doctor import nft_text
from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.nft_match import Segment
from nfq_guard.doctor.rule_model import (
    NFT_SECURITY,
    PRIORITIES,
    TCP,
    Act,
    BaseChain,
    Condition,
    Rule,
    Table,
    TrackingWrite,
    all_of,
    depends,
    runs_before_conntrack,
)
from nfq_guard.firewall.saved import is_own
from nfq_guard.firewall.spec import NATIVE_TABLE, OFFLOAD_TABLE
from nfq_guard.raw_rules import UNTRACKED

OUR_TABLE: Final = NATIVE_TABLE
"""The table of our native rules."""

_OWN_TABLES: Final = frozenset({OUR_TABLE, OFFLOAD_TABLE})
_IPTABLES_TABLES: Final = frozenset({*PRIORITIES, "nat"})
_FAMILIES: Final = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_RATES: Final = frozenset({"limit", "quota", "ct count"})
_PASSING: Final = frozenset(
    {
        *("counter", "log", "dup", "flow", "set", "map", "last", "secmark", "comment"),
        *("ct helper", "ct timeout", "ct expectation", "optstrip"),
    }
)

Statement = Mapping[str, Any]
_Key = tuple[str, str, str]


@final
class Ruleset:
    """A ruleset as nft lists it.

    Attributes:
        ours: Whether our native table is loaded.
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
        self._bases: dict[_Key, BaseChain] = {}
        self._rules: dict[_Key, list[tuple[int, Sequence[Statement]]]] = {}
        self._sets: dict[_Key, Sequence[Any]] = {}
        for item in json.loads(text)["nftables"]:
            for kind, value in item.items():
                self._take(kind, value)

    def _take(self, kind: str, value: Mapping[str, Any]) -> None:
        if kind == "table":
            self.ours = self.ours or value["name"] == OUR_TABLE
        elif kind == "flowtable":
            self.flowtables.append(f"{value['table']} {value['name']}")
        elif kind in {"set", "map"}:
            key = (value["family"], value["table"], value["name"])
            self._sets[key] = value.get("elem", ())
        elif kind == "chain":
            key = (value["family"], value["table"], value["name"])
            self._rules.setdefault(key, [])
            if "hook" in value:
                self._bases[key] = BaseChain(
                    value["hook"],
                    value["prio"],
                    value.get("type", "filter"),
                    value.get("policy") == "drop",
                )
        elif kind == "rule":
            key = (value["family"], value["table"], value["chain"])
            expr = value["expr"]
            if "comment" in value:
                expr = [*expr, {"comment": value["comment"]}]
            self._rules.setdefault(key, []).append((value.get("handle", 0), expr))

    def tables(
        self, unread: frozenset[tuple[str, str]] = frozenset(), protocol: str = TCP
    ) -> list[Table]:
        """The tables, once for each family of packets that they see.

        Args:
            unread: Tables with the name of an iptables table that iptables-nft cannot list, as
                `("ip", "mangle")`. In all other tables iptables' own chains are skipped.
            protocol: The protocol of the packet that is followed.
        """
        names = dict.fromkeys(key[:2] for key in self._rules)
        return [
            self._table(family, name, number, unread, protocol)
            for family, name in names
            for number in _FAMILIES.get(family, ())
        ]

    def early(self) -> list[tuple[str, str]]:
        """The tables with chains before conntrack that are not of iptables, as (family, name)."""
        return list(
            dict.fromkeys(
                key[:2]
                for key, base in self._bases.items()
                if runs_before_conntrack(base) and not _is_iptables(key, base)
            )
        )

    def _table(
        self,
        family: str,
        name: str,
        number: int,
        unread: frozenset[tuple[str, str]],
        protocol: str,
    ) -> Table:
        sets = {key[2]: each for key, each in self._sets.items() if key[:2] == (family, name)}
        segment = Segment(number, sets, protocol)
        return Table(
            filter="nftables",
            name=name,
            family=number,
            chains={
                key[2]: [rule for numbered in rules for rule in _rules(segment, *numbered)]
                for key, rules in self._rules.items()
                if key[:2] == (family, name) and not is_own(key[2])
            },
            bases={
                key[2]: base
                for key, base in self._bases.items()
                if key[:2] == (family, name)
                and not is_own(key[2])
                and (key[:2] in unread or not _is_iptables(key, base))
            },
            own=name in _OWN_TABLES,
            nft_family=family,
        )


def _rules(segment: Segment, handle: int, expr: Sequence[Statement]) -> Iterator[Rule]:
    """One rule for each verdict and each write to the mark."""
    text = nft_text.text(expr)
    conditions: list[Condition] = []
    for statement in expr:
        for name, value in statement.items():
            if name == "match":
                conditions.append(segment.matches(value))
            elif name in _RATES:
                conditions.append(depends(f"a {name}"))
            elif name == "mangle":
                when, mark = segment.writes(value)
                conditions.append(when)
                zone = segment.zone(value)
                if mark is not None or zone is not None:
                    yield Rule(
                        text,
                        all_of(conditions),
                        Act.GO_ON,
                        mark=mark,
                        tracking=zone,
                        handle=handle,
                    )
            elif name == "notrack":
                hidden = TrackingWrite(UNTRACKED)
                yield Rule(text, all_of(conditions), Act.GO_ON, tracking=hidden, handle=handle)
            elif name == "vmap":
                for when, verdict in segment.maps(value):
                    when_all = all_of([*conditions, when])
                    yield _rule(text, handle, when_all, next(iter(verdict.items())))
            elif name == "xt" and isinstance(value, dict) and value.get("type") == "match":
                conditions.append(depends(str(value.get("name"))))
            elif name not in _PASSING:
                yield _rule(text, handle, all_of(conditions), (name, value))


def _rule(text: str, handle: int, when: Condition, verdict: tuple[str, Any]) -> Rule:
    act, target = _verdict(*verdict)
    return Rule(text, when, act, target, own=is_own(target), handle=handle)


def flowtables(names: Sequence[str]) -> Iterator[Check]:
    """Flow tables, which bypass conntrack's window checks (kernel.md 2)."""
    if names:
        yield note(
            "offload.flowtable",
            f"flow tables carry flows past the rules: {', '.join(names)}; conntrack sets "
            "be_liberal on offloaded flows, so their packets are rarely INVALID",
            "expect fewer INVALID packets of those flows, and windows that restart",
        )


def _is_iptables(key: _Key, base: BaseChain) -> bool:
    """Whether a base chain is iptables-nft's, by its table, name, hook and priority."""
    family, table, chain = key
    if family not in {"ip", "ip6"} or table not in _IPTABLES_TABLES:
        return False
    priorities = {PRIORITIES.get(table, base.priority)}
    if table == "security":
        priorities.add(NFT_SECURITY)
    return chain == base.hook.upper() and base.priority in priorities


def _verdict(name: str, value: Any) -> tuple[Act, str]:  # noqa: ANN401 - JSON; one a verdict
    match name:
        case "accept":
            return Act.ACCEPT, ""
        case "drop":
            return Act.DROP, ""
        case "reject":
            reset = isinstance(value, dict) and value.get("type") == "tcp reset"
            return (Act.RESET if reset else Act.REJECT), ""
        case "return":
            return Act.RETURN, ""
        case "continue":
            return Act.GO_ON, ""
        case "jump" | "goto":
            return (Act.JUMP if name == "jump" else Act.GOTO), value["target"]
        case "queue":
            number = value.get("num", 0) if isinstance(value, dict) else 0
            return Act.ELSEWHERE, f"queue {number}"
        case "tproxy" | "synproxy" | "fwd":
            return Act.ELSEWHERE, name.upper()
        case "snat" | "dnat" | "masquerade" | "redirect":
            return Act.ELSEWHERE, name.upper()  # in a nat chain, which no INVALID packet sees
        case _:
            return Act.UNKNOWN, name
