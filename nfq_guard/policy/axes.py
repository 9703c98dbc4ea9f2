# SPDX-License-Identifier: MIT
"""One axis a field: which of up to hundreds of rules a packet can still meet, in one look-up.

The rules are bits of a number, the first rule the lowest bit. A span axis cuts the numbers of its
field at every bound that any rule names, and knows for each piece the rules that hold there. So
a packet costs one binary search a field, however many rules there are (the bit-vector scheme of
Lakshman and Stiliadis, SIGCOMM 1998).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, final

from nfq_guard.policy.facts import CODES
from nfq_guard.policy.fields import Field
from nfq_guard.policy.model import Condition, MarkBits, Pattern
from nfq_guard.policy.names import matches_mark, matches_name
from nfq_guard.policy.spans import ABSENT, Spans

# Names and marks that an axis remembers its answer for. A host has few of either; should
# something make up marks, the memory is emptied and filled anew.
MOST_REMEMBERED: Final = 1024


@final
class SpanAxis:
    """Of a field whose conditions are sets of numbers.

    Attributes:
        code: Which number of a packet to look up (`facts.number_of`).
    """

    def __init__(self, field: Field, spans: Sequence[Spans]) -> None:
        """Cut the numbers; `spans` has what each rule allows, in the order of the rules."""
        self.code = CODES[field.name]
        toggles: dict[int, int] = {}
        for number, allowed in enumerate(spans):
            for bound in allowed:
                toggles[bound] = toggles.get(bound, 0) ^ 1 << number
        self._bounds = sorted(toggles)
        self._pieces = [0]
        for bound in self._bounds:
            self._pieces.append(self._pieces[-1] ^ toggles[bound])

    def at(self, number: int) -> int:
        """The rules that hold at `number`, a bit each."""
        return self._pieces[bisect_right(self._bounds, number)]


@final
class MarkAxis:
    """Of a field of marks: each mark that comes by is tried once on every rule.

    Attributes:
        code: Which number of a packet to look up (`facts.number_of`).
    """

    def __init__(self, field: Field, asked: Sequence[Sequence[Condition]]) -> None:
        """Remember what each rule asks of the mark; a rule may ask nothing."""
        self.code = CODES[field.name]
        self._asked = asked
        self._known: dict[int, int] = {}

    def at(self, mark: int) -> int:
        """The rules that hold for `mark`, a bit each."""
        rules = self._known.get(mark)
        if rules is None:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            rules = self._known[mark] = _holding(self._asked, "", mark)
        return rules


@final
class NameAxis:
    """Of a field of interfaces: each name that comes by is tried once on every rule.

    Attributes:
        incoming: Whether it is about the incoming interface.
    """

    def __init__(self, field: Field, asked: Sequence[Sequence[Condition]]) -> None:
        """Remember what each rule asks of the name; a rule may ask nothing."""
        self.incoming = field.name == "in"
        self._asked = asked
        self._known: dict[str, int] = {}

    def at(self, name: str) -> int:
        """The rules that hold for `name`, a bit each."""
        rules = self._known.get(name)
        if rules is None:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            rules = self._known[name] = _holding(self._asked, name, ABSENT)
        return rules


def _holding(asked: Sequence[Sequence[Condition]], name: str, mark: int) -> int:
    rules = 0
    for number, conditions in enumerate(asked):
        if all(_meets(condition, name, mark) for condition in conditions):
            rules |= 1 << number
    return rules


def _meets(condition: Condition, name: str, mark: int) -> bool:
    """Whether a name or a mark meets `condition`, which is about one of them."""
    for value in condition.values:
        if isinstance(value, Pattern):
            found = matches_name(value, name)
        else:
            found = isinstance(value, MarkBits) and matches_mark(value, mark)
        if found:
            return not condition.negated
    return condition.negated
