# SPDX-License-Identifier: MIT
"""Lines for narrow terminals."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import termios

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


def shown_at(width: int, *words: str) -> list[str]:
    """The lines of a command's output on a terminal of that width, without colours."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, width))
    with subprocess.Popen(
        [sys.executable, "-m", "nfq_guard", *words],
        stdout=side,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    ) as process:
        os.close(side)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone with the process
            while octets := os.read(main, 65536):
                shown += octets
        assert process.wait(60) in {0, 1}
    os.close(main)
    return re.sub("\x1b\\[[^m]*m", "", shown.decode()).splitlines()


@pytest.mark.parametrize("words", [("check", "preset:default", "--explain-rule"), ("lab", "list")])
def test_output_for_people_fits_the_terminal(words: tuple[str, ...]) -> None:
    lines = shown_at(60, *words)
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 60] == []


def test_output_for_programs_is_not_folded() -> None:
    assert len(shown_at(60, "check", "preset:default", "--explain-rule", "--format", "json")) == 1
