# SPDX-License-Identifier: MIT
import os
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.telemetry import journal
from nfq_guard.telemetry.events import EVENTS, Counters, ReloadCrashed, name_of
from nfq_guard.telemetry.journal import MESSAGE_IDS, JournalRenderer, stdout_is_the_journal
from nfq_guard.telemetry.log import EventLog, Output
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.sink import LineSink
from tests.support.judgments import judgment
from tests.support.reference import CATALOGUE


def fields_of(datagram: bytes) -> dict[str, str]:
    """Parse a datagram of the native protocol."""
    found: dict[str, str] = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        key, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value = rest[8 : 8 + length]
            rest = rest[8 + length + 1 :]
        found[key.decode()] = value.decode()
        datagram = rest
    return found


@pytest.fixture
def journald(tmp_path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "socket"))
    server.settimeout(5)
    return server


def test_packet_as_fields(tmp_path: Path, journald: socket.socket) -> None:
    sink = LineSink(tmp_path / "socket")
    events = EventLog([Output(sink, JournalRenderer())])
    event = packet_judged(
        judgment(),
        mode=Mode.ENFORCE,
        queue_num=7,
        evidence=Evidence.BPF,
        when="2026-01-02T03:04:05.000006Z",
    )
    events.emit(event)
    events.emit(ReloadCrashed(traceback="one\ntwo=2\n"))
    sink.push(0)
    with journald:
        packet = fields_of(journald.recv(1 << 16))
        failure = fields_of(journald.recv(1 << 16))
    assert packet["NFQ_REASON"] == "seq-over"
    assert packet["NFQ_BREACH_DISTANCE"] == "100"
    assert packet["NFQ_SRC"] == "10.0.0.1"
    assert "NFQ_COUNT" not in packet
    assert packet["PRIORITY"] == "6"
    assert len(packet["MESSAGE_ID"]) == 32
    assert packet["MESSAGE"].startswith("drop       seq-over")
    assert (failure["PRIORITY"], failure["NFQ_TRACEBACK"]) == ("3", "one\ntwo=2\n")
    sink.close(0)


def test_counts_by_name(tmp_path: Path, journald: socket.socket) -> None:
    """Names of rules are values: journald drops a field with a name of more than 64 letters."""
    sink = LineSink(tmp_path / "socket")
    rules = {"to-db": 1, "to_db": 2, "x" * 74: 3}
    totals = Counters(queues=[7], reasons={"seq-over": 6}, actions={}, rules=rules, counters={})
    EventLog([Output(sink, JournalRenderer())]).emit(totals)
    sink.push(0)
    with journald:
        lines = journald.recv(1 << 16).decode().splitlines()
    assert "NFQ_REASONS=seq-over 6" in lines
    shown = [line for line in lines if line.startswith("NFQ_RULES")]
    assert shown == ["NFQ_RULES=to-db 1", "NFQ_RULES=to_db 2", f"NFQ_RULES={'x' * 74} 3"]
    sink.close(0)


def test_each_event_has_a_message_id_of_its_own() -> None:
    assert list(MESSAGE_IDS) == [name_of(event) for event in EVENTS]
    assert len(set(MESSAGE_IDS.values())) == len(EVENTS)
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in MESSAGE_IDS.values())


def test_the_catalogue_is_one(tmp_path: Path) -> None:
    """`journalctl` compiles it, and finds a text for each event."""
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOGUE, folder)
    root = f"--root={tmp_path}"
    subprocess.run(["journalctl", root, "--update-catalog"], check=True, capture_output=True)
    words = ["journalctl", root, "--list-catalog"]
    found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    listed = {line.split()[0] for line in found.splitlines()}
    assert listed == set(MESSAGE_IDS.values())
    assert all("nfq_guard: " in line for line in found.splitlines())


def test_journal_restarts(tmp_path: Path, journald: socket.socket) -> None:
    """Events wait for the journal to return; one that is too large is dropped."""
    sink = LineSink(tmp_path / "socket")
    sink.write(b"MESSAGE=one\n")
    journald.close()
    sink.push(0)
    assert (sink.errors, sink.waiting) == (1, 1)
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        sink.write(b"MESSAGE=" + b"x" * (1 << 19) + b"\n")
        sink.write(b"MESSAGE=two\n")
        sink.push(10)
        sink.push(20)
        assert [again.recv(100), again.recv(100)] == [b"MESSAGE=one", b"MESSAGE=two"]
    assert sink.dropped == 1
    sink.close(30)


def test_output_connected_to_the_journal(
    tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SOCKET", tmp_path / "socket")
    with (tmp_path / "out").open("w") as out, journald:
        stat = os.fstat(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        assert stdout_is_the_journal(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino + 1}")
        assert not stdout_is_the_journal(out.fileno())
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not stdout_is_the_journal(out.fileno())
