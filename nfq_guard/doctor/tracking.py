# SPDX-License-Identifier: MIT
"""Whether conntrack tracks packets of this host without our rules.

The kernel hooks conntrack in for a family of addresses when the first rule of it is loaded that
needs conntrack, whether or not a packet gets to that rule, and unhooks it after the last one. Where
no other rule needs it, ours make it track every packet.
"""

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from nfq_guard.doctor import owners
from nfq_guard.doctor.check import Check, note, warning
from nfq_guard.doctor.host_rules import HostRules
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import FAMILIES
from nfq_guard.firewall import Family
from nfq_guard.firewall.saved import SavedRule, is_own, split
from nfq_guard.names import counted
from nfq_guard.raw_rules import UNTRACKED

_MATCHES: Final = frozenset(
    {
        *("cluster", "connbytes", "connlabel", "connlimit", "connmark", "conntrack", "helper"),
        "state",
    }
)
_TARGETS: Final = frozenset(
    {
        *("CONNMARK", "CONNSECMARK", "CT", "DNAT", "FLOWOFFLOAD", "MASQUERADE", "NETMAP"),
        *("REDIRECT", "SNAT", "SYNPROXY"),
    }
)
_WORDS: Final = frozenset(
    {
        *("ct", "ct count", "ct expectation", "ct helper", "ct timeout", "dnat", "flow"),
        *("masquerade", "redirect", "snat", "synproxy"),
    }
)
"""What needs conntrack in nft's JSON."""
_TEXT: Final = re.compile(r"\b(?:ct|dnat|flow|masquerade|redirect|snat|synproxy)\b")
"""The same in a statement that nft lists as text."""
_TRACKED_IN: Final = frozenset({"prerouting", "output"})
"""The hooks where conntrack sees a packet."""
_WHAT: Final = (
    "in dry-run as well: it reassembles fragments, loses those whose other parts take another way, "
    "and drops packets of new flows while its table is full"
)


def untracked(rules: HostRules, families: Iterable[Family], entries: int) -> list[Family]:
    """The families of which conntrack tracks no packet but for our rules.

    Args:
        rules: The rules of the host.
        families: The families of our rules.
        entries: The number of entries in conntrack's table.
    """
    if rules.problems or rules.native is None:
        return []
    used = rules.native.families_with(_needs_conntrack) | {
        int(family)
        for (_, family), saved in rules.saved.items()
        if any(_needs(rule) for table in saved.values() for rule in table.rules)
    }
    found = [family for family in families if int(family) not in used]
    if not used and entries and not _has_ours(rules):
        return []  # something else than a rule has it track packets, such as IPVS
    return found


def describe(families: Sequence[Family]) -> str:
    """What our rules start, as a sentence; for `untracked` that is not empty."""
    names = " and ".join(FAMILIES[family] for family in families)
    return f"no other rule has conntrack track {names} packets: ours start it, {_WHAT}"


def checks(
    rules: HostRules, families: Sequence[Family], entries: int, forwarded: Container[int]
) -> Iterator[Check]:
    """Whether our rules are the only ones that need conntrack.

    Args:
        rules: The rules of the host.
        families: The families of our rules.
        entries: The number of entries in conntrack's table.
        forwarded: The families that this host forwards.
    """
    found = untracked(rules, families, entries)
    if not found:
        return
    if len(found) == len(families):
        todo = "without conntrack no packet is INVALID: such a host does not need the guard"
    else:
        other = next(int(family) for family in families if family not in found)
        todo = f'to leave these packets alone, set `families` = "{other}"'
    severity = warning if any(int(family) in forwarded for family in found) else note
    yield severity("tracking.by_us", describe(found), todo)


def stateless(path: Iterable[Met]) -> Iterator[Check]:
    """Whether a rule behind conntrack writes the destination address, of which conntrack knows not.

    Args:
        path: The rules that a packet meets in every hook, for both families.
    """
    mets = list(path)
    untracks = any(_untracks(met) for met in mets)
    found = list(dict.fromkeys(_place(met) for met in mets if _redirects(met)))
    if not found:
        return
    more = f" and {counted(len(found) - 1, 'more rule')}" if len(found) > 1 else ""
    severity = note if untracks else warning
    yield severity(
        "tracking.stateless",
        f"{found[0]}{more}: writes the destination address behind conntrack, which knows one "
        "direction only of these connections and calls the SYN+ACK of the other one INVALID "
        "(no-entry)"
        + (", unless a rule before conntrack untracks them" if untracks else "")
        + "; a rule or a policy that drops it lets nobody connect",
        "untrack these packets before conntrack (CT --notrack, notrack), write the address there, "
        "or leave packets without an entry (no-entry) allowed",
    )


def _redirects(met: Met) -> bool:
    behind = met.order not in {Order.UNTRACKED, Order.NEVER}
    return met.finding.rule.redirects and met.hook in _TRACKED_IN and behind


def _untracks(met: Met) -> bool:
    tracking = met.finding.rule.tracking
    return tracking is not None and tracking.zone == UNTRACKED and met.order is Order.UNTRACKED


def _place(met: Met) -> str:
    return f"`{met.finding.rule.text}` ({owners.place(met.finding)})"


def _has_ours(rules: HostRules) -> bool:
    return (rules.native is not None and rules.native.ours) or any(
        table.own_jumps() for saved in rules.saved.values() for table in saved.values()
    )


def _needs(rule: SavedRule) -> bool:
    """Whether a rule of iptables of others needs conntrack."""
    if is_own(rule.chain) or is_own(rule.target):
        return False
    words = split(rule.text)
    matches = {name for word, name in pairwise(words) if word == "-m"}
    if matches & _MATCHES:
        return True
    return rule.target in _TARGETS and not (rule.target == "CT" and "--notrack" in words)


def _needs_conntrack(expr: Iterable[Any]) -> bool:
    """Whether a rule of nftables needs conntrack, by its statements."""
    return any(_TEXT.search(each) if isinstance(each, str) else _holds(each) for each in expr)


def _holds(part: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a statement or a part of it needs conntrack."""
    if isinstance(part, dict):
        return any(name in _WORDS or _holds(inner) for name, inner in part.items())
    return isinstance(part, list) and any(map(_holds, part))
