# SPDX-License-Identifier: MIT
"""Chooses the packet filter for our rules. Rules in two filters would see each packet twice.

A host has its own rules in iptables, of either backend, in native nftables, or in both. Ours go to
iptables if it has rules.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from nfq_guard import capabilities
from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall.native import has_queue
from nfq_guard.firewall.nft_program import listed
from nfq_guard.firewall.saved import Saved
from nfq_guard.firewall.spec import NATIVE_TABLE, OFFLOAD_TABLE, Backend, Family, Native, Place
from nfq_guard.firewall.xtables import Runner, Xtables, flavour

_IPTABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})


class Choice(NamedTuple):
    """A backend, and the reason for its choice as a sentence."""

    backend: Place
    why: str


class _Load(NamedTuple):
    """The contents of a backend, and whether all of it can be read."""

    own: int
    foreign: int
    readable: bool


def choose(runner: Runner, families: tuple[Family, ...], before: Place | None = None) -> Choice:
    """Choose the backend for our rules.

    The backend that already has our rules; else that of iptables with more rules of other programs;
    else native nftables if it has rules of other programs or iptables is missing; else the backend
    of the program `iptables`.

    Args:
        runner: Access to the system.
        families: The families to look at.
        before: The previous choice, which is kept if all rules have been flushed.

    Raises:
        UnavailableError: iptables is not installed, and nftables cannot be used.
    """
    if runner.has_nft_table(NATIVE_TABLE) and runner.find("nft"):
        return Choice(Native.NFTABLES, "nftables holds our rules already")
    plain = flavour(runner)
    usable = [one for one in Backend if _usable(runner, one)]
    if not usable:
        require_any(runner)
        return Choice(Native.NFTABLES, "iptables is not installed")
    loads = {one: _load(runner, one, families) for one in usable}
    if before is not Backend.NFT and _is_hidden(runner, loads):
        return Choice(Backend.LEGACY, "legacy has the table mangle, which may not be read here")
    if not any(load.own or load.foreign for load in loads.values()):
        native = _native_chains(runner) if has_queue(runner) else 0
        if native:
            return Choice(Native.NFTABLES, f"nftables holds {native} base chains of others")
        if before is not None:
            return Choice(before, "as before, for no packet filter holds rules any more")
    if len(usable) == 1:
        return Choice(usable[0], f"only the {usable[0]} programs are installed")
    default = plain or Backend.NFT
    best = max(usable, key=lambda one: _rank(loads[one], one is default))
    mine, other = loads[best], loads[best.other]
    also = f"; {best.other} holds {other.foreign} more" if other.foreign else ""
    if not other.readable:
        return Choice(best, f"a table of {best.other} was made with nft as iptables cannot read it")
    if mine.own:
        return Choice(best, f"{best} holds our rules already{also}")
    if mine.foreign:
        return Choice(best, f"{best} holds {mine.foreign} rules and chains of others{also}")
    return Choice(best, f"neither backend holds rules, and iptables -V says {default}")


def require_any(runner: Runner) -> None:
    """Check that there is a backend.

    Raises:
        UnavailableError: iptables is not installed, and nftables cannot be used.
    """
    if not any(_usable(runner, one) for one in Backend) and not has_queue(runner):
        raise UnavailableError("program iptables (Debian package iptables) is missing")


def _is_hidden(runner: Runner, loads: Mapping[Backend, _Load]) -> bool:
    """Whether our rules may be in legacy tables that this process cannot read.

    Installing them in the other backend would queue each packet twice.
    """
    return (
        Backend.LEGACY in loads
        and not runner.capabilities() >> capabilities.NET_RAW & 1
        and not any(load.own for load in loads.values())
        and runner.has_legacy_mangle()
    )


def choose_unprivileged(runner: Runner) -> Choice:
    """The backend of the program `iptables`, for callers without the privilege to read rules.

    Raises:
        UnavailableError: iptables is not installed.
    """
    plain = flavour(runner)
    if plain is None:
        raise UnavailableError("program iptables (Debian package iptables) is missing")
    return Choice(plain, f"iptables -V says {plain}; only root can see which holds rules")


def _native_chains(runner: Runner) -> int:
    """The number of base chains that neither iptables nor we created."""
    result = runner.run(["nft", "-j", "list", "chains"], "")
    if result.status:
        return 0
    try:
        chains = [one["chain"] for one in listed(result.stdout, "nftables") if "chain" in one]
    except UnavailableError:  # the choice is between those that can be read
        return 0
    return sum(
        "hook" in chain
        and chain.get("family") in {"ip", "ip6", "inet"}
        and chain.get("table") not in {NATIVE_TABLE, OFFLOAD_TABLE}
        and not (chain.get("table") in _IPTABLES and chain["name"] == str(chain["hook"]).upper())
        for chain in chains
    )


def _usable(runner: Runner, backend: Backend) -> bool:
    return Xtables(runner, backend, Family.IPV4).missing() is None


def _load(runner: Runner, backend: Backend, families: tuple[Family, ...]) -> _Load:
    own = foreign = 0
    readable = True
    for family in families:
        tables = Xtables(runner, backend, family)
        if tables.missing() is None:
            for table in _seen(tables).values():
                own += len(table.own_chains()) + len(table.own_jumps())
                foreign += table.foreign_count()
                readable = readable and table.readable
    return _Load(own, foreign, readable)


def _rank(load: _Load, is_default: bool) -> tuple[bool, bool, int, bool]:  # noqa: FBT001 - two facts
    return load.readable, load.own > 0, load.foreign, is_default


def _seen(tables: Xtables) -> Saved:
    """The live rules; empty without the privilege, such as CAP_NET_RAW for legacy tables."""
    try:
        return tables.save()
    except PrivilegeError:
        return {}
