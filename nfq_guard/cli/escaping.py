# SPDX-License-Identifier: MIT
"""Standard streams on which texts of others cannot control the terminal.

Names of files and interfaces, keys of a configuration, rules of the host and answers of a daemon
may hold anything. All text that a command writes passes `Escaping`, which turns what is not
printable into escapes. Control sequences of our own carry a random seal, so that a text cannot
contain one.
"""

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO, cast, final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Digits, so that a sealed sequence has the form of a colour, which has no width.
_SEAL: Final = str(int.from_bytes(os.urandom(16)))
_SEALED: Final = re.compile(rf"\x1b\[{_SEAL};([0-9;]+)m")
_SPECIAL: Final = re.compile(r"[^\n -~]")


@final
class Escaping:
    """A text stream that escapes what is not printable, except newlines and sealed sequences."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, which stays open."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the stream
        """Whatever does not write: the descriptor, the encoding, whether it is a terminal."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        self._stream.write(self._escaped(text) if _SPECIAL.search(text) else text)
        return len(text)

    def writelines(self, lines: "Iterable[str]") -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def _escaped(self, text: str) -> str:
        # Imported here, because most output is plain.
        from nfq_guard.names import visible  # noqa: PLC0415

        parts = _SEALED.split(text)
        for at, part in enumerate(parts):
            if at % 2:
                parts[at] = "".join(chr(int(number)) for number in part.split(";"))
            else:
                parts[at] = "\n".join(map(visible, part.split("\n")))
        encoding = self._stream.encoding or "utf-8"
        return "".join(parts).encode(encoding, "backslashreplace").decode(encoding)


def control(sequence: str, stream: TextIO | None = None) -> str:
    """A control sequence of our own, for `stream`, by default standard output."""
    if not isinstance(stream or sys.stdout, Escaping):
        return sequence
    return f"\x1b[{_SEAL};{';'.join(str(ord(letter)) for letter in sequence)}m"


def install() -> None:
    """Let both standard streams escape; a second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Escaping):
            setattr(sys, name, cast("TextIO", Escaping(stream)))
