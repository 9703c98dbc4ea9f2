# SPDX-License-Identifier: MIT
"""The order of sequence numbers, modulo 2**32."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.seqno import Seq, add, after, before, distance, later, seq

numbers = st.integers(0, 2**32 - 1).map(Seq)
near = st.integers(-(2**31) + 1, 2**31 - 1)


def test_order_where_the_circle_closes() -> None:
    """The number after 2**32 - 1 is 0."""
    assert before(Seq(2**32 - 1), Seq(0))
    assert after(Seq(0), Seq(2**32 - 1))
    assert not before(Seq(7), Seq(7))
    assert not after(Seq(7), Seq(7))


@given(numbers, near)
def test_order_is_the_sign_of_the_distance(a: Seq, octets: int) -> None:
    b = add(a, octets)
    assert distance(b, a) == octets
    assert before(a, b) == (octets > 0)
    assert after(a, b) == (octets < 0)
    assert later(a, b) == (b if octets > 0 else a)


@given(numbers, near, numbers)
def test_order_survives_a_common_shift(a: Seq, octets: int, shift: Seq) -> None:
    b = add(a, octets)
    assert before(add(a, shift), add(b, shift)) == before(a, b)


def test_half_way_round_is_before_and_after_on_both_sides() -> None:
    """At exactly half the circle the kernel's signed difference is negative both ways."""
    for a, b in ((Seq(0), Seq(2**31)), (Seq(2**31), Seq(0))):
        assert before(a, b)
        assert after(a, b)
        assert distance(a, b) == 2**31


@pytest.mark.parametrize("octets", [-(2**31) + 1, -1, 0, 1, 2**31 - 1, 2**31])
def test_distance_is_positive_where_after_holds(octets: int) -> None:
    """A number that breaks a bound is at least 1 byte beyond it."""
    for start in (Seq(0), Seq(2**31), Seq(2**32 - 1)):
        number = add(start, octets)
        assert distance(number, start) == octets
        assert after(number, start) == (octets > 0)


def test_any_number_has_its_place_on_the_circle() -> None:
    assert seq(-1) == 2**32 - 1
    assert seq(2**32 + 5) == 5
