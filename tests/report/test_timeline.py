# SPDX-License-Identifier: MIT
"""Packets over time."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.report import timeline
from nfq_guard.report.timeline import Timeline

_NOON = 1_700_000_000


def at(second: float) -> datetime:
    return datetime.fromtimestamp(_NOON + second, UTC)


def test_nothing() -> None:
    assert Timeline(1).bars(10) is None


def test_one_packet_is_one_bar() -> None:
    line = Timeline(2)
    line.add(at(3.9), at(3.9), 1, 1)
    assert line.bars(10) == (_NOON + 3, 1, [[0, 1]])


def test_a_folded_event_is_no_burst() -> None:
    """Events of ten seconds, one after the other, at a constant rate are drawn as constant."""
    line = Timeline(1)
    for begin in range(0, 60, 10):
        line.add(at(begin), at(begin + 9.99), 440, 0)
    bars = line.bars(60)
    assert bars is not None
    assert [round(height, 6) for (height,) in bars.heights] == [44.0] * 60


def test_wide_bars_take_their_share() -> None:
    line = Timeline(1)
    line.add(at(0), at(99.5), 100, 0)
    line.add(at(5), at(5), 7, 0)
    bars = line.bars(6)
    assert bars is not None
    assert bars.width == 20
    assert [round(height) for (height,) in bars.heights] == [27, 20, 20, 20, 20]


def test_years_have_few_bars() -> None:
    line = Timeline(1)
    line.add(at(0), at(0), 1, 0)
    line.add(at(3e9), at(3e9), 1, 0)
    bars = line.bars(10)
    assert bars is not None
    assert len(bars.heights) <= 10
    assert sum(height for (height,) in bars.heights) == pytest.approx(2)


def test_the_bound_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_MOST_EDGES", 2)  # the real bound takes seconds
    line = Timeline(1)
    line.add(at(0), at(0), 1, 0)
    line.add(at(0), at(0), 1, 0)
    line.add(at(5), at(5), 3, 0)
    assert line.left_out == 3
    assert line.bars(5) == (_NOON, 1, [[2]])


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 1000)), min_size=1
    ),
    st.integers(2, 120),
)
def test_every_packet_is_in_a_bar(events: list[tuple[int, int, int]], most: int) -> None:
    line = Timeline(1)
    for begin, length, packets in events:
        line.add(at(begin), at(begin + length), packets, 0)
    bars = line.bars(most)
    assert bars is not None
    assert len(bars.heights) <= most
    total = sum(packets for _, _, packets in events)
    assert sum(height for (height,) in bars.heights) == pytest.approx(total, rel=1e-4)
    assert all(height >= 0 for (height,) in bars.heights)
