# SPDX-License-Identifier: MIT
"""docs/architecture.md names rooms that exist, in the layers of the import contract."""

import re
import tomllib
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


@pytest.mark.parametrize(("room", "name"), re.findall(r"`([a-z_/]+\.py)`, `([A-Za-z_]+)`", PAGE))
def test_named_functions_and_constants_exist(room: str, name: str) -> None:
    """The table of changes points at something that is there."""
    text = (TREE / "nfq_guard" / room).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:def |class )?{name}\b", text, re.MULTILINE)


def test_the_layers_are_those_of_the_import_contract() -> None:
    with (TREE / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = re.findall(r"^\| [a-z ]+ \| (`[^|]+`) \| [^|]+ \|$", PAGE, re.MULTILINE)
    found = [set(re.findall(r"`(\w+)(?:\.py|/)`", row)) for row in rows]
    assert found == [set(layer.split(" | ")) for layer in layers]
