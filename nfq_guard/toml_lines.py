# SPDX-License-Identifier: MIT
"""The line of each key of a TOML file, which `tomllib` does not provide."""

import bisect
import contextlib
import re
from typing import Final

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_SEPARATOR: Final = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")
_NAME: Final = re.compile(r"[\w-]+|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
# Multi-line strings may end with one or two quotation marks of their own.
_SCALAR: Final = re.compile(
    r"\"\"\"(?:[^\\]|\\.)*?\"\"\"\"{0,2}|'''.*?''''{0,2}|"
    r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[^\[{,\]}#\n\"']+",
    re.DOTALL,
)


def lines_of(text: str) -> dict[str, int]:
    """The line of each table, key and element of an array, from 1, by its dotted path.

    The paths are those of `errors.Mistake`, such as `policy.rule[2].not.reason[0]`. For invalid
    TOML, the result has the lines up to the mistake.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_NotTomlError):
        scanner.document()
    return scanner.lines


def line_of(key: str, lines: dict[str, int]) -> int:
    """The line of a key, or of the nearest enclosing one; 0 for a key of another file.

    What follows the key in parentheses, such as the file that an include names, is ignored.
    """
    key = key.partition(" (")[0]
    while key:
        if key in lines:
            return lines[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return 0


class _NotTomlError(Exception):
    """The text is not valid TOML at this place."""


class _Scanner:
    """Follows the structure of one text; values are skipped.

    Attributes:
        lines: The line of each path, the first one for a path with several headers.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._text = text
        self._at = 0
        self._ends = [found.start() for found in re.finditer("\n", text)]
        # The number of tables in each array of tables.
        self._tables: dict[str, int] = {}

    def document(self) -> None:
        """Follow the whole text."""
        table = ""
        self._take(_BLANK)
        while self._at < len(self._text):
            if self._found("[["):
                table = self._path("", opens=True)
                self._expect("]]")
            elif self._found("["):
                table = self._path("")
                self._expect("]")
            else:
                self._pair(table)
            self._take(_BLANK)

    def _pair(self, table: str) -> None:
        """A key and its value."""
        path = self._path(table)
        self._expect("=")
        self._take(_SPACE)
        self._value(path)

    def _path(self, table: str, *, opens: bool = False) -> str:
        """A dotted key below `table`; with `opens` it begins a table of an array of tables."""
        path = table
        while True:
            self._take(_SPACE)
            line = self._line()
            name = self._take(_NAME).strip("\"'")
            self._take(_SPACE)
            path = f"{path}.{name}" if path else name
            self.lines.setdefault(path, line)
            last = not self._found(".")
            if last and opens:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = f"{path}[{self._tables[path] - 1}]"
                self.lines.setdefault(path, line)
            if last:
                return path

    def _value(self, path: str) -> None:
        """A value, with the keys and elements in it."""
        if self._found("["):
            self._take(_SEPARATOR)
            index = 0
            while not self._found("]"):
                self.lines[f"{path}[{index}]"] = self._line()
                self._value(f"{path}[{index}]")
                self._take(_SEPARATOR)
                index += 1
        elif self._found("{"):
            self._take(_SEPARATOR)
            while not self._found("}"):
                self._pair(path)
                self._take(_SEPARATOR)
        else:
            self._take(_SCALAR)

    def _line(self) -> int:
        return bisect.bisect_left(self._ends, self._at) + 1

    def _found(self, mark: str) -> bool:
        """Whether the text continues with `mark`, which is then consumed."""
        found = self._text.startswith(mark, self._at)
        if found:
            self._at += len(mark)
        return found

    def _expect(self, mark: str) -> None:
        if not self._found(mark):
            raise _NotTomlError

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _NotTomlError
        self._at = found.end()
        return found[0]
