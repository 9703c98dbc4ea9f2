# SPDX-License-Identifier: MIT
"""Interval sets, and the conditions that are interval sets."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.policy.fields import FIELD_BY_NAME, FIELDS, Kind
from nfq_guard.policy.intervals import (
    ABSENT,
    IntervalSet,
    address_number,
    complement,
    contains,
    covers,
    everything,
    from_intervals,
    intersection,
    is_global,
    is_private,
    present,
    union,
)
from nfq_guard.policy.model import Condition, Pattern, condition_numbers

HIGHEST = 20
NUMBERS = range(-1, HIGHEST + 1)
SETS = st.lists(
    st.tuples(st.integers(0, HIGHEST), st.integers(0, HIGHEST)).map(
        lambda pair: (min(pair), max(pair))
    ),
    max_size=4,
).map(from_intervals)


@given(first=SETS, second=SETS)
def test_interval_sets_behave_as_sets(first: IntervalSet, second: IntervalSet) -> None:
    one = {number for number in NUMBERS if contains(first, number)}
    two = {number for number in NUMBERS if contains(second, number)}

    def members(numbers: IntervalSet) -> set[int]:
        return {number for number in NUMBERS if contains(numbers, number)}

    assert members(union(first, second)) == one | two
    assert members(intersection(first, second)) == one & two
    assert members(complement(first, HIGHEST)) == set(NUMBERS) - one
    assert members(everything(HIGHEST)) == set(NUMBERS)
    assert members(present(HIGHEST)) == set(NUMBERS) - {-1}
    assert covers(first, second) == (two <= one)
    assert complement(complement(first, HIGHEST), HIGHEST) == first


def test_name_conditions_are_not_interval_sets() -> None:
    field = FIELD_BY_NAME["in"]
    condition = Condition(field=field, negated=False, values=(Pattern(text="*"),))
    with pytest.raises(TypeError, match="conditions on in are not interval sets"):
        condition_numbers(condition)
    assert {field.kind for field in FIELDS if not field.has_intervals} == {Kind.PATTERN, Kind.MARK}


@pytest.mark.parametrize(
    ("address", "private", "globally"),
    [
        ("10.0.0.0", True, False),
        ("10.255.255.255", True, False),
        ("9.255.255.255", False, True),
        ("11.0.0.0", False, True),
        ("100.64.0.0", True, False),
        ("100.127.255.255", True, False),
        ("172.16.0.0", True, False),
        ("172.31.255.255", True, False),
        ("172.32.0.0", False, True),
        ("192.168.0.0", True, False),
        ("192.168.255.255", True, False),
        ("192.0.2.1", False, True),
        ("127.0.0.1", False, False),
        ("224.0.0.1", False, False),
        ("fd00::1", True, False),
        ("2001:db8::1", False, True),
        ("fe80::1", False, False),
    ],
)
def test_addresses(address: str, private: bool, globally: bool) -> None:
    packed = ip_address(address).packed
    assert (is_private(packed), is_global(packed)) == (private, globally)


def test_numbers_of_addresses_do_not_meet() -> None:
    assert address_number(b"") == ABSENT
    assert address_number(ip_address("1.2.3.4").packed) == 0x01020304
    assert address_number(ip_address("::1.2.3.4").packed) > 0xFFFFFFFF
