# SPDX-License-Identifier: MIT
"""Names with wildcards, masks, and sets of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.policy.fields import FIELD_BY_NAME, FIELDS, Kind
from nfq_guard.policy.model import Condition, Interval, MarkBits, Pattern
from nfq_guard.policy.names import matches_name, value_covers
from nfq_guard.policy.sets import SPAN_FIELDS, condition_spans
from nfq_guard.policy.spans import (
    complement,
    covers,
    everything,
    from_intervals,
    holds,
    intersection,
    union,
)

HIGHEST = 20
NUMBERS = range(-1, HIGHEST + 1)
SPANS = st.lists(
    st.tuples(st.integers(0, HIGHEST), st.integers(0, HIGHEST)).map(
        lambda pair: (min(pair), max(pair))
    ),
    max_size=4,
).map(from_intervals)


@given(first=SPANS, second=SPANS)
def test_spans_are_sets(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    one = {number for number in NUMBERS if holds(first, number)}
    two = {number for number in NUMBERS if holds(second, number)}

    def members(spans: tuple[int, ...]) -> set[int]:
        return {number for number in NUMBERS if holds(spans, number)}

    assert members(union(first, second)) == one | two
    assert members(intersection(first, second)) == one & two
    assert members(complement(first, HIGHEST)) == set(NUMBERS) - one
    assert members(everything(HIGHEST)) == set(NUMBERS)
    assert covers(first, second) == (two <= one)
    assert complement(complement(first, HIGHEST), HIGHEST) == first


@pytest.mark.parametrize(
    ("pattern", "name", "holds_it"),
    [
        ("eth0", "eth0", True),
        ("eth0", "eth00", False),
        ("eth*", "eth", True),
        ("*", "", False),
        ("*", "lo", True),
        ("e?h.0", "eth.0", True),
        ("e?h.0", "eth00", False),
        ("a*c", "abbc", True),
    ],
)
def test_patterns(pattern: str, name: str, *, holds_it: bool) -> None:
    assert matches_name(Pattern(text=pattern), name) is holds_it


def test_different_kinds_cover_nothing() -> None:
    mark = MarkBits(text="1", bits=1, mask=1)
    assert not value_covers(mark, Pattern(text="*"))
    assert not value_covers(Interval(text="1", low=1, high=1), mark)


def test_names_are_no_numbers() -> None:
    field = FIELD_BY_NAME["in"]
    condition = Condition(field=field, negated=False, values=(Pattern(text="*"),))
    with pytest.raises(TypeError, match="in is no field of numbers"):
        condition_spans(condition)
    assert set(FIELDS) - set(SPAN_FIELDS) == {
        field for field in FIELDS if field.kind in {Kind.PATTERN, Kind.MARK}
    }
