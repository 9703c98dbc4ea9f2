# SPDX-License-Identifier: MIT
"""Output in a directory that other users may write: files planted there are not written to."""

import os
import stat
import threading
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.outfile import replacing
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
