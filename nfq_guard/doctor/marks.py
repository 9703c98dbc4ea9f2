# SPDX-License-Identifier: MIT
"""Other programs' rules that write the mark bit by which kernel-drop knows unjudged packets."""

from collections.abc import Iterable, Iterator

from nfq_guard.doctor.check import Check, ok, warning
from nfq_guard.firewall.saved import Saved, is_own, split


def marks(saved: Iterable[Saved], unjudged: int) -> Iterator[Check]:
    """Whether another program's rule may write the bits `unjudged` of a packet's mark."""
    conflicts = [
        f"{table.name} {rule.chain} `{rule.text}`"
        for tables in saved
        for table in tables.values()
        for rule in table.rules
        if not is_own(rule.chain) and touched(rule.text) & unjudged
    ]
    if not conflicts:
        yield ok(
            "rules.mark", f"no other rule writes the mark bit of unjudged packets ({unjudged:#x})"
        )
        return
    more = f" and {len(conflicts) - 1} more rules" if len(conflicts) > 1 else ""
    yield warning(
        "rules.mark",
        f"{conflicts[0]}{more} may write the mark bit of unjudged packets ({unjudged:#x}): "
        "kernel-drop then drops accepted packets, or accepts packets that were never judged",
        "restrict that rule's mask to other bits, or use fail mode open or closed",
    )


def touched(rule: str) -> int:
    """The bits of the packet's mark that a rule may change."""
    words = split(rule)
    for option in ("--set-xmark", "--set-mark", "--restore-mark"):
        if option not in words:
            continue
        if option == "--restore-mark":
            return _number(_after(words, "--nfmask") or "0xffffffff")
        if "CONNMARK" in words:
            return 0
        value, slash, mask = (_after(words, option) or "0").partition("/")
        return _number(value) | (_number(mask) if slash else 0xFFFFFFFF)
    return 0


def _after(words: list[str], option: str) -> str | None:
    if option not in words[:-1]:
        return None
    return words[words.index(option) + 1]


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
