# SPDX-License-Identifier: MIT
"""Writes a command's output files, in directories to which other users may write."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from nfq_guard.errors import OutputError, UsageError

# Only root can create names in these, and their links may lead to regular files.
_DIRECTORIES_OF_STREAMS: Final = frozenset(map(Path, ("/dev", "/dev/fd", "/proc/self/fd")))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, which gets the name `path` once it is complete.

    Until then it is a new file with a random name: nothing is written to a link or a file that
    another user planted. If the block raises, the file is removed, and an existing `path` is
    unchanged. A link or a pipe of another user is replaced if the kernel allows it. A pipe or
    device of the caller or of root, or a link to one, is written to directly.

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
    # Created with the caller's umask.
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
        name: Its name in errors.

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
    """Whether it is a pipe or a device that another user cannot have planted."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return False
    return owner in {0, os.geteuid()} and path.exists() and not path.is_file()
