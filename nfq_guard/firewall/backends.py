# SPDX-License-Identifier: MIT
"""Chooses the iptables backend. Rules in both backends would see each packet twice."""

from typing import NamedTuple

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall.saved import Saved
from nfq_guard.firewall.spec import Backend, Family
from nfq_guard.firewall.xtables import Runner, Xtables, flavour


class Choice(NamedTuple):
    """A backend, and the reason for its choice as a sentence."""

    backend: Backend
    why: str


class _Load(NamedTuple):
    """The contents of a backend, and whether all of it can be read."""

    own: int
    foreign: int
    readable: bool


def choose(runner: Runner, families: tuple[Family, ...]) -> Choice:
    """Choose the backend for our rules.

    The backend that already has our rules; else the one with more rules of other programs; else
    the backend of the program `iptables`.

    Raises:
        UnavailableError: iptables is not installed.
    """
    plain = flavour(runner)
    usable = [one for one in Backend if _usable(runner, one)]
    if not usable:
        raise UnavailableError("program iptables (Debian package iptables) is missing")
    if len(usable) == 1:
        return Choice(usable[0], f"only the {usable[0]} programs are installed")
    loads = {one: _load(runner, one, families) for one in usable}
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


def choose_unprivileged(runner: Runner) -> Choice:
    """The backend of the program `iptables`, for callers without the privilege to read rules.

    Raises:
        UnavailableError: iptables is not installed.
    """
    plain = flavour(runner)
    if plain is None:
        raise UnavailableError("program iptables (Debian package iptables) is missing")
    return Choice(plain, f"iptables -V says {plain}; only root can see which holds rules")


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
    """The live rules; empty without the privilege, as for legacy tables without CAP_NET_RAW."""
    try:
        return tables.save()
    except PrivilegeError:
        return {}
