# SPDX-License-Identifier: MIT
"""The control socket's place in the file system: who is there already, and taking it."""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nfq_guard.errors import BusyError, UsageError
from nfq_guard.service.control.protocol import caller_of
from nfq_guard.service.settings import Settings

CONNECTIONS_MAX: Final = 16
DEFAULT: Final = Path(Settings().control_socket)
_KEY: Final = "daemon.control_socket"
_ANSWER_WITHIN_S: Final = 1.0
# The owner and the group may connect; what each may ask is looked at again with every request.
# Longer than another daemon takes to find out that nobody answers.
_LOCK_WITHIN_S: Final = 1.5
_UMASK: Final = 0o117


def listen(path: Path, notes: list[str]) -> socket.socket | None:
    """Take the place; None, with a note, where a daemon that was told no path goes without.

    A socket that nobody listens at is what a killed daemon leaves behind; it is replaced.

    Raises:
        UsageError: There is something else, or no such directory.
        BusyError: Another daemon answers there.
    """
    try:
        return _listen(path)
    except BusyError as error:
        if path != DEFAULT or not _elsewhere(path):
            raise
        notes.append(f"{error}, in another network namespace: this one has no control socket")
    except UsageError as error:
        if path != DEFAULT or path.exists():
            raise
        notes.append(f"{error}: this daemon has no control socket")
    return None


def _listen(path: Path) -> socket.socket:
    """Listen under a name of our own first: nobody must find a socket that does not answer yet."""
    if path == DEFAULT and not path.parent.exists() and os.geteuid() == 0:
        path.parent.mkdir(mode=0o750, exist_ok=True)
    if not path.parent.is_dir():
        raise UsageError(f"{_KEY}: expected a path in a directory, found no {path.parent}")
    own = path.with_name(f".{path.name}.{os.getpid()}")
    own.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_UMASK)
    try:
        with exclusive(path.parent):
            _make_room(path)
            listener.bind(str(own))
            listener.listen(CONNECTIONS_MAX)
            path.hardlink_to(own)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise UsageError(f"{_KEY}: {path} cannot be made: {why}") from None
    except (BusyError, UsageError):
        listener.close()
        raise
    finally:
        os.umask(before)
        own.unlink(missing_ok=True)
    listener.settimeout(0)
    return listener


def _make_room(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode) and not path.is_socket():
            raise UsageError(f"{_KEY}: expected a socket or nothing, found a file at {path}")
        with _connected(path) as connection:
            owner = caller_of(connection)
            raise BusyError(f"another nfq-guard (pid {owner.pid}) answers at {path}")
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{_KEY}: {path} cannot be taken: {why}") from None


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_WITHIN_S)
    try:
        connection.connect(str(path))
    except TimeoutError:
        pass  # somebody listens and is busy, or stopped
    except OSError:
        connection.close()
        raise
    return connection


def _elsewhere(path: Path) -> bool:
    """Whether the daemon that has the place is surely in another network namespace than we."""
    try:
        with _connected(path) as connection:
            theirs = own_namespace(caller_of(connection).pid)
    except OSError:
        return False
    return theirs not in {"", own_namespace("self")}


def own_namespace(pid: int | str) -> str:
    """The network namespace of a process, as the kernel names it; empty if not to be seen."""
    try:
        return str(Path("/proc", str(pid), "ns/net").readlink())
    except OSError:
        return ""


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the lock under which a daemon takes or removes a socket in `directory`.

    Any process that may read the directory could hold the lock for ever, so it is not waited for
    longer than `_LOCK_WITHIN_S`; after that the body runs without it.

    Raises:
        OSError: The directory cannot be read.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            break
        yield
    finally:
        os.close(fd)
