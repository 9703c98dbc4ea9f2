# SPDX-License-Identifier: MIT
"""The table of a replay on narrower terminals."""

import importlib
from pathlib import Path

import pytest

from nfq_guard.cli import main
from tests.support.conversation import Conversation


def test_rows_go_on_below_where_the_terminal_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is omitted, and nothing is wider than the terminal."""
    talk = Conversation(client_isn=2**32 - 50)
    talk.open()
    talk.client("A", 1, 10_000)
    talk.client("A", 1, 1)
    name = talk.save(tmp_path / "talk.pcap")
    words = {}
    table = ""
    for width in (None, 120, 80, 60):
        monkeypatch.setattr("nfq_guard.cli.replay.columns", lambda width=width: width)
        assert main(["replay", name]) == 0
        table = capsys.readouterr().out.split("\n\n")[0]
        words[width] = table.split()
        assert all(len(line) <= (width or 1000) for line in table.splitlines())
    assert words[None] == words[120] == words[80] == words[60]
    heads, rows = table.splitlines()[:4], table.splitlines()[4:]
    for head, row, heading, cell in zip(
        heads, rows, ("packet", "reason", "policy"), ("10.0.0.1", "ack-over", "allow"), strict=False
    ):
        assert head.index(heading) == row.index(cell), "the headings stand above their cells"


def test_verdicts_of_bounds_stand_below_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation()
    talk.open()
    talk.client("A", 1, 10_000)
    name = talk.save(tmp_path / "talk.pcap")
    for width in (None, 60):
        monkeypatch.setattr("nfq_guard.cli.explain.columns", lambda width=width: width)
        assert main(["explain", name, "4"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (place,) = (n for n, line in enumerate(lines) if line.startswith("III "))
        said = lines[place].endswith("broken by 9999 bytes")
        assert said == (width is None)
        assert said or lines[place + 1] == "    broken by 9999 bytes"


def test_flows_go_on_below_where_the_terminal_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation(family=6)
    talk.client("PA", 1, 1, length=10)
    talk.client("RA", 11, 1)
    name = talk.save(tmp_path / "talk.pcap")
    # A command that is first imported meanwhile would keep the width for the tests after it.
    importlib.import_module("nfq_guard.cli.replay")
    monkeypatch.setattr("nfq_guard.cli.terminal.columns", lambda: 60)
    assert main(["replay", "--flows", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[lines.index("") - 1].startswith("  ")
