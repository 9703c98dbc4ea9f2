# SPDX-License-Identifier: MIT
"""docs/architecture.md names rooms that exist."""

import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PAGE = (TREE / "docs/architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(
    {
        name
        for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", PAGE)
        if name not in {"nfq_guard/", "bpf/", "rules/", "systemd/", "tests/", "benchmarks/"}
    }
)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_exist(room: str) -> None:
    place = TREE if room.startswith("tests/") else TREE / "nfq_guard"
    assert (place / room.removeprefix("nfq_guard/")).exists()


def test_packages_are_placed_in_a_layer() -> None:
    """The table of layers leaves no package out."""
    layers = PAGE.partition("## Layers")[2].partition("## A packet")[0]
    packages = {path.parent.name for path in (TREE / "nfq_guard").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in layers} == set()


@pytest.mark.parametrize(("room", "name"), re.findall(r"`([a-z_/]+\.py)`, `([A-Za-z_]+)`", PAGE))
def test_named_functions_and_constants_exist(room: str, name: str) -> None:
    """The table of changes points at something that is there."""
    text = (TREE / "nfq_guard" / room).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:def |class )?{name}\b", text, re.MULTILINE)
