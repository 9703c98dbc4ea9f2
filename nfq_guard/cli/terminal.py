# SPDX-License-Identifier: MIT
"""Output for people and programs; coloured only on a terminal, and never if NO_COLOR is set."""

import os
import shutil
import sys
from enum import Enum
from typing import Final, TextIO

import orjson

_RESET: Final = "\x1b[0m"


class Style(Enum):
    """A text attribute, as its escape sequence."""

    BOLD = "\x1b[1m"
    DIM = "\x1b[2m"
    RED = "\x1b[31m"
    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"
    BLUE = "\x1b[34m"
    MAGENTA = "\x1b[35m"
    CYAN = "\x1b[36m"


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether `stream`, by default standard output, is a terminal and NO_COLOR is unset."""
    return not os.environ.get("NO_COLOR") and (stream or sys.stdout).isatty()


def paint(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles` if `wants_colour`, else unchanged."""
    if not text or not styles or not wants_colour(stream):
        return text
    return "".join(style.value for style in styles) + text + _RESET


def printable(name: str) -> str:
    """A file name as encodable text: bytes that are not UTF-8 become escape sequences."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def columns() -> int | None:
    """Width of the terminal on standard output; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_line(text: str = "") -> None:
    """Write one line to standard output and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_json(record: object) -> None:
    """Write one object as one line of JSON."""
    write_line(orjson.dumps(record).decode())
