# SPDX-License-Identifier: MIT
"""Reads the rules of every packet filter of this host, in the calling thread's namespace."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final, final

from nfq_guard.doctor import collect, iptables_rules, nft_rules, own_queue, removed
from nfq_guard.doctor.path import Met
from nfq_guard.doctor.rule_model import Table
from nfq_guard.errors import NfqGuardError
from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.firewall.saved import Saved
from nfq_guard.firewall.xtables import System, Xtables

_NFT_FAMILIES: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_OUR_TABLE: Final = ("inet", nft_rules.OUR_TABLE)


@final
@dataclass(slots=True)
class HostRules:
    """The rules of a host.

    Attributes:
        saved: The tables of iptables, by backend and family.
        native: The ruleset of nft; None where it could not be listed.
        tables: All of them, as `follow` needs them.
        bridged: Those of the bridge family, for packets that the host bridges.
        handed_over: Whether the bridge hands these packets over to the guard.
        to_us: Rules of others that lead to the guard's queues.
        problems: Sources that could not be read.
    """

    saved: dict[tuple[Backend, Family], Saved] = field(default_factory=dict)
    native: nft_rules.Ruleset | None = None
    tables: list[Table] = field(default_factory=list)
    bridged: list[Table] = field(default_factory=list)
    handed_over: bool = False
    to_us: own_queue.ToUs = own_queue.NONE
    problems: list[str] = field(default_factory=list)

    def path(self) -> list[Met]:
        """The rules that an INVALID packet of each family meets in every hook."""
        return removed.both(self.tables)

    def unnamed(self) -> list[Met]:
        """The path without the first rules that surely take INVALID packets by name."""
        return removed.without_takers(self.tables)


def read(copy: LegacyCopy | None = None, queues: Container[int] = ()) -> HostRules:
    """Read all rules; what cannot be read is named in `problems`.

    Args:
        copy: The tables of legacy iptables, for a process that cannot run its programs.
        queues: The guard's queues; packets of rules that lead to them get to the guard.
    """
    rules = HostRules(handed_over=collect.bridge_hands_over())
    for backend in Backend:
        for family in BOTH_FAMILIES:
            programs = Xtables(System(), backend, family)
            try:
                if backend is Backend.LEGACY and copy is not None and copy.has(family):
                    rules.saved[backend, family] = of_copy(copy, family, rules.problems)
                elif programs.missing() is None:
                    rules.saved[backend, family] = programs.save()
            except NfqGuardError as error:
                rules.problems.append(str(error))
    for (backend, family), saved in rules.saved.items():
        rules.tables += iptables_rules.tables(saved, backend, family)
    try:
        listed = collect.listed_by_nft("ruleset")
        if listed is not None:
            rules.native = nft_rules.Ruleset(listed)
            unread = _unread(rules)
            rules.tables = [table for table in rules.tables if not _sleeps(table, rules.native)]
            rules.tables += rules.native.tables(unread)
            rules.problems += rules.native.unlisted(unread)
            rules.bridged += rules.native.bridged()
    except NfqGuardError as error:
        rules.problems.append(str(error))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        rules.problems.append(f"nft list ruleset: {error}")
    rules.to_us = own_queue.adopt(rules.tables, queues)
    return rules


def of_copy(
    copy: LegacyCopy, family: Family, problems: list[str], names: Container[str] | None = None
) -> Saved:
    """The tables of a copy; one that the kernel has otherwise by now is a problem.

    Args:
        copy: The copy, which has the family.
        family: The family.
        problems: Get that problem.
        names: The tables; None for all.
    """
    problems += [
        f"the rules of iptables-legacy for IPv{int(family)} in table {name} have changed since the "
        "service started, and the daemon may not read them: a restart of the service has them read "
        "anew"
        for name in copy.changed(family)
        if names is None or name in names
    ]
    return {
        name: table for name, table in copy.saved(family).items() if names is None or name in names
    }


def _sleeps(table: Table, native: nft_rules.Ruleset) -> bool:
    """Whether the kernel runs no rule of a table of iptables-nft."""
    family = _NFT_FAMILIES[Family(table.family)]
    return table.filter == Backend.NFT and (family, table.name) in native.dormant


def dormant_ours(rules: HostRules) -> list[str]:
    """The tables with rules of ours of which the kernel runs none."""
    native = rules.native
    if native is None:
        return []
    return [
        f"{_NFT_FAMILIES[family]} {table.name}"
        for (backend, family), saved in rules.saved.items()
        for table in saved.values()
        if backend is Backend.NFT
        and (_NFT_FAMILIES[family], table.name) in native.dormant
        and (table.own_chains() or table.own_jumps())
    ] + [f"inet {name}" for family, name in native.dormant if (family, name) == _OUR_TABLE]


def _unread(rules: HostRules) -> frozenset[tuple[str, str]]:
    """Tables that iptables-nft cannot list, by nft's names for them."""
    unread: set[tuple[str, str]] = set()
    for family, name in _NFT_FAMILIES.items():
        saved = rules.saved.get((Backend.NFT, family))
        if saved is None:  # one rule of nftables can make iptables-nft fail
            unread |= {(name, table) for table in nft_rules.IPTABLES_TABLES}
        else:
            unread |= {(name, table.name) for table in saved.values() if not table.readable}
    return frozenset(unread)
