# SPDX-License-Identifier: MIT
"""The steps of a plan for the rules that take INVALID packets.

A command removes a rule only if no other packet can match it; for all other rules a step is words.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from nfq_guard.doctor import fate
from nfq_guard.doctor.handled import Handled, handled
from nfq_guard.doctor.owners import PLAIN
from nfq_guard.doctor.removed import Place
from nfq_guard.doctor.rule_model import Table
from nfq_guard.firewall import native
from nfq_guard.firewall.saved import split

# Chains to which a rule moves that must not hide packets from the guard: they follow every path
# from PREROUTING.
_BEHIND: Final = ("INPUT", "FORWARD")
# The match that tells a moved rule from one of the host.
_MOVED: Final = "-m comment --comment nfq-guard-moved"
# A path for a shell; only root can write there.
_KEPT: Final = '"$HOME"/nfq-guard-plan'
_MOST: Final = 2


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan.

    Attributes:
        what: What it does and why, in one line.
        commands: Commands for a root shell; empty if the step cannot be scripted.
        stays: Whether the command keeps running until the end of the plan, in its own terminal.
    """

    what: str
    commands: tuple[str, ...] = ()
    stays: bool = False


@final
class Moves(NamedTuple):
    """The steps of the plan for one part of the current handling, by stage.

    Attributes:
        found: The current handling, in one line; empty where another part tells it.
        beside: As in `plan.Plan`.
        over: As in `plan.Plan`.
        back: As in `plan.Plan`.
    """

    found: str = ""
    beside: tuple[Step, ...] = ()
    over: tuple[Step, ...] = ()
    back: tuple[Step, ...] = ()


_AS_BEFORE: Final = Step("put the rule and its chain back as they were before")


def rule_moves(tables: Sequence[Table]) -> Iterator[Moves]:
    """The steps for each rule that takes INVALID packets, then those for the chains they are in."""
    every = handled(tables)
    chains: dict[tuple[str, ...], list[tuple[Place, Handled]]] = {}
    for one in every:
        yield _in_words(one)
        for place in one.places if _is_scripted(one) else ():
            chains.setdefault(_chain_of(place), []).append((place, one))
    for places in chains.values():
        unique = {place.rule.handle or id(place.rule): (place, one) for place, one in places}
        ordered = sorted(unique.values(), key=lambda each: _index(each[0]))
        script = _native if ordered[0][0].table.nft_family else _iptables
        yield script(ordered)


def _is_scripted(one: Handled) -> bool:
    """Whether commands change a rule."""
    if one.owner is not PLAIN or one.obstacle:
        return False
    if one.hidden and one.finding.table.nft_family:
        return False
    return one.behind is None or one.movable


def _in_words(one: Handled) -> Moves:
    """The steps for a rule that are no commands."""
    finding = one.finding
    table = finding.table
    family = "" if table.nft_family else f", IPv{table.family}"
    whose = "" if one.owner is PLAIN else f" of {one.owner.name}"
    found = (
        f"a rule{whose} in {table.filter} table {table.name}, chain {finding.chain}{family}: "
        f"{finding.rule.text}"
    )
    if one.owner is not PLAIN:
        return _of_owner(found, one)
    if one.obstacle:
        return _by_hand(found, one)
    if one.hidden and not one.movable:
        return _hidden(found, one)
    if one.behind is not None:
        return Moves(found, over=(_blocked(one),))
    return Moves(found)


def _of_owner(found: str, one: Handled) -> Moves:
    name, todo = one.owner.name, one.todo
    first = f"the guard sees no packet that the rule of {name} takes before it: {todo}"
    return Moves(
        found,
        beside=(Step(first),) if one.hidden else (),
        over=() if one.hidden else (Step(f"the rule of {name}: {todo}"),),
        back=() if fate.leaves(todo) else (Step(f"set {name} as it was before"),),
    )


def _by_hand(found: str, one: Handled) -> Moves:
    """The steps for a rule whose removal would change more than the fate of INVALID packets."""
    seen = "the guard sees no packet that the rule takes before it. " if one.hidden else ""
    step = Step(
        f"{seen}No command is safe for the rule of chain {one.finding.chain}: {one.obstacle}. "
        "Change it by hand so that it takes all but INVALID packets as before, or keep it, and "
        "expect it to take INVALID packets whatever the policy allows"
    )
    return Moves(
        found,
        beside=(step,) if one.hidden else (),
        over=() if one.hidden else (step,),
        back=(Step("set the rule as it was before, if you have changed it"),),
    )


def _hidden(found: str, one: Handled) -> Moves:
    """The steps for a rule before the guard that no command moves behind it."""
    is_native = bool(one.finding.table.nft_family)
    todo = (
        f"give its chain a priority above {native.PRIORITY}, which is the guard's"
        if is_native
        else "move it by hand to chains behind the guard, with all conditions under which packets "
        "reach it"
    )
    beside = (Step(f"the guard sees no packet that the rule takes before it: {todo}"),)
    if one.behind is not None:
        return Moves(found, beside, over=(_blocked(one),), back=(_AS_BEFORE,))
    if is_native:
        return Moves(found, beside, over=(Step(_instead([one])),), back=(_AS_BEFORE,))
    return Moves(found, beside)


def _blocked(one: Handled) -> Step:
    """The step for a rule behind which another one takes the packets."""
    which = "moved rule" if one.movable else "rule"
    finding = one.finding
    return Step(f"the {which} `{finding.rule.text}` of chain {finding.chain}: {one.todo}")


def _instead(ones: Sequence[Handled], which: str = "the rule") -> str:
    text = f"remove {which if len(ones) == 1 else f'{which}s'}: the policy decides instead"
    others = list(dict.fromkeys(other for one in ones for other in one.others))
    if not others:
        return text
    more = " and more" if len(others) > _MOST else ""
    return f"{text}, except for what others take: {', '.join(others[:_MOST])}{more}"


def _chain_of(place: Place) -> tuple[str, ...]:
    """The chain of a rule; one of nftables is the same for both families."""
    table = place.table
    return (table.filter, table.nft_family or str(table.family), table.name, place.chain)


def _index(place: Place) -> int:
    rules = place.table.chains[place.chain]
    return next(index for index, each in enumerate(rules) if each is place.rule)


def _iptables(places: Sequence[tuple[Place, Handled]]) -> Moves:
    """The steps for the rules of one chain, in its order."""
    beside: list[Step] = []
    over: list[Step] = []
    unmoving: list[Step] = []
    staying = [(place, one) for place, one in places if not one.movable]
    for place, one in places:
        if not one.movable:
            continue
        there = f"{_program(place, 'filter')} -{{}} {{}} {_MOVED} {_words(place)}"
        moves = [there.format("I", f"{chain} 1") for chain in _BEHIND]
        what = "move the rule behind the guard, which would not see the packets"
        beside.append(Step(what, (" && ".join([*moves, _remove(place)]),)))
        unmoved = tuple(
            f"! {there.format('C', chain)} 2>/dev/null || {there.format('D', chain)}"
            for chain in _BEHIND
        )
        if one.behind is None:
            over.append(Step(_instead([one], "the moved rule"), unmoved))
        unmoving.append(Step("remove the moved rule, if it is still there", unmoved))
    if staying:
        removing = tuple(_remove(place) for place, _ in staying)
        over.append(Step(_instead([one for _, one in staying]), removing))
    returning = tuple(
        f"{_program(place)} -C {place.chain} {_words(place)} 2>/dev/null || "
        f"{_program(place)} -I {place.chain} {_index(place) + 1} {_words(place)}"
        for place, _ in places
    )
    what = "put the rule back in its place" if len(returning) == 1 else "put the rules back"
    return Moves(beside=tuple(beside), over=tuple(over), back=(Step(what, returning), *unmoving))


def _program(place: Place, table: str = "") -> str:
    program = f"{'ip' if place.table.family == 4 else 'ip6'}tables-{place.table.filter}"
    return f"{program} -w -t {table or place.table.name}"


def _remove(place: Place) -> str:
    return f"{_program(place)} -D {place.chain} {_words(place)}"


def _words(place: Place) -> str:
    """The words of a rule for a shell."""
    text = place.rule.text
    is_plain = re.fullmatch(r"[\w./:,= -]*", text) is not None
    return text if is_plain else shlex.join(split(text))


def _native(places: Sequence[tuple[Place, Handled]]) -> Moves:
    """The steps for the rules of one chain; what nft lists of a chain can be loaded again."""
    first, _ = places[0]
    chain = shlex.join([first.table.nft_family, first.table.name, first.chain])
    handles = [place.rule.handle for place, _ in places]
    named = re.sub(r"[^\w.]+", "-", " ".join([chain, *map(str, handles)]))
    kept = f"{_KEPT}-{named}.nft"
    deleted = "; ".join(f"delete rule {chain} handle {handle}" for handle in handles)
    # A rule is removed only where the saved chain can be loaded again.
    removing = (
        f"nft -a list chain {chain} | grep -q ' handle {handles[0]}$' && "
        f"{{ echo 'flush chain {chain}' && nft list chain {chain}; }} >{kept}.new && "
        f"nft -c -f {kept}.new && mv {kept}.new {kept} && nft '{deleted}'"
    )
    what = _instead([one for _, one in places])
    return Moves(
        over=(Step(f"save the chain, then {what}", (removing,)),),
        back=(
            Step(
                "load the saved chain, if there is one",
                (f"! test -e {kept} || {{ nft -f {kept} && rm {kept}; }}",),
            ),
        ),
    )
