# SPDX-License-Identifier: MIT
"""Messages between the daemon and a worker process: JSON, whole, never waiting."""

import socket
from typing import Any, Final, final

import orjson

_MESSAGE_MAX: Final = 1 << 19
# So many a turn; a worker that talks too much must not keep the daemon from others.
_MESSAGES_A_TURN: Final = 64
_BUFFER_BYTES: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32

Message = dict[str, Any]


@final
class Channel:
    """One end of a pair."""

    def __init__(self, end: socket.socket) -> None:
        """Take over `end`."""
        self._socket = end
        end.settimeout(0)
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def fileno(self) -> int:
        """For the loop."""
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """Whether it was taken; one that is not is lost."""
        return self.send_octets(orjson.dumps(message, default=str))

    def send_octets(self, octets: bytes) -> bool:
        """As `send`."""
        try:
            self._socket.send(octets, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # the other end is gone, or does not read
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """Messages that wait; None when the other end is gone."""
        found: list[bytes] = []
        while len(found) < _MESSAGES_A_TURN:
            try:
                octets = self._socket.recv(_MESSAGE_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError:
                return found or None
            if not octets:
                return found or None
            found.append(octets)
        return found

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, both closed on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
