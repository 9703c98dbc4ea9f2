# SPDX-License-Identifier: MIT
from pathlib import Path

import pytest

from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink


def test_a_full_file_takes_no_more_until_it_is_rotated(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    recording = Recording(file, 100)
    for _ in range(3):
        recording.write_packets(b"a" * 39, 5)
    recording.push(0)
    assert file.read_bytes() == (b"a" * 39 + b"\n") * 2
    assert recording.suppressed == 5
    file.rename(tmp_path / "events.jsonl.1")
    recording.push(2)
    recording.write_packets(b"b" * 39, 1)
    recording.push(3)
    assert file.read_bytes() == b"b" * 39 + b"\n"
    assert recording.suppressed == 5
    recording.sink.close(3)


def test_what_is_missing_is_written_into_a_full_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"x" * 200 + b"\n")
    recording = Recording(file, 100)
    recording.write_packets(b"packet", 1)
    recording.write_gap(b"gap")
    recording.push(0)
    assert file.read_bytes().splitlines()[1:] == [b"gap"]
    recording.sink.close(0)


def test_two_writers_share_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    one, other = Recording(file, 1000), Recording(file, 1000)
    one.write_packets(b"a" * 900, 1)
    one.push(0)
    other.push(0)
    other.write_packets(b"b" * 200, 7)
    assert other.suppressed == 7
    for recording in (one, other):
        recording.sink.close(0)


def test_a_truncated_file_has_room_again(tmp_path: Path) -> None:
    """As logrotate's `copytruncate` leaves it."""
    file = tmp_path / "events.jsonl"
    recording = Recording(file, 100)
    recording.write_packets(b"a" * 90, 1)
    recording.push(0)
    file.write_bytes(b"")
    recording.push(2)
    recording.write_packets(b"b" * 90, 1)
    recording.push(3)
    assert file.read_bytes() == b"b" * 90 + b"\n"
    recording.sink.close(3)


def test_a_file_whose_folder_is_gone_stays_open(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    recording = Recording(folder / "events.jsonl", 100)
    folder.rename(tmp_path / "moved")
    recording.push(0)
    recording.write_packets(b"a", 1)
    recording.push(2)
    assert (tmp_path / "moved" / "events.jsonl").read_bytes() == b"a\n"
    assert recording.sink.errors
    recording.sink.close(2)


@pytest.mark.parametrize("size", [0, 5])
def test_a_descriptor_has_no_name_to_follow(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(size))
        sink = LineSink(file.fileno())
        assert sink.follow() == size
        sink.close(0)
