# SPDX-License-Identifier: MIT
"""Other programs' rules that write the mark bit with which kernel-drop marks unjudged packets."""

from collections.abc import Iterable, Iterator

from nfq_guard.doctor import owners
from nfq_guard.doctor.check import Check, ok, warning
from nfq_guard.doctor.path import Met, Order
from nfq_guard.names import counted


def marks(path: Iterable[Met], unjudged: int) -> Iterator[Check]:
    """Whether a rule after ours changes the bits `unjudged` of a packet's mark.

    Our rules set these bits directly before the queue, and the verdict clears them, so a rule
    before ours has no effect on them.
    """
    set_by: list[str] = []
    cleared_by: list[str] = []
    for met in path:
        write = met.finding.rule.mark
        if write is None or met.order not in {Order.AFTER, Order.TIED}:
            continue
        if met.hook != "postrouting" and write.sets(unjudged):
            set_by.append(_text(met))
        elif met.hook != "postrouting" and write.clears(unjudged):
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
    if not set_by and not cleared_by:
        yield ok(
            "rules.mark",
            f"no rule after ours writes the mark bit of unjudged packets ({unjudged:#x})",
        )


def _text(met: Met) -> str:
    finding = met.finding
    return f"`{finding.rule.text}` ({owners.place(finding)})"


def _first(texts: list[str]) -> str:
    different = list(dict.fromkeys(texts))
    more = len(different) - 1
    return f"{different[0]} and {counted(more, 'more rule')}" if more else different[0]
