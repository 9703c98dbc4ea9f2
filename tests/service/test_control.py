# SPDX-License-Identifier: MIT
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from nfq_guard.engine import Mode
from nfq_guard.errors import BusyError, UsageError
from nfq_guard.service.control import server as control
from nfq_guard.service.control import socket_path as control_path
from nfq_guard.service.control.commands import Requests
from nfq_guard.service.control.protocol import Caller, Responder, Response
from nfq_guard.service.control.server import ControlServer
from nfq_guard.service.control.socket_path import CONNECTIONS_MAX, exclusive, listen
from nfq_guard.service.loop import Loop
from nfq_guard.service.status import Status
from tests.support.status import daemon_status

Ask = Callable[[bytes], dict[str, Any]]


class FakeGuard:
    """Remembers what it was told; answers a reload when told to."""

    def __init__(self) -> None:
        self.mode = Mode.DRY_RUN
        self.reloads: list[Responder | None] = []

    def status(self) -> Status:
        return daemon_status(mode=self.mode, config="x" * 10_000)

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        respond(Response.ok([address, flows]))

    def reload(self, respond: Responder | None = None) -> None:
        self.reloads.append(respond)

    def set_mode(self, mode: Mode) -> None:
        self.mode = mode


class Served:
    """A control socket, its loop turned by the test."""

    def __init__(self, path: Path, group: int | None = None) -> None:
        self.path = path
        self.loop = Loop()
        self.guard = FakeGuard()
        listener = listen(path, [])
        assert listener is not None
        requests = Requests(self.guard, os.getgid() if group is None else group)
        self.server = ControlServer(listener, path, self.loop, requests)

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.loop.turn(0.001)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.path))
        connection.settimeout(0)
        return connection

    def read(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The answers so far; none when there is nothing, an error when it was closed."""
        octets = b""
        while True:
            self.turns(3)
            try:
                part = connection.recv(1 << 16)
            except BlockingIOError:
                break
            if not part:
                assert octets, "closed without a word"
                break
            octets += part
        return [orjson.loads(line) for line in octets.splitlines()]

    def ask(self, octets: bytes) -> dict[str, Any]:
        with self.connect() as connection:
            connection.send(octets)
            (answer,) = self.read(connection)
            return answer

    def closed(self, connection: socket.socket) -> bool:
        self.turns(5)
        try:
            return connection.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.server.close()
        self.loop.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "s")
    yield one
    one.close()


def test_mode_of_the_socket(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


def test_answers_keep_their_order(served: Served) -> None:
    with served.connect() as connection:
        connection.send(
            b'{"command": "ping"}\n{"command": "mode", "arguments": {"mode": "enforce"}}'
        )
        assert served.read(connection) == [{"return": "OK", "message": "pong"}]
        connection.send(b'\n{"command": "status"}\n')
        mode, status = served.read(connection)
        assert mode["message"] == {"mode": "enforce"}
        assert status["message"]["mode"] == "enforce"


def test_a_reload_holds_its_client_back_and_nobody_else(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n{"command":"ping"}\n')
        connection.shutdown(socket.SHUT_WR)
        assert served.read(connection) == []
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        (respond,) = served.guard.reloads
        assert respond is not None
        respond(Response.error("wrong"))
        assert [one["return"] for one in served.read(connection)] == ["NOK", "OK"]
        assert served.closed(connection)


def test_who_left_meanwhile_gets_no_answer(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
    served.turns()
    (respond,) = served.guard.reloads
    assert respond is not None
    respond(Response.ok("done"))
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b'{"command": "stop"}\n', "expected one of ping, status, dump, reload, mode"),
        (b'{"command": "ping", "arguments": {"x": 1}}\n', "ping takes no arguments, found 'x'"),
        (b'{"command": "mode"}\n', "expected 'enforce' or 'dry-run'"),
        (b'{"command": "reload", "arguments": {"wait": 1}}\n', "true or false"),
        (b'{"command": "dump", "arguments": {"flows": 0}}\n', "a number from 1"),
        (b'{"command": "dump", "arguments": {"address": 7}}\n', "an address"),
        (b'{"command": 7}\n', "expected {"),
        (b'["status"]\n', "expected {"),
        (b'{"command": "ping", "arguments": []}\n', "expected {"),
        (b"\n", "in JSON"),
        (b"status\n", "in JSON"),
        (b"\xff\xfe\x00\n", "in JSON"),
        (b"[" * 60_000 + b"\n", "in JSON"),
    ],
)
def test_wrong_requests_are_told_why(served: Served, request_line: bytes, said: str) -> None:
    answer = served.ask(request_line)
    assert answer["return"] == "NOK"
    assert said in answer["message"]
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_a_line_without_end(served: Served) -> None:
    with served.connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(40):
            connection.send(b"x" * 4096)
            served.turns(2)
    assert served.server.refused == 1
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_half_a_line(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "pi')
        assert served.read(connection) == []
        connection.shutdown(socket.SHUT_WR)
        (answer,) = served.read(connection)
        assert answer == {"return": "NOK", "message": "a request ends with a newline"}
        assert served.closed(connection)


def test_a_client_that_never_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no further request answered, holds one answer, and is gone after a while."""
    with served.connect() as connection:
        connection.send(b'{"command": "status"}\n' * 1000)
        served.turns(300)
        answered = served.server.requests
        served.turns(300)
        assert served.server.requests == answered < 100
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        monkeypatch.setattr(control, "IDLE_S", 0)
        deadline = time.monotonic() + 5
        while served.server.dropped == 0 and time.monotonic() < deadline:
            served.loop.turn(0.1)
        assert served.server.dropped == 1


def test_one_client_too_many_displaces_the_quietest(served: Served) -> None:
    connections = [served.connect() for _ in range(CONNECTIONS_MAX)]
    served.turns()
    connections[0].send(b'{"command": "ping"}\n')
    assert served.read(connections[0])
    late = served.connect()
    served.turns()
    assert served.closed(connections[1])
    assert not served.closed(connections[0])
    for connection in [*connections, late]:
        connection.close()


def test_thousands_of_clients_leave_nothing(served: Served) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2000):
        with served.connect() as connection:
            connection.send(b'{"comm')
        served.loop.turn(0)
    served.turns(100)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + CONNECTIONS_MAX


def test_rights() -> None:
    requests = Requests(FakeGuard(), 100)
    own, stranger = os.geteuid(), 65_000

    def asked(command: str, uid: int, *groups: int) -> bool:
        answers: list[bool] = []
        arguments: dict[str, object] = {"mode": "dry-run"} if command == "mode" else {}
        caller = Caller(1, uid, frozenset(groups))
        requests(command, arguments, caller, lambda response: answers.append(response.succeeded))
        (good,) = answers
        return good

    assert all(asked(command, uid, 1) for command in ("status", "mode") for uid in (0, own))
    assert asked("status", stranger, 5, 100)
    assert asked("dump", stranger, 5, 100)
    assert not asked("status", stranger, 5)
    assert not asked("mode", stranger, 100)
    assert not asked("reload", stranger, 100)


@pytest.mark.kernel
def test_groups_are_the_kernels_word() -> None:
    """A member of the group by supplementary groups only may ask, and may not change."""
    tmp_path = Path(tempfile.mkdtemp())
    tmp_path.chmod(0o755)
    served = Served(tmp_path / "s", group=1234)
    os.chown(served.path, 0, 1234)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10)\n"
        's.send(b\'{"command": "ping"}\\n\'); print(s.recv(999))\n'
        's.send(b\'{"command": "reload"}\\n\'); print(s.recv(999))\n'
    )
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=1234"]
    with subprocess.Popen(
        [*words, "/usr/bin/python3", "-c", code, str(served.path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            served.loop.turn(0.05)
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    served.close()
    tmp_path.rmdir()
    assert "pong" in said[0]
    assert "reload is for root" in said[1]


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    served = Served(path)
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
    served.close()
    assert not path.exists()


def test_a_second_instance_is_refused(served: Served) -> None:
    with pytest.raises(BusyError, match=rf"pid {os.getpid()}\) answers at"):
        listen(served.path, [])
    served.turns()
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_at_once_one_gets_the_place(tmp_path: Path, *, left_behind: bool) -> None:
    """Nor do two that find a dead daemon's socket remove each other's."""
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


def test_who_holds_the_directory_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_path, "_LOCK_WITHIN_S", 0.05)
    with exclusive(tmp_path):
        served = Served(tmp_path / "s")
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        served.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
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


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no"):
        listen(tmp_path / "missing" / "s", [])
    with pytest.raises(UsageError, match="too long"):
        listen(tmp_path / ("x" * 200), [])


def test_without_its_directory_the_default_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "deep" / "control.sock"
    monkeypatch.setattr(control_path, "DEFAULT", path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    notes: list[str] = []
    assert listen(path, notes) is None
    assert "no control socket" in notes[0]


def test_another_socket_in_our_place_stays(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    served.path.unlink()
    other = Served(tmp_path / "s")
    served.server.close()
    assert other.ask(b'{"command": "ping"}\n')["return"] == "OK"
    other.close()
    served.loop.close()
