# SPDX-License-Identifier: MIT
"""Routing by the packet's mark, which an INVALID packet does not get from its connection.

`CONNMARK --restore-mark` and `meta mark set ct mark` find no entry attached to an INVALID packet.
Where `ip rule` looks at that mark, the packet may take another route than its connection.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor import collect
from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.packet_mark import Marks
from nfq_guard.doctor.path import marks_behind
from nfq_guard.doctor.rule_model import ALL_BITS, FAMILIES, MarkTest, Table, Truth
from nfq_guard.names import counted

_OPTIONS: Final = {4: "-4", 6: "-6"}


@final
class MarkRule(NamedTuple):
    """A rule of `ip rule` that tests the mark.

    Attributes:
        text: The rule.
        test: Its test of the mark.
    """

    text: str
    test: MarkTest


def checks(tables: Sequence[Table]) -> Iterator[Check]:
    """Whether this host routes INVALID packets by another mark than that of their connection.

    Args:
        tables: The tables of all packet filters.
    """
    found: dict[tuple[str, int], Marks] = {}
    for family in FAMILIES:
        behind = marks_behind(tables, family)
        hooks = ("prerouting", "output") if _routes_again(tables, family) else ("prerouting",)
        found |= {(hook, family): behind[hook] for hook in hooks if behind[hook].differ}
    if not found:
        return
    rules: dict[int, list[MarkRule]] = {}
    for family in {family: None for _, family in found}:
        listed = collect.output("ip", "-j", _OPTIONS[family], "rule", "show")
        try:
            rules[family] = list(parse(listed or ""))
        except (ValueError, LookupError, TypeError, AttributeError):
            yield note(
                "routing.mark",
                f"INVALID packets ({FAMILIES[family]}) do not get the mark of their connection; "
                "whether this host routes by it is not known, as `ip -j rule show` fails",
                "compare `ip rule` with the rules that write the mark",
            )
    yield from differing(found, rules)


def _routes_again(tables: Iterable[Table], family: int) -> bool:
    """Whether packets that this host sends are routed by the mark that they get in OUTPUT."""
    return any(
        base.hook == "output" and (base.kind == "route" or _is_mangle(table))
        for table in tables
        if table.family == family
        for base in table.bases.values()
    )


def _is_mangle(table: Table) -> bool:
    return table.name == "mangle" and not table.nft_family


def parse(listed: str) -> Iterator[MarkRule]:
    """The rules that test the mark, in the output of `ip -j rule show`.

    Raises:
        ValueError: It is not JSON, or a mark is no number.
        KeyError: An object lacks a key.
        TypeError: An object has another type than expected.
        AttributeError: The same.
    """
    for item in json.loads(listed):
        if "fwmark" in item:
            yield _rule(item)


def _rule(item: Mapping[str, Any]) -> MarkRule:
    value, mask = (int(str(item.get(key, ALL_BITS)), 0) for key in ("fwmark", "fwmask"))
    negated = "not" in item
    shown = f"{value:#x}" if mask == ALL_BITS else f"{value:#x}/{mask:#x}"
    text = f"{item['priority']}: {'not ' if negated else ''}fwmark {shown}"
    return MarkRule(text, MarkTest(mask, frozenset({value & mask}), negated))


def differing(
    found: Mapping[tuple[str, int], Marks], rules: Mapping[int, Sequence[MarkRule]]
) -> Iterator[Check]:
    """One check for the rules by which INVALID packets may be routed in another way.

    Args:
        found: The marks where packets are routed, by hook and family.
        rules: The rules that test the mark, by family.
    """
    texts: dict[str, None] = {}
    hooks: dict[str, None] = {}
    families: dict[str, None] = {}
    restored = 0
    for (hook, family), marks in found.items():
        for rule in rules.get(family, ()):
            if _tells_apart(marks, rule.test):
                texts[rule.text] = None
                hooks[hook.upper()] = None
                families[FAMILIES[family]] = None
                restored |= marks.restored & rule.test.mask
    if not texts:
        return
    yield note(
        "routing.mark",
        f"INVALID packets may have another mark than their connection behind {'/'.join(hooks)} "
        f"({' and '.join(families)}), and this host routes by it (`ip rule` {_first(texts)}): one "
        "that the policy allows may take another route than its connection",
        "to drop those of marked connections instead, add a policy rule that names them by ct_mark"
        if restored
        else "to drop those instead, add a policy rule that names them",
    )


def _tells_apart(marks: Marks, test: MarkTest) -> bool:
    """Whether a rule may route the INVALID packet in another way than that of a connection."""
    if marks.invalid is None or marks.known is None or not marks.differ & test.mask:
        return False
    invalid = marks.invalid.meets(test)
    return invalid is Truth.DEPENDS or invalid is not marks.known.meets(test)


def _first(texts: Iterable[str]) -> str:
    first, *more = texts
    return f"{first} and {counted(len(more), 'more rule')}" if more else first
