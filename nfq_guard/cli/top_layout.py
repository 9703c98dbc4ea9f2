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
    """Lines of at most `width`, broken at blanks if possible."""
    lines: list[str] = []
    rest = text
    while len(rest) > width:
        at = rest.rfind(" ", 1, width + 1)
        at = width if at <= 0 else at
        lines.append(rest[:at])
        rest = rest[at:].lstrip()
    return [*lines, rest]


def spaced(texts: Sequence[str], width: int, rest: str = "") -> list[str]:
    """As many of the texts as fit into a line, with blanks between them.

    Args:
        texts: The texts.
        width: Width of the line.
        rest: A text that replaces those that do not fit, with `{}` for their number.
    """
    shown: list[str] = []
    left = width
    for place, text in enumerate(texts):
        part = f"   {text}" if shown else text
        others = len(texts) - place - 1
        need = len(part) + (len(f"   {rest.format(others)}") if rest and others else 0)
        if shown and need > left:
            if rest:
                shown.append(f"   {rest.format(others + 1)}")
            break
        left -= len(part)
        shown.append(part)
    return shown


def fitting(texts: Sequence[str], width: int) -> list[Piece]:
    """The pieces of a line, followed by as many of the texts as fit."""
    return [Piece(text) for text in spaced(["", *texts], width)]
