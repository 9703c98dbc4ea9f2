# SPDX-License-Identifier: MIT
"""However a run ends, none of its namespaces, processes and files remain."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.cli import lab, main
from nfq_guard.errors import PrivilegeError
from nfq_guard.lab import netns, strays
from nfq_guard.lab.pace import limit
from nfq_guard.lab.trial import DIRECTORY_PREFIX

LAB = [sys.executable, "-m", "nfq_guard", "lab"]


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"{netns.PREFIX}-{pid}-*")]


def directories_of(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}{pid}-*"))


def daemons_of(pid: int) -> list[str]:
    """Daemons that the lab process `pid` started, recognised by their configuration's path."""
    marker = f"{DIRECTORY_PREFIX}{pid}-".encode()
    pids: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_bytes():
                pids.append(path.parent.name)
        except OSError:
            continue  # it exited meanwhile
    return pids


def wait_until(condition: Callable[[], object], limit_s: float = 20) -> bool:
    deadline = time.monotonic() + limit(limit_s)
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def start_matrix() -> subprocess.Popen[str]:
    """A running `lab matrix` that has created namespaces and started a guard."""
    process = subprocess.Popen(
        [*LAB, "matrix", "--mitigation", "guard", "drop-prerouting"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait_until(lambda: len(namespaces_of(process.pid)) >= 3 and daemons_of(process.pid)):
        return process
    process.kill()
    pytest.fail("the matrix has started no guard")


@pytest.mark.kernel
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(number: signal.Signals) -> None:
    process = start_matrix()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=limit(60))
    assert process.returncode == 130
    assert stderr == "nfq-guard: interrupted; all namespaces are removed\n"
    assert namespaces_of(process.pid) == []
    assert directories_of(process.pid) == []
    assert daemons_of(process.pid) == []


def crash_and_clean() -> tuple[subprocess.Popen[str], subprocess.CompletedProcess[str]]:
    """Kill a running matrix, and clean up after it."""
    process = start_matrix()
    process.kill()
    process.communicate(timeout=limit(60))
    done = subprocess.run(
        [*LAB, "clean"], capture_output=True, text=True, check=True, timeout=limit(60)
    )
    return process, done


@pytest.mark.kernel
def test_clean_removes_the_leftovers_of_a_crash() -> None:
    process, done = crash_and_clean()
    for _ in range(4):
        # A lab that another test starts at that moment removes the leftovers, too: try again.
        if done.stdout != "nothing to remove\n":
            break
        process, done = crash_and_clean()
    assert namespaces_of(process.pid) == []
    assert directories_of(process.pid) == []
    # A killed process keeps its command line until the kernel has freed its memory.
    assert wait_until(lambda: not daemons_of(process.pid))
    assert done.stdout.startswith("removed ")


@pytest.mark.kernel
@pytest.mark.parametrize("words", [["run", "asymmetric"], ["matrix"], ["demo"], ["clean"]])
def test_without_root_the_lab_is_refused(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    lab.add_arguments(parser)
    strays.layers()  # imports scapy: the interpreter's files may be readable for root only
    os.seteuid(65534)
    try:
        with pytest.raises(PrivilegeError, match="the lab needs root") as refusal:
            lab.run(parser.parse_args(words))
    finally:
        os.seteuid(0)
    assert refusal.value.exit_status == 77


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["sys_admin", "net_admin", "net_raw"])
def test_root_without_a_capability_is_told_which(name: str) -> None:
    """As in a container: the lab does not fail later by words of `ip`."""
    words = ["setpriv", "--bounding-set", f"-{name}", "--inh-caps", "-all", sys.executable]
    done = subprocess.run(
        [*words, "-m", "nfq_guard", "lab", "demo"], check=False, capture_output=True, text=True
    )
    said = f"the lab creates network namespaces, and root does not have CAP_{name.upper()} here"
    assert done.stderr == f"nfq-guard: {said}\n"
    assert (done.returncode, done.stdout) == (77, "")


@pytest.mark.kernel
def test_missing_iptables_is_reported_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ip").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("nfq_guard.lab.matrix._SBIN", str(tmp_path))
    assert main(["lab", "run", "asymmetric"]) == 69
    assert capsys.readouterr().err == (
        "nfq-guard: program iptables-restore (Debian package iptables) is missing\n"
    )


@pytest.mark.kernel
def test_programs_of_administrators_are_found_with_the_path_of_a_user() -> None:
    """Which is that of root after `su` without `-`."""
    done = subprocess.run(
        [sys.executable, "-m", "nfq_guard", "lab", "demo"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "next request: answered" in done.stdout
