# SPDX-License-Identifier: MIT
"""Whether an INVALID segment matches the conditions of an nftables rule, from nft's JSON.

An expression that reads the conntrack entry ends its rule, as an INVALID packet has none; only
`ct state` has a value then.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from nfq_guard.doctor.nft_text import expression, statement
from nfq_guard.doctor.nft_values import MARK, OPERATORS, STATES, mark_tests, number_of, write
from nfq_guard.doctor.rule_model import (
    ALL_BITS,
    ALWAYS,
    NEVER,
    NO_ENTRY,
    TCP,
    Condition,
    MarkWrite,
    TrackingWrite,
    Truth,
    all_of,
    any_of,
    depends,
    known,
    one_of,
)
from nfq_guard.raw_rules import UNKNOWN_ZONE

_NUMBERS: Final = {
    "tcp": 6,
    "icmp": 1,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "sctp": 132,
    "ipv4": 2,
    "ipv6": 10,
    "ip": 0x0800,
    "ip6": 0x86DD,
}
_PROTOCOLS: Final = frozenset(
    {"tcp", "udp", "udplite", "icmp", "icmpv6", "sctp", "dccp", "igmp", "ah", "esp", "comp", "gre"}
)
_MAY_LACK: Final = frozenset({"exthdr", "ip option", "sctp chunk", "socket", "tcp option"})
"""Expressions that have no value for a packet without such a header or socket."""

_LOOPBACK: Final = frozenset({"lo"})
_STATE: Final = {"ct": {"key": "state"}}
_ORDERINGS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


@final
@dataclass(frozen=True, slots=True)
class _Unknown:
    """A value that depends on the packet, but is not one of `never`."""

    never: frozenset[str] = frozenset()


@final
@dataclass(frozen=True, slots=True)
class _NoEntry:
    """A value that an INVALID packet lacks, which ends the rule."""


_NO_ENTRY: Final = _NoEntry()
_Value = int | str | _Unknown | _NoEntry | tuple[Any, ...]


@final
class Segment:
    """An INVALID segment of one family, matched against the rules of one table."""

    def __init__(self, family: int, sets: Mapping[str, Sequence[Any]], protocol: str = TCP) -> None:
        """Describe the segment.

        Args:
            family: 4 or 6.
            sets: The elements of the table's named sets and maps.
            protocol: Its protocol.
        """
        self._family = family
        self._state = STATES["invalid"]
        self._protocol = protocol
        self._others = _PROTOCOLS - {protocol}
        self._sets = sets

    def matches(self, match: Mapping[str, Any]) -> Condition:
        """A match; `in` and `!` test bits, all other operators compare the value as a whole."""
        left = match["left"]
        value = self._value(left)
        if isinstance(value, _NoEntry):
            return NO_ENTRY if _reads_entry(left) else NEVER
        on = statement("match", match)
        condition = self._of_states(
            left, on, lambda: self._compared(self._value(left), match["op"], match["right"])
        )
        if condition.truth is Truth.NO and condition.tracked is None:
            return condition
        members = self._members(match["right"])
        only = match["op"] in {"in", "=="} and left == _STATE and _is_invalid(members)
        tests = mark_tests(left, match["op"], members, on)
        return condition._replace(marks=tests, only=only)

    def _of_states(self, left: Any, on: str, match: Callable[[], Condition]) -> Condition:  # noqa: ANN401 - JSON
        """A match, and how a packet of a connection meets it if it reads the state."""
        condition = match()
        found = _reworded(condition, on)
        if not names_state(left):
            return found
        others: list[Condition] = []
        for state in ("established", "new"):
            self._state = STATES[state]
            others.append(match())
        self._state = STATES["invalid"]
        known = others[0]
        more = [other for other in others if other.truth > condition.truth]
        if not more and known.truth is Truth.DEPENDS and known.on != condition.on:
            more = [known]
        tracked = _reworded(more[0], on).on if more else None
        return found._replace(state=True, tracked=tracked, known=known.truth)

    def maps(self, vmap: Mapping[str, Any]) -> list[tuple[Condition, Mapping[str, Any]]]:
        """The verdicts of a verdict map, each with its condition."""
        key = self._value(vmap["key"])
        verdicts: list[tuple[Condition, Mapping[str, Any]]] = []
        otherwise: list[Mapping[str, Any]] = []
        keys: list[Any] = []
        for left, verdict in self._pairs(vmap["data"]):
            if left == "*":
                otherwise.append(verdict)
            else:
                keys.append(_unwrapped(left))
                match = {"left": vmap["key"], "op": "==", "right": _unwrapped(left)}
                verdicts.append((self.matches(match), verdict))
        on = f"{expression(vmap['key'])} *"
        match = {"left": vmap["key"], "op": "!=", "right": {"set": keys}}
        rest = _reworded(self.matches(match), on)
        rest = rest._replace(marks=tuple(test._replace(on=on) for test in rest.marks))
        verdicts += [(rest, verdict) for verdict in otherwise]
        return [] if isinstance(key, _NoEntry) else verdicts

    def rejects(self, reject: Any) -> list[Condition]:  # noqa: ANN401 - JSON
        """The conditions of a reject: a kind of answer is for packets of one family or protocol.

        nft adds their matches to the rule, and does not list them.
        """
        kind = reject.get("type", "") if isinstance(reject, dict) else ""
        families = {"icmp": 4, "icmpv6": 6}
        other = kind in families and families[kind] != self._family
        return [NEVER] if other or (kind == "tcp reset" and self._protocol != TCP) else []

    def has(self, expr: Any) -> Condition:  # noqa: ANN401 - JSON
        """Whether an expression has a value; if it has none, the rule ends."""
        return NEVER if isinstance(self._value(_unwrapped(expr)), _NoEntry) else ALWAYS

    def writes(self, mangle: Mapping[str, Any]) -> tuple[Condition, MarkWrite | None]:
        """Whether a rule continues after `KEY set VALUE`, and the write to the mark."""
        key, value = mangle["key"], mangle["value"]
        if _reads_entry(value):
            return NO_ENTRY, None
        if "payload" in key and isinstance(self._value(key), _NoEntry):
            return NEVER, None
        if key != MARK:
            return self._has_value(value), None
        if isinstance(value, dict) and "map" in value:
            return self._mapped(value["map"])
        return self._has_value(value), write(value)

    @staticmethod
    def restored(mangle: Mapping[str, Any]) -> int:
        """The bits of the mark that a packet of a connection gets by `meta mark set ct VALUE`."""
        return ALL_BITS if mangle["key"] == MARK and _reads_entry(mangle["value"]) else 0

    def _has_value(self, value: Any) -> Condition:  # noqa: ANN401 - JSON
        """Whether what is to be written has a value; a rule ends if it has none."""
        if not isinstance(value, dict) or len(value) != 1:
            return ALWAYS
        ((kind, inner),) = value.items()
        if kind == "map":
            return self.chooses(inner)
        if kind in _MAY_LACK:
            return depends(expression(value))
        if kind in OPERATORS or kind == "concat":
            return all_of(self._has_value(each) for each in inner)
        return self.has(value)

    def _mapped(self, mapping: Mapping[str, Any]) -> tuple[Condition, MarkWrite]:
        """The effect of `meta mark set KEY map { ... }`; an absent key ends the rule."""
        found = [each for each in self._found(mapping) if each[0].truth is not Truth.NO]
        sure = [each for each in found if each[0].truth is Truth.YES]
        return self.chooses(mapping), one_of(write(right) for _, right in sure[:1] or found)

    def chooses(self, mapping: Mapping[str, Any]) -> Condition:
        """Whether a map has a value for the packet; without one the rule ends."""
        data = mapping["data"]
        shown = data if isinstance(data, str) else f"{{ {', '.join(keys(self._pairs(data)))} }}"
        return self._of_states(
            mapping["key"],
            f"{expression(mapping['key'])} {shown}",
            lambda: any_of(
                [
                    *(condition for condition, _ in self._found(mapping)),
                    *(ALWAYS for left, _ in self._pairs(mapping["data"]) if left == "*"),
                    *self._added(self._value(mapping["key"]), mapping["data"]),
                ]
            ),
        )

    def _found(self, mapping: Mapping[str, Any]) -> list[tuple[Condition, Any]]:
        key = self._value(mapping["key"])
        pairs = self._pairs(mapping["data"])
        return [(self._equals(key, _unwrapped(left)), right) for left, right in pairs]

    @staticmethod
    def zone(mangle: Mapping[str, Any]) -> TrackingWrite | None:
        """The effect of `ct zone set VALUE` on tracking; None for another statement."""
        entry = mangle["key"].get("ct") if isinstance(mangle["key"], dict) else None
        if not isinstance(entry, dict) or entry.get("key") != "zone":
            return None
        if entry.get("dir") == "original":
            return TrackingWrite(0)  # replies stay in zone 0
        zone = number_of(mangle["value"])
        return TrackingWrite(UNKNOWN_ZONE if zone is None else zone)

    def _compared(self, value: _Value, sign: str, right: Any) -> Condition:  # noqa: ANN401 - JSON
        if sign in {"in", "!"} or sign in _ORDERINGS:
            other = number_of(right)
            if not isinstance(value, int) or other is None:
                return depends(expression(right))
            if sign in _ORDERINGS:
                return known(_ORDERINGS[sign](value, other))
            return known(bool(value & other) is (sign == "in"))
        elements = [self._equals(value, element) for element in self._members(right)]
        holds = any_of([*elements, *self._added(value, right)])
        return holds.negated if sign == "!=" else holds

    @staticmethod
    def _added(value: _Value, right: Any) -> list[Condition]:  # noqa: ANN401 - JSON
        """The condition that a named set has an element, as its elements come and go."""
        named = isinstance(right, str) and right.startswith("@")
        return [depends(right)] if named and isinstance(value, _Unknown) else []

    def _equals(self, value: _Value, element: Any) -> Condition:  # noqa: ANN401 - JSON; one answer a kind
        """Whether a value is one element of a set."""
        if isinstance(value, _NoEntry):
            return NEVER
        if isinstance(value, _Unknown):
            never = isinstance(element, str) and element in value.never
            return NEVER if never else depends(expression(element))
        if isinstance(value, tuple):
            parts = element.get("concat", ()) if isinstance(element, dict) else ()
            if len(parts) != len(value):
                return depends(expression(element))
            return all_of(self._equals(one, other) for one, other in zip(value, parts, strict=True))
        mine = _NUMBERS[value] if isinstance(value, str) else value
        if isinstance(element, dict) and "range" in element:
            low, high = (number_of(end) for end in element["range"])
            if low is None or high is None:
                return depends(expression(element))
            return known(low <= mine <= high)
        if isinstance(value, str) and isinstance(element, str):
            return known(_NUMBERS.get(element, element) == mine)
        number = number_of(element)
        return depends(expression(element)) if number is None else known(mine == number)

    def _members(self, right: Any) -> list[Any]:  # noqa: ANN401 - JSON
        if isinstance(right, dict) and "set" in right:
            return [_unwrapped(each) for each in right["set"]]
        if isinstance(right, str) and right.startswith("@"):
            return [_unwrapped(each) for each in self._sets.get(right[1:], ())]
        return [right]

    def _pairs(self, data: Any) -> list[Any]:  # noqa: ANN401 - JSON
        pairs = self._sets.get(data[1:], ()) if isinstance(data, str) else data.get("set", ())
        return [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]

    def _value(self, expr: Any) -> _Value:  # noqa: ANN401 - JSON; one answer a kind
        number = number_of(expr)
        if number is not None:
            return number
        if not isinstance(expr, dict) or len(expr) != 1:
            return _Unknown()
        ((kind, inner),) = expr.items()
        match kind:
            case "ct":
                return self._state if inner.get("key") == "state" else _NO_ENTRY
            case "concat":
                parts = tuple(self._value(each) for each in inner)
                return _NO_ENTRY if _NO_ENTRY in parts else parts
            case "&" | "|" | "^":
                return self._computed(OPERATORS[kind], inner)
            case "meta":
                return self._meta(inner["key"])
            case "payload":
                return self._payload(inner)
            case _:
                return _Unknown()

    def _computed(
        self,
        compute: Callable[[int, int], int],
        operands: Sequence[Any],
    ) -> _Value:
        values = [self._value(each) for each in operands]
        if _NO_ENTRY in values:
            return _NO_ENTRY
        numbers = [each for each in values if isinstance(each, int)]
        if len(numbers) != len(values):
            return _Unknown()
        return functools.reduce(compute, numbers)

    def _meta(self, key: str) -> _Value:
        match key:
            case "l4proto":
                return self._protocol
            case "nfproto":
                return f"ipv{self._family}"
            case "protocol":
                return "ip" if self._family == 4 else "ip6"
            case "iif" | "iifname" | "oif" | "oifname":
                return _Unknown(_LOOPBACK)
            case _:
                return _Unknown()

    def _payload(self, payload: Mapping[str, Any]) -> _Value:
        protocol, field = payload.get("protocol", ""), payload.get("field", "")
        if protocol == ("ip6" if self._family == 4 else "ip") or protocol in self._others:
            return _NO_ENTRY
        if (protocol, field) in {("ip", "protocol"), ("ip6", "nexthdr")}:
            return self._protocol
        return _Unknown()


def _reworded(condition: Condition, on: str) -> Condition:
    """A match that depends on the packet, with the text of the whole match."""
    return condition._replace(on=(on,)) if condition.truth is Truth.DEPENDS else condition


def _is_invalid(states: Sequence[Any]) -> bool:
    """Whether a set has the state `invalid` and no other."""
    return bool(states) and all(state == "invalid" for state in states)


def names_state(expr: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether an expression has the conntrack state in it."""
    if isinstance(expr, dict):
        named = isinstance(expr.get("ct"), dict) and expr["ct"].get("key") == "state"
        return named or any(names_state(each) for each in expr.values())
    return isinstance(expr, list) and any(names_state(each) for each in expr)


def is_destination(key: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a key is the destination address of the packet."""
    payload = key.get("payload") if isinstance(key, dict) else None
    return payload in ({"protocol": "ip", "field": "daddr"}, {"protocol": "ip6", "field": "daddr"})


def _reads_entry(expr: Any) -> bool:  # noqa: ANN401 - JSON
    if isinstance(expr, dict):
        if isinstance(expr.get("ct"), dict) and expr["ct"].get("key") != "state":
            return True
        return any(_reads_entry(each) for each in expr.values())
    return isinstance(expr, list) and any(_reads_entry(each) for each in expr)


def keys(elements: Sequence[Any]) -> tuple[str, ...]:
    """The elements of a set or the keys of a map, as text."""
    pairs = ((each if isinstance(each, list) else [each])[:1] for each in elements)
    return tuple(expression(_unwrapped(key)) for pair in pairs for key in pair)


def _unwrapped(element: Any) -> Any:  # noqa: ANN401 - JSON
    """A set's element without its timeout, counter and comment."""
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        return element["elem"].get("val")
    return element
