# SPDX-License-Identifier: MIT
"""Output for people and programs; coloured only on a terminal, and never if NO_COLOR is set."""

import os
import re
import shutil
import sys
from typing import Final, TextIO

from nfq_guard.names import visible
from nfq_guard.telemetry.palette import Style, styled, takes_colour

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*m")
# A word with its surrounding blanks.
_WORD: Final = re.compile(r"\s*\S+\s*")


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether `stream`, by default standard output, may be coloured."""
    return takes_colour(terminal=(stream or sys.stdout).isatty())


def paint(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles` if `wants_colour`, else unchanged."""
    return styled(text, *styles) if wants_colour(stream) else text


def printable(name: str) -> str:
    """A file name with escape sequences for everything that a terminal cannot show."""
    return visible(os.fsencode(name).decode("utf-8", "backslashreplace"))


def columns() -> int | None:
    """Width of the terminal on standard output; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(text: str) -> str:
    """The lines, folded if the terminal on standard output is too narrow for them."""
    width = columns()
    if width is None:
        return text
    return "".join(f"{line}\n" for one in text.splitlines() for line in folded(one, width))


def folded(line: str, width: int) -> list[str]:
    """A line in parts of at most `width` columns, broken at blanks; the others are indented.

    Escape sequences have no width. A word that is too long keeps its length.
    """
    if len(_ESCAPE.sub("", line)) <= width:
        return [line]
    start = len(line) - len(line.lstrip())
    indent = " " * min(start + 2, width // 2)
    parts = [""]
    used = 0
    for word in _WORD.findall(line):
        room = len(_ESCAPE.sub("", word).rstrip())
        if used + room > width and parts[-1].strip():
            parts[-1] = parts[-1].rstrip()
            parts.append(indent)
            used = len(indent)
            word = word.lstrip()  # noqa: PLW2901 - the blanks before it end the line
        parts[-1] += word
        used += len(_ESCAPE.sub("", word))
    return [*parts[:-1], parts[-1].rstrip()]


def write_line(text: str = "") -> None:
    """Write a line for people, folded to the width of the terminal, and flush it."""
    width = columns()
    write_whole(text if width is None else "\n".join(folded(text, width)))


def write_whole(text: str) -> None:
    """Write a line for programs, whatever its length, and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_json(record: object) -> None:
    """Write one object as one line of JSON."""
    import orjson  # noqa: PLC0415 - with what it imports, 8 ms

    write_whole(orjson.dumps(record).decode())
