# SPDX-License-Identifier: MIT
"""Other programs' rules that write the mark bit with which kernel-drop marks unjudged packets."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, final

from nfq_guard.doctor import owners
from nfq_guard.doctor.check import Check, ok, warning
from nfq_guard.doctor.follow import Follower
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import PRIORITIES
from nfq_guard.firewall import Native, Place, RulesSpec, native
from nfq_guard.firewall.render import wanted
from nfq_guard.firewall.spec import FALLBACK_CHAIN, NATIVE_TABLE
from nfq_guard.names import counted


@final
class _Fallback(NamedTuple):
    """Where packets with the mark are dropped in a hook."""

    filter: str
    table: str
    priority: int


def marks(path: Iterable[Met], spec: RulesSpec, place: Place) -> Iterator[Check]:
    """Whether a rule of others writes the mark bits of unjudged packets.

    Our rules set these bits directly before the queue, and the verdict clears them. A rule between
    our queue and our fallback changes what is dropped; one before ours loses the bits that it set;
    one behind the fallback has its way.

    Args:
        path: The rules that a packet meets in every hook, for both families.
        spec: Our rules, in fail mode kernel-drop.
        place: The packet filter where they are.
    """
    unjudged = spec.unjudged_mark
    fallbacks = _fallbacks(spec, place)
    set_by: list[str] = []
    cleared_by: list[str] = []
    lost: list[str] = []
    for met in path:
        write = met.finding.rule.mark
        if write is None:
            continue
        if met.order in {Order.UNTRACKED, Order.BEFORE} and write.sets(unjudged):
            lost.append(_text(met))
        if met.order not in {Order.AFTER, Order.TIED}:
            continue
        if not _is_before(met, fallbacks):
            continue
        if write.sets(unjudged):
            set_by.append(_text(met))
        if write.clears(unjudged):
            cleared_by.append(_text(met))
    if set_by:
        yield warning(
            "rules.mark",
            f"{_first(set_by)} may set the mark bit of unjudged packets ({unjudged:#x}): "
            "kernel-drop then drops packets that the policy allows",
            f"restrict the mask of that rule to bits other than {unjudged:#x}, or use fail mode "
            "open or closed",
        )
    if cleared_by:
        yield warning(
            "rules.mark",
            f"{_first(cleared_by)} may clear the mark bit of unjudged packets ({unjudged:#x}): "
            "kernel-drop then accepts packets that were never judged",
            f"restrict the mask of that rule to bits other than {unjudged:#x}",
        )
    if lost:
        yield warning(
            "rules.mark",
            f"{_first(lost)} may set the mark bit of unjudged packets ({unjudged:#x}) before ours: "
            "with kernel-drop a packet that the policy allows goes on without this bit",
            f"restrict the mask of that rule to bits other than {unjudged:#x}, or use fail mode "
            "open or closed",
        )
    if not set_by and not cleared_by and not lost:
        yield ok(
            "rules.mark",
            f"no other rule writes the mark bit of unjudged packets ({unjudged:#x})",
        )


def _fallbacks(spec: RulesSpec, place: Place) -> dict[str, _Fallback]:
    """The fallbacks, by hook."""
    if place is Native.NFTABLES:
        fallback = _Fallback(str(place), NATIVE_TABLE, native.FALLBACK_PRIORITY)
        return dict.fromkeys(("prerouting", "output"), fallback)
    return {
        chain.lower(): _Fallback(str(place), rules.table, PRIORITIES[rules.table])
        for rules in wanted(spec, place)
        if rules.chain == FALLBACK_CHAIN
        for chain, _ in rules.jumps
    }


def _is_before(met: Met, fallbacks: Mapping[str, _Fallback]) -> bool:
    """Whether a packet may meet a rule and a fallback after it.

    Our jump to the fallback will be the first rule of its chain where it is not installed.
    """
    if met.hook == "prerouting" and met.hook not in fallbacks:
        return True
    fallback = fallbacks.get(met.hook)
    if fallback is None:
        return False
    finding = met.finding
    table, chain = finding.table, (finding.path or (finding.chain,))[-1]
    jumps = [
        place for place, rule in enumerate(table.chains[chain]) if rule.target == FALLBACK_CHAIN
    ]
    if jumps:
        before = Follower(table).base(chain, 0, jumps[0]).findings
        return any(each.rule is finding.rule for each in before)
    here = (table.filter, table.name) == (fallback.filter, fallback.table)
    return not here and table.bases[chain].priority <= fallback.priority


def _text(met: Met) -> str:
    finding = met.finding
    return f"`{finding.rule.text}` ({owners.place(finding)})"


def _first(texts: list[str]) -> str:
    different = list(dict.fromkeys(texts))
    more = len(different) - 1
    return f"{different[0]} and {counted(more, 'more rule')}" if more else different[0]
