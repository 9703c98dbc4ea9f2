# SPDX-License-Identifier: MIT
"""Files that a command writes for its caller, in a directory that others may write too."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from nfq_guard.errors import OutputError, UsageError

# Only root can put a name into these, and their links may lead to regular files.
_DIRECTORIES_OF_STREAMS: Final = frozenset(map(Path, ("/dev", "/dev/fd", "/proc/self/fd")))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which takes the name `path` once it is complete.

    Until then its name is random, and it is a file that this process made: nothing is written to a
    link or a file that another user planted. Where the block raises, the file is removed, and
    what has the name `path` stays as it is. A link or a pipe of another user's is replaced, if the
    kernel allows that. A pipe or device of the caller's or root's, or a link to one, is written to.

    Raises:
        OSError: It cannot be written.
    """
    if path.parent in _DIRECTORIES_OF_STREAMS:
        with path.open("wb") as file:
            yield file
        return
    if _is_stream(path):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileExistsError(0, "replaced while it was opened", str(path))
            yield file
        return
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    # Made with the caller's umask.
    file = unfinished.open("xb")
    try:
        with file:
            yield file
            if path.is_file() and not path.is_symlink():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode) & 0o777)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def output(path: Path, name: str) -> Iterator[BinaryIO]:
    """As `replacing`, with errors for the operator.

    Args:
        path: The file.
        name: What errors call it.

    Raises:
        UsageError: It cannot be opened.
        OutputError: It cannot be written to its end.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(replacing(path))
        except OSError as error:
            raise UsageError(f"{name}: cannot be written: {error.strerror}") from None
        try:
            yield file
            stack.close()
        except OSError as error:
            raise OutputError(f"{name}: cannot be written: {error.strerror}") from None


def _is_stream(path: Path) -> bool:
    """Whether it is a pipe or a device that can be trusted to be the one that was meant."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return False
    return owner in {0, os.geteuid()} and path.exists() and not path.is_file()
