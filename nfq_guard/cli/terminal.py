# SPDX-License-Identifier: MIT
"""Output for people and programs; coloured only on a terminal, and never if NO_COLOR is set."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TextIO

from nfq_guard.cli.escaping import control
from nfq_guard.errors import ConfigError, NfqGuardError
from nfq_guard.names import visible, visible_json
from nfq_guard.telemetry import palette
from nfq_guard.telemetry.palette import Style, takes_colour

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*m")
# A word with its surrounding blanks.
_WORD: Final = re.compile(r"\s*\S+\s*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether `stream`, by default standard output, may be coloured."""
    return takes_colour(terminal=(stream or sys.stdout).isatty())


def paint(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles` if `wants_colour`, else unchanged."""
    return styled(text, *styles, stream=stream) if wants_colour(stream) else text


def styled(text: str, *styles: Style, stream: TextIO | None = None) -> str:
    """`text` in `styles`, for `stream`; unchanged without a text or a style."""
    return palette.styled(text, *styles, control=partial(control, stream=stream))


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


def complain(problem: NfqGuardError | str) -> None:
    """Write a problem to standard error, one line each mistake."""
    if isinstance(problem, ConfigError):
        lines = [f"{problem.source}: {mistake}" for mistake in problem.mistakes]
    else:
        lines = str(problem).splitlines()
    sys.stderr.write("".join(f"nfq-guard: {visible(line)}\n" for line in lines))


def write_line(text: str = "") -> None:
    """Write a line for people, folded to the width of the terminal, and flush it."""
    width = columns()
    write_whole(text if width is None else "\n".join(folded(text, width)))


def write_whole(text: str) -> None:
    """Write a line for programs, whatever its length, and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_json(record: object, default: Callable[[Any], Any] | None = None) -> None:
    """Write one object as one line of JSON; `default` as of `json_text`."""
    write_whole(json_text(record, default))


def json_text(record: object, default: Callable[[Any], Any] | None = None) -> str:
    """An object as one line of JSON that is safe for a terminal.

    Args:
        record: The object.
        default: Returns a value of JSON for one of another type.
    """
    import orjson  # noqa: PLC0415 - with what it imports, 8 ms

    try:
        octets = orjson.dumps(record, default)
    except orjson.JSONEncodeError:
        # A name of a file that is not UTF-8 is no text; it is shown as in the output for people.
        whole = json.dumps(record, default=default, ensure_ascii=False)
        octets = _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):x}", whole).encode()
    return visible_json(octets).decode()
