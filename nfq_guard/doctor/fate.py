# SPDX-License-Identifier: MIT
"""The fate of an INVALID packet that the policy allows, hook by hook."""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile
from typing import Final, NamedTuple, final

from nfq_guard.doctor import owners
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.default_deny import is_of_header
from nfq_guard.doctor.follow import Finding
from nfq_guard.doctor.owners import SYNPROXY, owner_of
from nfq_guard.doctor.path import BEHIND_PREROUTING, HOOKS, ON_THE_WAY, Met, Order, stops
from nfq_guard.doctor.rule_model import ENDS, FAMILIES, FINAL, TAKES, UNCERTAIN, Act, Truth

_MOST: Final = 3
_WORDS: Final = {
    Act.DROP: "dropped",
    Act.RESET: "reset",
    Act.REJECT: "rejected with an ICMP error",
    Act.ELSEWHERE: "sent elsewhere",
    Act.UNKNOWN: "taken by a rule that cannot be followed",
    Act.UNTRACKS: "made UNTRACKED, and not followed further,",
}


@final
class _Fate(NamedTuple):
    """The fate of packets in one hook.

    Attributes:
        status: Its severity.
        text: The fate, as the end of a sentence.
        todo: The recommended action.
    """

    status: Status
    text: str
    todo: str


def checks(
    path: Iterable[Met], *, unnamed: Iterable[Met] = (), complete: bool = True
) -> Iterator[Check]:
    """One check a hook, `fate.HOOK`.

    Args:
        path: The rules that a packet meets in every hook, for both families, in order.
        unnamed: The same without the rules of `named_takers` (see `removed`).
        complete: Whether all rules could be read.
    """
    beyond = "" if complete else ", as far as the rules could be read"
    next_ones = takers(unnamed)
    mets = list(path)
    stopped = stops(mets)
    for hook, by_family in _by_hook(mets).items():
        fates = {
            family: _stopped(stopped[family])
            if hook in BEHIND_PREROUTING and family in stopped
            else _fate(mets, next_ones.get((hook, family)))
            for family, mets in by_family.items()
        }
        for fate in dict.fromkeys(fates.values()):
            families = [FAMILIES[family] for family, each in fates.items() if each == fate]
            what = f"an allowed packet ({' and '.join(families)}) is {fate.text}{beyond}"
            yield Check(f"fate.{hook}", fate.status, what, fate.todo)


def named_takers(path: Iterable[Met]) -> Iterator[Met]:
    """The first rule of each hook that surely takes packets, where it names INVALID ones."""
    for by_family in _by_hook(path).values():
        for mets in by_family.values():
            sure = _first_sure(mets)
            if sure is not None and sure.finding.state:
                yield sure


def takers(path: Iterable[Met]) -> dict[tuple[str, int], Met]:
    """The rule that surely takes INVALID packets, by hook and family."""
    found: dict[tuple[str, int], Met] = {}
    for hook, by_family in _by_hook(path).items():
        for family, mets in by_family.items():
            taking = [met for met in mets if met.finding.rule.act in TAKES]
            passing = _passing(mets)
            sure = [met for met in taking if _is_sure(met, passing)]
            if sure:
                found[hook, family] = next(
                    (met for met in sure if met.finding.state or not met.finding.spared), sure[-1]
                )
    return found


def advice(finding: Finding, behind: Met | None) -> str:
    """The recommended action on a rule that names INVALID packets.

    Args:
        finding: The rule.
        behind: The rule that would take the same packets, of `takers`.
    """
    todo = owners.todo(finding)
    # An owner's own way to accept packets comes before its default.
    if behind is None or leaves(todo) or "accept" in todo:
        return todo
    rule = behind.finding.rule
    return (
        f"{todo}. First accept, by addresses and ports, the INVALID packets that the guard is to "
        f"decide on: `{rule.text}` behind it {rule.act} all others{_means(behind)}"
    )


def leaves(todo: str) -> bool:
    """Whether an advice is to change nothing of the rule."""
    return todo.startswith(("keep it", "leave it"))


def _stopped(act: Act) -> _Fate:
    """The fate of packets of which none gets here."""
    return _Fate(Status.OK, f"{_WORDS[act]} in PREROUTING already", "")


def _taken(sure: Met, how: str, severity: Status, behind: Met | None) -> _Fate:
    """The fate of packets that a rule surely takes.

    Args:
        sure: The rule.
        how: How it takes them.
        severity: The severity.
        behind: The rule that would take them without that one, if that one names them.
    """
    if not sure.finding.state or behind is None:
        return _Fate(severity, how, owners.todo(sure.finding))
    unless = ", unless an earlier rule decides" if behind.finding.spared else ""
    text = f"{how}; without that rule {_by(behind)}{unless}{_means(behind)}"
    return _Fate(severity, text, advice(sure.finding, behind))


def _by_hook(path: Iterable[Met]) -> dict[str, dict[int, list[Met]]]:
    """The deciding rules of each hook, by family."""
    by_hook: dict[str, dict[int, list[Met]]] = {hook: {4: [], 6: []} for hook in HOOKS}
    for met in path:
        if met.order in ON_THE_WAY and met.finding.rule.act in ENDS:
            fates = by_hook.setdefault(met.hook, {4: [], 6: []})  # egress has one if it has rules
            fates[met.finding.table.family].append(met)
    return by_hook


def _fate(mets: Sequence[Met], behind: Met | None) -> _Fate:
    """The fate of packets that meet these rules, in order."""
    taking = [met for met in mets if met.finding.rule.act in TAKES]
    sure = _first_sure(mets)
    aimed = [met for met in taking if _may_take(met) and met is not sure]
    other = [met for met in taking if not _may_take(met) and met is not sure]
    if sure is not None and not sure.finding.spared:
        return _taken(sure, _by(sure) + _means(sure), _severity([sure]), behind)
    if sure is not None:
        # By identity: a comparison of two rules compares their tables.
        before = list(takewhile(lambda met: met is not sure, mets))
        earlier = _dependence(before)
        such = _such(
            sure, [met for met in before if _may_take(met) and met.finding.rule.act in TAKES]
        )
        text = f"{_by(sure)}, unless an earlier rule decides{such}{earlier}{_means(sure)}"
        return _taken(sure, text, _severity([sure, *aimed]), behind)
    if aimed:
        first = next((met for met in aimed if met.finding.rule.act is Act.RESET), aimed[0])
        text = f"accepted, or {_by(first)}{_dependence(aimed)}{_means(first)}"
        return _Fate(_severity(aimed), text, owners.todo(first.finding))
    accepting = [met for met in mets if met.finding.rule.act is Act.ACCEPT]
    plain = all(is_of_header(word) for met in accepting for word in met.finding.on)
    rest = next((met for met in other if plain and _takes_rest(met)), None)
    if rest is not None:
        text = f"{_by(rest)}, as other packets are, unless a rule for other properties accepts it"
        return _Fate(Status.NOTE, f"{text}{_dependence(mets)}{_means(rest)}", "")
    if other:
        names = list(dict.fromkeys(met.finding.chain for met in other))
        chains = ", ".join(names[:_MOST]) + (" and more" if len(names) > _MOST else "")
        text = f"accepted, unless a rule for other properties takes it in {chains}"
        return _Fate(Status.OK, text + _dependence(mets), "")
    return _Fate(Status.OK, "accepted", "")


def _first_sure(mets: Sequence[Met]) -> Met | None:
    passing = _passing(mets)
    taking = (met for met in mets if met.finding.rule.act in TAKES)
    return next((met for met in taking if _is_sure(met, passing)), None)


def _is_sure(met: Met, passing: AbstractSet[tuple[int, str]]) -> bool:
    """Whether a rule takes all INVALID packets, or all that earlier rules have left.

    An earlier rule that accepts without a test of the conntrack entry accepts INVALID packets as
    well; the later rule then does not single them out.
    """
    finding = met.finding
    if finding.truth is not Truth.YES or finding.rule.act in UNCERTAIN:
        return False
    return not finding.spared or _is_aimed(met) or not _may_pass(met, passing)


def _may_pass(met: Met, passing: AbstractSet[tuple[int, str]]) -> bool:
    """Whether an earlier rule of the base chain may have accepted the packets that a rule takes."""
    finding = met.finding
    rules = finding.table.chains[finding.chain]
    if finding.path or any(rule.act in {Act.RETURN, Act.GOTO} for rule in rules):
        return True
    return (id(finding.table), finding.chain) in passing


def _takes_rest(met: Met) -> bool:
    """Whether a rule takes all packets that no rule of its base chain accepts."""
    finding = met.finding
    rules = finding.table.chains[finding.chain]
    returns = any(rule.act in {Act.RETURN, Act.GOTO} for rule in rules)
    sure = finding.truth is Truth.YES and finding.rule.act in FINAL
    return sure and not finding.path and not returns


def _passing(mets: Iterable[Met]) -> set[tuple[int, str]]:
    """The chains, each with the identity of its table, in which or from which a rule accepts."""
    return {
        (id(met.finding.table), name)
        for met in mets
        if met.finding.rule.act is Act.ACCEPT
        for name in (met.finding.chain, *met.finding.path)
    }


def _is_aimed(met: Met) -> bool:
    """Whether a rule takes packets because they are INVALID, by name or for lack of an entry."""
    return met.finding.state or met.finding.untracked


def _may_take(met: Met) -> bool:
    """Whether a rule is aimed at INVALID packets, or its effect on all packets is not known."""
    return _is_aimed(met) or (met.finding.rule.act in UNCERTAIN and met.finding.truth is Truth.YES)


def _severity(mets: Sequence[Met]) -> Status:
    acts = {met.finding.rule.act for met in mets if owner_of(met.finding) is not SYNPROXY}
    if Act.RESET in acts:
        return Status.PROBLEM
    if acts & {Act.DROP, Act.REJECT, Act.ELSEWHERE}:
        return Status.WARNING
    return Status.NOTE


def _by(met: Met) -> str:
    finding = met.finding
    sent = f" ({finding.rule.target})" if finding.rule.target else ""
    by = "by" if finding.state else "by default:"
    when = ", before the guard sees it" if met.order is Order.BEFORE else ""
    rule = f"`{finding.rule.text}` ({owners.place(finding)})"
    return f"{_WORDS[finding.rule.act]}{sent} {by} {rule}{when}"


def _such(sure: Met, aimed: Sequence[Met]) -> str:
    """An earlier rule that treats the packets of some interfaces differently, or may do so."""
    for finding in (met.finding for met in aimed):
        act = finding.rule.act
        if act is not sure.finding.rule.act and (finding.by_interface or act in UNCERTAIN):
            may = "or " if act in UNCERTAIN else ""
            return f" ({may}{_WORDS[act]} by `{finding.rule.text}` in chain {finding.chain})"
    return ""


def _means(met: Met) -> str:
    reset = met.finding.rule.act is Act.RESET
    return "; the RST ends the connection" if reset else ""


def _dependence(mets: Sequence[Met]) -> str:
    on = list(dict.fromkeys(word for met in mets for word in met.finding.on))
    if not on:
        return ""
    return f"; depends on: {', '.join(on[:_MOST])}{' and more' if len(on) > _MOST else ''}"
