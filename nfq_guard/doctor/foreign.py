# SPDX-License-Identifier: MIT
"""Checks on other programs' rules that single out INVALID packets, by owner and place."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from nfq_guard.doctor import fate, owners
from nfq_guard.doctor.check import Check, note, problem, warning
from nfq_guard.doctor.follow import Follower
from nfq_guard.doctor.owners import SYNPROXY, owner_of
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import ENDS, FAMILIES, TAKES, UNCERTAIN, Act, Table

_TEMPLATED: Final = (
    ": at that point every packet has a template of an earlier rule (CT) or is untracked "
    "(notrack), so none matches"
)


def checks(path: Iterable[Met], *, unnamed: Iterable[Met] = ()) -> Iterator[Check]:
    """One check for each group of rules with the same owner, table, order and effect.

    Args:
        path: The rules that a packet meets in every hook, for both families.
        unnamed: The same without the rules of `fate.named_takers` (see `removed`).
    """
    behind = fate.takers(unnamed)
    groups: dict[tuple[object, ...], list[Met]] = {}
    for met in path:
        finding = met.finding
        if not _singles_out(met):
            continue
        key = (
            owner_of(finding),
            finding.table.filter,
            finding.table.name,
            met.order,
            finding.rule.act,
            finding.listed,
            met.stopped,
            met.templated,
            met.order is Order.UNTRACKED and met.beside_conntrack,
        )
        groups.setdefault(key, []).append(met)
    for group in groups.values():
        check = _check(group, behind)
        if check is not None:
            yield check


def bridged(tables: Iterable[Table], *, handed_over: bool) -> Iterator[Check]:
    """Rules of the bridge family that single out INVALID packets.

    Args:
        tables: The tables of that family.
        handed_over: Whether the bridge hands packets over to the guard before these rules.
    """
    for table in tables:
        follower = Follower(table)
        mets = [
            Met(base.hook, Order.AFTER, finding)
            for chain, base in table.bases.items()
            for finding in follower.base(chain).findings
        ]
        group = [met for met in mets if _singles_out(met) and met.finding.rule.act in TAKES]
        if not group:
            continue
        name, todo = f"foreign.{owner_of(group[0].finding).id}", owners.todo(group[0].finding)
        what = f"{_where(group)}: packets that this host only bridges"
        if handed_over:
            yield warning(
                name,
                f"{what}, after the guard has seen them (br_netfilter), whatever the policy allows",
                todo,
            )
        else:
            yield note(name, f"{what}, and that the guard does not see", todo)


def unread(problems: Iterable[str]) -> Iterator[Check]:
    """One check for each source of rules that could not be read."""
    for text in dict.fromkeys(problems):
        yield note(
            "foreign.unread",
            f"some rules cannot be read: {text}",
            "run it as root; where that fails too, another version of that program may list them",
        )


def _singles_out(met: Met) -> bool:
    """Whether a rule selects packets by their conntrack state, and decides."""
    finding = met.finding
    return finding.state and finding.rule.act in ENDS and not finding.default


def _check(group: list[Met], behind: Mapping[tuple[str, int], Met]) -> Check | None:
    met = group[0]
    owner = owner_of(met.finding)
    name = f"foreign.{owner.id}"
    where = _where(group)
    taken = (behind.get((each.hook, each.finding.table.family)) for each in group)
    todo = fate.advice(met.finding, next((each for each in taken if each is not None), None))
    takes = met.finding.rule.act in TAKES
    if met.finding.rule.act is Act.ACCEPT and met.order is not Order.BEFORE:
        return None
    if met.finding.rule.act in UNCERTAIN:
        return note(name, f"{where}, {met.order}: what becomes of them is not known", todo)
    if met.stopped is not None:
        return note(name, f"{where}, {met.order}: none gets there, a rule in PREROUTING takes all")
    if owner is SYNPROXY and met.order is Order.AFTER:
        return note(name, f"{where}, {met.order}: part of a SYNPROXY set-up", todo)
    match met.order:
        case Order.UNTRACKED if takes and met.finding.listed:
            return warning(name, f"{where}, {met.order}: {_unseen(met)}", todo)
        case Order.UNTRACKED if takes:
            return problem(
                name,
                f"{where}: {_untracked(met)}",
                f"move it behind connection tracking; {todo}",
            )
        case Order.BEFORE:
            return problem(name, f"{where}, {met.order}: {_unseen(met)}", todo)
        case Order.TIED:
            return warning(
                name, f"{where}, {met.order}: which of the two runs first is undefined", todo
            )
        case Order.SHADOWED:
            return note(name, f"{where}, {met.order}: queued packets skip it")
        case Order.NEVER:
            why = _TEMPLATED if met.templated else f", {met.order}"
            return note(name, f"{where}{why}: it has no effect")
        case _ if met.finding.rule.act is Act.RESET:
            return problem(
                name,
                f"{where}, {met.order}: its RST ends the connection of a packet that the policy "
                "allows",
                todo,
            )
        case _:
            return warning(name, f"{where}, {met.order}: whatever the policy allows", todo)


def _unseen(met: Met) -> str:
    """Which packets of a rule before ours the guard sees."""
    rule = met.finding.rule
    if rule.act is Act.ELSEWHERE and rule.target.startswith("queue "):
        return (
            "the guard sees only those that the program on that queue passes on to it (NF_REPEAT; "
            "from a base chain other than the guard's also NF_ACCEPT)"
        )
    return "the guard never sees them"


def _untracked(met: Met) -> str:
    """What a rule before conntrack means by INVALID."""
    if met.beside_conntrack:
        return (
            "it has the priority of connection tracking, and where it is loaded later, as by a "
            "reload, it runs first: no packet is tracked then, so every packet matches as INVALID"
        )
    but = " without a template of an earlier rule (CT, notrack)" if met.templated else ""
    return f"at that point no packet is tracked, so every packet{but} matches as INVALID"


def _where(group: list[Met]) -> str:
    """The owner, effect and place of a group of rules, by the chain that most packets pass."""
    finding = group[0].finding
    families = " and ".join(sorted({_family(met) for met in group}))
    hooks = "/".join(sorted({met.hook for met in group})).upper()
    most = sorted(group, key=lambda met: not met.finding.by_interface)
    chains = list(dict.fromkeys(met.finding.chain for met in most))
    more = len(chains) - 1
    chain = f"{chains[0]} and {more} more" if more else chains[0]
    does = f"{finding.rule.act} INVALID packets"
    if finding.listed:
        does = f"{finding.rule.act} packets of a list to which INVALID ones are added"
    if finding.rule.act is Act.UNKNOWN:
        does = f"for INVALID packets cannot be followed ({finding.rule.target})"
    sent = f" to {finding.rule.target}" if finding.rule.act is Act.ELSEWHERE else ""
    return (
        f"{owner_of(finding).name} {does}{sent} in "
        f"{finding.table.filter} table {finding.table.name}, chain {chain} (hook {hooks}, "
        f"{families})"
    )


def _family(met: Met) -> str:
    table = met.finding.table
    return "bridge" if table.nft_family == "bridge" else FAMILIES[table.family]
