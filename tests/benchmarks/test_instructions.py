# SPDX-License-Identifier: MIT
"""A change that takes more instructions fails with the figure."""

import json
from pathlib import Path

import pytest

from benchmarks import instructions


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps({instructions.key(): {"compiled": {"turn-of-1": 1000}}}))
    monkeypatch.setattr(instructions, "RECORD", path)
    return path


@pytest.mark.usefixtures("recorded")
def test_five_in_a_hundred_more_are_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert instructions.check({"compiled": {"turn-of-1": 1050}}) == 0
    assert instructions.check({"compiled": {"turn-of-1": 1051}}) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        "compiled turn-of-1: 1,051 instructions a packet, +5.1% of 1,000: over the limit of +5%"
    )


def test_what_has_no_record_is_said(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.write_text("{}")
    assert instructions.check({"compiled": {"turn-of-1": 9}}) == 0
    assert "so no comparison" in capsys.readouterr().out


def test_new_record_keeps_the_others(recorded: Path) -> None:
    assert instructions.record({"pure": {"turn-of-1": 7}}) == 0
    kept = json.loads(recorded.read_text())[instructions.key()]
    assert kept == {"compiled": {"turn-of-1": 1000}, "pure": {"turn-of-1": 7}}


def test_tree_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(instructions.MissingError, match="run `make wheels compiled`"):
        instructions.count(tmp_path / "nowhere")


@pytest.mark.parametrize("program", ["make", "valgrind"])
def test_program_that_is_missing(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {"make", "valgrind"} - {program}:
        (tmp_path / other).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(instructions.MissingError, match=f"program {program} .* is missing"):
        instructions.count(tmp_path)
