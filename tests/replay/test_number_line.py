# SPDX-License-Identifier: MIT
"""Marks keep their order and do not overlap, for all numbers."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.replay.number_line import ACTUAL, LIMIT, OTHER, Mark, columns, draw

FAR = st.integers(-(2**31), 2**31 - 1)


def test_drawing() -> None:
    marks = [Mark(at=-40, sign=OTHER, label="sent"), Mark(at=0, sign=LIMIT, label="limit")]
    marks.append(Mark(at=20, sign=ACTUAL, label="seq"))
    assert draw(marks, upper=True, width=40, span=(20, 25)) == [
        "====:==================|.........*#.....",
        "    sent               limit     seq",
    ]


def test_labels_that_meet_take_a_line_each() -> None:
    marks = [Mark(at=at, sign=str(at), label=f"label {at}") for at in (0, 1, 2)]
    line, *labels = draw(marks, upper=False, width=16)
    assert line.strip(".=").startswith("0")
    assert [label.strip() for label in labels] == ["label 0", "label 1", "label 2"]


def test_one_number_stands_in_the_middle() -> None:
    assert columns([7, 7], 40) == {7: 20}


@given(numbers=st.lists(FAR, min_size=1, max_size=5), width=st.integers(40, 100))
def test_order_is_kept(numbers: list[int], width: int) -> None:
    placed = columns(numbers, width)
    ordered = sorted(placed)
    assert all(0 <= placed[number] < width for number in ordered)
    assert all(placed[a] < placed[b] for a, b in itertools.pairwise(ordered))


@given(other=FAR, actual=FAR, length=st.integers(0, 70_000), upper=st.booleans())
def test_lines_fit(other: int, actual: int, length: int, upper: bool) -> None:
    marks = [
        Mark(at=other, sign=OTHER, label="td_end 4294967295 (4294967295)"),
        Mark(at=0, sign=LIMIT, label="td_maxend 4294967295 (4294967295)"),
        Mark(at=actual, sign=ACTUAL, label="seq 4294967295 (4294967295)"),
    ]
    lines = draw(marks, upper=upper, width=78, span=(actual, actual + length))
    assert all(len(line) <= 78 for line in lines)
    assert ACTUAL in lines[0]
