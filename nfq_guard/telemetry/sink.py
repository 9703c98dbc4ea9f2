# SPDX-License-Identifier: MIT
"""Writes the lines of the log: a bounded ring in front of a file that may be full, slow or gone.

After the constructor no call raises or blocks. A line that cannot be written stays in
the ring. When the ring is full, the oldest line is dropped and counted: a flood of packets may
cause lines faster than the log can be read.
"""

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, final

from nfq_guard import outfile
from nfq_guard.telemetry.caller import Caller

_RING_BYTES: Final = 1 << 20
_WRITE_BYTES: Final = 1 << 16
# Minimum time between two attempts after a failure, seconds: each attempt costs a system call.
_RETRY_S: Final = 0.5
# Time for which a file system may keep the caller waiting, seconds. Most writes take microseconds.
_ANSWER_S: Final = 0.01
# Purposes of calls.
_WRITE: Final = "write"
_FOLLOW: Final = "follow"


@final
class LineSink:
    """Queues whole lines, which `push` writes. `write` and `flush` are for structlog's loggers.

    Attributes:
        dropped: Number of lost lines.
        errors: Number of failed writes, except those that would have blocked.
        last_error: The error of the last failed write; empty without one.
    """

    def __init__(
        self, target: Path | int, *, ring_bytes: int = _RING_BYTES, datagrams: bool = False
    ) -> None:
        """Write to a file, which is created or appended to, or to an open descriptor.

        A socket given by path, or by a descriptor that preserves message boundaries, gets each line
        as one datagram.

        Args:
            target: The file or descriptor.
            ring_bytes: Bound on the waiting lines.
            datagrams: Whether the path is that of a socket, such as the journal's, which may not
                exist yet.

        Raises:
            OSError: The file cannot be opened, or another user could have planted it.
        """
        self.dropped = 0
        self.errors = 0
        self.last_error = ""
        self._target = target
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._ring_max = ring_bytes
        self._rest = b""
        self._failing = False
        # The line of which the file has only the beginning, and the size of the file then.
        self._cut = b""
        self._cut_at = -1
        self._regular = False
        self._on_disk = False
        self._unsure = False
        self._retry_at = 0.0
        self._socket: socket.socket | None = None
        self._datagrams = datagrams
        self._caller: Caller | None = None
        self._size = 0
        self._fd = self._open()

    def begin_waiting_elsewhere(
        self, late: Callable[[], object], answer_s: float = _ANSWER_S
    ) -> None:
        """From now on have a thread wait for the file system of a regular file.

        Called once privileges were given up, which a thread from before would keep. Without the
        memory for a thread, do nothing.

        Args:
            late: Called in the thread when the file system answers after that time: `push` has
                something to do.
            answer_s: Time for which the file system may keep the caller waiting, seconds.
        """
        if self._on_disk and self._caller is None:
            with suppress(RuntimeError, MemoryError):
                self._caller = Caller(late, answer_s)

    @property
    def waiting(self) -> int:
        """Number of lines in the ring."""
        rest = self._rest.lstrip(b"\n")
        return len(self._ring) + max(rest.count(b"\n"), bool(self._rest))

    def write(self, line: bytes) -> int:
        """Queue one line; `push` writes it."""
        self._ring.append(line)
        self._ring_bytes += len(line)
        while self._ring_bytes > self._ring_max:
            self._ring_bytes -= len(self._ring.popleft())
            self.dropped += 1
        return len(line)

    def flush(self) -> None:
        """Do nothing. structlog calls it after every line, but `push` writes in batches."""

    def push(self, now: float) -> None:
        """Write as much as is possible without blocking; `now` in monotonic seconds."""
        if not self._ring and not self._rest:
            return
        if now < self._retry_at:
            return
        while self._ring or self._rest:
            octets = self._rest or self._gather()
            try:
                self._rest = self._write(octets)
            except BlockingIOError:
                self._rest = octets
                # The thread says when it has a result.
                if self._caller is None or not self._caller.is_busy:
                    self._retry_at = now + _RETRY_S / 10
                return
            except OSError as error:
                self._fail(octets, error, now)
                return
        self._retry_at = 0.0
        self._failing = False

    def fileno(self) -> int:
        """The descriptor of the file or socket."""
        return self._fd

    def reopen(self) -> None:
        """Reopen the file by name, after a rotation; on failure the old one stays open."""
        if self._socket is None and isinstance(self._target, Path):
            self._have(self._open_anew)

    def follow(self) -> int:
        """Reopen the file by name if another file, or none, has that name now.

        Returns the size of the file, or while its file system does not answer the last one.
        """
        if self._socket is None:
            self._have(self._look)
        return self._size

    def _have(self, call: Callable[[], None]) -> None:
        """Have the thread make a call that follows the name, unless it is busy."""
        if self._caller is None:
            call()
        elif not self._is_writing():
            with suppress(BlockingIOError):
                self._caller.result(_FOLLOW, call)

    def _look(self) -> None:
        """Note the size of the file, and reopen it if it does not have its name."""
        is_named = False
        with suppress(OSError):  # as of a file that its server has lost
            mine = os.fstat(self._fd)
            self._size = mine.st_size
            is_named = not isinstance(self._target, Path) or os.path.samestat(
                mine, self._target.stat()
            )
        if not is_named and isinstance(self._target, Path):
            self._open_anew()

    def _open_anew(self) -> None:
        try:
            fd = self._open()
        except OSError as error:
            self._note(error)
            return
        old, self._fd = self._fd, fd
        self._cut_at = -1
        with suppress(OSError):
            self._size = os.fstat(fd).st_size
        with suppress(OSError):  # it is closed all the same
            os.close(old)

    def forked(self) -> None:
        """Forget lines and counts of the parent process, which still has them; in its child."""
        self._clear()
        self._caller = None
        self.dropped = 0
        self.errors = 0
        self.last_error = ""

    def give_up(self, now: float) -> None:
        """Count waiting lines as dropped if they cannot be written, because the end is near."""
        if self._caller is not None:
            self._caller.wait_longer()
        if self._failing or self._is_writing():
            self._retry_at = 0.0
            self.push(now)
        if self._is_writing():
            # What is being written reaches the file once its file system answers.
            self.dropped += len(self._ring)
            self._ring.clear()
            self._ring_bytes = 0
        elif self._failing:
            self.dropped += self.waiting
            self._clear()

    def close(self, now: float) -> None:
        """Write as much as possible, and close; remaining lines count as dropped."""
        if self._caller is not None:
            self._caller.wait_longer()
        self._retry_at = 0.0
        self.push(now)
        self.dropped += self.waiting
        self._clear()
        # A descriptor that the thread uses is closed with the process.
        idle = self._caller is None or self._caller.end()
        if self._socket is not None:
            self._socket.close()
        elif idle:
            with suppress(OSError):
                os.close(self._fd)

    def _is_writing(self) -> bool:
        """Whether a write is under way whose file system does not answer."""
        return self._caller is not None and self._caller.makes(_WRITE)

    def _clear(self) -> None:
        """Forget all lines that wait."""
        self._ring.clear()
        self._ring_bytes = 0
        self._rest = self._cut = b""

    def _open(self) -> int:
        if isinstance(self._target, Path):
            if self._datagrams or outfile.is_socket(self._target):
                self._datagrams = True
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                return self._socket.fileno()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            fd = outfile.opened(self._target, flags, 0o640)
            self._on_disk = self._regular = self._unsure = stat.S_ISREG(os.fstat(fd).st_mode)
            return fd
        kind = os.fstat(self._target).st_mode
        self._on_disk = stat.S_ISREG(kind)
        if stat.S_ISSOCK(kind):
            self._socket = socket.socket(fileno=os.dup(self._target))
            self._datagrams = self._socket.type != socket.SOCK_STREAM
            return self._socket.fileno()
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            # Open it anew: O_NONBLOCK on the given open file description would affect every
            # process that shares it, such as the shell of the terminal.
            try:
                return os.open(
                    f"/proc/self/fd/{self._target}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                os.set_blocking(self._target, False)
        return os.dup(self._target)

    def _append(self, octets: bytes) -> bytes:
        """Write to the file, and return what it did not take, as on a full disk.

        Raises:
            OSError: It took nothing.
        """
        cut, whole = self._whole(octets) if self._unsure else (b"", octets)
        written = os.write(self._fd, whole)
        rest = whole[written:]
        self._cut = b""
        self._unsure = bool(rest) and self._regular
        if self._unsure:
            begun = whole[:written].rpartition(b"\n")
            self._cut = begun[2] if begun[1] else cut + begun[2]
            self._cut_at = -1
            with suppress(OSError):
                self._cut_at = os.fstat(self._fd).st_size
        return rest

    def _whole(self, octets: bytes) -> tuple[bytes, bytes]:
        """What to write so that all lines are whole, although the file may end within a line.

        That line is ours, and goes on unless another process has written since, or the file is
        another one or was truncated; or it is of a process that has ended or that also waits.

        Returns the beginning of the line that goes on, and the octets to write.
        """
        size = os.fstat(self._fd).st_size
        cut = self._cut
        if cut and size == self._cut_at:
            return cut, octets
        whole = cut + octets if cut else octets.lstrip(b"\n")
        return b"", b"\n" + whole if self._ends_within_line(size) else whole

    def _ends_within_line(self, size: int) -> bool:
        if not size:
            return False
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.pread(fd, 1, size - 1) != b"\n"
        finally:
            os.close(fd)

    def _gather(self) -> bytes:
        ring = self._ring
        if self._datagrams:
            line = ring.popleft()
            self._ring_bytes -= len(line)
            # structlog ends each line with a line feed, which a datagram does not need.
            return line.removesuffix(b"\n")
        parts: list[bytes] = []
        size = 0
        while ring and size < _WRITE_BYTES:
            parts.append(ring.popleft())
            size += len(parts[-1])
        self._ring_bytes -= size
        return b"".join(parts)

    def _write(self, octets: bytes) -> bytes:
        """Write without blocking, and return what was not taken."""
        if self._socket is None:
            if self._caller is None:
                return self._append(octets)
            rest = self._caller.result(_WRITE, partial(self._append, octets))
            assert isinstance(rest, bytes)  # noqa: S101 - as `_append` returns it
            return rest
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        if self._datagrams and isinstance(self._target, Path):
            return octets[self._socket.sendto(octets, flags, str(self._target)) :]
        return octets[self._socket.send(octets, flags) :]

    def _fail(self, octets: bytes, error: OSError, now: float) -> None:
        """Keep the lines for another attempt, unless the reader is gone or the line is too long."""
        self._note(error)
        self._retry_at = now + _RETRY_S
        self._failing = True
        self._unsure = self._regular
        if error.errno in {errno.EPIPE, errno.ECONNRESET}:
            self._rest = octets
            self.dropped += self.waiting
            self._clear()
        elif error.errno == errno.EMSGSIZE:
            self.dropped += 1
            self._rest = b""
        else:
            self._rest = octets

    def _note(self, error: OSError) -> None:
        self.errors += 1
        self.last_error = error.strerror or str(error)
