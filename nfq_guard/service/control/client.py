# SPDX-License-Identifier: MIT
"""Asking a running daemon over its control socket."""

import json
import socket
from pathlib import Path
from typing import Any, Final, Self, final

from nfq_guard.errors import NfqGuardError, NotRunningError, PrivilegeError, UsageError

_ANSWER_WITHIN_S: Final = 10.0
_PART_BYTES: Final = 1 << 16


@final
class RefusedError(NfqGuardError):
    """The daemon said no; the message is its own."""


@final
class Client:
    """One connection."""

    def __init__(self, path: Path) -> None:
        """Connect.

        Raises:
            NotRunningError: Nobody listens there.
            PrivilegeError: It is not for this user.
            UsageError: The path is none of a socket.
        """
        self._path = path
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_WITHIN_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise _why_not(path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - as the command says
        """Send one request and wait for its message.

        Raises:
            RefusedError: The daemon said no.
            NotRunningError: It ended meanwhile, or does not answer.
        """
        request = json.dumps({"command": command, "arguments": arguments})
        try:
            self._socket.sendall(request.encode() + b"\n")
            line = self._line()
        except TimeoutError:
            raise NotRunningError(
                f"the daemon at {self._path} does not answer within {_ANSWER_WITHIN_S:.0f} s"
            ) from None
        except OSError as error:
            raise NotRunningError(f"the daemon at {self._path} ended: {error.strerror}") from None
        answer = json.loads(line)
        if answer["return"] != "OK":
            raise RefusedError(str(answer["message"]))
        return answer["message"]

    def _line(self) -> bytes:
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            part = self._socket.recv(_PART_BYTES)
            if not part:
                raise NotRunningError(f"the daemon at {self._path} closed the connection")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def _why_not(path: Path, error: OSError) -> NfqGuardError:
    if isinstance(error, PermissionError):
        return PrivilegeError(f"{path} is for root and the group of the daemon")
    if isinstance(error, FileNotFoundError):
        return NotRunningError(f"not running: there is no {path}")
    if isinstance(error, ConnectionRefusedError) and path.is_socket():
        return NotRunningError(f"not running: nobody listens at {path}")
    if isinstance(error, TimeoutError):
        return NotRunningError(f"the daemon at {path} does not answer")
    return UsageError(f"{path}: expected a control socket: {error.strerror or error}")
