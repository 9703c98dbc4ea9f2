# SPDX-License-Identifier: MIT
"""The sections of docstrings, from which the reference and `check` take their texts."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECTION = re.compile(r"( *)(?:Attributes|Args|Raises):")
_ENTRY = re.compile(r"[*\w.]+:( |$)")


def stray_lines(docstring: str) -> list[str]:
    """Lines at the indent of an entry that begin none: parsers drop them."""
    found = []
    indent = None
    for line in docstring.splitlines():
        section = _SECTION.fullmatch(line)
        width = len(line) - len(line.lstrip())
        if section:
            indent = len(section[1])
        elif indent is None or width <= indent:
            indent = None
        elif width == indent + 4 and not _ENTRY.match(line.strip()):
            found.append(line)
    return found


def test_a_stray_line_is_found() -> None:
    assert stray_lines("It.\n\n    Args:\n        a: Some\n        more.\n") == ["        more."]
    assert not stray_lines("It.\n\n    Args:\n        a: Some\n            more.\n    ")


@pytest.mark.parametrize("room", ["benchmarks", "nfq_guard", "tests"])
def test_every_entry_is_whole(room: str) -> None:
    strays = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines = stray_lines(ast.get_docstring(node, clean=False) or "")
                if lines:
                    strays[f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}"] = lines
    assert not strays
