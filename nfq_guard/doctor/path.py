# SPDX-License-Identifier: MIT
"""The path of an INVALID packet through the hooks of a host, before and after our rules."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce
from itertools import groupby
from typing import Final, NamedTuple, final

from nfq_guard.doctor.follow import Finding, Follower
from nfq_guard.doctor.packet_mark import Marks
from nfq_guard.doctor.rule_model import (
    CONNTRACK_PRIORITY,
    FINAL,
    INGRESS,
    NFT_SECURITY,
    Act,
    Table,
)
from nfq_guard.firewall import native
from nfq_guard.firewall.render import MANGLE, SECURITY
from nfq_guard.firewall.spec import CHAIN
from nfq_guard.raw_rules import UNTRACKED

_MANGLE_PRIORITY: Final = -150
_NATIVE: Final = "nftables"
# By packet filter and hook: the table and priority where `rules install` adds our rules.
_PLACES: Final = {
    "legacy": {"prerouting": (MANGLE, _MANGLE_PRIORITY), "output": (MANGLE, _MANGLE_PRIORITY)},
    "nft": {"prerouting": (MANGLE, _MANGLE_PRIORITY), "output": (SECURITY, NFT_SECURITY)},
    _NATIVE: {"prerouting": ("", native.PRIORITY), "output": ("", native.PRIORITY)},
}

HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
_EGRESS: Final = "egress"
"""The hook of single devices, after all others."""
_BEFORE: Final = {
    INGRESS: (),
    "prerouting": (INGRESS,),
    "input": ("prerouting",),
    "forward": ("prerouting",),
    "output": (),
    "postrouting": ("forward", "output"),
    _EGRESS: ("postrouting",),
}
"""The hooks from which a packet gets to a hook with its mark."""
BEHIND_PREROUTING: Final = frozenset({"input", "forward"})
"""The hooks that a packet reaches through PREROUTING only."""
_OUR_HOOKS: Final = ("prerouting", "output")


class Order(StrEnum):
    """Position of a rule on a packet's path, relative to ours; the earliest first."""

    UNTRACKED = "before connection tracking"
    BEFORE = "before ours"
    TIED = "at the same priority as ours, in another table"
    SHADOWED = "behind ours in the same hook and table"
    AFTER = "after ours"
    NEVER = "which INVALID packets never reach"


@final
@dataclass(frozen=True, slots=True)
class Met:
    """A rule on the path.

    Attributes:
        hook: The hook in which the packet meets it.
        order: Its position relative to our rules.
        finding: The rule.
        stopped: The act of a rule in an earlier hook by which no packet gets here; None if some do.
        templated: Whether some packets have a template before conntrack (`Rule.template`).
    """

    hook: str
    order: Order
    finding: Finding
    stopped: Act | None = None
    templated: bool = False

    @property
    def beside_conntrack(self) -> bool:
        """Whether the rule has conntrack's own priority: the one loaded last runs first."""
        same = self.finding.table.bases[_base(self)].priority == CONNTRACK_PRIORITY
        return same and self.hook != INGRESS


ON_THE_WAY: Final = frozenset({Order.BEFORE, Order.TIED, Order.AFTER})
"""The orders of rules that apply to a packet that the policy allows, or would allow."""


@final
class _Place(NamedTuple):
    """Where our rules are in a hook.

    Attributes:
        priority: Of the base chain.
        table: The table.
        jump: The place of our jump in the base chain, or of a rule that leads to our queue.
    """

    priority: int
    table: Table
    jump: int


@final
class _Planned(NamedTuple):
    """Where `rules install` would add our rules in a hook, after all rules of the table.

    Attributes:
        priority: Of the base chain.
        filter: The packet filter.
        table: The name of the table; empty for one of our own.
    """

    priority: int
    filter: str
    table: str

    def is_in(self, table: Table) -> bool:
        """Whether our rules would be in this table."""
        return (table.filter, table.name) == (self.filter, self.table)


def walk(tables: Sequence[Table], family: int) -> Iterator[Met]:
    """The rules that a packet of one family may meet in each hook, in the order of the path.

    A rule for the packets of a set selects INVALID ones if another rule adds these to it.

    Args:
        tables: The tables of all packet filters.
        family: 4 or 6.
    """
    mets = list(_walk(tables, family, {}))
    filled = {(_sets_of(met), met.finding.rule.fills) for met in mets if met.finding.state}
    stopped = stops(mets)
    templates: list[Met] = []
    for each in mets:
        met = _templated(each, templates)
        if each.finding.rule.template:
            templates.append(each)
        if each.hook in BEHIND_PREROUTING and each.order in ON_THE_WAY:
            met = replace(each, stopped=stopped.get(family))
        asked = {(_sets_of(met), word) for word in met.finding.on}
        aimed = not met.finding.state and not filled.isdisjoint(asked)
        yield (
            replace(met, finding=replace(met.finding, state=True, listed=True)) if aimed else met
        )


def _templated(met: Met, templates: Iterable[Met]) -> Met:
    """A rule before conntrack, behind these rules that attach a template.

    One for INVALID packets only has no effect where every packet has a template.
    """
    if met.order is not Order.UNTRACKED or not met.finding.state or met.beside_conntrack:
        return met
    before = [each for each in templates if (each.hook == "output") is (met.hook == "output")]
    if met.finding.only and any(_covers(each, met) for each in before):
        return replace(met, order=Order.NEVER, templated=True)
    return replace(met, templated=bool(before))


def _covers(template: Met, met: Met) -> bool:
    """Whether every packet gets a template by a rule before it meets another one."""
    same = template.finding.table is met.finding.table and _base(template) == _base(met)
    return template.finding.certain and (same or _place(template) < _place(met))


def _base(met: Met) -> str:
    """The base chain of a rule."""
    return (met.finding.path or (met.finding.chain,))[-1]


def _place(met: Met) -> tuple[bool, int]:
    """The place of a rule's base chain among those before conntrack."""
    return (met.hook != INGRESS, met.finding.table.bases[_base(met)].priority)


def marks_behind(tables: Sequence[Table], family: int) -> dict[str, Marks]:
    """The marks of packets of one family behind each hook, by hook."""
    found: dict[str, Marks] = {}
    for _ in _walk(tables, family, found):
        pass
    return found


def stops(mets: Iterable[Met]) -> dict[int, Act]:
    """By family, the act by which a rule stops every packet in PREROUTING."""
    found: dict[int, Act] = {}
    for met in mets:
        if met.hook == "prerouting" and _takes(met):
            found.setdefault(met.finding.table.family, met.finding.rule.act)
    return found


def _sets_of(met: Met) -> tuple[str, str]:
    """Where the sets of a rule are: in its table, or anywhere for iptables."""
    table = met.finding.table
    return (table.nft_family, table.name) if table.nft_family else ("", "")


def _walk(tables: Sequence[Table], family: int, out: dict[str, Marks]) -> Iterator[Met]:
    """As `walk`, without what one rule means for another one; `out` gets the marks by hook."""
    here = [table for table in tables if table.family == family]
    followers = [(table, Follower(table)) for table in here]
    untracks: dict[str, bool] = {}
    for hook in (INGRESS, *HOOKS, _EGRESS):
        ours = _ours(here, hook)
        attached = [
            (base.priority, _Chain(hook, table, follower, chain, ours))
            for table, follower in followers
            if not table.own
            for chain, base in table.bases.items()
            if base.hook == hook
        ]
        attached.sort(key=lambda each: each[0])
        before = [out[each] for each in _BEFORE[hook]] or [Marks()]
        marks = reduce(Marks.either, before)
        taken = False
        loose = any(untracks[each] for each in _BEFORE[hook])
        for _, group in groupby(attached, key=lambda each: each[0]):
            tied = [chain for _, chain in group]
            after = [chain.follow(marks).marks for chain in tied]
            if len(tied) > 1:  # any of them may write the mark before the others test it
                marks = reduce(Marks.either, after, marks)
                after = [reduce(Marks.either, after)]
            mets = [chain.follow(marks).mets for chain in tied]
            marks = after[0]
            if taken:
                mets = [[met for met in each if met.order not in ON_THE_WAY] for each in mets]
            taken = taken or any(_takes(met) for each in mets for met in each)
            for met in _unordered(mets):
                yield _spared(met) if loose and met.order in ON_THE_WAY else met
                loose = loose or met.finding.rule.act is Act.UNTRACKS
        out[hook] = marks
        untracks[hook] = loose


@final
class _Followed(NamedTuple):
    """What a packet may meet in one base chain, and the marks behind it."""

    mets: list[Met]
    marks: Marks


@final
class _Chain(NamedTuple):
    """A base chain of a hook."""

    hook: str
    table: Table
    follower: Follower
    chain: str
    ours: "_Place | _Planned | None"

    def follow(self, marks: Marks) -> _Followed:
        """Follow a packet with these marks through the chain."""
        mets: list[Met] = []
        out: Marks | None = None
        here: Marks | None = marks
        for order, start, end in _parts(self.table, self.chain, self.ours):
            walk = self.follower.base(self.chain, start, end, here)
            for followed in walk.findings:
                finding = _tracked(followed, order)
                hidden = _hides_nothing(order, self.table, self.ours)
                if finding.rule.act is not Act.ACCEPT or not hidden:
                    mets.append(Met(self.hook, order, finding))
            passed = marks if order is Order.NEVER else walk.out
            if order is Order.UNTRACKED and passed is not None:
                passed = passed.alike()
            out = passed if out is None else out.either(passed)
            here = walk.left
        return _Followed(mets, marks if out is None else out)


def _takes(met: Met) -> bool:
    """Whether no packet goes on after this rule."""
    certain = met.finding.certain and met.finding.rule.act in FINAL
    return certain and met.order in ON_THE_WAY


def _unordered(mets: Sequence[Sequence[Met]]) -> Iterator[Met]:
    """What base chains of the same priority have: the kernel defines no order among these.

    Each may take what another one would; the one that resets comes first.
    """
    taking = [each for each in mets if any(_takes(met) for met in each)]
    for each in sorted(mets, key=lambda each: not any(_resets(met) for met in each)):
        others = [other for other in taking if other is not each]
        for met in each:
            yield _spared(met) if others and met.order in ON_THE_WAY else met


def _spared(met: Met) -> Met:
    """A rule that the packet may not meet."""
    return replace(met, finding=replace(met.finding, spared=True))


def _resets(met: Met) -> bool:
    return _takes(met) and met.finding.rule.act is Act.RESET


def _tracked(finding: Finding, order: Order) -> Finding:
    """Adjust a finding for `notrack` after conntrack: the packet is UNTRACKED then, not INVALID."""
    tracking = finding.rule.tracking
    if tracking is None or tracking.zone != UNTRACKED or order is Order.UNTRACKED:
        return finding
    return replace(finding, rule=replace(finding.rule, act=Act.UNTRACKS))


def _hides_nothing(order: Order, table: Table, ours: _Place | _Planned | None) -> bool:
    """Whether an accept before our rules is in another table: it ends only its own table."""
    if order is not Order.BEFORE or ours is None:
        return False
    if isinstance(ours, _Planned):
        return not ours.is_in(table)
    return table is not ours.table


def _ours(tables: Sequence[Table], hook: str) -> _Place | _Planned | None:
    if hook not in _OUR_HOOKS:
        return None
    places: list[_Place] = []
    for table in tables:
        for chain, base in table.bases.items():
            if base.hook != hook:
                continue
            if table.own:
                places.append(_Place(base.priority, table, 0))
            places += [
                _Place(base.priority, table, index)
                for index, rule in enumerate(table.chains[chain])
                if rule.target == CHAIN or (rule.own and rule.act is Act.ELSEWHERE)
            ]
    if places:
        return min(places, key=lambda place: place.priority)
    name, priority = _PLACES[_filter_to_use(tables)][hook]
    return _Planned(priority, _filter_to_use(tables), name)


def _filter_to_use(tables: Sequence[Table]) -> str:
    """The packet filter that `rules install` would choose by the rules of others."""
    rules = Counter[str]()
    for table in tables:
        rules[table.filter] += sum(map(len, table.chains.values()))
    del rules[_NATIVE]
    ((most, count),) = rules.most_common(1) or [(_NATIVE, 1)]
    return most if count else _NATIVE


def _parts(
    table: Table, chain: str, ours: _Place | _Planned | None
) -> Iterator[tuple[Order, int, int | None]]:
    """The parts of a base chain, each with its order."""
    base = table.bases[chain]
    if base.kind == "nat":
        yield Order.NEVER, 0, None
    elif base.hook == INGRESS:
        yield Order.UNTRACKED, 0, None
    elif ours is None:
        yield Order.AFTER, 0, None
    elif base.priority <= CONNTRACK_PRIORITY:
        yield Order.UNTRACKED, 0, None
    elif isinstance(ours, _Planned):
        before = ours.is_in(table)
        yield Order.BEFORE if before else _order(base.priority, ours.priority), 0, None
    elif table is ours.table:
        yield Order.BEFORE, 0, ours.jump
        yield Order.SHADOWED, ours.jump + 1, None
    else:
        yield _order(base.priority, ours.priority), 0, None


def _order(priority: int, ours: int) -> Order:
    if priority == ours:
        return Order.TIED
    return Order.BEFORE if priority < ours else Order.AFTER
