# SPDX-License-Identifier: MIT
import errno
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from nfq_guard import outfile
from nfq_guard.lab.pace import limit
from nfq_guard.telemetry.sink import LineSink


def test_lines_reach_the_file(tmp_path: Path) -> None:
    sink = LineSink(tmp_path / "log")
    sink.write(b"one\n")
    sink.write(b"two\n")
    sink.push(0)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    sink.close(0)


def test_stalled_pipe_never_blocks_and_drops_the_oldest() -> None:
    """Lines that a slow reader misses are counted, and every line that it gets is whole."""
    reading, writing = os.pipe()
    sink = LineSink(writing, ring_bytes=10_000)
    lines = 5_000
    for number in range(lines):
        sink.write(b"%08d\n" % number * 10)
        sink.push(float(number))
    waiting = sink.waiting
    assert sink.dropped > 4_000
    os.close(writing)
    got = b""
    os.set_blocking(reading, False)
    for turn in range(lines, 2 * lines):
        try:
            got += os.read(reading, 1 << 16)
        except BlockingIOError:
            break
        sink.push(float(turn))
    numbers = [int(line) for line in got.splitlines()]
    assert len(numbers) == 10 * (lines - sink.dropped)
    assert numbers[-1] == lines - 1
    assert numbers == sorted(numbers)
    assert waiting > 0
    assert sink.waiting == 0
    sink.close(0)
    os.close(reading)


def drain(sink: LineSink, now: float) -> None:
    """Push until no line waits, from the monotonic time `now` on."""
    deadline = time.monotonic() + limit(5)
    while sink.waiting:
        assert time.monotonic() < deadline
        sink.push(now)
        now += 1
        time.sleep(0.001)


def await_size(sink: LineSink, octets: int) -> None:
    """Wait until the thread of the sink has seen that size."""
    deadline = time.monotonic() + limit(5)
    while sink.follow() != octets:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def written_once(thawed: threading.Event, begun: threading.Event) -> Callable[[int, bytes], int]:
    """A write that does not end before `thawed`, as on a frozen disk; only a thread may make it."""
    caller = threading.get_ident()

    def frozen(fd: int, octets: bytes) -> int:
        if threading.get_ident() == caller:  # would be blocked for as long
            pytest.fail("the caller writes itself")
        begun.set()
        thawed.wait()
        return os.writev(fd, [octets])

    return frozen


def test_a_file_system_that_does_not_answer_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is frozen for a snapshot. The oldest lines are dropped, the others are whole."""
    sink = LineSink(tmp_path / "log", ring_bytes=10_000)
    sink.begin_waiting_elsewhere(int)
    thawed = threading.Event()
    lines = 5_000
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", written_once(thawed, threading.Event()))
        begin = time.monotonic()
        for number in range(lines):
            sink.write(b"%08d\n" % number)
            sink.push(float(number))
            sink.follow()
            sink.reopen()
        assert time.monotonic() - begin < limit(1)
        assert sink.waiting + sink.dropped == lines
        assert sink.dropped > 3_000
        thawed.set()
        drain(sink, lines)
    numbers = [int(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert len(numbers) == lines - sink.dropped
    assert numbers == sorted(numbers)
    assert numbers[-1] == lines - 1
    await_size(sink, 9 * len(numbers))
    sink.close(2 * lines)


def test_lines_behind_a_write_that_does_not_end_are_counted_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = LineSink(tmp_path / "log")
    sink.begin_waiting_elsewhere(int)
    thawed = threading.Event()
    begun = threading.Event()

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", written_once(thawed, begun))
        sink.write(b"begun\n")
        sink.push(0)
        assert begun.wait(limit(5))
        sink.write(b"one\n")
        sink.write(b"two\n")
        sink.give_up(1)
        assert (sink.dropped, sink.waiting) == (2, 1)
        thawed.set()
    drain(sink, 2)
    assert (tmp_path / "log").read_bytes() == b"begun\n"
    sink.close(2000)
    assert sink.dropped == 2


def test_the_last_lines_wait_longer_for_a_busy_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or for a busy CPU: what is not written at the end is lost."""
    sink = LineSink(tmp_path / "log")
    sink.begin_waiting_elsewhere(int)

    def busy(fd: int, octets: bytes) -> int:
        time.sleep(0.1)
        return os.writev(fd, [octets])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", busy)
        sink.write(b"one\n")
        sink.push(0)
        assert sink.waiting == 1
        sink.write(b"two\n")
        sink.give_up(1)
        assert sink.dropped == 0
        sink.write(b"stopped\n")
        sink.close(1)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nstopped\n"
    assert sink.dropped == 0


def test_an_answer_that_comes_late_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that lines behind it need not wait for another event."""
    sink = LineSink(tmp_path / "log")
    announced = threading.Event()
    size_of = os.fstat
    sink.begin_waiting_elsewhere(announced.set)
    thawed = threading.Event()

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", written_once(thawed, threading.Event()))
        sink.write(b"one\n")
        sink.push(0)
        sink.write(b"two\n")
        assert not announced.is_set()
        thawed.set()
        assert announced.wait(limit(5))
        sink.push(0)
        assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"

        # Also behind a look at the name of the file.
        thawed.clear()
        announced.clear()
        patched.setattr(os, "fstat", lambda fd: size_of(fd) if thawed.wait() else None)
        sink.follow()
        sink.write(b"three\n")
        sink.push(0)
        thawed.set()
        assert announced.wait(limit(5))
        sink.push(0)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"
    sink.close(0)


def test_opening_a_file_that_was_rotated_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is frozen right after a rotation makes no new file until it thaws."""
    log = tmp_path / "log"
    sink = LineSink(log)
    sink.begin_waiting_elsewhere(int)
    thread = threading.get_ident()
    thawed = threading.Event()
    opened = outfile.opened

    def frozen(path: Path, flags: int, mode: int) -> int:
        if threading.get_ident() == thread:  # would be blocked for as long
            pytest.fail("the caller opens it itself")
        thawed.wait()
        return opened(path, flags, mode)

    log.rename(tmp_path / "log.1")
    with monkeypatch.context() as patched:
        patched.setattr(outfile, "opened", frozen)
        for turn in range(20):
            sink.follow()
            sink.reopen()
            sink.write(b"line\n")
            sink.push(float(turn))
        assert (sink.waiting, sink.dropped) == (20, 0)
        thawed.set()
        drain(sink, 20)
    assert log.read_bytes() == 20 * b"line\n"
    assert (tmp_path / "log.1").read_bytes() == b""
    await_size(sink, 100)
    sink.close(1000)


def test_the_end_while_a_file_is_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = LineSink(tmp_path / "log")
    sink.begin_waiting_elsewhere(int)
    thawed = threading.Event()

    def frozen(*_: object) -> int:
        thawed.wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(outfile, "opened", frozen)
        sink.reopen()
        descriptor = sink.fileno()
        sink.write(b"line\n")
        sink.close(1)
        assert sink.dropped == 1
        os.fstat(descriptor)  # nobody else gets the number while the thread has it
        thawed.set()
    os.close(descriptor)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_that_its_server_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    """As of a network file system: even the size is unknown then."""
    log = tmp_path / "log"
    sink = LineSink(log)
    if elsewhere:
        sink.begin_waiting_elsewhere(int, limit(5))
    sink.write(b"first\n")
    sink.push(0)

    def lost(*_: object) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched:
        patched.setattr(outfile, "opened", lost)
        patched.setattr(os, "fstat", lost)
        patched.setattr(os, "write", lost)
        sink.write(b"second\n")
        sink.push(1)
        sink.follow()
        sink.reopen()
        sink.push(2)
        assert (sink.waiting, sink.dropped, sink.errors) == (1, 0, 4)
        assert sink.last_error == os.strerror(errno.ESTALE)
    sink.push(3)
    assert log.read_bytes() == b"first\nsecond\n"
    sink.close(4)


def test_a_line_that_a_failing_disk_cuts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a write fails between, and the size of the file is unknown after one of them."""
    path = tmp_path / "log"
    sink = LineSink(path)
    real = os.fstat

    def unknown_once(fd: int) -> os.stat_result:
        if sink.fileno() == fd and real(fd).st_size == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd)

    sink.write(b"line 0000\n")
    sink.write(b"line 0001\n")
    with disk_of(3):
        sink.push(0)
        sink.push(1)
    with monkeypatch.context() as patched, disk_of(5):
        patched.setattr(os, "fstat", unknown_once)
        sink.push(2)
    assert path.read_bytes() == b"line "
    sink.push(3)
    assert path.read_bytes() == b"line \nline 0000\nline 0001\n"
    sink.close(4)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_every_line_for_a_reader_that_is_gone_counts(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    sink = LineSink(ours.fileno())
    theirs.close()
    for number in range(3):
        sink.write(b"line %d\n" % number)
    sink.push(0)
    assert (sink.dropped, sink.waiting, sink.errors) == (3, 0, 1)
    sink.close(1)
    ours.close()


def test_failures_and_rotations_while_a_thread_waits_for_the_disk(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sink = LineSink(log)
    sink.begin_waiting_elsewhere(int, limit(5))
    with disk_of(25):
        for number in range(100):
            sink.write(b"line %04d\n" % number)
        sink.push(0)
        assert (sink.waiting, sink.errors, sink.last_error) == (98, 1, "File too large")
    sink.push(1)
    assert sink.waiting == 0
    assert sink.follow() == 1000
    log.rename(tmp_path / "log.1")
    assert sink.follow() == 0
    sink.write(b"anew\n")
    sink.push(2)
    assert log.read_bytes() == b"anew\n"
    descriptor = sink.fileno()
    sink.close(3)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_the_given_descriptor_stays_blocking() -> None:
    """Other processes, such as a shell, share it."""
    reading, writing = os.pipe()
    sink = LineSink(writing)
    assert os.get_blocking(writing)
    sink.close(0)
    os.close(reading)
    os.close(writing)


def test_full_disk_is_counted() -> None:
    sink = LineSink(Path("/dev/full"), ring_bytes=100)
    for number in range(100):
        sink.write(b"0123456789\n")
        sink.push(float(number))
    assert sink.errors == 100
    assert sink.last_error == "No space left on device"
    sink.close(1000)
    assert sink.dropped == 100 - 1 + 1


def test_no_write_soon_after_a_failure() -> None:
    sink = LineSink(Path("/dev/full"))
    sink.write(b"x\n")
    for tick in range(100):
        sink.push(tick / 1000)
    assert sink.errors == 1
    sink.close(1)


def test_disk_with_space_again(tmp_path: Path) -> None:
    """Lines wait for the disk and are written once there is space."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    sink = LineSink(path)
    sink.write(b"early\n")
    sink.push(0)
    path.unlink()
    sink.reopen()
    sink.write(b"late\n")
    sink.push(1)
    assert path.read_bytes() == b"early\nlate\n"
    assert sink.dropped == 0
    sink.close(2)


def test_reader_gone() -> None:
    reading, writing = os.pipe()
    sink = LineSink(writing)
    os.close(reading)
    sink.write(b"one\n")
    sink.push(0)
    assert (sink.errors, sink.dropped, sink.waiting) == (1, 1, 0)
    sink.close(0)
    os.close(writing)


def test_socket_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    sink = LineSink(ours.fileno())
    sink.write(b"hello\n")
    sink.push(0)
    assert theirs.recv(100) == b"hello\n"
    for number in range(20_000):
        sink.write(b"x" * 99 + b"\n")
        sink.push(float(number))
    assert sink.dropped > 0
    sink.close(0)
    ours.close()
    theirs.close()


def test_reopen_opens_the_name_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sink = LineSink(log)
    sink.write(b"old\n")
    sink.push(0)
    log.rename(tmp_path / "log.1")
    sink.reopen()
    sink.write(b"new\n")
    sink.push(1)
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "log.1").read_bytes() == b"old\n"
    sink.close(2)


def test_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    log = tmp_path / "there" / "log"
    log.parent.mkdir()
    sink = LineSink(log)
    log.rename(tmp_path / "log")
    log.parent.rmdir()
    sink.reopen()
    sink.write(b"kept\n")
    sink.push(0)
    assert (tmp_path / "log").read_bytes() == b"kept\n"
    assert sink.errors == 1
    sink.close(0)


def test_what_another_user_planted_is_not_opened(tmp_path: Path) -> None:
    """Neither at the start nor after a rotation, when the old file stays open."""
    log = tmp_path / "log"
    sink = LineSink(log)
    tmp_path.chmod(0o1777)
    log.rename(tmp_path / "log.1")
    victim = tmp_path / "victim"
    log.symlink_to(victim)
    sink.follow()
    sink.reopen()
    sink.write(b"kept\n")
    sink.push(0)
    assert (tmp_path / "log.1").read_bytes() == b"kept\n"
    assert sink.last_error == "a symbolic link in a directory that others may write to"
    with pytest.raises(PermissionError, match="a symbolic link"):
        LineSink(log)
    log.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as planted:
        planted.bind(str(log))
        with pytest.raises(PermissionError, match="a socket in a directory"):
            LineSink(log)
    assert not victim.exists()
    sink.close(1)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LineSink(tmp_path / "missing" / "log")


@contextmanager
def disk_of(octets: int) -> Iterator[None]:
    """Files take no more than so many octets, the last write less than it was given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("change", ["none", "another", "rename", "truncate", "restart"])
def test_every_line_is_whole_after_a_full_disk(tmp_path: Path, change: str) -> None:
    """Whatever happens to the file while it ends within a line."""
    path = tmp_path / "log"
    sink = LineSink(path)
    with disk_of(25):
        for number in range(4):
            sink.write(b"line %04d\n" % number)
        sink.push(0)
    assert path.read_bytes() == b"line 0000\nline 0001\nline "
    assert sink.waiting == 2
    if change == "another":
        other = LineSink(path)
        other.write(b"of another\n")
        other.push(1)
        other.close(1)
    elif change == "rename":
        path.rename(tmp_path / "log.1")
        sink.follow()
    elif change == "truncate":
        os.truncate(path, 0)
    elif change == "restart":
        sink.close(0.1)
        assert sink.dropped == 0
        with path.open("ab") as file:
            file.truncate(25)
        sink = LineSink(path)
        sink.write(b"line 0002\n")
        sink.write(b"line 0003\n")
    sink.push(2)
    sink.close(2)
    lines = path.read_bytes().splitlines()
    assert lines[-2:] == [b"line 0002", b"line 0003"]
    whole = [b"line 0000", b"line 0001", b"line ", b"of another"]
    assert (
        lines[:-2]
        == {
            "none": whole[:2],
            "another": whole,
            "rename": [],
            "truncate": [],
            "restart": whole[:3],
        }[change]
    )


def test_a_rotation_after_a_full_disk_repeats_nothing(tmp_path: Path) -> None:
    """The line that the disk cut was completed in the old file."""
    path = tmp_path / "log"
    sink = LineSink(path)
    with disk_of(25):
        for number in range(4):
            sink.write(b"line %04d\n" % number)
        sink.push(0)
    sink.push(1)
    assert path.read_bytes().splitlines()[-1] == b"line 0003"
    path.rename(tmp_path / "log.1")
    sink.follow()
    sink.write(b"line 0004\n")
    sink.push(2)
    sink.close(2)
    assert path.read_bytes() == b"line 0004\n"


def test_lines_that_no_disk_takes_are_counted_before_the_end(tmp_path: Path) -> None:
    sink = LineSink(tmp_path / "log")
    with disk_of(25):
        for number in range(100):
            sink.write(b"line %04d\n" % number)
        sink.push(0)
        assert sink.waiting == 98
        sink.give_up(0.1)
        assert (sink.dropped, sink.waiting) == (98, 0)
        sink.close(1)
    assert sink.dropped == 98
