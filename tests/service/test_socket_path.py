# SPDX-License-Identifier: MIT
"""The path of the control socket: its owner, its removal, and its absence."""

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfq_guard.errors import BusyError, UsageError
from nfq_guard.service.control import socket_path as control_path
from nfq_guard.service.control.socket_path import exclusive, listen
from tests.support.control import Served, full


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    served = Served(path)
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
    served.close()
    assert not path.exists()


def test_something_else_at_the_temporary_path_is_named(tmp_path: Path) -> None:
    """In a directory that others may write to, it may be in the way for ever."""
    path = tmp_path / "s"
    (tmp_path / f".s.{os.getpid()}").mkdir()
    with pytest.raises(UsageError, match=r"daemon.control_socket: .*/s cannot be made: Is a dir"):
        listen(path, [])


def test_the_default_without_a_place_for_it_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /run is read-only."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "nfq-guard" / "s"
    monkeypatch.setattr(control_path, "DEFAULT", path)
    notes: list[str] = []
    assert listen(path, notes) is None
    (note,) = notes
    assert note.endswith(f"found no {path.parent}: this daemon has no control socket")


def test_a_second_instance_is_refused(served: Served) -> None:
    with pytest.raises(BusyError, match=rf"pid {os.getpid()}\) listens at"):
        listen(served.path, [])
    served.turns()
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_a_daemon_that_accepts_no_connection_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backlog is full, as while it is stopped."""
    path = tmp_path / "s"
    monkeypatch.setattr(control_path, "_CONNECT_WITHIN_S", 0.05)
    with full(path), pytest.raises(BusyError, match=f"another process listens at {path}, but"):
        listen(path, [])
    assert path.is_socket()


@pytest.mark.parametrize("left_behind", [False, True])
def test_one_of_many_concurrent_daemons_gets_the_path(tmp_path: Path, *, left_behind: bool) -> None:
    """Daemons that find the socket of a killed one do not remove each other's."""
    path = tmp_path / "s"
    if left_behind:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
            left.bind(str(path))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from nfq_guard.errors import BusyError\n"
        "from nfq_guard.service.control.socket_path import listen\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: kept = listen(Path(sys.argv[1]), [])\n"
        "except BusyError: print('busy', flush=True)\n"
        "else: print('mine', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(6)
    ]
    said: list[str] = []
    for one in processes:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in processes:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    for one in processes:
        assert one.stdout is not None
        said.append(one.stdout.readline().strip())
    for one in processes:
        one.kill()
        one.communicate()
    assert sorted(said) == ["busy"] * 5 + ["mine"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_a_held_directory_lock_delays_only_briefly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_path, "LOCK_WITHIN_S", 0.05)
    with exclusive(tmp_path):
        served = Served(tmp_path / "s")
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        served.close()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(UsageError, match=r"daemon\.control_socket: expected a socket or nothing"):
        listen(path, [])
    assert path.read_text() == "precious"
    with pytest.raises(UsageError, match="expected a socket or nothing"):
        listen(tmp_path, [])
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UsageError, match="expected a socket or nothing"):
        listen(tmp_path / "link", [])


def test_paths_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no"):
        listen(tmp_path / "missing" / "s", [])
    with pytest.raises(UsageError, match="too long"):
        listen(tmp_path / ("x" * 200), [])


def test_without_its_directory_the_default_socket_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "deep" / "control.sock"
    monkeypatch.setattr(control_path, "DEFAULT", path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    notes: list[str] = []
    assert listen(path, notes) is None
    assert "no control socket" in notes[0]


def test_a_socket_that_replaced_ours_is_not_removed(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    served.path.unlink()
    other = Served(tmp_path / "s")
    served.server.close()
    assert other.ask(b'{"command": "ping"}\n')["return"] == "OK"
    other.close()
    served.loop.close()


def test_a_vanished_socket_is_made_again(tmp_path: Path) -> None:
    """Within about a second; connections that were open stay open."""
    served = Served(tmp_path / "s")
    with served.connect() as connection:
        served.turns()
        served.path.unlink()
        deadline = time.monotonic() + 5
        while not served.restored and time.monotonic() < deadline:
            served.loop.turn(0.1)
        assert served.restored == 1
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o660
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        connection.send(b'{"command": "ping"}\n')
        assert served.read(connection)
    served.close()
    assert not served.path.exists()


def test_a_socket_whose_directory_is_gone_is_not_missed(tmp_path: Path) -> None:
    """It cannot be created there; the daemon continues, and `close` has nothing to remove."""
    directory = tmp_path / "run"
    directory.mkdir()
    served = Served(directory / "s")
    served.path.unlink()
    directory.rmdir()
    deadline = time.monotonic() + 1.3
    while time.monotonic() < deadline:
        served.loop.turn(0.1)
    assert served.restored == 0
    served.close()
