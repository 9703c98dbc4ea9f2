# SPDX-License-Identifier: MIT
"""Opens the files that the daemon and the commands write, also in directories of other users.

Another user who may write to a directory could plant a link, a pipe, a socket or a file of their
own at the name of ours. A file that is replaced is a new file under a random name first
(`replacing`). A file that is appended to (`opened`) is refused if another user could have planted
it. Links that only root or the user of this process could have made are followed.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, final

from nfq_guard.errors import OutputError, UsageError

# As the kernel's own bound on the links of a path.
_LINKS_MAX: Final = 40
_LINK: Final = "a symbolic link in a directory that others may write to"
_SOCKET: Final = "a socket in a directory that others may write to"
_OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Only root can create names in these, and their links may lead to regular files.
_DIRECTORIES_OF_STREAMS: Final = frozenset(map(Path, ("/dev", "/dev/fd", "/proc/self/fd")))


@contextmanager
def replacing(path: Path, permissions: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing, which gets the name `path` once it is complete.

    Until then it is a new file with a random name: nothing is written to a link or a file that
    another user planted. If the block raises, the file is removed, and an existing `path` is
    unchanged. A link or a pipe of another user is replaced if the kernel allows it. A pipe or
    device of the caller or of root, or a link to one, is written to directly.

    Args:
        path: The file.
        permissions: Its permissions; None for those of the file that it replaces, or else by the
            umask.

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
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    # Created with the caller's umask.
    file = unfinished.open("xb")
    try:
        with file:
            yield file
            mode = _mode_to_keep(path) if permissions is None else permissions
            if mode is not None:
                os.fchmod(file.fileno(), mode)
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


def opened(path: Path, flags: int, mode: int) -> int:
    """Open a file for reading or appending, and return its descriptor.

    In a directory to which only root and the user of this process may write, anything is opened,
    and links are followed. Elsewhere, only a regular file of root or of this user is, with one
    name.

    Args:
        path: The file.
        flags: As for `os.open`; O_CLOEXEC is added.
        mode: Permissions of a new file.

    Raises:
        OSError: It cannot be opened, or another user could have planted what is there.
    """
    with _located(path) as (directory, name):
        flags |= os.O_CLOEXEC | (0 if directory.has_descriptors() else os.O_NOFOLLOW)
        descriptor = os.open(name, flags, mode, dir_fd=directory.descriptor)
        guarded = directory.guarded
    if not guarded:
        require_own(descriptor, path, {0, os.geteuid()})
    return descriptor


def is_socket(path: Path) -> bool:
    """Whether a socket is at `path`, or a link to one.

    Raises:
        OSError: It cannot be found out, or another user could have planted the socket.
    """
    with _located(path) as (directory, name):
        try:
            found = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        planted = not directory.guarded
    if stat.S_ISSOCK(found.st_mode) and planted:
        raise PermissionError(errno.EPERM, _SOCKET, str(path))
    return stat.S_ISSOCK(found.st_mode)


def require_own(descriptor: int, path: Path, owners: Collection[int]) -> None:
    """Close a file and raise PermissionError if another user could have planted it at `path`.

    Args:
        descriptor: The file.
        path: For the error.
        owners: The user ids of its possible owners.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        problem = "not a regular file"
    elif found.st_uid not in owners:
        problem = f"a file of another user, {found.st_uid}"
    elif found.st_nlink > 1:
        problem = "a file with several names"
    else:
        return
    os.close(descriptor)
    raise PermissionError(errno.EPERM, problem, str(path))


@final
class _Directory:
    """An open directory on the way to a file.

    Attributes:
        descriptor: Its descriptor, which reads and writes nothing.
        guarded: Whether only root and the user of this process can change its entries, and whether
            no other user can replace it or a directory above it.
    """

    def __init__(self) -> None:
        """Open the root directory."""
        self.descriptor = os.open("/", _OPEN_DIRECTORY)
        self.guarded = self._keeps_ours = True
        self._examine()

    def enter(self, name: str) -> None:
        """Replace it by a directory in it, or by the root directory."""
        following = os.open(name, _OPEN_DIRECTORY, dir_fd=self.descriptor)
        self.close()
        self.descriptor = following
        if name == "/":
            self.guarded = self._keeps_ours = True
        self._examine()

    def link(self, name: str) -> str | None:
        """The target of a link in it; None if `name` is no link, or stands for an open file."""
        if self.has_descriptors():
            return None
        try:
            return os.readlink(name, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:
                return None
            raise

    def has_descriptors(self) -> bool:
        """Whether its entries stand for open files of this process."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), Path("/proc/self/fd").stat())
        except OSError:
            return False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def _examine(self) -> None:
        found = os.fstat(self.descriptor)
        # Where others may write, the sticky bit keeps them from replacing what is not theirs.
        ours = found.st_uid in {0, os.geteuid()} and self._keeps_ours
        self.guarded = ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        self._keeps_ours = self.guarded or (ours and bool(found.st_mode & stat.S_ISVTX))


@contextmanager
def _located(path: Path) -> Iterator[tuple[_Directory, str]]:
    """Follow all links of a path: its directory, and the name in it.

    Raises:
        OSError: A directory does not exist, or another user could have made a link.
    """
    parts = deque(path.absolute().parts[1:])
    links = 0
    with closing(_Directory()) as directory:
        while True:
            name = parts.popleft() if parts else "."
            target = directory.link(name)
            if target is not None:
                links += 1
                if links > _LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                if not directory.guarded:
                    raise PermissionError(errno.EPERM, _LINK, str(path))
                parts.extendleft(reversed(Path(target).parts))
            elif parts:
                directory.enter(name)
            else:
                yield directory, name
                return


def _is_stream(path: Path) -> bool:
    """Whether it is a pipe or a device that another user cannot have planted."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return False
    return owner in {0, os.geteuid()} and path.exists() and not path.is_file()


def _mode_to_keep(path: Path) -> int | None:
    """The permissions of the file that is replaced; None if another user could have chosen them."""
    try:
        old = path.lstat()
    except OSError:
        return None
    own = old.st_uid in {0, os.geteuid()} and old.st_nlink == 1
    return stat.S_IMODE(old.st_mode) & 0o777 if own and stat.S_ISREG(old.st_mode) else None
