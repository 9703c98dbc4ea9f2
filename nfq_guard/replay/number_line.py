# SPDX-License-Identifier: MIT
"""Draws a part of the sequence space as text: marks in order, roughly to scale.

====================:=======|..................*
                    td_end 501 (1501)          seq 312001 (313001)
                            td_maxend 76257 (77257)
"""

from dataclasses import dataclass
from typing import Final, final

INSIDE: Final = "="
OUTSIDE: Final = "."
LIMIT: Final = "|"
OTHER: Final = ":"
ACTUAL: Final = "*"
SPAN: Final = "#"

# Columns between marks of different numbers, and before the first and after the last mark.
_LEAST_GAP: Final = 2
_MARGIN: Final = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A number on the line.

    Attributes:
        at: Bytes from the limit, negative before it.
        sign: Its character on the line.
        label: The text below it.
    """

    at: int
    sign: str
    label: str


def columns(numbers: list[int], width: int) -> dict[int, int]:
    """A column for each number: in order, at a minimum distance, otherwise to scale."""
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return {ordered[0]: width // 2}
    low, high = ordered[0], ordered[-1]
    room = width - 1 - 2 * _MARGIN
    span = max(high - low, 1)
    placed: dict[int, int] = {}
    least = _MARGIN
    for index, number in enumerate(ordered):
        after = (len(ordered) - 1 - index) * _LEAST_GAP
        ideal = _MARGIN + round((number - low) * room / span)
        placed[number] = max(least, min(ideal, width - 1 - _MARGIN - after))
        least = placed[number] + _LEAST_GAP
    return placed


def draw(
    marks: list[Mark], *, upper: bool, width: int, span: tuple[int, int] | None = None
) -> list[str]:
    """The line, and below it the labels in as few lines as they need.

    Args:
        marks: The marks, with the limit at 0; of two marks in one place the later one is drawn.
        upper: Whether the outside is to the right of the limit; else it is to the left.
        width: Columns.
        span: Where the segment begins and ends, bytes from the limit.
    """
    numbers = [0, *(mark.at for mark in marks), *(span or ())]
    placed = columns(numbers, width)
    limit = placed[0]
    left, right = (INSIDE, OUTSIDE) if upper else (OUTSIDE, INSIDE)
    line = [left if column <= limit else right for column in range(width)]
    if span is not None:
        for column in range(placed[span[0]], placed[span[1]]):
            line[column] = SPAN
    for mark in marks:
        line[placed[mark.at]] = mark.sign
    return ["".join(line), *_labels(marks, placed, width)]


def _labels(marks: list[Mark], placed: dict[int, int], width: int) -> list[str]:
    lines: list[str] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        begin = max(0, min(placed[mark.at], width - len(mark.label)))
        for index, line in enumerate(lines):
            if len(line) + 2 <= begin:
                lines[index] = line.ljust(begin) + mark.label
                break
        else:
            lines.append(" " * begin + mark.label)
    return lines
