# SPDX-License-Identifier: MIT
"""Output for people and programs; coloured only on a terminal, and never if NO_COLOR is set."""

import os
import shutil
import sys
from typing import TextIO

import orjson

from nfq_guard.names import visible
from nfq_guard.telemetry.palette import Style, styled, takes_colour


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether `stream`, by default standard output, may be coloured."""
    return takes_colour(terminal=(stream or sys.stdout).isatty())


def paint(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles` if `wants_colour`, else unchanged."""
    return styled(text, *styles) if wants_colour(stream) else text


def printable(name: str) -> str:
    """A file name as text that a terminal shows: everything else becomes escape sequences."""
    return visible(os.fsencode(name).decode("utf-8", "backslashreplace"))


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
