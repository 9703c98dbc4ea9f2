# SPDX-License-Identifier: MIT
"""Serves the control socket from the packet loop.

Clients must never delay packets. Therefore

- there are at most 16 connections; a new one evicts the longest idle one of the user with the most,
  and one of root or the daemon's user only if there is no other,
- the length of a request and of a response is limited,
- at most one request of a connection is carried out in a turn of the loop, and the next one only
  after the client has read the response; at most one request and one response are buffered,
- a connection that has been idle for 30 seconds is closed,
- a request whose client has disconnected is not carried out,
- all connections together use at most a tenth of the CPU time.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, final

import msgspec
import orjson

from nfq_guard.errors import is_shortage
from nfq_guard.service.control.connection import Connection, State
from nfq_guard.service.control.protocol import (
    RESPONSE_MAX_BYTES,
    Caller,
    Request,
    Responder,
    Response,
)
from nfq_guard.service.control.socket_path import exclusive, relisten
from nfq_guard.service.loop import Loop
from nfq_guard.telemetry.events import exception_texts

CONNECTIONS_MAX: Final = 16
REQUEST_MAX_BYTES: Final = 1 << 16
IDLE_S: Final = 30.0
# The share of CPU time for requests, and the seconds that can accumulate for a burst.
_SHARE: Final = 0.1
_SAVED_MAX_S: Final = 0.05
_PARKED_S: Final = 0.02
_TICK_S: Final = 1.0
# While no descriptor is free a client stays in the backlog, and the listener readable.
_SHORTAGE_S: Final = 0.5

Handler = Callable[[Request, Caller, Responder], None]
"""Carries out one request; responds now or later."""

_REQUEST: Final = msgspec.json.Decoder(Request)


@final
class ControlServer:
    """Serves a listening Unix socket from the loop.

    Attributes:
        requests: Requests that were responded to.
        refused: Of these, with an error.
        dropped: Connections that the server closed before the client did.
    """

    def __init__(
        self,
        listener: socket.socket,
        path: Path,
        loop: Loop,
        handle: Handler,
        restored: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Begin to serve.

        Args:
            listener: Bound to `path`, listening and non-blocking.
            path: Path of the socket; `close` removes it unless another socket has taken its place.
            loop: The loop to serve from.
            handle: Carries out requests.
            restored: Called when a vanished socket file has been made again.
            failed: Takes an exception of `handle`, whose client gets an error.
        """
        self.requests = 0
        self.refused = 0
        self.dropped = 0
        self._listener = listener
        self._path = path
        self._loop = loop
        self._handle = handle
        self._restored = restored
        self._failed = failed
        self._connections: set[Connection] = set()
        self._parked: list[Connection] = []
        self._saved_s = _SAVED_MAX_S
        self._saved_at = time.monotonic()
        self._inode = _inode(path)
        self._deaf = False
        loop.watch(listener.fileno(), self._accept)
        loop.every(_TICK_S, self._tick)

    def close(self) -> None:
        """Close all connections and remove the socket."""
        for connection in list(self._connections):
            self._close(connection)
        self._deaf = False
        self._loop.forget_if_watched(self._listener.fileno())
        self._listener.close()
        try:
            with exclusive(self._path.parent):
                if _inode(self._path) == self._inode:
                    self._path.unlink()
        except OSError:  # it is gone, or the directory is not writable any more
            return

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except BlockingIOError:  # the client is gone already
            return
        except OSError as error:
            if is_shortage(error.errno):
                self._deaf = True
                self._loop.forget(self._listener.fileno())
                self._loop.after(_SHORTAGE_S, self._listen_again)
            return
        try:
            self._connections.add(Connection(end, self._loop, self._serve))
        except OSError:
            end.close()
        if len(self._connections) > CONNECTIONS_MAX:
            self.dropped += 1
            self._close(_least(self._connections))

    def _listen_again(self, _now: float) -> None:
        if self._deaf:
            self._deaf = False
            self._loop.watch(self._listener.fileno(), self._accept)

    def _serve(self, connection: Connection) -> None:
        """Serve one turn of one connection, if requests have CPU time left."""
        if self._overspent(time.monotonic()):
            self._park(connection)
            return
        # CPU time: connections are not charged while the daemon is stopped or waits for a CPU.
        began = time.thread_time()
        try:
            self._advance(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
        self._saved_s -= time.thread_time() - began

    def _overspent(self, now: float) -> bool:
        """Whether requests have used up their share of CPU time."""
        self._saved_s = min(_SAVED_MAX_S, self._saved_s + _SHARE * (now - self._saved_at))
        self._saved_at = now
        return self._saved_s < 0

    def _park(self, connection: Connection) -> None:
        """Stop serving a connection for a while; its requests wait in the kernel."""
        self._move(connection, State.DEAF if connection.busy else State.PARKED)
        if not self._parked:
            self._loop.after(_PARKED_S, self._unpark)
        self._parked.append(connection)

    def _unpark(self, _now: float) -> None:
        parked, self._parked = self._parked, []
        for connection in parked:
            if connection.state is State.PARKED:
                self._move(connection, connection.settled)
            elif connection.state is State.DEAF and not connection.input_ended:
                self._move(connection, State.WAITING)

    def _advance(self, connection: Connection) -> None:
        if connection.state is State.WRITING:
            connection.flush()
            self._move(connection, connection.settled)
        elif connection.state is State.WAITING:
            self._keep_input(connection)
        elif connection.state in {State.READING, State.QUEUED}:
            self._take(connection)

    def _keep_input(self, connection: Connection) -> None:
        """Buffer the input that arrives while a request is carried out."""
        connection.receive(REQUEST_MAX_BYTES)
        if len(connection.input) > REQUEST_MAX_BYTES:
            self.dropped += 1
            self._close(connection)
        elif connection.input_ended:
            self._move(connection, State.DEAF)

    def _take(self, connection: Connection) -> None:
        """Carry out the next request, or read on."""
        if b"\n" not in connection.input:
            connection.receive(REQUEST_MAX_BYTES)
        line, newline, rest = connection.input.partition(b"\n")
        if len(line) > REQUEST_MAX_BYTES:
            self._refuse(connection, f"a request has at most {REQUEST_MAX_BYTES} bytes")
        elif newline:
            connection.input = rest
            self._request(connection, line)
        elif connection.input_ended and line:
            self._refuse(connection, "a request ends with a newline")
        else:
            self._move(connection, connection.settled)

    def _request(self, connection: Connection, line: bytes) -> None:
        # A client that waited in vain has reported a failure, so nothing may change afterwards.
        if connection.abandoned:
            self._close(connection)
            return
        try:
            request = _REQUEST.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self._refuse(connection, _mistake(line, error))
            return
        self._move(connection, State.WAITING)
        try:
            self._handle(
                request, connection.caller, lambda response: self._respond(connection, response)
            )
        except Exception as error:  # noqa: BLE001 - a request must not end the daemon
            self._failed(error)
            if connection.state is State.WAITING:
                self._respond(connection, Response.error(f"it failed: {exception_texts(error)[0]}"))

    def _refuse(self, connection: Connection, reason: str) -> None:
        """Respond to input that is not a request. The rest is not trusted, so the input ends."""
        connection.input_ended = True
        connection.input = b""
        self._respond(connection, Response.error(reason))

    def _respond(self, connection: Connection, response: Response) -> None:
        self.requests += 1
        self.refused += not response.succeeded
        if connection.state is State.CLOSED:
            return
        encoded = _encode(response)
        if len(encoded) > RESPONSE_MAX_BYTES:
            reason = f"the response has more than {RESPONSE_MAX_BYTES} bytes; request less"
            encoded = _encode(Response.error(reason))
        connection.output = encoded + b"\n"
        connection.active_at = time.monotonic()
        try:
            connection.flush()
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
            return
        self._move(connection, connection.settled)

    def _move(self, connection: Connection, to: State) -> None:
        """Change the state; an illegal transition is a bug, and closes only this connection."""
        if not connection.move(to):
            self.dropped += 1
            to = State.CLOSED
        if to is State.CLOSED:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.move(State.CLOSED)
        self._connections.discard(connection)

    def _tick(self, now: float) -> None:
        """Close idle connections, and recreate a socket file that has vanished."""
        for connection in list(self._connections):
            if now - connection.active_at > IDLE_S and not connection.busy:
                self.dropped += 1
                self._close(connection)
        if self._path.is_symlink() or self._path.exists():
            return
        listener = relisten(self._path)
        if listener is None:
            return
        self._deaf = False
        self._loop.forget_if_watched(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._inode = _inode(self._path)
        self._loop.watch(listener.fileno(), self._accept)
        self._restored()


def _least(connections: Collection[Connection]) -> Connection:
    """The connection that makes room for another one, so that readers keep no operator out."""
    counts = Counter(connection.caller.uid for connection in connections)
    return min(
        connections,
        key=lambda each: (each.caller.is_operator, -counts[each.caller.uid], each.active_at),
    )


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _encode(response: Response) -> bytes:
    table = {"return": "OK" if response.succeeded else "NOK", "message": response.message}
    return orjson.dumps(table, default=str)


def _mistake(line: bytes, error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return f"expected a request in JSON: {error}"
    text = line.decode("utf-8", "replace")
    found = text if len(text) <= 80 else f"{text[:77]}..."
    return f'expected {{"command": "...", "arguments": {{...}}}}, found {found}'
