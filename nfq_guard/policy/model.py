# SPDX-License-Identifier: MIT
"""A policy as the operator wrote it, checked; nothing here is on the packet path."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import Field

# Names that decisions carry where no rule matched.
RULE_DEFAULT: Final = "default"
RULE_ON_UNKNOWN: Final = "on-unknown"

# What `i_know` must say in a policy that lets nothing pass.
I_KNOW: Final = "drops everything"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, both in; `text` is how the file spells them."""

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
    """A mark whose bits under `mask` are `bits`."""

    text: str
    bits: int
    mask: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A name in which `*` stands for any letters and `?` for any one."""

    text: str


Value = Interval | Flags | MarkBits | Pattern


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One key of a rule: any of `values`, or with `negated` none of them."""

    field: Field
    negated: bool
    values: tuple[Value, ...]


class RateKey(StrEnum):
    """What packets are counted by."""

    FLOW = "flow"
    SOURCE = "source"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A limit on how often a rule may match before it does, or with `negated` before it stops.

    Attributes:
        over: The first `over` packets in a window are within the limit.
        in_s: Length of the window in seconds; it begins with the first packet.
        by: What is counted.
        negated: Whether the rule matches within the limit instead of beyond it.
    """

    over: int
    in_s: float
    by: RateKey
    negated: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: all conditions hold, then `action`.

    Attributes:
        name: As decisions carry it.
        key: Where it stands, such as `policy.rule[2]`.
        source: The file or preset that it stands in.
        action: What to do.
        mark: Packet mark to set with the verdict.
        conditions: At most one of each field and its negation; none: every packet.
        rate: Asked last, of packets that meet all conditions.
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
    """Rules in order, with those of included policies after the own ones.

    Attributes:
        source: The file, as the operator named it.
        rules: First match wins.
        on_unknown: What happens to a packet that no rule matched and that could not be judged
            (reason `unsupported`).
        default: What happens to any other packet that no rule matched.
        i_know: The operator's word that all packets are to be dropped.
    """

    source: str
    rules: tuple[Rule, ...]
    on_unknown: Action
    default: Action
    i_know: bool = False
