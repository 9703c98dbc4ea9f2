# SPDX-License-Identifier: MIT
"""The control protocol: one JSON request a line, one JSON response a line.

{"command": "mode", "arguments": {"mode": "enforce"}}
{"return": "OK", "message": {...}}    or    {"return": "NOK", "message": "one sentence"}
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, final

from msgspec import Struct, field

RESPONSE_MAX_BYTES: Final = 4 << 20
"""Maximum length of a response, without the end of its line."""

_TIMEVAL: Final = struct.Struct("ll")
_UCRED: Final = struct.Struct("iII")
# From asm-generic/socket.h; the module socket has no name for it.
_SO_PEERGROUPS: Final = 59
# The largest buffer that Python's getsockopt accepts.
_PEERGROUPS_MAX_BYTES: Final = 1024


@final
class Request(Struct, frozen=True):
    """One request.

    Attributes:
        command: A name of `commands.COMMANDS`; any other name is refused.
        arguments: The arguments by name; `commands` decodes them.
    """

    command: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Response(NamedTuple):
    """The response to one request.

    Attributes:
        succeeded: Whether the request was carried out.
        message: The result, of any JSON type; for an error, the reason as one string.
    """

    succeeded: bool
    message: object

    @classmethod
    def ok(cls, message: object) -> Self:
        """A successful response."""
        return cls(succeeded=True, message=message)

    @classmethod
    def error(cls, reason: str) -> Self:
        """An error response."""
        return cls(succeeded=False, message=reason)


Responder = Callable[[Response], None]
"""Sends the response to one request, now or later; must be called exactly once."""


class Caller(NamedTuple):
    """The process at the other end of a connection, as the kernel reports it.

    Attributes:
        pid: Process ID.
        uid: Effective user at the time of `connect`.
        groups: The effective group and all supplementary groups at that time.
    """

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def is_operator(self) -> bool:
        """Whether it is of root or of this process's user."""
        return self.uid in {0, os.geteuid()}


def connect(path: Path, within_s: float) -> socket.socket:
    """A connection to a listener, which has room for it within `within_s`, at least a millisecond.

    A timeout of Python would make the socket non-blocking, and the kernel then refuses at once what
    the backlog has no room for.

    Raises:
        TimeoutError: The backlog stayed full.
        OSError: Nothing listens there, or this process may not connect.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    limit = _TIMEVAL.pack(*divmod(max(1000, int(within_s * 1e6)), 10**6))
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection.connect(str(path))
    except BlockingIOError:
        connection.close()
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except OSError:
        connection.close()
        raise
    return connection


def caller_of(connection: socket.socket) -> Caller:
    """The process at the other end of a connected Unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    groups = {gid}
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_MAX_BYTES)
        groups.update(struct.unpack(f"{len(packed) // 4}I", packed))
    except OSError:  # more supplementary groups than fit into the buffer: only `gid` counts
        pass
    return Caller(pid, uid, frozenset(groups))
