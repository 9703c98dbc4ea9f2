# SPDX-License-Identifier: MIT
"""A lock for changes of our rules in a network namespace.

Reading, writing, verifying and rolling back take several programs, and a concurrent installer must
not interfere between them. The lock is a file in the runtime directory of the daemon, which only
root and the daemon's user may enter. The kernel releases it with its process.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nfq_guard import outfile
from nfq_guard.errors import BusyError, UnavailableError

FOLDER: Final = Path("/run/nfq-guard")
# Together with the programs that follow, less than TimeoutStartSec of the service.
PATIENCE_S: Final = 4.0
_PAUSE_S: Final = 0.02


@contextmanager
def held(folder: Path = FOLDER, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of the calling thread's network namespace.

    Args:
        folder: Directory of the file; created if it is missing.
        patience_s: Maximum time to wait for another holder, seconds.

    Raises:
        BusyError: Another process held it throughout; it is named.
        UnavailableError: The file cannot be opened.
    """
    path = folder / f"rules-{Path('/proc/thread-self/ns/net').stat().st_ino}.lock"
    try:
        lock = _locked(path, patience_s)
    except OSError as error:
        raise UnavailableError(f"the lock {path} cannot be opened: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def _locked(path: Path, patience_s: float) -> int:
    """The open file, locked and still the file of that name."""
    deadline = time.monotonic() + patience_s
    path.parent.mkdir(mode=0o750, exist_ok=True)
    while True:
        lock = _open(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, lock):
                return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _holder(os.fstat(lock).st_ino)
                os.close(lock)
                raise BusyError(
                    f"{holder} is changing the rules and does not end ({path})"
                ) from None
            time.sleep(_PAUSE_S)
        os.close(lock)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path, flags, 0o600)
    owner = path.parent.stat()
    # Another name of a file of root would give that file to the owner of the directory.
    outfile.require_own(lock, path, {0, os.geteuid(), owner.st_uid})
    if os.geteuid() == 0:
        # The directory may belong to the daemon, which must be able to open the file too.
        os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock


def _is_at(path: Path, lock: int) -> bool:
    """Whether the file still has its name: the last holder may have removed it."""
    try:
        return path.stat().st_ino == os.fstat(lock).st_ino
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def _holder(inode: int) -> str:
    """The process that holds the lock of a file, from the kernel's list."""
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            # "1: FLOCK  ADVISORY  WRITE 711 00:19:1234 0 EOF"; one that waits has "->" before.
            if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                return f"{_name(words[4])} (pid {words[4]})"
    return "another process"


def _name(pid: str) -> str:
    with suppress(OSError):
        return Path("/proc", pid, "comm").read_text(encoding="utf-8", errors="replace").strip()
    return "a process"
