# SPDX-License-Identifier: MIT
"""INVALID rules of others: who made them, when a packet meets them, and what that means for ours.

`iptables_rules` and `nft_rules` find them; what is the same for both is here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, final

from nfq_guard.doctor.check import Check, note, problem, warning

CONNTRACK_PRIORITY: Final = -200
OUR_PRIORITY: Final = -150
OUR_NATIVE_PRIORITY: Final = -151
"""Of the chains in `rules/nftables.nft`, one before mangle's."""

PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Of the tables of iptables; that of nat differs by hook, and INVALID never comes there."""

OUR_HOOKS: Final = frozenset({"prerouting", "output"})


class Effect(StrEnum):
    """What a rule does to an INVALID packet."""

    DROP = "drops"
    ACCEPT = "accepts"
    TELL = "counts or logs"


class Order(StrEnum):
    """When a packet meets a rule, seen from ours."""

    UNTRACKED = "before connection tracking"
    BEFORE = "before ours"
    TIED = "at the same priority as ours, in another table"
    SHADOWED = "behind ours in the same hook and table"
    AFTER = "after ours"
    NEVER = "where INVALID packets never come"


class Owner(NamedTuple):
    """Whoever writes rules of a certain look.

    Attributes:
        id: For the id of a check.
        name: For people.
        todo: What can be done about the rule; empty: nothing special.
    """

    id: str
    name: str
    todo: str


PLAIN: Final = Owner("plain", "a plain rule", "remove it, and let the guard's policy decide")

# By what the names of chains (or of an nftables table) begin with, first match first.
_OWNERS: Final = (
    (
        ("KUBE-", "kube-proxy"),
        Owner(
            "kube-proxy",
            "kube-proxy",
            "keep it, and expect forwarded packets to be dropped whatever the policy allows: "
            "kube-proxy leaves the rule out only where be_liberal is on, which blinds the guard",
        ),
    ),
    (
        ("ISTIO_", "istio-proxy"),
        Owner(
            "istio", "Istio", "install the sidecar without drop-invalid, and let the guard decide"
        ),
    ),
    (
        ("cali-", "cali", "calico"),
        Owner(
            "calico",
            "Calico",
            "set disableConntrackInvalidCheck in FelixConfiguration, and let the guard decide",
        ),
    ),
    (
        ("ufw-", "ufw6-"),
        Owner("ufw", "ufw", "take it out of /etc/ufw/before.rules (before6.rules)"),
    ),
    (
        ("firewalld", "INPUT_ZONES", "FORWARD_ZONES", "FWD", "IN_public"),
        Owner(
            "firewalld",
            "firewalld",
            "keep it, and expect the same packets to be dropped whatever the policy allows: "
            "firewalld has no switch for it",
        ),
    ),
    (("DOCKER",), Owner("docker", "Docker", "see what Docker's own chains are for")),
    (("CILIUM_",), Owner("cilium", "Cilium", "")),
    (("CNI-", "FLANNEL-"), Owner("cni", "a CNI plugin", "")),
    (("f2b-",), Owner("fail2ban", "fail2ban", "")),
    (("LIBVIRT_",), Owner("libvirt", "libvirt", "")),
    (("ts-",), Owner("tailscale", "Tailscale", "")),
)


def owner_of(names: Iterable[str]) -> Owner:
    """Who made a rule, from the names of the chains that lead to it, nearest first."""
    for name in names:
        for prefixes, owner in _OWNERS:
            if name.startswith(prefixes):
                return owner
    return PLAIN


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRule:
    """A rule of others that INVALID packets match.

    Attributes:
        filter: Which packet filter: `legacy`, `nft` (both iptables) or `nftables`.
        family: For which packets: `IPv4`, `IPv6` or both.
        table: Its table.
        chain: Its chain.
        hooks: The hooks from which it is reached.
        order: When a packet meets it.
        effect: What it does then.
        owner: Who made it.
        text: The rule.
    """

    filter: str
    family: str
    table: str
    chain: str
    hooks: tuple[str, ...]
    order: Order
    effect: Effect
    owner: Owner
    text: str


def order_by_priority(hook: str, priority: int, ours: int = OUR_PRIORITY) -> Order:
    """Of a rule in another base chain than ours, which has the priority `ours`."""
    if hook in OUR_HOOKS:
        if priority <= CONNTRACK_PRIORITY:
            return Order.UNTRACKED
        if priority < ours:
            return Order.BEFORE
        if priority == ours:
            return Order.TIED
    return Order.AFTER


def earliest(orders: Sequence[Order]) -> Order:
    """The one that matters most when a rule is reached from several hooks."""
    ranking = tuple(Order)
    return min(orders, key=ranking.index)


def checks(rules: Iterable[ForeignRule], *, ours_installed: bool) -> Iterator[Check]:
    """One check for the rules of one owner that do the same at the same place."""
    groups: dict[tuple[object, ...], list[ForeignRule]] = {}
    for rule in rules:
        key = (rule.owner.id, rule.filter, rule.table, rule.order, rule.effect)
        groups.setdefault(key, []).append(rule)
    for group in groups.values():
        check = _check(group, ours_installed=ours_installed)
        if check is not None:
            yield check


def _check(group: list[ForeignRule], *, ours_installed: bool) -> Check | None:
    rule = group[0]
    name = f"foreign.{rule.owner.id}"
    where = _where(group)
    todo = rule.owner.todo or PLAIN.todo
    match rule.effect, rule.order:
        case Effect.DROP, Order.UNTRACKED:
            return problem(
                name,
                f"{where}: at that point no packet is tracked and every one counts as INVALID",
                f"move it behind connection tracking; {todo}",
            )
        case ((Effect.DROP | Effect.ACCEPT), Order.BEFORE):
            return problem(name, f"{where}, {rule.order}: the guard never sees them", todo)
        case Effect.DROP, Order.TIED:
            return warning(
                name, f"{where}, {rule.order}: whether the guard sees them is left to chance", todo
            )
        case Effect.DROP, Order.SHADOWED:
            what = "sees only what the guard did not judge"
            if not ours_installed:
                what = "today it drops them; ours will come first, and it will see the rest"
            return note(name, f"{where}, {rule.order}: {what}")
        case Effect.DROP, Order.AFTER:
            return warning(
                name,
                f"{where}, {rule.order}: what the policy allows there is dropped all the same",
                todo,
            )
        case Effect.DROP, Order.NEVER:
            return note(name, f"{where}, {rule.order}: it has no effect", "remove it")
        case Effect.TELL, Order.BEFORE | Order.AFTER | Order.UNTRACKED | Order.TIED:
            return note(name, f"{where}: no harm")
        case _:
            return None


def _where(group: list[ForeignRule]) -> str:
    """Who does what where, for one rule or many alike."""
    rule = group[0]
    families = " and ".join(sorted({one.family for one in group}))
    hooks = "/".join(sorted({hook for one in group for hook in one.hooks})).upper() or "no hook"
    chains = list(dict.fromkeys(one.chain for one in group))
    chain = chains[0] if len(chains) == 1 else f"{chains[0]} and {len(chains) - 1} more chains"
    return (
        f"{rule.owner.name} {rule.effect} INVALID packets in {rule.filter} table {rule.table}, "
        f"chain {chain} (hook {hooks}, {families})"
    )
