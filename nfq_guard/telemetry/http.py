# SPDX-License-Identifier: MIT
"""Serves /metrics and /healthz over HTTP from a separate thread.

Clients must never delay packets: the thread reads only data that the loop has handed over, and
renders it once for all clients. There are at most `CONNECTIONS_MAX` clients, each is served for at
most `CLIENT_S`, and a request has at most `REQUEST_MAX_BYTES`. A response ends the connection.
"""

import errno
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, final

from nfq_guard.errors import is_shortage
from nfq_guard.telemetry.exposition import Exposition

CONNECTIONS_MAX: Final = 32
CLIENT_S: Final = 10.0
REQUEST_MAX_BYTES: Final = 8192
# An `Observed` arrives once a second; after this time without one the loop counts as hung.
HUNG_S: Final = 5.0

_METHODS: Final = frozenset({"GET", "HEAD"})
_PLAIN: Final = "text/plain; charset=utf-8"
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
_EVERYWHERE: Final = "::"
_TICK_S: Final = 1.0
_READ_BYTES: Final = 4096


def respond(request: bytes, exposition: Exposition, now: float) -> bytes:
    """The response to a request with a complete head."""
    words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    kind = _PLAIN
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        status, body = HTTPStatus.BAD_REQUEST, b"not an HTTP request\n"
    elif words[0] not in _METHODS:
        status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD only\n"
    else:
        path = words[1].partition("?")[0]
        if path == "/metrics":
            kind, status, body = _EXPOSITION, HTTPStatus.OK, exposition.text()
        elif path == "/healthz":
            status, body = _health(exposition, now)
        else:
            status, body = HTTPStatus.NOT_FOUND, b"see /metrics and /healthz\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode("ascii")
    return head if words[0] == "HEAD" else head + body


def _health(exposition: Exposition, now: float) -> tuple[HTTPStatus, bytes]:
    observed = exposition.observed
    problems = list(observed.problems)
    age = now - observed.at
    if age > HUNG_S:
        problems.append(f"the packet loop has not turned for {age:.0f} s")
    if not problems:
        return HTTPStatus.OK, b"ok\n"
    text = "".join(f"{problem}\n" for problem in problems)
    return HTTPStatus.SERVICE_UNAVAILABLE, text.encode()


@final
class _Client:
    """One connection: its request so far, then the rest of the response."""

    __slots__ = ("channel", "left", "request", "until")

    def __init__(self, channel: socket.socket, until: float) -> None:
        self.channel = channel
        self.until = until
        self.request = b""
        self.left = b""


@final
class MetricsServer:
    """Serves one listening socket until `close`."""

    def __init__(
        self,
        listener: socket.socket,
        exposition: Exposition,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to serve; takes ownership of the socket.

        Args:
            listener: Bound and listening.
            exposition: What to serve.
            clock: Monotonic seconds.
        """
        self._listener = listener
        self._exposition = exposition
        self._clock = clock
        self._clients: dict[int, _Client] = {}
        # When to accept clients again; infinite while they are accepted.
        self._deaf_until = math.inf
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        listener.settimeout(0)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the socket and all connections."""
        self._waker.send(b"\0")
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while self._turn():
            pass
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.close()
        for end in (self._listener, self._waker, self._woken):
            end.close()

    def _turn(self) -> bool:
        """Serve the ready connections; false once `close` was called."""
        for key, _ in self._selector.select(_TICK_S):
            if key.fileobj is self._woken:
                return False
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd in self._clients:
                self._serve(self._clients[key.fd])
        now = self._clock()
        if now >= self._deaf_until:
            self._deaf_until = math.inf
            self._selector.register(self._listener, selectors.EVENT_READ)
        for client in list(self._clients.values()):
            if now >= client.until:
                self._drop(client)
        return True

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except BlockingIOError:  # the client is gone
            return
        except OSError as error:
            if is_shortage(error.errno):
                # The client stays in the backlog, and the listener readable.
                self._selector.unregister(self._listener)
                self._deaf_until = self._clock() + _TICK_S
            return
        channel.settimeout(0)
        if len(self._clients) >= CONNECTIONS_MAX:
            # Evict the oldest connection.
            self._drop(min(self._clients.values(), key=lambda client: client.until))
        self._clients[channel.fileno()] = _Client(channel, self._clock() + CLIENT_S)
        self._selector.register(channel, selectors.EVENT_READ)

    def _serve(self, client: _Client) -> None:
        try:
            if client.left:
                self._write(client)
            else:
                self._read(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> None:
        octets = client.channel.recv(_READ_BYTES)
        client.request += octets
        complete = b"\r\n\r\n" in client.request
        if not octets or (len(client.request) > REQUEST_MAX_BYTES and not complete):
            self._drop(client)
        elif complete:
            client.left = respond(client.request, self._exposition, self._clock())
            self._selector.modify(client.channel, selectors.EVENT_WRITE)
            self._write(client)

    def _write(self, client: _Client) -> None:
        client.left = client.left[client.channel.send(client.left) :]
        if not client.left:
            with suppress(OSError):
                client.channel.shutdown(socket.SHUT_WR)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.channel.fileno()]
        self._selector.unregister(client.channel)
        client.channel.close()


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address; with `::` at every address of this host, IPv4 included.

    Raises:
        OSError: The address cannot be bound.
    """
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    everywhere = address[0] == _EVERYWHERE
    try:
        listener = socket.socket(family, kind)
    except OSError as error:
        if not everywhere or error.errno != errno.EAFNOSUPPORT:
            raise
        # A kernel without IPv6.
        everywhere = False
        listener = socket.socket(socket.AF_INET, kind)
        address = ("", port)
    try:
        if everywhere:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS_MAX)
    except OSError:
        listener.close()
        raise
    return listener
