# SPDX-License-Identifier: MIT
"""The conditions of a rule as sets of numbers (`spans`), one a field."""

from nfq_guard.policy.fields import FIELDS, Field, Kind
from nfq_guard.policy.model import Condition, Flags, Interval, Rule
from nfq_guard.policy.spans import Spans, complement, everything, from_intervals, intersection


def allowed(rule: Rule, field: Field) -> Spans:
    """The numbers of `field` with which a packet meets the conditions of `rule` on it.

    Not for fields of names and marks, which are no sets of numbers.
    """
    spans = everything(field.highest)
    for condition in rule.conditions:
        if condition.field is field:
            spans = intersection(spans, condition_spans(condition))
    return spans


def condition_spans(condition: Condition) -> Spans:
    """The numbers that meet `condition`."""
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
            msg = f"{field.name} is no field of numbers"
            raise TypeError(msg)
    spans = from_intervals(intervals)
    return complement(spans, field.highest) if condition.negated else spans


def _combinations(flags: Flags) -> list[tuple[int, int]]:
    return [
        (bits, bits)
        for bits in range(256)
        if bits & flags.wanted == flags.wanted and not bits & flags.unwanted
    ]


def _with_bit(position: int, highest: int) -> list[tuple[int, int]]:
    return [(bits, bits) for bits in range(highest + 1) if bits >> position & 1]


SPAN_FIELDS = tuple(field for field in FIELDS if field.kind not in {Kind.PATTERN, Kind.MARK})
