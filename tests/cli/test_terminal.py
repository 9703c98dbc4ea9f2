# SPDX-License-Identifier: MIT
"""Lines for narrow terminals."""

import re

import pytest

from nfq_guard.cli.terminal import folded
from nfq_guard.telemetry.palette import Style, styled

LINE = "    warning  fate.forward: an allowed packet is dropped by `-m conntrack` (table filter)"


@pytest.mark.parametrize("width", range(20, 100, 7))
def test_no_part_is_longer_than_the_terminal(width: int) -> None:
    """And the words are those of the line."""
    parts = folded(LINE, width)
    assert max(map(len, parts)) <= width
    assert " ".join(parts).split() == LINE.split()
    assert all(part.startswith("      ") for part in parts[1:])


def test_a_line_that_fits_is_left_alone() -> None:
    assert folded(LINE, len(LINE)) == [LINE]
    assert folded("", 20) == [""]


def test_colours_have_no_width() -> None:
    coloured = styled("warning", Style.YELLOW) + "  a b"
    assert folded(coloured, 12) == [coloured]
    parts = folded(coloured + " c", 12)
    assert [re.sub("\\x1b[^m]*m", "", part) for part in parts] == ["warning  a b", "  c"]


def test_a_word_that_is_too_long_stays_whole() -> None:
    assert folded("a " + "x" * 30, 20) == ["a", "  " + "x" * 30]
