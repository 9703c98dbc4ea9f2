# SPDX-License-Identifier: MIT
"""The sets of `ipset` that rules of iptables name: their elements, as the program saves them."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from nfq_guard.doctor import collect

MATCH: Final = "--match-set"

Sets: TypeAlias = Mapping[str, tuple[str, ...]]
"""The elements by the name of the set, without those that are exceptions in it."""


def read(names: Iterable[str]) -> Sets:
    """These sets; one that cannot be read is left out."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        elements = _of(name)
        if elements is not None:
            found[name] = elements
    return found


def _of(name: str) -> tuple[str, ...] | None:
    """The elements of a set; of a list of sets, those of its sets."""
    saved = collect.output("ipset", "save", name)
    if saved is None:
        return None
    elements = parse(saved)
    if not _is_list(saved):
        return elements
    members = [collect.output("ipset", "save", element) for element in elements]
    if None in members:
        return None
    return tuple(each for member in members if member is not None for each in parse(member))


def _is_list(saved: str) -> bool:
    return saved.startswith("create ") and saved.split()[2] == "list:set"


def parse(saved: str) -> tuple[str, ...]:
    """The elements in the output of `ipset save` for one set."""
    lines = (line.split() for line in saved.splitlines() if line.startswith("add "))
    return tuple(words[2] for words in lines if len(words) > 2 and "nomatch" not in words)
