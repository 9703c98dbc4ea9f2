# SPDX-License-Identifier: MIT
"""A client whose daemon answers, refuses, vanishes or is absent."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nfq_guard.errors import NotRunningError, PrivilegeError, UsageError
from nfq_guard.service.control import client as client_module
from nfq_guard.service.control.client import Client, RefusedError
from tests.support.control import full


@contextmanager
def daemon(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A daemon that sends each answer after one request, then closes; yields the requests."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    requests.append(connection.recv(1 << 16))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield requests
        thread.join(timeout=60)


def test_a_response_in_parts_and_two_in_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    both = b'{"return": "OK", "message": 1}\n{"return": "OK", "message": 2}\n'
    with daemon(path, both) as requests, Client(path) as client:
        assert client.request("dump", flows=3) == 1
        assert requests == [b'{"command": "dump", "arguments": {"flows": 3}}\n']


def test_an_error_response(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        daemon(path, b'{"return": "NOK", "message": "not now"}\n'),
        Client(path) as client,
        pytest.raises(RefusedError, match="not now"),
    ):
        client.request("reload")


def test_a_daemon_that_accepts_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    monkeypatch.setattr(client_module, "RESPONSE_WITHIN_S", 0.05)
    with full(path), pytest.raises(NotRunningError, match="does not respond"):
        Client(path)


def test_a_busy_daemon_is_waited_for(tmp_path: Path) -> None:
    """Others have filled its backlog."""
    path = tmp_path / "s"
    answers: list[object] = []

    def ask() -> None:
        with Client(path) as client:
            answers.append(client.request("ping"))

    with full(path) as (listener, others):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(timeout=0.1)
        assert thread.is_alive()
        for _ in others:
            listener.accept()[0].close()
        with listener.accept()[0] as connection:
            assert connection.recv(1 << 16)
            connection.sendall(b'{"return": "OK", "message": "pong"}\n')
        thread.join(timeout=60)
    assert answers == ["pong"]


def test_a_daemon_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with daemon(path, b'{"return"'), Client(path) as client:
        with pytest.raises(NotRunningError, match="closed the connection"):
            client.request("ping")
        with pytest.raises(NotRunningError, match="closed the connection: "):
            client.request("ping")


def test_a_daemon_that_does_not_respond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RESPONSE_WITHIN_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with (
            Client(tmp_path / "s") as client,
            pytest.raises(NotRunningError, match="does not respond"),
        ):
            client.request("ping")


@contextmanager
def _sends_without_end(path: Path, part: bytes, pause_s: float) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                while True:
                    connection.sendall(part)
                    time.sleep(pause_s)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_response_in_drops_is_not_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESPONSE_WITHIN_S", 0.2)
    path = tmp_path / "s"
    with (
        _sends_without_end(path, b" ", 0.01),
        Client(path) as client,
        pytest.raises(NotRunningError, match="does not respond"),
    ):
        client.request("status")


def test_a_response_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        _sends_without_end(path, b"[" * 65_536, 0),
        Client(path) as client,
        pytest.raises(UsageError, match="expected a control socket of nfq-guard"),
    ):
        client.request("status")


def test_no_process_listens(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="does not exist"):
        Client(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with pytest.raises(NotRunningError, match="no process listens"):
        Client(tmp_path / "s")


def test_a_path_that_is_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a control socket"):
        Client(tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(PermissionError(13, "no"), PrivilegeError), (TimeoutError(), NotRunningError)],
)
def test_errors_of_connecting(tmp_path: Path, error: OSError, kind: type[Exception]) -> None:
    """The test makes the errors: root, as which it may run, would get none."""
    assert isinstance(client_module.connect_error(tmp_path, error), kind)
