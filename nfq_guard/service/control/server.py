# SPDX-License-Identifier: MIT
"""The control socket: one JSON request a line, one JSON answer a line, in the packet loop.

    {"command": "mode", "arguments": {"mode": "enforce"}}
    {"return": "OK", "message": {...}}    or    {"return": "NOK", "message": "one sentence"}

Whoever may connect must not harm the packets. So there are few clients, and the one that was
quiet longest has to go for a new one; a line has a bound; a client gets one request a turn of the
loop answered, and none while it has not read the answer before; one that does nothing for a while
is dropped; and all of them together get a tenth of the time. What is kept for a client is thus a
line and an answer at most.
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

import orjson

from nfq_guard.service.control.protocol import Caller, Responder, Response, caller_of
from nfq_guard.service.control.socket_path import CONNECTIONS_MAX, exclusive
from nfq_guard.service.loop import Loop

LINE_MAX_BYTES: Final = 1 << 16
ANSWER_MAX_BYTES: Final = 4 << 20
IDLE_S: Final = 30.0
# Of a second, how much of it goes to requests; and how much may be saved up for several at once.
_SHARE: Final = 0.1
_SAVED_MAX_S: Final = 0.05
_PARKED_S: Final = 0.02


Handler = Callable[[str, dict[str, object], Caller, Responder], None]
"""Command, arguments, caller, and where the answer goes, at once or later."""


@final
class ControlServer:
    """Serves a listening Unix socket from the loop.

    Attributes:
        requests: Lines that were answered.
        refused: Of these, with NOK.
        dropped: Clients that were sent away.
    """

    def __init__(self, listener: socket.socket, path: Path, loop: Loop, handle: Handler) -> None:
        """Begin to serve.

        Args:
            listener: Bound and listening, not blocking.
            path: Where; removed at the end if it is still this socket.
            loop: Whose turns these are.
            handle: What answers; an exception of it is a bug of ours and is raised.
        """
        self.requests = 0
        self.refused = 0
        self.dropped = 0
        self._listener = listener
        self._path = path
        self._loop = loop
        self._handle = handle
        self._clients: dict[int, _Client] = {}
        self._parked: list[_Client] = []
        self._saved_s = _SAVED_MAX_S
        self._saved_at = time.monotonic()
        found = path.lstat()
        self._inode = (found.st_dev, found.st_ino)
        loop.watch(listener.fileno(), self._accept)
        loop.every(1.0, self._sweep)

    def close(self) -> None:
        """Send everybody away and remove the socket."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        try:
            with exclusive(self._path.parent):
                found = self._path.lstat()
                if (found.st_dev, found.st_ino) == self._inode:
                    self._path.unlink()
        except OSError:  # gone, or in a directory that is no longer ours to write
            return

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away already, or there is no descriptor left for it
            return
        connection.settimeout(0)
        if len(self._clients) >= CONNECTIONS_MAX:
            self.dropped += 1
            self._drop(min(self._clients.values(), key=lambda client: client.active_at))
        client = _Client(connection, time.monotonic())
        fd = connection.fileno()
        self._clients[fd] = client
        self._loop.watch(fd, lambda: self._serve(client))

    def _serve(self, client: "_Client") -> None:
        """One turn of one client: bring out its response, or take its next request."""
        if client.gone:
            return
        began = time.monotonic()
        if self._overspent(began):
            self._park(client)
            return
        self._serve_now(client)
        self._saved_s -= time.monotonic() - began

    def _overspent(self, now: float) -> bool:
        """Whether requests have had their share of the time."""
        self._saved_s = min(_SAVED_MAX_S, self._saved_s + _SHARE * (now - self._saved_at))
        self._saved_at = now
        return self._saved_s < 0

    def _park(self, client: "_Client") -> None:
        """Look at it later; its request stays in the kernel meanwhile."""
        if client.watched:
            client.watched = False
            self._loop.forget(client.connection.fileno())
        if not self._parked:
            self._loop.after(_PARKED_S, self._unpark)
        self._parked.append(client)

    def _unpark(self, _now: float) -> None:
        parked, self._parked = self._parked, []
        for client in parked:
            if not client.gone:
                self._rewatch(client)

    def _serve_now(self, client: "_Client") -> None:
        try:
            if client.output:
                client.flush()
            elif client.busy:
                self._listen(client)
            else:
                self._take(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not client.gone:
            self._rewatch(client)

    def _take(self, client: "_Client") -> None:
        if b"\n" not in client.input:
            octets = client.connection.recv(LINE_MAX_BYTES)
            if not octets:
                if client.input:
                    self._refuse(client, "a request ends with a newline")
                client.last = True
            client.input += octets
            client.active_at = time.monotonic()
        line, newline, rest = client.input.partition(b"\n")
        if newline and len(line) <= LINE_MAX_BYTES:
            client.input = rest
            self._request(client, line)
        elif len(line) > LINE_MAX_BYTES:
            self._refuse(client, f"a request has at most {LINE_MAX_BYTES} octets")
        elif client.last and not client.output:
            self._drop(client)

    def _listen(self, client: "_Client") -> None:
        """Take what it sends while its answer is being worked on."""
        octets = client.connection.recv(LINE_MAX_BYTES)
        client.input += octets
        if len(client.input) > LINE_MAX_BYTES:
            self.dropped += 1
            self._drop(client)
        elif not octets:
            client.last = True
            client.watched = False
            self._loop.forget(client.connection.fileno())

    def _request(self, client: "_Client", line: bytes) -> None:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self._refuse(client, f"expected a request in JSON: {error}")
            return
        command = found.get("command") if isinstance(found, dict) else None
        arguments = found.get("arguments", {}) if isinstance(found, dict) else None
        if not isinstance(command, str) or not isinstance(arguments, dict):
            shape = '{"command": "...", "arguments": {...}}'
            self._refuse(client, f"expected {shape}, found {_cut(line)}")
            return
        client.busy = True

        def respond(response: Response) -> None:
            client.busy = False
            self._answer(client, response)

        self._handle(command, arguments, client.caller, respond)

    def _refuse(self, client: "_Client", why: str) -> None:
        """Say no to what is no request; what follows such a line is not trusted either."""
        client.last = True
        client.input = b""
        self._answer(client, Response.error(why))

    def _answer(self, client: "_Client", response: Response) -> None:
        self.requests += 1
        self.refused += not response.succeeded
        if client.gone:
            return
        octets = _encoded(response)
        if len(octets) > ANSWER_MAX_BYTES:
            words = f"the answer has more than {ANSWER_MAX_BYTES} octets; ask for less"
            octets = _encoded(Response.error(words))
        client.output = octets + b"\n"
        client.active_at = time.monotonic()
        try:
            client.flush()
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._rewatch(client)

    def _rewatch(self, client: "_Client") -> None:
        more = b"\n" in client.input
        if client.last and not client.output and not client.busy and not more:
            self._drop(client)
            return
        if client.busy and not client.watched:
            return
        fd = client.connection.fileno()
        if not client.watched:
            client.watched = True
            client.writing = False
            self._loop.watch(fd, lambda: self._serve(client))
        # Writable is also how the next line that is already here gets its turn.
        only = bool(client.output) or (more and not client.busy)
        if only != client.writing:
            client.writing = only
            self._loop.writing(fd, only=only)

    def _drop(self, client: "_Client") -> None:
        if client.gone:
            return
        client.gone = True
        fd = client.connection.fileno()
        del self._clients[fd]
        if client.watched:
            self._loop.forget(fd)
        client.connection.close()

    def _sweep(self, now: float) -> None:
        for client in list(self._clients.values()):
            if now - client.active_at > IDLE_S and not client.busy:
                self.dropped += 1
                self._drop(client)


@final
class _Client:
    __slots__ = (
        "active_at",
        "busy",
        "caller",
        "connection",
        "gone",
        "input",
        "last",
        "output",
        "watched",
        "writing",
    )

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.caller = caller_of(connection)
        self.input = b""
        self.output = b""
        self.active_at = now
        self.busy = False  # its answer is being worked on
        self.last = False  # after this answer it goes
        self.gone = False
        self.watched = True
        self.writing = False

    def flush(self) -> None:
        while self.output:
            sent = self.connection.send(self.output, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self.output = self.output[sent:]
            self.active_at = time.monotonic()


def _encoded(response: Response) -> bytes:
    said = {"return": "OK" if response.succeeded else "NOK", "message": response.message}
    return orjson.dumps(said, default=str)


def _cut(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return text if len(text) <= 80 else f"{text[:77]}..."
