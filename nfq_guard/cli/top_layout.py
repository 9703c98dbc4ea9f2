# SPDX-License-Identifier: MIT
"""Lines of `top`: pieces of text with their styles, fitted to a width."""

from collections.abc import Sequence
from typing import NamedTuple

from nfq_guard.names import visible
from nfq_guard.telemetry.palette import Style


class Piece(NamedTuple):
    """A part of a line."""

    text: str
    styles: tuple[Style, ...] = ()


Line = list[Piece]


def cut(lines: list[Line], width: int) -> list[Line]:
    """The lines, none wider than `width`."""
    shown: list[Line] = []
    for line in lines:
        room = width
        pieces: Line = []
        for piece in line:
            text = visible(piece.text)
            if room > 0:
                pieces.append(Piece(text[:room], piece.styles))
            room -= len(text)
        shown.append(pieces)
    return shown


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width`, broken at blanks where that is possible."""
    lines: list[str] = []
    rest = text
    while len(rest) > width:
        at = rest.rfind(" ", 1, width + 1)
        at = width if at <= 0 else at
        lines.append(rest[:at])
        rest = rest[at:].lstrip()
    return [*lines, rest]


def spaced(texts: Sequence[str], width: int) -> list[str]:
    """As many of the texts as fit into a line, with blanks between them."""
    shown: list[str] = []
    left = width
    for text in texts:
        part = f"   {text}" if shown else text
        if shown and len(part) > left:
            break
        left -= len(part)
        shown.append(part)
    return shown


def fitting(texts: Sequence[str], width: int) -> list[Piece]:
    """The pieces of a line that goes on with as many of the texts as fit."""
    return [Piece(text) for text in spaced(["", *texts], width)]
