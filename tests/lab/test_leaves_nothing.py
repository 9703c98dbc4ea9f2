# SPDX-License-Identifier: MIT
"""Whatever ends a run, no namespace and no process of it stays."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfq_guard.cli import lab, main
from nfq_guard.errors import PrivilegeError
from nfq_guard.lab import netns

LAB = [sys.executable, "-m", "nfq_guard", "lab"]


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"{netns.PREFIX}-{pid}-*")]


def start_matrix() -> subprocess.Popen[str]:
    """A matrix at work: its first namespaces are there."""
    process = subprocess.Popen(
        [*LAB, "matrix", "--mitigation", "none", "drop-prerouting"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1_000):
        if len(namespaces_of(process.pid)) >= 3:
            return process
        time.sleep(0.01)
    process.kill()
    pytest.fail("the matrix made no namespaces")


@pytest.mark.kernel
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals) -> None:
    process = start_matrix()
    process.send_signal(number)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert complaint == "nfq-guard: interrupted; everything is removed\n"
    assert namespaces_of(process.pid) == []


@pytest.mark.kernel
def test_clean_removes_what_a_crash_left() -> None:
    process = start_matrix()
    process.kill()
    process.communicate(timeout=30)
    left = namespaces_of(process.pid)
    assert left
    done = subprocess.run([*LAB, "clean"], capture_output=True, text=True, check=True, timeout=30)
    assert namespaces_of(process.pid) == []
    for name in left:
        assert f"removed namespace {name}\n" in done.stdout


@pytest.mark.kernel
@pytest.mark.parametrize("words", [["run", "asymmetric"], ["matrix"], ["demo"], ["clean"]])
def test_without_root_it_says_so(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    lab.add_arguments(parser)
    # All is imported by now: the interpreter may be where nobody but root can read.
    os.seteuid(65534)
    try:
        with pytest.raises(PrivilegeError, match="the lab needs root") as refusal:
            lab.run(parser.parse_args(words))
    finally:
        os.seteuid(0)
    assert refusal.value.exit_status == 77


@pytest.mark.kernel
def test_without_iptables_it_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ip").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["lab", "run", "asymmetric"]) == 69
    assert capsys.readouterr().err == (
        "nfq-guard: program iptables-restore (Debian package iptables) is missing\n"
    )
