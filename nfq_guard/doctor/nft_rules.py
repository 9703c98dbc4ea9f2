# SPDX-License-Identifier: MIT
"""Translates the output of `nft -j list ruleset` for `follow`.

The tables of iptables-nft, which the output includes, are left to `iptables_rules`. An expression
that reads the conntrack entry ends its rule, as an INVALID packet has none; only `ct state` has a
value.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, final

from nfq_guard.doctor import nft_match, nft_text, nft_unnamed, nft_words, nft_xt
from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.nft_match import Segment
from nfq_guard.doctor.rule_model import (
    ALWAYS,
    ANY_MARK,
    NEVER,
    NFT_SECURITY,
    PRIORITIES,
    QUEUE_IS_READ,
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
IPTABLES_TABLES: Final = frozenset({*PRIORITIES, "nat"})
_FAMILIES: Final = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}
_OF_DEVICE: Final = {"ingress": "iifname", "egress": "oifname"}
"""The hooks of single devices, each with the match on the device."""

_RATES: Final = frozenset({"limit", "quota", "ct count"})
_PASSING: Final = frozenset(
    {
        *("counter", "log", "dup", "map", "last", "secmark", "comment"),
        *("ct helper", "ct timeout", "ct expectation", "optstrip", "reset"),
    }
)

_SENDING: Final = frozenset({"dnat", "fwd", "queue", "reject", "snat", "synproxy", "tproxy"})
"""Verdicts that have conditions of their own."""

_CHOOSING: Final = frozenset({"ct expectation", "ct helper", "ct timeout", "dup"}) | _SENDING
"""Statements that may take a parameter from a map; without a value there the rule ends."""

Statement = Mapping[str, Any]
_Key = tuple[str, str, str]


@final
class Ruleset:
    """A ruleset as nft lists it.

    Attributes:
        ours: Whether our native table is loaded.
        flowtables: Each flow table, as `TABLE NAME`.
        dormant: The tables of which the kernel runs no chain, as `("ip", "mangle")`.
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
        self.dormant: set[tuple[str, str]] = set()
        self._bases: dict[_Key, BaseChain] = {}
        self._devices: dict[_Key, Condition] = {}
        self._rules: dict[_Key, list[tuple[int, Sequence[Statement | str]]]] = {}
        self._sets: dict[_Key, Sequence[Any]] = {}
        for item in json.loads(text)["nftables"]:
            for kind, value in item.items():
                self._take(kind, value)

    def _take(self, kind: str, value: Mapping[str, Any]) -> None:
        if kind == "table":
            self.ours = self.ours or (value["family"], value["name"]) == ("inet", OUR_TABLE)
            if _is_dormant(value):
                self.dormant.add((value["family"], value["name"]))
        elif kind == "flowtable":
            self.flowtables.append(f"{value['table']} {value['name']}")
        elif kind in {"set", "map"}:
            key = (value["family"], value["table"], value["name"])
            self._sets[key] = value.get("elem", ())
        elif kind == "chain":
            key = (value["family"], value["table"], value["name"])
            self._rules.setdefault(key, [])
            if "hook" in value:
                if not isinstance(value["prio"], int):
                    raise TypeError(f"a priority {value['prio']!r}")
                self._bases[key] = BaseChain(
                    value["hook"],
                    value["prio"],
                    value.get("type", "filter"),
                    value.get("policy") == "drop",
                )
                if value["hook"] in _OF_DEVICE:
                    self._devices[key] = _of_device(value)
        elif kind == "rule":
            key = (value["family"], value["table"], value["chain"])
            expr = value["expr"]
            if "comment" in value:
                expr = [*expr, {"comment": value["comment"]}]
            self._rules.setdefault(key, []).append((value.get("handle", 0), expr))

    def tables(
        self, unread: frozenset[tuple[str, str]] = frozenset(), protocol: str = TCP
    ) -> list[Table]:
        """The tables, once for each family of packets that they see, without dormant ones.

        Args:
            unread: Tables with the name of an iptables table that iptables-nft cannot list, as
                `("ip", "mangle")`. In all other tables iptables' own chains are skipped.
            protocol: The protocol of the packet that is followed.
        """
        names = dict.fromkeys(key[:2] for key in self._rules if key[:2] not in self.dormant)
        return [
            self._table(family, name, number, unread, protocol)
            for family, name in names
            for number in _FAMILIES.get(family, ())
        ]

    def families_with(self, needs: Callable[[Sequence[Statement | str]], bool]) -> set[int]:
        """The families of which a rule needs something, in dormant tables too; without our rules.

        Args:
            needs: Whether a rule does, by its statements.
        """
        return {
            number
            for (family, table, chain), rules in self._rules.items()
            if not (family == "inet" and table in _OWN_TABLES) and not is_own(chain)
            for _, expr in rules
            if not _leads_to_ours(expr) and needs(expr)
            for number in _FAMILIES.get(family, ())
        }

    def bridged(self) -> list[Table]:
        """The tables of the bridge family, which see packets that this host only bridges."""
        names = dict.fromkeys(key[:2] for key in self._rules if key[0] == "bridge")
        return [
            self._table(family, name, 4, frozenset(), TCP)
            for family, name in names
            if (family, name) not in self.dormant
        ]

    def early(self) -> list[tuple[str, str]]:
        """The tables with chains before conntrack, except those of iptables, as (family, name)."""
        return list(
            dict.fromkeys(
                key[:2]
                for key, base in self._bases.items()
                if runs_before_conntrack(base)
                and not _is_iptables(key, base)
                and key[:2] not in self.dormant
            )
        )

    def unlisted(self, unread: frozenset[tuple[str, str]] = frozenset()) -> Iterator[str]:
        """Problems: tables with rules that nft does not list in full, except those of iptables.

        Args:
            unread: As for `tables`.
        """
        found: dict[tuple[str, str], dict[str, None]] = {}
        for (family, table, chain), rules in self._rules.items():
            if family not in _FAMILIES:
                continue  # ebtables' and arptables' rules have no match on the conntrack entry
            base = self._bases.get((family, table, chain))
            iptables = (family, table) not in unread and table in IPTABLES_TABLES
            if iptables and (base is None or _is_iptables((family, table, chain), base)):
                continue
            for _, expr in rules:
                found.setdefault((family, table), {}).update(dict.fromkeys(nft_xt.names(expr)))
        for (family, table), names in found.items():
            if names:
                yield (
                    f"nft lists {', '.join(names)} in table {family} {table} by name only, and "
                    "iptables cannot list that table"
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
        reader = _Reader(Segment(number, sets, protocol))
        for key, rules in self._rules.items():
            if key[:2] == (family, name) and not is_own(key[2]):
                reader.read(key[2], rules)
        chains = reader.followed()
        for key, device in self._devices.items():
            if key[:2] == (family, name) and key[2] in chains:
                chains[key[2]] = _on_device(chains[key[2]], device, self._bases[key])
        return Table(
            filter="nftables",
            name=name,
            family=number,
            chains=chains,
            bases={
                key[2]: replace(base, denies=base.denies and key not in self._devices)
                for key, base in self._bases.items()
                if key[:2] == (family, name)
                and not is_own(key[2])
                and (key[:2] in unread or not _is_iptables(key, base))
            },
            own=family == "inet" and name in _OWN_TABLES,
            nft_family=family,
            sets={each: nft_match.keys(elements) for each, elements in sets.items()},
        )


def _of_device(chain: Mapping[str, Any]) -> Condition:
    """The condition that a packet passes a device of a chain; nft 1.0 does not list which."""
    word, devices = _OF_DEVICE[chain["hook"]], chain.get("dev", ())
    names = [devices] if isinstance(devices, str) else list(devices)
    if not names:
        return depends(f"{word} of chain {chain['name']}")
    listed = ", ".join(names)
    return depends(f"{word} {listed if len(names) == 1 else f'{{ {listed} }}'}")


def _on_device(rules: Sequence[Rule], device: Condition, base: BaseChain) -> list[Rule]:
    """The rules of a base chain, and its policy, for the packets of its devices only."""
    found = [
        replace(rule, when=all_of([device, rule.when])._replace(only=rule.when.only))
        for rule in rules
    ]
    return [*found, Rule("policy drop", device, Act.DROP)] if base.denies else found


@final
class _Reader:
    """Reads the chains of one table."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._chains: dict[str, list[Rule]] = {}

    def read(self, chain: str, rules: Sequence[tuple[int, Sequence[Statement | str]]]) -> None:
        """Add the rules of a chain, each with its handle."""
        self._chains[chain] = [
            rule for handle, expr in rules for rule in self._rules(chain, handle, expr)
        ]

    def followed(self) -> dict[str, list[Rule]]:
        """The chains; a jump to one that is not listed cannot be followed."""
        return {
            name: [rule if self._leads(rule) else replace(rule, act=Act.UNKNOWN) for rule in rules]
            for name, rules in self._chains.items()
        }

    def _leads(self, rule: Rule) -> bool:
        jumps = rule.act in {Act.JUMP, Act.GOTO}
        return not jumps or rule.own or rule.target in self._chains

    def _rules(
        self, chain: str, handle: int, expr: Sequence[Statement | str], text: str = ""
    ) -> Iterator[Rule]:
        """One rule for each verdict and each write to the mark."""
        for rule in self._parts(chain, handle, expr, text or nft_text.text(expr)):
            early = rule.when.only and _acts_early(expr)
            yield replace(rule, when=rule.when._replace(only=False)) if early else rule

    def _parts(
        self, chain: str, handle: int, expr: Sequence[Statement | str], text: str
    ) -> Iterator[Rule]:
        conditions: list[Condition] = []
        for statement in _translated(expr):
            if isinstance(statement, str):
                yield self._listed(chain, text, handle, all_of(conditions), statement)
                continue
            for name, value in statement.items():
                if name == "set" and value.get("op") in {"add", "update"}:
                    conditions += self._updated(value)
                    fills = f"{nft_text.expression(value.get('elem'))} {value.get('set')}"
                    when_all = all_of(conditions)
                    yield Rule(text, when_all, Act.GO_ON, fills=fills, handle=handle)
                elif name == "mangle":
                    when, mark = self._segment.writes(value)
                    zone = self._segment.zone(value)
                    bits = self._segment.restored(value)
                    if bits:
                        before = all_of(conditions)
                        yield Rule(text, before, Act.GO_ON, restores=bits, handle=handle)
                    conditions.append(when)
                    if nft_match.is_destination(value["key"]):
                        all_so_far = all_of(conditions)
                        yield Rule(text, all_so_far, Act.GO_ON, redirects=True, handle=handle)
                    if mark is not None or zone is not None:
                        written = Rule(text, all_of(conditions), Act.GO_ON, handle=handle)
                        yield replace(written, mark=mark, tracking=zone, template=zone is not None)
                elif name == "vmap":
                    for when, verdict in self._segment.maps(value):
                        when_all = all_of([*conditions, when])
                        yield _rule(text, handle, when_all, next(iter(verdict.items())))
                else:
                    more = list(self._conditions(name, value))
                    conditions += more
                    if name in _SENDING or (not more and name not in _PASSING):
                        yield _rule(text, handle, all_of(conditions), (name, value))

    def _conditions(self, name: str, value: Any) -> Iterator[Condition]:  # noqa: ANN401 - JSON
        """The conditions under which a rule continues after a statement; none if it always does."""
        if name in _CHOOSING:
            yield from map(self._segment.chooses, _maps(value))
        if name == "match":
            yield self._segment.matches(value)
        elif name in _RATES:
            yield depends(f"a {name}")
        elif name == "counter" and isinstance(value, dict) and "map" in value:
            yield self._segment.chooses(value["map"])
        elif name == "set":
            yield from self._updated(value)
        elif name == "meter":
            yield self._segment.has(value["key"])
            yield from (depends(f"a {each}") for each in value["stmt"] if each in _RATES)
        elif name == "reject":
            yield from self._segment.rejects(value)
        elif name == "tproxy":
            yield depends("a listener for tproxy")  # without one the rule ends
        elif name == "queue" and _bypasses(value):
            yield depends(QUEUE_IS_READ)
        elif name == "flow":
            yield NEVER  # ends the rule of a packet without an entry
        elif name == "xt":
            when = nft_xt.condition(value)
            if when is not None or nft_xt.passes(value):
                yield when or ALWAYS

    def _updated(self, update: Mapping[str, Any]) -> Iterator[Condition]:
        """The conditions under which a rule continues after the update of a set."""
        yield self._segment.has(update.get("elem"))
        for each in update.get("stmt", ()):
            yield from (depends(f"a {name}") for name in each if name in _RATES)

    def _listed(self, chain: str, text: str, handle: int, when: Condition, statement: str) -> Rule:
        """A statement that nft lists as text: an unnamed chain, or an unknown statement."""
        found = nft_unnamed.chain_in(statement)
        if found is None:
            return Rule(text, when, Act.UNKNOWN, statement.partition(" ")[0], handle=handle)
        verb, body = found
        name = f"{chain}, {verb} of rule {handle}"
        while name in self._chains:
            name += "'"
        rules = self._chains[name] = []
        for line in nft_unnamed.lines(body, self._segment):
            if isinstance(line, nft_unnamed.Translated):
                rules += self._rules(name, handle, line.expr, line.text)
            elif line.mark is not None:
                rules.append(Rule(line.text, line.when, Act.GO_ON, mark=line.mark, handle=handle))
            elif isinstance(line.verdict, str):
                rules.append(self._listed(name, line.text, handle, line.when, line.verdict))
            elif line.verdict is not None:
                (verdict,) = line.verdict.items()
                rules.append(_rule(line.text, handle, line.when, verdict))
        return Rule(text, when, Act.JUMP if verb == "jump" else Act.GOTO, name, handle=handle)


def _translated(expr: Sequence[Statement | str]) -> Iterator[Statement | str]:
    """The statements of a rule, with those of text that add an element to a map translated."""
    for each in expr:
        found: list[Statement | str] = [each]
        if isinstance(each, str) and nft_unnamed.chain_in(each) is None:
            with suppress(nft_words.UntranslatedError):
                found = [*nft_words.statements(each)]
        yield from found


def _acts_early(expr: Sequence[Statement | str]) -> bool:
    """Whether a rule does something to packets before it selects them by their state."""
    for name, value in (
        item for each in expr if not isinstance(each, str) for item in each.items()
    ):
        if nft_match.names_state(value):
            return False
        if name not in _RATES | {"match", "counter", "last", "log"}:
            return True
    return False


def _rule(text: str, handle: int, when: Condition, verdict: tuple[str, Any]) -> Rule:
    if verdict[0] == "xt" and nft_xt.target(verdict[1]) == "MARK":
        return Rule(text, when, Act.GO_ON, mark=ANY_MARK, handle=handle)
    if verdict[0] == "notrack":
        tracking = TrackingWrite(UNTRACKED)
        return Rule(text, when, Act.GO_ON, tracking=tracking, template=True, handle=handle)
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


def _leads_to_ours(expr: Sequence[Statement | str]) -> bool:
    """Whether a rule of iptables-nft leads to our chains."""
    return any(is_own(_target_of(each)) for each in expr if not isinstance(each, str))


def _target_of(statement: Statement) -> str:
    target = statement.get("jump") or statement.get("goto")
    return str(target["target"]) if isinstance(target, dict) else ""


def _maps(value: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - JSON
    """The maps from which a statement takes its parameters."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "map":
                yield inner
            else:
                yield from _maps(inner)


def _is_dormant(table: Mapping[str, Any]) -> bool:
    """Whether the kernel runs none of a table's chains."""
    flags = table.get("flags", ())
    return "dormant" in ([flags] if isinstance(flags, str) else flags)


def _is_iptables(key: _Key, base: BaseChain) -> bool:
    """Whether a base chain is iptables-nft's, by its table, name, hook and priority."""
    family, table, chain = key
    if family not in {"ip", "ip6"} or table not in IPTABLES_TABLES:
        return False
    priorities = {PRIORITIES.get(table, base.priority)}
    if table == "security":
        priorities.add(NFT_SECURITY)
    return chain == base.hook.upper() and base.priority in priorities


def _bypasses(queue: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a queue lets packets pass while no program is bound to it."""
    flags = queue.get("flags", ()) if isinstance(queue, dict) else ()
    return "bypass" in ([flags] if isinstance(flags, str) else flags)


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
            return Act.ELSEWHERE, f"queue {nft_text.expression(number)}"
        case "tproxy" | "synproxy" | "fwd":
            return Act.ELSEWHERE, name.upper()
        case "snat" | "dnat" | "masquerade" | "redirect":
            return Act.ELSEWHERE, name.upper()  # in a nat chain, which no INVALID packet sees
        case "xt":
            return Act.UNKNOWN, nft_xt.target(value)
        case _:
            return Act.UNKNOWN, name
