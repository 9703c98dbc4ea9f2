# SPDX-License-Identifier: MIT
"""Binds the control socket to its path, unless another daemon uses the path."""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nfq_guard.errors import BusyError, NfqGuardError, UsageError, for_operator
from nfq_guard.netlink.owner import open_files
from nfq_guard.service.control.protocol import caller_of, connect
from nfq_guard.service.settings import Settings

DEFAULT: Final = Path(Settings().control_socket)
_KEY: Final = "daemon.control_socket"
# Connections that may wait to be accepted.
_BACKLOG: Final = 16
_CONNECT_WITHIN_S: Final = 1.0
# Longer than another daemon needs to find out that no process listens.
LOCK_WITHIN_S: Final = 1.5
# The owner and the group may connect; `commands` checks what each of them may send.
_UMASK: Final = 0o117
# The flag of a socket that listens, as /proc/net/unix has it.
_LISTENING: Final = "00010000"


def listen(path: Path, notes: list[str]) -> socket.socket | None:
    """Listen at `path`.

    Returns None, and adds a line to `notes`, if the daemon runs without a control socket. That is
    the case if `path` is the default, and its directory is missing or a daemon in another network
    namespace uses it.

    A socket without a listening process, as a killed daemon leaves it, is replaced.

    Raises:
        UsageError: `path` is not a socket, or cannot be made.
        BusyError: Another daemon listens there.
    """
    try:
        return _listen(path, LOCK_WITHIN_S)
    except BusyError as error:
        if path != DEFAULT or not _is_elsewhere(path):
            raise
        notes.append(f"{error}, in another network namespace: this daemon has no control socket")
    except UsageError as error:
        if path != DEFAULT or path.exists():
            raise
        notes.append(f"{error}: this daemon has no control socket")
    return None


def relisten(path: Path) -> socket.socket | None:
    """Listen again at a path that has vanished, without blocking; None if that fails.

    The packet loop calls this, so a lock that another process holds is not waited for.
    """
    with suppress(NfqGuardError):
        return _listen(path, 0.0)
    return None


def make_directory(path: Path) -> None:
    """Make the directory of the default control socket, if root lacks it, as at a manual start."""
    if path == DEFAULT and not path.parent.exists() and os.geteuid() == 0:
        with suppress(OSError):
            path.parent.mkdir(mode=0o750, exist_ok=True)


@contextmanager
def exclusive(directory: Path, within_s: float | None = None) -> Iterator[None]:
    """Hold the lock under which a daemon takes or removes a socket in `directory`.

    Any process that can read the directory could hold the lock forever. The wait for it is
    therefore limited to `within_s`, by default `LOCK_WITHIN_S`; then the body runs without it.

    Raises:
        OSError: The directory cannot be read.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + (LOCK_WITHIN_S if within_s is None else within_s)
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


def network_namespace(pid: int | str) -> str:
    """The network namespace of a process, as named in /proc; empty if that is not readable."""
    try:
        return str(Path("/proc", str(pid), "ns/net").readlink())
    except OSError:
        return ""


def find(default: Path) -> tuple[Path, bool]:
    """The socket of the daemon in this network namespace, and whether it may be there.

    Instances listen in directories next to `default`, each with the file name of `default`. The
    result is `default` if no daemon is known to be in this namespace; False means that the one at
    `default` is known to be in another.
    """
    elsewhere = _is_elsewhere(default)
    if elsewhere or _is_missing(default):
        for path in sorted(default.parent.glob(f"*/{default.name}")):
            if is_here(path):
                return path, True
    return default, not elsewhere


def of_process(pid: int) -> Path | None:
    """The control socket at which a process listens; None without one, or if it is not visible."""
    process = Path("/proc", str(pid))
    try:
        links = open_files(process)
        listed = (process / "net/unix").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for words in (line.split(maxsplit=7) for line in listed.splitlines()):
        # Num RefCount Protocol Flags Type St Inode Path, of a socket that listens.
        if len(words) == 8 and words[3] == _LISTENING and f"socket:[{words[6]}]" in links:
            bound = Path(words[7])
            path = bound.with_name(bound.name.removeprefix(".").removesuffix(f".{pid}"))
            if bound == _temporary(path, pid):
                return path
    return None


def _temporary(path: Path, pid: int) -> Path:
    """The temporary name of a socket that a process then links to `path`."""
    return path.with_name(f".{path.name}.{pid}")


def _is_missing(path: Path) -> bool:
    """Whether nothing is at `path`; false if this process cannot find out."""
    try:
        return not path.exists()
    except PermissionError:
        return False


def _listen(path: Path, lock_within_s: float) -> socket.socket:
    """Listen under a temporary name, then link `path` to it: it listens as soon as it exists."""
    make_directory(path)
    if not path.parent.is_dir():
        raise UsageError(f"{_KEY}: expected a path in a directory, found no {path.parent}")
    temporary = _temporary(path, os.getpid())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(_UMASK)
    try:
        with exclusive(path.parent, lock_within_s):
            temporary.unlink(missing_ok=True)
            _make_room(path)
            listener.bind(str(temporary))
            listener.listen(_BACKLOG)
            path.hardlink_to(temporary)
    except OSError as error:
        listener.close()
        raise for_operator(UsageError, f"{_KEY}: {path} cannot be made", error) from None
    except NfqGuardError:
        listener.close()
        raise
    finally:
        os.umask(umask)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    listener.settimeout(0)
    return listener


def _make_room(path: Path) -> None:
    """Remove a socket without a listening process."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode) and not path.is_socket():
            raise UsageError(f"{_KEY}: expected a socket or nothing, found a file at {path}")
        with connect(path, _CONNECT_WITHIN_S) as connection:
            owner = caller_of(connection)
            raise BusyError(f"another nfq-guard (pid {owner.pid}) listens at {path}")
    except FileNotFoundError:
        return
    except TimeoutError:
        raise BusyError(f"another process listens at {path}, but accepts no connection") from None
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise for_operator(UsageError, f"{_KEY}: {path} cannot be taken", error) from None


def _is_elsewhere(path: Path) -> bool:
    """Whether the listener at `path` is known to be in another network namespace."""
    return _namespace_at(path) not in {"", network_namespace("self")}


def is_here(path: Path) -> bool:
    """Whether the listener at `path` is known to be in this network namespace."""
    return _namespace_at(path) == network_namespace("self") != ""


def _namespace_at(path: Path) -> str:
    """The network namespace of the listener at `path`; empty if unknown."""
    try:
        with connect(path, _CONNECT_WITHIN_S) as connection:
            return network_namespace(caller_of(connection).pid)
    except OSError:
        return ""
