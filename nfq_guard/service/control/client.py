# SPDX-License-Identifier: MIT
"""A client of the control socket of a running daemon."""

import json
import time
from pathlib import Path
from typing import Any, Final, Self, final

import msgspec

from nfq_guard.errors import NfqGuardError, NotRunningError, PrivilegeError, UsageError
from nfq_guard.service.control.protocol import RESPONSE_MAX_BYTES, connect

RESPONSE_WITHIN_S: Final = 10.0
_PART_BYTES: Final = 1 << 16
# Of lists and tables in a response; a daemon nests fewer than ten. Whoever reads it may recurse.
_DEEPEST: Final = 64


class _Response(msgspec.Struct):
    kind: str = msgspec.field(name="return")
    message: Any


@final
class RefusedError(NfqGuardError):
    """An error response; the message is the daemon's."""


@final
class Client:
    """One connection to a daemon."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket at `path`.

        Raises:
            NotRunningError: No daemon listens at `path`, or it accepts no connection.
            PrivilegeError: This user may not connect.
            UsageError: `path` is not a socket.
        """
        self._path = path
        self._rest = b""
        try:
            self._socket = connect(path, RESPONSE_WITHIN_S)
        except OSError as error:
            raise connect_error(path, error) from None
        self._socket.settimeout(RESPONSE_WITHIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def request(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - as the command says
        """Send one request and wait for the response. Returns its message.

        Raises:
            RefusedError: The response is an error.
            NotRunningError: The daemon ended before it responded, or took too long.
            UsageError: The response is not that of a control socket.
        """
        request = json.dumps({"command": command, "arguments": arguments})
        try:
            self._socket.sendall(request.encode() + b"\n")
            line = self._line()
        except TimeoutError:
            raise NotRunningError(
                f"the daemon at {self._path} does not respond within {RESPONSE_WITHIN_S:.0f} s"
            ) from None
        except OSError as error:
            raise NotRunningError(
                f"the daemon at {self._path} closed the connection: {error.strerror}"
            ) from None
        try:
            response = msgspec.json.decode(line, type=_Response)
        except (msgspec.MsgspecError, RecursionError):
            raise self._unexpected() from None
        if _is_deep(response.message):
            raise self._unexpected()
        if response.kind != "OK":
            raise RefusedError(str(response.message))
        return response.message

    def _unexpected(self) -> UsageError:
        return UsageError(f"{self._path}: expected a control socket of nfq-guard")

    def _line(self) -> bytes:
        """The next line, complete in time: whoever took the daemon over may send without end."""
        parts = [self._rest]
        size = len(self._rest)
        until = time.monotonic() + RESPONSE_WITHIN_S
        while b"\n" not in parts[-1]:
            if size > RESPONSE_MAX_BYTES:
                raise self._unexpected()
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(_PART_BYTES)
            if not part:
                raise NotRunningError(f"the daemon at {self._path} closed the connection")
            parts.append(part)
            size += len(part)
        self._socket.settimeout(RESPONSE_WITHIN_S)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def _is_deep(message: object) -> bool:
    """Whether lists and tables are nested deeper than any daemon does."""
    level = [message]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        if not below:
            return False
        level = below
    return True


def connect_error(path: Path, error: OSError) -> NfqGuardError:
    """The error for the operator if `connect` failed with `error`."""
    if isinstance(error, PermissionError):
        return PrivilegeError(f"only root and the group of the daemon may connect to {path}")
    if isinstance(error, FileNotFoundError):
        return NotRunningError(f"not running: {path} does not exist")
    if isinstance(error, ConnectionRefusedError) and path.is_socket():
        return NotRunningError(f"not running: no process listens at {path}")
    if isinstance(error, TimeoutError):
        return NotRunningError(f"the daemon at {path} does not respond")
    return UsageError(f"{path}: expected a control socket: {error.strerror or error}")
