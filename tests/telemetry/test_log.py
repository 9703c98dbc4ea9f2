# SPDX-License-Identifier: MIT
"""Several outputs at once: none delays another or loses its lines."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nfq_guard.telemetry.console import Console
from nfq_guard.telemetry.eve import eve_line, eve_octets
from nfq_guard.telemetry.events import (
    EventsSuppressed,
    KernelDroppedPackets,
    KernelPassedPackets,
    Note,
    Offloaded,
)
from nfq_guard.telemetry.journal import JournalRenderer
from nfq_guard.telemetry.log import EventLog, Output
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink

RING = 2000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def note(number: int) -> Note:
    return Note(text=f"{number:0100}")


def test_each_output_has_its_format(tmp_path: Path) -> None:
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "journal"))
    journal.settimeout(5)
    log = EventLog(
        [
            Output(LineSink(tmp_path / "json")),
            Output(LineSink(tmp_path / "eve"), eve_line),
            Output(LineSink(tmp_path / "text"), Console(colour=False)),
            Output(LineSink(tmp_path / "journal", datagrams=True), JournalRenderer()),
        ]
    )
    log.emit(Note(text="hello"))
    log.push(0)
    with journal:
        assert b"NFQ_TEXT=hello\n" in journal.recv(1 << 16)
    log.close(1)
    assert lines(tmp_path / "json")[0]["text"] == "hello"
    assert lines(tmp_path / "eve")[0]["nfq_guard"]["text"] == "hello"
    assert (tmp_path / "text").read_text().endswith("note           text=hello\n")


@pytest.mark.parametrize("broken", ["pipe", "full", "journal"])
def test_a_broken_output_harms_no_other(tmp_path: Path, pipe: tuple[int, int], broken: str) -> None:
    """A pipe that nobody reads, a full disk, and a journal that is gone."""
    targets: dict[str, Path | int] = {"pipe": pipe[1], "full": Path("/dev/full")}
    target = targets.get(broken, tmp_path / "gone")
    bad = LineSink(target, ring_bytes=RING, datagrams=broken == "journal")
    log = EventLog([Output(bad), Output(LineSink(tmp_path / "good"))])
    written = 0
    while not log.dropped:
        log.emit(note(written))
        log.push(written)
        written += 1
    assert bad.waiting <= RING // 100 + 1
    log.log_lost(written)
    log.push(written)
    *notes, lost = lines(tmp_path / "good")
    assert [int(one["text"]) for one in notes] == list(range(written))
    assert (lost["event"], lost["lines"]) == ("log_lines_dropped", 1)
    assert bool(lost["last_error"]) is (broken != "pipe")
    log.close(written + 1)


def test_a_lost_line_is_logged_at_most_once_a_minute(tmp_path: Path) -> None:
    bad = LineSink(Path("/dev/full"), ring_bytes=RING)
    log = EventLog([Output(bad), Output(LineSink(tmp_path / "good"))])
    for second in range(121):
        for number in range(30):
            log.emit(note(number))
        log.push(second)
        log.log_lost(second)
    for number in range(30):
        log.emit(note(number))
    log.push(121)
    log.log_lost(121)

    def told() -> list[int]:
        return [one["lines"] for one in lines(tmp_path / "good") if one["event"] != "note"]

    assert len(told()) == 3
    log.log_lost(122, ending=True)
    assert len(told()) == 4
    # The last event does not count the lines that it displaced itself.
    assert log.dropped - 1 <= sum(told()) <= log.dropped
    log.close(122)


def test_no_output_takes_lines(tmp_path: Path) -> None:
    """The loss is logged once an output takes lines again."""
    (tmp_path / "log").symlink_to("/dev/full")
    sink = LineSink(tmp_path / "log", ring_bytes=RING)
    log = EventLog(sink)
    now = time.monotonic()
    for number in range(50):
        log.emit(note(number))
    log.push(now)
    log.log_lost(now)
    assert sink.errors
    (tmp_path / "log").unlink()
    log.push(now + 10)  # finds that the path leads to another file
    log.push(now + 20)
    log.log_lost(now + 20)
    log.push(now + 30)
    *_, lost = lines(tmp_path / "log")
    assert lost["lines"] == log.dropped > 0
    log.close(now + 40)


def test_a_file_that_was_removed_or_renamed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = EventLog(LineSink(path))
    for now, name in enumerate(("log.1", "log.2")):
        path.rename(tmp_path / name)
        if now:
            (tmp_path / name).unlink()
        log.push(2 * now)
        log.emit(note(now))
        log.push(2 * now + 1)
        assert [int(one["text"]) for one in lines(path)] == [now]
    log.close(9)


def test_lines_of_a_worker_reach_the_output_that_they_are_for(tmp_path: Path) -> None:
    log = EventLog(
        [Output(LineSink(tmp_path / "json")), Output(LineSink(tmp_path / "eve"), eve_line)]
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = log.for_worker(LineSink(theirs.fileno()))
    worker.emit(Note(text="one\ntwo"))
    worker.push(0)
    with ours, theirs:
        for _ in log.outputs:
            assert log.write_of_worker(ours.recv(1 << 16) + b"\n")
        assert not log.write_of_worker(b"\2no such output\n")
        worker.close(0)
    log.close(0)
    assert lines(tmp_path / "json")[0]["text"] == "one\ntwo"
    assert lines(tmp_path / "eve")[0]["nfq_guard"]["text"] == "one\ntwo"


def test_the_file_of_events_has_the_format_of_the_log(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "events", 1 << 20)
    log = EventLog([], recording, eve_octets)
    recording.write_gap(eve_octets(Note(text="gap")))
    log.push(0)
    assert lines(tmp_path / "events")[0]["event_type"] == "nfq_guard"
    log.close(0)


def test_the_recording_has_every_number_of_missing_packets(tmp_path: Path) -> None:
    """Also of packets that the kernel dropped or passed, in few lines: its size has a bound."""
    recording = Recording(tmp_path / "events", 0)
    log = EventLog([Output(LineSink(tmp_path / "log"))], recording)
    for second in range(100):
        log.emit(
            KernelDroppedPackets(
                queue=0, queue_full=second + 1, buffer_full=0, since_last=1, waiting=0
            )
        )
        log.emit(KernelPassedPackets(queue_full=second * 2, buffer_full=0, since_last=2))
        log.emit(
            Offloaded(
                offloaded_flows=1,
                offload_drops=3,
                offload_refused=0,
                offload_full=0,
                entries=second,
                example=None,
            )
        )
        log.push(second)
    log.close(100)
    assert len(lines(tmp_path / "log")) == 300
    # The first second, the first minute, and the rest.
    assert len(lines(tmp_path / "events")) == 9
    reader = EventReader()
    with (tmp_path / "events").open("rb") as stream:
        assert not list(reader.read(stream))
    missing = reader.unrecorded
    assert (missing.kernel_dropped, missing.kernel_passed, missing.offloaded) == (100, 200, 300)
    assert lines(tmp_path / "events")[-1]["entries"] == 99


def test_a_worker_does_not_write_what_waits_in_the_daemon(tmp_path: Path) -> None:
    """A line about missing packets, which the full disk does not take, would count them twice."""
    recording = Recording(tmp_path / "events", 1 << 20)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), recording.sink.fileno())
    daemon = EventLog(LineSink(tmp_path / "log"), recording)
    daemon.emit(EventsSuppressed(packets=5))
    daemon.push(1)
    assert (recording.sink.waiting, daemon.errors) == (1, 1)
    worker = daemon.for_worker(LineSink(tmp_path / "lines"))
    assert (recording.sink.waiting, worker.errors, worker.dropped) == (0, 0, 0)
    worker.close(2)
