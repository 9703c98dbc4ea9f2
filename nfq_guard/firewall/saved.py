# SPDX-License-Identifier: MIT
"""Reads the output of iptables-save, and finds our chains and rules in it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final

from nfq_guard.firewall.spec import CHAIN

_HIDDEN: Final = re.compile(r"# Table `(\w+)' is incompatible")

# Targets after which the packet leaves the table. Others (MARK, TEE, LOG, ...) continue.
_TERMINAL: Final = frozenset({"ACCEPT", "QUEUE", "NFQUEUE", "TPROXY", "SYNPROXY", "STOLEN"})
_DROPPING: Final = frozenset({"DROP", "REJECT"})
_QUEUES: Final = ("--queue-num", "--queue-balance")
# A word of iptables-save: in quotes, where a backslash precedes each quote and backslash, or plain.
_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(?!\S)|(\S+)')
_ESCAPED: Final = re.compile(r"\\(.)")
NEED_ENTRY: Final = frozenset({"cluster", "connbytes", "connmark"})
"""Matches of iptables that never hold without a conntrack entry."""
NEED_ENTRY_UNLESS_NEGATED: Final = frozenset({"connlabel", "helper"})
"""Those that then hold if they are negated."""
_STATES: Final = ("--ctstate", "--state")

Meaning = frozenset[tuple[str, ...]]
"""A rule's options, independent of their order and spelling."""


@final
@dataclass(frozen=True, slots=True)
class SavedRule:
    """One live rule.

    Attributes:
        chain: Its chain.
        text: The rule without `-A CHAIN`.
    """

    chain: str
    text: str

    @property
    def target(self) -> str:
        """The target of its jump or goto; empty for a rule that only counts."""
        words = split(self.text)
        for option in ("-j", "-g"):
            if option in words[:-1]:
                return words[words.index(option) + 1]
        return ""


@final
@dataclass(slots=True)
class SavedTable:
    """One live table.

    Attributes:
        name: Its name.
        policies: Each chain with its policy; `-` for a user-defined chain.
        rules: All rules, in order.
        readable: False for a table of nft that iptables cannot list; policies and rules are empty
            then.
    """

    name: str
    policies: dict[str, str] = field(default_factory=dict)
    rules: list[SavedRule] = field(default_factory=list)
    readable: bool = True

    def of(self, chain: str) -> list[SavedRule]:
        """The rules of one chain, in order."""
        return [rule for rule in self.rules if rule.chain == chain]

    def own_chains(self) -> list[str]:
        """Our chains, created by any release of nfq_guard."""
        return [name for name in self.policies if is_own(name)]

    def own_jumps(self) -> list[SavedRule]:
        """Rules outside our chains that lead into one of them."""
        return [rule for rule in self.rules if not is_own(rule.chain) and is_own(rule.target)]

    def taker(self, rule: SavedRule) -> SavedRule | None:
        """The rule that ends the built-in chain for INVALID packets: `rule` or one it jumps to.

        A drop with another condition, such as a failed path filter, does not count.
        """
        if "-g" in split(rule.text):
            return rule
        waiting = [(rule, False)]
        seen: set[tuple[str, bool]] = set()
        while waiting:
            one, stated = waiting.pop(0)
            stated = stated or _state_matches(one.text) is True
            if one.target in self.policies:
                if (one.target, stated) not in seen and not is_own(one.target):
                    seen.add((one.target, stated))
                    waiting += [
                        (each, stated)
                        for each in self.of(one.target)
                        if may_take_invalid(each.text)
                    ]
            elif one.target in _DROPPING:
                if stated or (one is rule and split(one.text)[0] == "-j"):
                    return one
            elif one.target in _TERMINAL or (one.target == "RETURN" and one is rule):
                return one
        return None

    def foreign_count(self) -> int:
        """The number of rules and chains that are not ours."""
        rules = sum(1 for r in self.rules if not is_own(r.chain) and not is_own(r.target))
        return rules + sum(1 for n, p in self.policies.items() if p == "-" and not is_own(n))


Saved = dict[str, SavedTable]


def is_own(chain: str) -> bool:
    """Whether a chain of this name is ours."""
    return chain == CHAIN or chain.startswith(f"{CHAIN}_")


def queue_of(rule: str) -> str | None:
    """The queue to which a rule leads: `7`, or `7:9` for several; None for none."""
    words = split(rule)
    option = next((each for each in _QUEUES if each in words[:-1]), None)
    return None if option is None else words[words.index(option) + 1]


def queues_of(rule: str) -> range:
    """The queues to which a rule leads; empty for none."""
    first, _, last = (queue_of(rule) or "").partition(":")
    return range(int(first), int(last or first) + 1) if first else range(0)


def parse(text: str) -> Saved:
    """Read the output of iptables-save; unknown lines are skipped.

    iptables-nft names the tables that it cannot list in a comment.
    """
    tables: Saved = {}
    table = SavedTable("")
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), SavedTable(line[1:].strip()))
        elif line.startswith(":"):
            words = line[1:].split()
            if len(words) > 1:
                table.policies[words[0]] = words[1]
        elif line.startswith("-A "):
            _, chain, *rest = line.split(" ", 2)
            table.rules.append(SavedRule(chain, rest[0] if rest else ""))
        elif (hidden := _HIDDEN.match(line)) is not None:
            tables[hidden[1]] = SavedTable(hidden[1], readable=False)
    return tables


def _state_matches(rule: str) -> bool | None:
    """Whether a rule's conntrack state matches INVALID packets; None without such a condition."""
    words = split(rule)
    for option in ("--ctstate", "--state"):
        if option in words[:-1]:
            at = words.index(option)
            states = words[at + 1].split(",")
            return ("INVALID" in states) != (at > 0 and words[at - 1] == "!")
    return None


def may_take_invalid(rule: str) -> bool:
    """Whether a rule may match an INVALID packet; True if unknown."""
    return all(_may_hold(module, options) for module, options in _matches(rule))


def _may_hold(module: str, options: list[list[str]]) -> bool:
    """Whether the options of one match may hold for an INVALID packet."""
    names = {option[0] for option in options}
    stated = [
        ("INVALID" in option[1].split(",")) is not option[0].startswith("! ")
        for option in options
        if option[0].removeprefix("! ") in _STATES and len(option) > 1
    ]
    if module == "conntrack" and options and not stated:
        return False  # the other options of a match with a state are not looked at
    if module in NEED_ENTRY:
        return False
    if module in NEED_ENTRY_UNLESS_NEGATED and not all(name.startswith("! ") for name in names):
        return False
    # Our rules exclude the loopback interface.
    return all(stated) and ["-i", "lo"] not in options


def _matches(rule: str) -> list[tuple[str, list[list[str]]]]:
    """The matches of a rule: each match module, and before these the rule's own."""
    found: list[tuple[str, list[list[str]]]] = [("", [])]
    for option in _options(rule):
        if option[0] in {"-j", "-g"}:
            break
        if option[0] == "-m":
            found.append((" ".join(option[1:]), []))
        else:
            found[-1][1].append(option)
    return found


def split(rule: str) -> list[str]:
    """The words of a rule, unquoted."""
    if '"' not in rule:
        return rule.split()
    return [
        word if quoted is None else _ESCAPED.sub(r"\1", quoted)
        for quoted, word in (match.groups() for match in _WORD.finditer(rule))
    ]


def meaning(rule: str) -> Meaning:
    """The options of a rule, normalised.

    `-m NAME` is omitted, because its options imply it. A rate becomes whole microseconds a packet,
    which the kernel stores and iptables-save converts back.
    """
    return frozenset(tuple(words) for words in _options(rule) if words[0] != "-m")


def _options(rule: str) -> Iterator[list[str]]:
    current: list[str] = []
    negated = False
    for word in split(rule):
        if word == "!":
            negated = True
        elif word.startswith("-"):
            if current:
                yield _canonical(current)
            current = [f"! {word}" if negated else word]
            negated = False
        else:
            current.append(word)
    if current:
        yield _canonical(current)


def _canonical(option: list[str]) -> list[str]:
    if option[0] == "--hashlimit-above" and len(option) == 2:
        number, _, unit = option[1].partition("/")
        if number.isdecimal() and int(number) and unit in {"s", "sec", "second"}:
            return [option[0], f"{1_000_000 // int(number)} us"]
    return option
