# SPDX-License-Identifier: MIT
"""The benchmark as a command: its errors, and its cleanup."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from benchmarks.__main__ import main
from benchmarks.replay import RIVAL
from nfq_guard.errors import EXIT_NO_PRIVILEGE, EXIT_NOT_FINE, EXIT_USAGE

pytestmark = pytest.mark.kernel
_TREE: Final = Path(__file__).parent.parent.parent
_INTERRUPTED: Final = 130


def bench(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *words]


def namespaces(pid: int) -> list[str]:
    """The namespaces that a process has made, whose names contain its id."""
    listed = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if f"-{pid}-" in line]


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    assert main() == EXIT_NO_PRIVILEGE
    assert (
        capsys.readouterr().err == "benchmarks: needs root, because it creates network namespaces\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file or directory"),
        ("{", "not results of a benchmark"),
        ('{"rows": 3}', "not results of a benchmark"),
    ],
)
def test_results_that_are_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    why: str,
) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--render", str(path)])
    assert main() == EXIT_USAGE
    assert capsys.readouterr().err.startswith(f"benchmarks: {path}: {why}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        bench("--quick", "--only", "latency", "--output", str(tmp_path / "out")),
        cwd=_TREE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(namespaces(process.pid)) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == _INTERRUPTED
    assert said.splitlines()[-1].endswith("interrupted; everything has been removed")
    assert namespaces(process.pid) == []
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_measured_is_no_figure(tmp_path: Path) -> None:
    """A rival that is not installed becomes a row with a reason, and the target is not met."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in map(Path, os.get_exec_path()):
        for program in folder.iterdir() if folder.is_dir() else ():
            place = programs / program.name
            if program.name != "tshark" and not place.is_symlink():
                place.symlink_to(program)
    out = tmp_path / "out"
    done = subprocess.run(
        bench("--quick", "--only", "replay", "--output", str(out)),
        check=False,
        capture_output=True,
        text=True,
        cwd=_TREE,
        env={**os.environ, "PATH": str(programs)},
    )
    assert done.returncode == EXIT_NOT_FINE
    record = json.loads((out / "results.json").read_text())
    (row,) = [row for row in record["rows"] if row["variant"] == RIVAL]
    assert (row["values"], row["note"]) == ([], "Debian package tshark is not installed")
    assert {one["outcome"] for one in record["targets"]} == {"not measured"}
    assert "Debian package tshark is not installed" in (out / "index.html").read_text()
