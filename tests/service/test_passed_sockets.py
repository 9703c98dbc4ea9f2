# SPDX-License-Identifier: MIT
"""Sockets that systemd stores; a socket of the test replaces systemd's."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_guard.service.passed_sockets import (
    QUEUE,
    RULES,
    TABLES,
    QueueKeeper,
    leave_tables,
    take,
    take_rules,
)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def test_a_queue_is_kept_until_it_is_forgotten(manager: socket.socket) -> None:
    keeper = QueueKeeper()
    assert keeper.kept is None
    with socket.socket() as bound:
        keeper.keep(bound.fileno())
        text, files, _, _ = socket.recv_fds(manager, 4096, 2)
        (copy,) = files
        # An error of the socket, as after an overrun, must not make systemd close it.
        assert text.decode().split("\n") == ["FDSTORE=1", "FDPOLL=0", f"FDNAME={QUEUE}"]
        assert os.fstat(copy).st_ino == os.fstat(bound.fileno()).st_ino
        os.close(copy)
    keeper.forget()
    text, files, _, _ = socket.recv_fds(manager, 4096, 2)
    assert text.decode().split("\n") == ["FDSTOREREMOVE=1", f"FDNAME={QUEUE}"]
    assert files == []


@pytest.mark.parametrize("content", [b"the rules", b""])
def test_a_copy_of_the_rules_is_left(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """It replaces that of an earlier start; an empty copy is not kept."""
    monkeypatch.setattr("nfq_guard.firewall.legacy_copy.made", lambda: content)
    monkeypatch.setattr("nfq_guard.firewall.xtables.System.find", lambda *_: True)
    leave_tables()
    names, left = [], []
    for _ in range(3 + bool(content)):
        text, files, _, _ = socket.recv_fds(manager, 4096, 2)
        names.append(text.decode().split("\n")[-1])
        left += [(names[-1], file) for file in files]
    assert names == [f"FDNAME={name}" for name in (TABLES, TABLES, RULES, RULES)][: len(names)]
    for name, file in left:
        if name == f"FDNAME={RULES}":
            assert os.pread(file, 99, 0) == content
        os.close(file)


def test_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    keeper = QueueKeeper()
    keeper.keep(0)
    keeper.forget()
    leave_tables()
    assert take(TABLES) == []
    assert take_rules() == b""


_CODE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from nfq_guard.service.passed_sockets import TABLES, QueueKeeper, take, take_rules
tables, kept = take(TABLES), QueueKeeper().kept
print([one.fileno() for one in tables], kept and kept.fileno(), os.get_inheritable(3))
"""
_RULES_CODE = """
import os
os.environ["LISTEN_PID"] = str(os.getpid())
from nfq_guard.service.passed_sockets import take_rules
print(take_rules().decode())
try:
    os.fstat(3)
except OSError:
    print("closed")
"""


def test_the_copy_is_taken_from_its_beginning() -> None:
    """Also by a second process that inherits the same open file."""
    with os.fdopen(os.memfd_create("rules"), "wb") as file:
        file.write(b"the rules")
        file.flush()
        for _ in range(2):
            done = subprocess.run(
                [
                    *("bash", "-c", f'exec 3<&{file.fileno()}; exec "$@"', "bash"),
                    *(sys.executable, "-c", _RULES_CODE),
                ],
                env={**os.environ, "LISTEN_FDNAMES": RULES},
                pass_fds=(file.fileno(),),
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.split("\n") == ["the rules", "closed", ""]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (f"{TABLES}:{QUEUE}", "[3] 4 False"),
        (f"{QUEUE}:other", "[] 3 False"),
        (f"{TABLES}:{TABLES}", "[3, 4] None False"),
        ("other:metrics", "[] None True"),
    ],
)
def test_each_is_taken_by_its_name(names: str, taken: str) -> None:
    with socket.socket() as one, socket.socket() as two:
        shell = f'exec 3<&{one.fileno()} 4<&{two.fileno()}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", shell, "bash", sys.executable, "-c", _CODE],
            env={**os.environ, "LISTEN_FDNAMES": names},
            pass_fds=(one.fileno(), two.fileno()),
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() == taken
