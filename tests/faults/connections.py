# SPDX-License-Identifier: MIT
"""Healthy connections from the peer to the host: whether each lives, and how long it stalls."""

import contextlib
import selectors
import socket
import struct
import threading
import time
from typing import Final, NamedTuple, Self

from tests.faults.gateway import HOST, Gateway

PORT: Final = 7500
_EVERY_S: Final = 0.05
_NUMBER: Final = struct.Struct("!Q")
# Time limit for an answer that is outstanding at the end, seconds.
_LAST_S: Final = 5.0


class Health(NamedTuple):
    """The result for all connections.

    Attributes:
        broken: Number that were reset, closed or answered wrongly.
        answers: Number of answers received.
        stall_s: Longest wait for an answer, seconds.
    """

    broken: int
    answers: int
    stall_s: float


class _Flow:
    """One connection, which sends one number at a time; the other end echoes it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.number = 0
        self.sent_at = 0.0
        self.received = b""
        self.waiting = False


class Connections:
    """A number of connections, which exchange numbers until the end of `with`."""

    def __init__(self, gateway: Gateway, count: int) -> None:
        self._stack = contextlib.ExitStack()
        self._ending = threading.Event()
        self._broken = self._answers = 0
        self._stall_s = 0.0
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        with gateway.host.entered():
            listener = self._stack.enter_context(socket.create_server((HOST, PORT), backlog=count))
        self._flows: list[_Flow] = []
        for _ in range(count):
            with gateway.peer.entered():
                near = self._stack.enter_context(socket.socket())
            near.settimeout(10)
            near.connect((HOST, PORT))
            far = self._stack.enter_context(listener.accept()[0])
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(0)
            flow = _Flow(near)
            self._flows.append(flow)
            self._selector.register(near, selectors.EVENT_READ, flow)
            self._selector.register(far, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def ports(self) -> list[int]:
        """The peer's port of each connection; the host's is `PORT`."""
        return [flow.channel.getsockname()[1] for flow in self._flows]

    def health(self) -> Health:
        """Close all connections, and return the result."""
        self._ending.set()
        self._thread.join()
        return Health(self._broken, self._answers, self._stall_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.health()
        self._stack.close()

    def _run(self) -> None:
        until = float("inf")
        while time.monotonic() < until:
            now = time.monotonic()
            if not self._ending.is_set():
                for flow in self._flows:
                    if not flow.waiting and now - flow.sent_at >= _EVERY_S:
                        self._send(flow, now)
            elif until == float("inf"):
                until = now + _LAST_S
            elif not any(flow.waiting for flow in self._flows):
                return
            for key, _ in self._selector.select(_EVERY_S):
                self._read(key)
        waiting = [flow for flow in self._flows if flow.waiting]
        self._broken += len(waiting)

    def _send(self, flow: _Flow, now: float) -> None:
        flow.number += 1
        flow.sent_at = now
        flow.waiting = True
        try:
            flow.channel.send(_NUMBER.pack(flow.number))
        except OSError:
            self._break(flow)

    def _read(self, key: selectors.SelectorKey) -> None:
        flow: _Flow | None = key.data
        channel = key.fileobj
        assert isinstance(channel, socket.socket)
        try:
            octets = channel.recv(4096)
            if octets and flow is None:
                channel.send(octets)
        except OSError:
            octets = b""
        if not octets:
            self._selector.unregister(channel)
            if flow is not None:
                self._break(flow)
        elif flow is not None:
            flow.received += octets
            if len(flow.received) >= _NUMBER.size:
                self._stall_s = max(self._stall_s, time.monotonic() - flow.sent_at)
                self._answers += 1
                right = flow.received == _NUMBER.pack(flow.number)
                flow.received, flow.waiting = b"", False
                if not right:
                    self._break(flow)

    def _break(self, flow: _Flow) -> None:
        if flow in self._flows:
            self._flows.remove(flow)
            self._broken += 1
