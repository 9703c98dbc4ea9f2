# SPDX-License-Identifier: MIT
"""Numbers of nft's JSON, and what its expressions say of the packet's mark."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nfq_guard.doctor.rule_model import ALL_BITS, ANY_MARK, MarkTest, MarkWrite, in_range

STATES: Final = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
"""The bits of `ct state`."""

MARK: Final = {"meta": {"key": "mark"}}
"""The packet's mark."""

OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}

_HASHES: Final = frozenset({"jhash", "symhash", "numgen"})
# The values that an ordering lets pass, as a range.
_ORDERED: Final[Mapping[str, Callable[[int], tuple[int, int]]]] = {
    "<": lambda number: (0, number - 1),
    "<=": lambda number: (0, number),
    ">": lambda number: (number + 1, ALL_BITS),
    ">=": lambda number: (number, ALL_BITS),
}


def mark_tests(left: Any, sign: str, members: Sequence[Any], on: str) -> tuple[MarkTest, ...]:  # noqa: ANN401 - JSON
    """A match as a test of the mark; empty if it does not read the mark.

    Args:
        left: What is compared.
        sign: How.
        members: The elements of the set on the right, or the value.
        on: The words of the match.
    """
    if not _reads_mark(left):
        return ()
    opaque = MarkTest(ALL_BITS, opaque=True)
    if isinstance(left, dict) and "concat" in left:
        places = [place for place, each in enumerate(left["concat"]) if each == MARK]
        parts = [each.get("concat", ()) if isinstance(each, dict) else () for each in members]
        whole = all(len(each) == len(left["concat"]) for each in parts)
        if len(places) != 1 or sign != "==" or not whole:
            return (opaque,)
        left, on, members = MARK, "", [each[places[0]] for each in parts]
    mask: int | None = ALL_BITS
    if isinstance(left, dict) and isinstance(left.get("&"), list) and len(left["&"]) == 2:
        left, mask = left["&"][0], number_of(left["&"][1])
    if left != MARK or mask is None:
        return (opaque,)
    if sign in _ORDERED and len(members) == 1:
        limit = number_of(members[0])
        return (
            opaque if limit is None else MarkTest(mask, ranges=(_ORDERED[sign](limit),), on=on),
        )
    values, ranges = set[int](), list[tuple[int, int]]()
    for each in members:
        span = each.get("range") if isinstance(each, dict) else None
        low, high = (number_of(end) for end in span or (each, each))
        if low is None or high is None or sign not in {"==", "!="}:
            return (opaque,)
        if low == high:
            values.add(low)
        else:
            ranges.append((low, high))
    return (MarkTest(mask, frozenset(values), sign == "!=", tuple(ranges), on),)


def _reads_mark(expr: Any) -> bool:  # noqa: ANN401 - JSON
    if isinstance(expr, dict):
        flags = expr["fib"].get("flags", ()) if isinstance(expr.get("fib"), dict) else ()
        return expr == MARK or "mark" in flags or any(_reads_mark(each) for each in expr.values())
    return isinstance(expr, list) and any(_reads_mark(each) for each in expr)


def write(value: Any) -> MarkWrite:  # noqa: ANN401 - JSON
    """The effect of `meta mark set VALUE`; an unknown value may write every bit."""
    if value == MARK:
        return MarkWrite(ALL_BITS, 0)
    number = number_of(value)
    if number is not None:
        return MarkWrite(0, number)
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind in OPERATORS and isinstance(inner, list) and len(inner) == 2:
            before, operand = write(inner[0]), number_of(inner[1])
            if operand is not None:
                return _computed(before, kind, operand)
        if kind in _HASHES and isinstance(inner, dict):
            first, count = inner.get("offset", 0), inner.get("mod", 0)
            return in_range(first, first + count - 1)
    return ANY_MARK


def _computed(before: MarkWrite, sign: str, operand: int) -> MarkWrite:
    """The effect of a write, then of an operation with a constant."""
    keep, flip, unknown = before
    match sign:
        case "&":
            return MarkWrite(keep & operand, flip & operand, unknown & operand)
        case "|":
            return MarkWrite(keep & ~operand, flip & ~unknown | operand, unknown & ~operand)
        case _:
            return MarkWrite(keep, (flip ^ operand) & ~unknown, unknown)


def number_of(value: Any) -> int | None:  # noqa: ANN401 - JSON
    """The numeric value of a constant; states and lists of states are bits."""
    if isinstance(value, dict):
        value = value.get("|") if len(value) == 1 else None
    if isinstance(value, list):
        bits = [number_of(part) for part in value]
        some = [part for part in bits if part is not None]
        return functools.reduce(operator.or_, some) if some and len(some) == len(bits) else None
    if isinstance(value, int):  # bool as well
        return int(value)
    if not isinstance(value, str):
        return None
    if value in STATES:
        return STATES[value]
    try:
        return int(value, 0)
    except ValueError:
        return None
