# SPDX-License-Identifier: MIT
"""A control socket whose loop is driven by the test."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from nfq_guard.lab.pace import limit
from nfq_guard.service.control.commands import Commands
from nfq_guard.service.control.server import ControlServer
from nfq_guard.service.control.socket_path import listen
from nfq_guard.service.loop import Loop
from tests.support.daemon import FakeDaemon


@contextmanager
def full(path: Path) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener whose backlog is full, and the connections in it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(1)
        others: list[socket.socket] = []
        with suppress(BlockingIOError):
            while True:
                other = stack.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect(str(path))
                others.append(other)
        yield listener, others


class Served:
    """A control socket whose loop is driven by the test."""

    def __init__(
        self, path: Path, group: int | None = None, daemon: FakeDaemon | None = None
    ) -> None:
        self.path = path
        self.loop = Loop()
        self.daemon = daemon or FakeDaemon()
        listener = listen(path, [])
        assert listener is not None
        self.restored = 0
        commands = Commands(self.daemon, os.getgid() if group is None else group)
        self.failures: list[Exception] = []
        self.server = ControlServer(
            listener, path, self.loop, commands, self._restored, self.failures.append
        )

    def _restored(self) -> None:
        self.restored += 1

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.loop.turn(0.001)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.path))
        connection.settimeout(0)
        return connection

    def read(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The responses so far, possibly none; raises if the connection was closed."""
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

    def read_lines(self, connection: socket.socket) -> list[bytes]:
        """Whole lines that have arrived; the rest stays in the socket."""
        self.turns(3)
        try:
            waiting = connection.recv(1 << 20, socket.MSG_PEEK)
        except BlockingIOError:
            return []
        whole = waiting.rfind(b"\n") + 1
        return connection.recv(whole).splitlines() if whole else []

    def ask(self, octets: bytes) -> dict[str, Any]:
        """The response to one request; waits if requests have used up their share of CPU time."""
        deadline = time.monotonic() + limit(10)
        with self.connect() as connection:
            connection.send(octets)
            while not (answers := self.read(connection)):
                assert time.monotonic() < deadline, "no answer"
            (answer,) = answers
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
