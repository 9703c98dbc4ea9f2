# SPDX-License-Identifier: MIT
"""A valid policy as the operator wrote it: its keys, values and rules.

Nothing here is on the packet path.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELD_BY_NAME, Field, Kind
from nfq_guard.policy.intervals import (
    IntervalSet,
    complement,
    everything,
    from_intervals,
    intersection,
)

# Names in decisions if no rule matched.
RULE_DEFAULT: Final = "default"
RULE_ON_UNKNOWN: Final = "on-unknown"
# The name if rules of the host, not the packet, are the reason why it is INVALID (`raw_rules`).
RULE_HIDDEN_HALF: Final = "hidden-half"

# The value of `i_know` in a policy that drops every packet.
I_KNOW: Final = "drops everything"

POLICY_KEYS: Final = ("include", "on_unknown", "default", "i_know", "rule")
RULE_KEYS: Final = ("name", "comment", "action", "mark", "rate", "not", *FIELD_BY_NAME)
RATE_KEYS: Final = ("over", "in_s", "by")

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RESERVED_NAMES: Final = (RULE_DEFAULT, RULE_ON_UNKNOWN, RULE_HIDDEN_HALF)
# The possible actions if no rule matched. A heal requires a rule, which limits it.
LAST_ACTIONS: Final = tuple(action for action in Action if action is not Action.HEAL)
# Maximum depth of includes; deeper nesting is a mistake, even without a cycle.
DEEPEST_INCLUDE: Final = 8
# Maximum number of rules including includes: bounds the memory and the time of a reload.
MOST_RULES: Final = 1000
LONGEST_COMMENT: Final = 500
LARGEST_COUNT: Final = 1_000_000
LONGEST_WINDOW_S: Final = 3600


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, both included; `text` is how the file spells them."""

    text: str
    low: int
    high: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """TCP flags: all of `wanted` set and all of `unwanted` clear."""

    text: str
    wanted: int
    unwanted: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MarkBits:
    """Marks whose bits under `mask` are `bits`."""

    text: str
    bits: int
    mask: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """An interface name in which `*` stands for any characters and `?` for any one."""

    text: str


Value = Interval | Flags | MarkBits | Pattern


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One key of a rule: a packet has any of `values`, or with `negated` none of them."""

    field: Field
    negated: bool
    values: tuple[Value, ...]


class RateKey(StrEnum):
    """The key by which a rate counts packets."""

    FLOW = "flow"
    SOURCE = "source"
    SEGMENT = "segment"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rule with a rate matches beyond the limit, or with `negated` within the limit.

    Attributes:
        over: The first `over` packets in a window are within the limit.
        in_s: Length of the window in seconds; it begins with the first packet.
        by: Whether packets are counted by flow, by source, or by segment: copies of the same one.
        negated: Whether the rule matches within the limit instead of beyond it.
    """

    over: int
    in_s: float
    by: RateKey
    negated: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: `action` is taken when all conditions hold.

    Attributes:
        name: Its name in decisions.
        key: Path in its file, such as `policy.rule[2]`.
        source: The file or preset that defines it.
        action: What to do.
        mark: Packet mark to set with the verdict.
        conditions: At most one of each field and its negation; empty matches every packet.
        rate: Counts the packets that meet all conditions.
        comment: The operator's own words.
    """

    name: str
    key: str
    source: str
    action: Action
    mark: int | None = None
    conditions: tuple[Condition, ...] = ()
    rate: Rate | None = None
    comment: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyModel:
    """Rules in order, those of included policies after the file's own.

    Attributes:
        source: The file, as the operator named it.
        rules: First match wins.
        on_unknown: The action on a packet that no rule matched and that could not be judged (reason
            `unsupported`).
        default: The action on any other packet that no rule matched.
        i_know: Whether the file confirms that all packets are to be dropped.
    """

    source: str
    rules: tuple[Rule, ...]
    on_unknown: Action
    default: Action
    i_know: bool = False

    @property
    def heals(self) -> bool:
        """Whether a rule heals. Only a rule can (`LAST_ACTIONS`)."""
        return any(rule.action is Action.HEAL for rule in self.rules)


def allowed(rule: Rule, field: Field) -> IntervalSet:
    """The numbers of `field` that meet every condition of `rule` on it; `field.has_intervals`."""
    numbers = everything(field.highest)
    for condition in rule.conditions:
        if condition.field is field:
            numbers = intersection(numbers, condition_numbers(condition))
    return numbers


def condition_numbers(condition: Condition) -> IntervalSet:
    """The numbers that meet `condition`.

    Raises:
        TypeError: The field's conditions are not interval sets.
    """
    field = condition.field
    intervals: list[tuple[int, int]] = []
    for value in condition.values:
        if isinstance(value, Flags):
            intervals += _combinations(value)
        elif isinstance(value, Interval) and field.kind is Kind.STATUS:
            intervals += _with_bit(value.low, field.highest)
        elif isinstance(value, Interval):
            intervals.append((value.low, value.high))
        else:
            msg = f"conditions on {field.name} are not interval sets"
            raise TypeError(msg)
    numbers = from_intervals(intervals)
    return complement(numbers, field.highest) if condition.negated else numbers


def _combinations(flags: Flags) -> list[tuple[int, int]]:
    return [
        (bits, bits)
        for bits in range(256)
        if bits & flags.wanted == flags.wanted and not bits & flags.unwanted
    ]


def _with_bit(position: int, highest: int) -> list[tuple[int, int]]:
    return [(bits, bits) for bits in range(highest + 1) if bits >> position & 1]
