# SPDX-License-Identifier: MIT
"""One connection of the control socket: its state, and the legal transitions."""

import select
import socket
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, final

from nfq_guard.service.control.protocol import caller_of
from nfq_guard.service.loop import Loop


class State(Enum):
    """The state of a connection."""

    READING = auto()
    """No complete request has arrived."""
    QUEUED = auto()
    """The next request has arrived, and is carried out in a later turn of the loop."""
    WAITING = auto()
    """A request is being carried out; further input is buffered."""
    DEAF = auto()
    """As WAITING, but nothing is read: the input has ended, or the share of CPU time is spent."""
    WRITING = auto()
    """The client has not read all of a response; nothing is read from it."""
    PARKED = auto()
    """The share of CPU time is spent; the connection is left alone for a while."""
    CLOSED = auto()
    """The connection is closed."""


class Interest(Enum):
    """The readiness for which the loop watches a socket."""

    NOTHING = auto()
    READABLE = auto()
    WRITABLE = auto()


TRANSITIONS: Final = {
    State.READING: {State.WAITING, State.WRITING, State.PARKED, State.CLOSED},
    State.QUEUED: {State.WAITING, State.WRITING, State.PARKED, State.CLOSED},
    State.WAITING: {State.READING, State.QUEUED, State.WRITING, State.DEAF, State.CLOSED},
    State.DEAF: {State.READING, State.QUEUED, State.WAITING, State.WRITING, State.CLOSED},
    State.WRITING: {State.READING, State.QUEUED, State.PARKED, State.CLOSED},
    State.PARKED: {State.READING, State.QUEUED, State.WRITING, State.CLOSED},
    State.CLOSED: set[State](),
}

# A queued request is taken when the socket is writable: in the next turn, so that each connection
# has one request a turn, or later if the client has not read the earlier responses.
INTEREST: Final = {
    State.READING: Interest.READABLE,
    State.QUEUED: Interest.WRITABLE,
    State.WAITING: Interest.READABLE,
    State.DEAF: Interest.NOTHING,
    State.WRITING: Interest.WRITABLE,
    State.PARKED: Interest.NOTHING,
    State.CLOSED: Interest.NOTHING,
}


@final
class Connection:
    """One client.

    Attributes:
        caller: The process at the other end.
        state: Changed only by `move`.
        input: Bytes that have arrived and are not yet used.
        input_ended: Whether no more input will be read.
        output: The rest of a response that is not sent yet.
        active_at: When the client last sent or read something, monotonic seconds.
    """

    __slots__ = (
        "_loop",
        "_ready",
        "_socket",
        "active_at",
        "caller",
        "input",
        "input_ended",
        "output",
        "state",
    )

    def __init__(
        self, end: socket.socket, loop: Loop, ready: Callable[["Connection"], None]
    ) -> None:
        """Watch a connected socket; the loop calls `ready` when there is something to do.

        Raises:
            OSError: The caller cannot be identified, or the socket cannot be watched.
        """
        end.settimeout(0)
        self.caller = caller_of(end)
        self.state = State.READING
        self.input = b""
        self.input_ended = False
        self.output = b""
        self.active_at = time.monotonic()
        self._socket = end
        self._loop = loop
        self._ready = ready
        loop.watch(end.fileno(), self._call)

    @property
    def busy(self) -> bool:
        """Whether a request is carried out."""
        return self.state in {State.WAITING, State.DEAF}

    @property
    def settled(self) -> State:
        """The next state if no request is being carried out."""
        if self.output:
            return State.WRITING
        if b"\n" in self.input:
            return State.QUEUED
        return State.CLOSED if self.input_ended else State.READING

    @property
    def abandoned(self) -> bool:
        """Whether the client has closed its end, and not only its side of the conversation."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def move(self, to: State) -> bool:
        """Change the state and the watched readiness; False if `TRANSITIONS` forbids it."""
        if to is self.state:
            return True
        if to not in TRANSITIONS[self.state]:
            return False
        before, after = INTEREST[self.state], INTEREST[to]
        self.state = to
        if after is not before:
            self._watch(before, after)
        if to is State.CLOSED:
            self._socket.close()
        return True

    def receive(self, most: int) -> int:
        """Read at most `most` bytes into `input`. Returns their number; 0 at the end of the input.

        Raises:
            BlockingIOError: Nothing has arrived.
            OSError: The connection is broken.
        """
        part = self._socket.recv(most)
        self.input += part
        self.input_ended = not part
        self.active_at = time.monotonic()
        return len(part)

    def flush(self) -> None:
        """Send `output`.

        Raises:
            BlockingIOError: The client has to read before the rest can be sent.
            OSError: The connection is broken.
        """
        while self.output:
            sent = self._socket.send(self.output, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self.output = self.output[sent:]
            self.active_at = time.monotonic()

    def _call(self) -> None:
        self._ready(self)

    def _watch(self, before: Interest, after: Interest) -> None:
        descriptor = self._socket.fileno()
        if after is Interest.NOTHING:
            self._loop.forget(descriptor)
            return
        if before is Interest.NOTHING:
            self._loop.watch(descriptor, self._call)
            if after is Interest.READABLE:
                return
        self._loop.writing(descriptor, only=after is Interest.WRITABLE)
