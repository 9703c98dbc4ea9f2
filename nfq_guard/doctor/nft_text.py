# SPDX-License-Identifier: MIT
"""Short texts of nftables rules from nft's JSON, for messages; not meant to be loaded."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from nfq_guard.doctor import nft_xt

PLAIN: Final = frozenset({"accept", "drop", "return", "continue", "notrack"})
"""Statements of one word."""

_LIMIT: Final = 120
_SKIPPED: Final = frozenset({"counter", "last"})
_OPERATORS: Final = {"in": "", "==": "", "!": "! "}


def text(expr: Sequence[Mapping[str, Any] | str]) -> str:
    """The text of a rule, without counters, shortened if it is long."""
    words = (word for each in expr for word in _statements(each))
    whole = " ".join(word for word in words if word)
    return whole if len(whole) <= _LIMIT else f"{whole[: _LIMIT - 3]}..."


def expression(expr: Any) -> str:  # noqa: ANN401 - JSON
    """An expression, such as `ct state` or `{ tcp, udp }`."""
    if isinstance(expr, list):
        return ",".join(expression(each) for each in expr)
    if isinstance(expr, bool):
        return "exists" if expr else "missing"
    if not isinstance(expr, dict):
        return str(expr)
    if len(expr) != 1:
        return "an expression"
    ((kind, inner),) = expr.items()
    match kind:
        case "set":
            return f"{{ {', '.join(expression(each) for each in inner)} }}"
        case "concat":
            return " . ".join(expression(each) for each in inner)
        case "range":
            return "-".join(expression(each) for each in inner)
        case "prefix":
            return f"{inner['addr']}/{inner['len']}"
        case "elem":
            return expression(inner["val"])
        case "map":
            return f"{expression(inner['key'])} map {_pairs(inner['data'])}"
        case "&" | "|" | "^" | "<<" | ">>":
            return f"({f' {kind} '.join(expression(each) for each in inner)})"
        case _:
            return _of_packet(kind, inner)


def _of_packet(kind: str, inner: Any) -> str:  # noqa: ANN401 - JSON
    """A property of the packet, such as `tcp dport`, `fib daddr type` or `tcp option maxseg`."""
    match kind:
        case "ct" | "meta":
            plain = kind == "meta" and inner["key"] not in {"mark", "l4proto", "nfproto"}
            return str(inner["key"]) if plain else f"{kind} {inner['key']}"
        case "payload" if "field" in inner:
            return f"{inner['protocol']} {inner['field']}"
        case "payload":
            return f"@{inner.get('base')},{inner.get('offset')},{inner.get('len')}"
        case "fib":
            flags = inner.get("flags", ())
            of = flags if isinstance(flags, str) else " . ".join(flags)
            return f"fib {of} {inner.get('result')}"
        case _:
            return " ".join((kind, *_details(inner)))


def _details(inner: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """What an expression of another kind is of, such as the name of an option."""
    for key, each in inner.items() if isinstance(inner, dict) else ():
        if isinstance(each, str | dict):
            yield expression(each)
        elif isinstance(each, int) and not isinstance(each, bool):
            yield f"{key} {each}"


def statement(name: str, value: Any) -> str:  # noqa: ANN401 - JSON; one text a kind
    """One statement; empty for one that only counts."""
    if name in _SKIPPED | PLAIN:
        return name if name in PLAIN else ""
    match name:
        case "match":
            masked = isinstance(value["left"], dict) and "&" in value["left"]
            operator = _OPERATORS.get(value["op"], f"{value['op']} ")
            if masked and value["op"] == "==":
                operator = "== "
            return f"{expression(value['left'])} {operator}{expression(value['right'])}"
        case "vmap":
            return f"{expression(value['key'])} vmap {_pairs(value['data'])}"
        case "mangle":
            return f"{expression(value['key'])} set {expression(value['value'])}"
        case "jump" | "goto":
            return f"{name} {value['target']}"
        case "reject":
            kind = value.get("expr", value.get("type", "")) if isinstance(value, dict) else ""
            return f"reject with {kind}" if kind else "reject"
        case "set" | "meter" if isinstance(value, dict):
            named = f"meter {value.get('name')}" if name == "meter" else ""
            return named or f"{value.get('op', 'add')} {value.get('set')}"
        case "log" if isinstance(value, dict) and "prefix" in value:
            return f"log prefix {json.dumps(value['prefix'])}"
        case "xt":
            return nft_xt.text(value)
        case "comment":
            return f"comment {json.dumps(value)}"
        case _:
            return name


def _statements(each: Mapping[str, Any] | str) -> list[str]:
    if isinstance(each, str):  # a statement without a JSON form
        return [" ".join(each.split())]
    return [statement(name, value) for name, value in each.items()]


def _pairs(data: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(data, str):
        return data
    pairs = [pair for pair in data.get("set", ()) if isinstance(pair, list)]
    shown = (
        f"{expression(left)} : {text([right]) if isinstance(right, dict) else expression(right)}"
        for left, right in pairs
    )
    return f"{{ {', '.join(shown)} }}"
