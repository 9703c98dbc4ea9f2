# SPDX-License-Identifier: MIT
"""Other programs' rules on INVALID packets: owner, order relative to ours, and impact.

`iptables_rules` and `nft_rules` find the rules; this module holds what both share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, final

from nfq_guard.doctor.check import Check, note, problem, warning
from nfq_guard.firewall.spec import Backend

CONNTRACK_PRIORITY: Final = -200
OUR_PRIORITY: Final = -150
OUR_NATIVE_PRIORITY: Final = -149
"""Priority of the chains in `rules/nftables.nft`: one after mangle."""

OUR_PRIORITIES: Final = {
    Backend.LEGACY: {"prerouting": OUR_PRIORITY, "output": OUR_PRIORITY},
    Backend.NFT: {"prerouting": OUR_PRIORITY, "output": 150},
}
"""Priorities of the chains with our jumps. iptables-nft has its table security at 150, not 50."""

PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Priorities of iptables' tables. nat's differs by hook; INVALID packets never reach it."""

OUR_HOOKS: Final = frozenset({"prerouting", "output"})


class Effect(StrEnum):
    """What a rule does to an INVALID packet."""

    DROP = "drops"
    ACCEPT = "accepts"
    LOG = "counts or logs"


class Order(StrEnum):
    """Position of a rule on a packet's path, relative to ours."""

    UNTRACKED = "before connection tracking"
    BEFORE = "before ours"
    TIED = "at the same priority as ours, in another table"
    SHADOWED = "behind ours in the same hook and table"
    AFTER = "after ours"
    NEVER = "which INVALID packets never reach"


class Owner(NamedTuple):
    """A program that installs rules, recognised by the names of its chains.

    Attributes:
        id: Suffix of the check's id.
        name: Display name.
        todo: The recommended action on its rules; empty for that of a plain rule.
    """

    id: str
    name: str
    todo: str


PLAIN: Final = Owner("plain", "a plain rule", "remove it, and let the guard's policy decide")

# By prefixes of chain names (or of an nftables table's name); the first match wins.
_OWNERS: Final = (
    (
        ("KUBE-", "kube-proxy"),
        Owner(
            "kube-proxy",
            "kube-proxy",
            "keep it, and expect forwarded packets to be dropped whatever the policy allows: "
            "kube-proxy omits the rule only if be_liberal is on, which blinds the guard",
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
        Owner("ufw", "ufw", "remove it from /etc/ufw/before.rules (before6.rules)"),
    ),
    (
        ("firewalld", "INPUT_ZONES", "FORWARD_ZONES", "FWD", "IN_public"),
        Owner(
            "firewalld",
            "firewalld",
            "keep it, and expect the same packets to be dropped whatever the policy allows: "
            "firewalld has no option to disable it",
        ),
    ),
    (("DOCKER",), Owner("docker", "Docker", "check what Docker's own chains are for")),
    (("CILIUM_",), Owner("cilium", "Cilium", "")),
    (("CNI-", "FLANNEL-"), Owner("cni", "a CNI plugin", "")),
    (("f2b-",), Owner("fail2ban", "fail2ban", "")),
    (("LIBVIRT_",), Owner("libvirt", "libvirt", "")),
    (("ts-",), Owner("tailscale", "Tailscale", "")),
)


def owner_of(names: Iterable[str]) -> Owner:
    """The owner of a rule, from the names of the chains that lead to it, nearest first."""
    for name in names:
        for prefixes, owner in _OWNERS:
            if name.startswith(prefixes):
                return owner
    return PLAIN


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRule:
    """Another program's rule that matches INVALID packets.

    Attributes:
        filter: The packet filter: `legacy`, `nft` (both iptables) or `nftables`.
        family: The packets that it applies to: `IPv4`, `IPv6` or `IPv4 and IPv6`.
        table: Its table.
        chain: Its chain.
        hooks: The hooks from which it is reached, in lower case.
        order: Its position relative to our rules.
        effect: What it does to an INVALID packet.
        owner: The program that installed it.
        text: The rule as listed.
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
    """The order of a rule in a base chain of its own; `ours` is our chain's priority."""
    if hook in OUR_HOOKS:
        if priority <= CONNTRACK_PRIORITY:
            return Order.UNTRACKED
        if priority < ours:
            return Order.BEFORE
        if priority == ours:
            return Order.TIED
    return Order.AFTER


def earliest(orders: Sequence[Order]) -> Order:
    """The earliest position of a rule that is reached from several hooks."""
    ranking = tuple(Order)
    return min(orders, key=ranking.index)


def checks(rules: Iterable[ForeignRule]) -> Iterator[Check]:
    """One check for each group of rules with the same owner, table, order and effect."""
    groups: dict[tuple[object, ...], list[ForeignRule]] = {}
    for rule in rules:
        key = (rule.owner.id, rule.filter, rule.table, rule.order, rule.effect)
        groups.setdefault(key, []).append(rule)
    for group in groups.values():
        check = _check(group)
        if check is not None:
            yield check


def _check(group: list[ForeignRule]) -> Check | None:
    rule = group[0]
    name = f"foreign.{rule.owner.id}"
    where = _where(group)
    todo = rule.owner.todo or PLAIN.todo
    match rule.effect, rule.order:
        case Effect.DROP, Order.UNTRACKED:
            return problem(
                name,
                f"{where}: at that point no packet is tracked, so every packet matches as INVALID",
                f"move it behind connection tracking; {todo}",
            )
        case ((Effect.DROP | Effect.ACCEPT), Order.BEFORE):
            return problem(name, f"{where}, {rule.order}: the guard never sees them", todo)
        case Effect.DROP, Order.TIED:
            return warning(
                name, f"{where}, {rule.order}: which of the two runs first is undefined", todo
            )
        case Effect.DROP, Order.SHADOWED:
            return note(name, f"{where}, {rule.order}: queued packets skip it")
        case Effect.DROP, Order.AFTER:
            return warning(
                name,
                f"{where}, {rule.order}: it drops what the policy allows",
                todo,
            )
        case Effect.DROP, Order.NEVER:
            return note(name, f"{where}, {rule.order}: it has no effect", "remove it")
        case Effect.LOG, Order.BEFORE | Order.AFTER | Order.UNTRACKED | Order.TIED:
            return note(name, f"{where}: harmless")
        case _:
            return None


def _where(group: list[ForeignRule]) -> str:
    """The owner, effect and place of a group of rules."""
    rule = group[0]
    families = " and ".join(sorted({each.family for each in group}))
    hooks = "/".join(sorted({hook for each in group for hook in each.hooks})).upper() or "no hook"
    chains = list(dict.fromkeys(each.chain for each in group))
    chain = chains[0] if len(chains) == 1 else f"{chains[0]} and {len(chains) - 1} more chains"
    return (
        f"{rule.owner.name} {rule.effect} INVALID packets in {rule.filter} table {rule.table}, "
        f"chain {chain} (hook {hooks}, {families})"
    )
