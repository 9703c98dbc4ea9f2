# SPDX-License-Identifier: MIT
"""Writing for people and programs; colours only on a terminal, never where NO_COLOR is set."""

import os
import shutil
import sys
from enum import Enum
from typing import Final, TextIO

import orjson

_RESET: Final = "\x1b[0m"


class Style(Enum):
    """How words look on a terminal."""

    BOLD = "\x1b[1m"
    DIM = "\x1b[2m"
    RED = "\x1b[31m"
    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"
    BLUE = "\x1b[34m"
    MAGENTA = "\x1b[35m"
    CYAN = "\x1b[36m"


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether `stream`, by default standard output, shows colours to somebody who wants them."""
    return not os.environ.get("NO_COLOR") and (stream or sys.stdout).isatty()


def paint(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles` where colours are wanted, else as it is."""
    if not text or not styles or not wants_colour(stream):
        return text
    return "".join(style.value for style in styles) + text + _RESET


def printable(name: str) -> str:
    """The name of a file as text that can be written anywhere: its octets need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def columns() -> int | None:
    """How wide the terminal of standard output is; None when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_line(text: str = "") -> None:
    """Write one line to standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_json(record: object) -> None:
    """Write one object as one line of JSON."""
    write_line(orjson.dumps(record).decode())
