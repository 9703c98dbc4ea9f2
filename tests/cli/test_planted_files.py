# SPDX-License-Identifier: MIT
"""In a directory that other users may write to, no planted file is written to."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.outfile import is_socket, opened, replacing
from tests.support.conversation import Conversation

SECRET = b"what the link leads to"


@pytest.fixture
def capture(tmp_path: Path) -> str:
    talk = Conversation()
    talk.open()
    talk.client("A", 1, 20_000)
    return talk.save(tmp_path / "talk.pcap")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("hard", [False, True])
def test_a_link_is_replaced_and_what_it_leads_to_stays(
    capture: str, victim: Path, tmp_path: Path, hard: bool
) -> None:
    for words in (["replay", capture, "--write"], ["replay", capture, "--report"]):
        planted = tmp_path / "out"
        planted.unlink(missing_ok=True)
        if hard:
            planted.hardlink_to(victim)
        else:
            planted.symlink_to(victim)
        # The names that unfinished files once had.
        for name in ("out.part", "out.tmp"):
            if not (tmp_path / name).is_symlink():
                (tmp_path / name).symlink_to(victim)
        assert main([*words, str(planted)]) == 0
        assert victim.read_bytes() == SECRET
        assert not planted.is_symlink()
        assert planted.stat().st_size > len(SECRET)
        assert {path.name for path in tmp_path.iterdir()} == {
            "out", "out.part", "out.tmp", "talk.pcap", "victim",
        }  # fmt: skip


def test_an_unreadable_capture_leaves_the_file(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no capture")
    assert main(["replay", str(tmp_path / "bad"), "--write", str(victim)]) != 0
    assert victim.read_bytes() == SECRET
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_keeps_its_permissions_and_a_new_one_has_the_caller_s(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"")
    old.chmod(0o600)
    before = os.umask(0o027)
    try:
        for path in (old, tmp_path / "new"):
            with replacing(path) as file:
                file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_an_exception_leaves_nothing(victim: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="range"), replacing(victim) as file:
        file.write(bytes([256]))
    assert victim.read_bytes() == SECRET
    assert list(tmp_path.iterdir()) == [victim]


def test_a_pipe_of_the_caller_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as file:
        file.write(b"x")
    reader.join()
    assert read == [b"x"]
    assert pipe.is_fifo()


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "out"):
        pass


@pytest.mark.kernel
def test_a_pipe_of_another_user_is_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    os.chown(pipe, 65534, 65534)
    with replacing(pipe) as file:
        file.write(b"x")
    assert pipe.read_bytes() == b"x"


APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK


def appended(path: Path) -> None:
    """Append a line, as the log does."""
    descriptor = opened(path, APPEND, 0o640)
    os.write(descriptor, b"line\n")
    os.close(descriptor)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that other users may write to."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def test_links_of_the_administrator_are_followed(tmp_path: Path) -> None:
    """Such as those to another volume: of the directory, of the file, and in a chain."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "logs").symlink_to("volume")
    (tmp_path / "chain").symlink_to(tmp_path / "logs")
    (volume / "current").symlink_to("../volume/./file")
    appended(tmp_path / "chain" / "current")
    appended(volume / "file")
    assert (volume / "file").read_bytes() == b"line\nline\n"
    assert stat.S_IMODE((volume / "file").stat().st_mode) & 0o027 == 0
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        appended(tmp_path / "round")
    with pytest.raises(IsADirectoryError):
        appended(Path("/"))


def test_a_directory_is_refused_before_its_content_is_made(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pytest.fail("it was opened")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_a_file_of_ours_in_a_directory_of_all_is_appended_to(shared: Path) -> None:
    appended(shared / "log")
    appended(shared / "log")
    assert (shared / "log").read_bytes() == b"line\nline\n"


def test_the_descriptors_of_this_process_are_reached_by_name() -> None:
    reading, writing = os.pipe()
    for name in ("/proc/self/fd", "/dev/fd"):
        appended(Path(name, str(writing)))
        assert os.read(reading, 10) == b"line\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
@pytest.mark.parametrize("there", [True, False])
def test_no_link_is_followed_where_others_may_write(
    shared: Path, victim: Path, mode: int, *, there: bool
) -> None:
    """Neither the last name of the path nor one before it, nor one that a link of ours leads to."""
    if not there:
        victim.unlink()
    shared.chmod(mode)
    (shared / "log").symlink_to(victim)
    (shared / "logs").symlink_to(victim.parent)
    (victim.parent / "ours").symlink_to(shared / "log")
    for path in (shared / "log", shared / "logs" / "victim", victim.parent / "ours"):
        with pytest.raises(PermissionError, match="a symbolic link in a directory that others may"):
            appended(path)
    assert victim.exists() == there
    assert not there or victim.read_bytes() == SECRET


def test_no_link_is_followed_in_a_directory_that_others_can_replace(
    shared: Path, victim: Path
) -> None:
    """A directory of ours in one of others: the sticky bit makes the difference."""
    (shared / "ours").mkdir()
    (shared / "ours" / "log").symlink_to(victim)
    appended(shared / "ours" / "log")
    assert victim.read_bytes() == SECRET + b"line\n"
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match="a symbolic link in a directory that others may"):
        appended(shared / "ours" / "log")


def test_a_second_name_of_a_file_is_refused(shared: Path, victim: Path) -> None:
    (shared / "log").hardlink_to(victim)
    with pytest.raises(PermissionError, match="a file with several names"):
        appended(shared / "log")
    assert victim.read_bytes() == SECRET


def test_a_planted_socket_or_pipe_gets_no_line(shared: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as planted:
        planted.bind(str(shared / "log"))
        with pytest.raises(PermissionError, match="a socket in a directory that others may write"):
            is_socket(shared / "log")
        os.mkfifo(shared / "pipe")
        reading = os.open(shared / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(PermissionError, match="not a regular file"):
            appended(shared / "pipe")
        os.close(reading)


@pytest.mark.kernel
def test_a_file_of_another_user_is_refused_where_it_may_be_planted(
    shared: Path, tmp_path: Path
) -> None:
    for folder in (shared, tmp_path):
        (folder / "log").write_bytes(b"")
        os.chown(folder / "log", 65534, 65534)
    # Root made it for another user: nobody else can write to the directory.
    appended(tmp_path / "log")
    shared.chmod(0o777)  # the kernel itself refuses such a file where the sticky bit is set
    with pytest.raises(PermissionError, match="a file of another user, 65534"):
        appended(shared / "log")
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(PermissionError, match="a file of another user, 65534"):
        appended(tmp_path / "log")


def test_permissions_of_a_file_that_another_user_may_have_planted_are_not_kept(
    tmp_path: Path,
) -> None:
    (tmp_path / "theirs").write_bytes(b"")
    (tmp_path / "theirs").chmod(0o666)
    (tmp_path / "out").hardlink_to(tmp_path / "theirs")
    before = os.umask(0o077)
    try:
        with replacing(tmp_path / "out") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
