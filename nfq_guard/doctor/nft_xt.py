# SPDX-License-Identifier: MIT
"""Matches and targets of iptables in nft's JSON, which has their names only.

iptables-nft builds its rules of them. nft lists such a table where iptables cannot, because it has
a rule of nftables as well.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from nfq_guard.doctor.iptables_rules import PASSING
from nfq_guard.doctor.rule_model import ALWAYS, NO_ENTRY, Condition, depends, unreadable
from nfq_guard.firewall.saved import NEED_ENTRY, NEED_ENTRY_UNLESS_NEGATED

# Matches whose options decide whether they hold for a packet without an entry.
_OF_STATE: Final = NEED_ENTRY_UNLESS_NEGATED | {"conntrack", "state"}
_HOLDING: Final = frozenset({"comment", "nfacct"})
# Their options decide what they write.
_WRITING: Final = frozenset({"CT", "HMARK", "MARK", "NOTRACK", "SET"})


def condition(statement: Any) -> Condition | None:  # noqa: ANN401 - JSON
    """The condition of a match; None for a target."""
    name = _name(statement, "match")
    if not name or name in _HOLDING:
        return ALWAYS if name else None
    if name in NEED_ENTRY:
        return NO_ENTRY
    return unreadable(f"-m {name}") if name in _OF_STATE else depends(f"-m {name}")


def passes(statement: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a rule continues after a target."""
    return _name(statement, "target") in PASSING - _WRITING


def target(statement: Any) -> str:  # noqa: ANN401 - JSON
    """The name of a target."""
    return _name(statement, "target") or "xt"


def names(expr: object) -> Iterator[str]:
    """The matches and targets in the statements of a rule, except those that say nothing."""
    for each in expr if isinstance(expr, list) else ():
        statement = each.get("xt") if isinstance(each, Mapping) else None
        if name := _name(statement, "match"):
            yield from () if name in _HOLDING else (f"-m {name}",)
        elif isinstance(each, Mapping) and "xt" in each and not passes(statement):
            yield f"-j {target(statement)}"


def text(statement: Any) -> str:  # noqa: ANN401 - JSON
    """A match or target as in iptables."""
    name = _name(statement, "match")
    return f"-m {name}" if name else f"-j {target(statement)}"


def _name(statement: Any, kind: str) -> str:  # noqa: ANN401 - JSON
    if not isinstance(statement, Mapping) or statement.get("type") != kind:
        return ""
    return str(statement.get("name"))
