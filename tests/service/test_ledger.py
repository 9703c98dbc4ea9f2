# SPDX-License-Identifier: MIT
"""What a process that was killed left, as the next one reads it."""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.service import ledger as ledger_module
from nfq_guard.service.ledger import (
    PAGE_BYTES,
    Ledger,
    Left,
    Page,
    Unreported,
    clock_ahead_s,
    left_in,
    state_left,
)
from nfq_guard.telemetry.events import KernelDroppedPackets, PacketsShed
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink
from tests.support.queue import QUEUE, import_path

GAP = KernelDroppedPackets(queue=QUEUE, queue_full=3, buffer_full=0, since_last=3, waiting=1)
SHED = PacketsShed(packets=5)
_OTHER_DIGITS = bytes.maketrans(b"0123456789", b"1234567890")


def ledger(
    directory: Path, queues: Sequence[int | None] = (QUEUE,), complaints: Sequence[str] = ()
) -> Ledger:
    """A ledger beside a control socket in `directory`, which must complain so."""
    notes: list[str] = []
    one = Ledger(queues, directory / "s", notes)
    one.begin()
    assert len(notes) == len(complaints)
    assert all(word in note for word, note in zip(complaints, notes, strict=True)), notes
    return one


def killed(one: Ledger) -> None:
    """Leave its file, as a process that is killed does."""
    fcntl.flock(one._fd, fcntl.LOCK_UN)
    os.close(one._fd)
    one._path = None


def test_a_page_has_what_was_said() -> None:
    page = Page(bytearray(PAGE_BYTES), QUEUE)
    assert page.left() == Left(QUEUE, 0, 0, 0, 0, 0, [])
    assert not page.left().counts
    page.judging(3)
    assert page.left() == Left(QUEUE, 0, 3, 0, 0, 0, [])
    page.judged(2)
    page.dropped(77, 5)
    assert page.hold([GAP, SHED])
    assert page.left() == Left(QUEUE, 2, 0, 77, 5, 0, [GAP, SHED])
    assert page.hold([SHED])
    assert page.left().held == [SHED]
    page.judged(0)
    assert page.left().counts
    page.clear()
    assert page.left() == Left(QUEUE, 0, 0, 0, 0, 0, [])
    assert Page(bytearray(PAGE_BYTES)).left().queue is None


def test_what_was_not_reported() -> None:
    """By reason and rule; from each report on anew."""
    page = Page(bytearray(PAGE_BYTES), QUEUE)
    assert page.unreported() == Unreported(0, {})
    drop, log = Decision(Action.DROP, "one"), Decision(Action.LOG, "the \u20ac\n rule")
    page.add(Reason.NO_ENTRY, drop, 2)
    page.add(Reason.NO_ENTRY, log, 3)
    page.add(Reason.NO_ENTRY, drop, 4)
    packets = {("no-entry", "drop", "one"): 6, ("no-entry", "log", "the \u20ac\n rule"): 3}
    assert page.unreported() == Unreported(0, packets)
    page.reported(9)
    assert page.unreported() == Unreported(9, {})
    page.add(Reason.NO_ENTRY, log, 5)
    page.add(Reason.NO_ENTRY, Decision(Action.LOG, "the \u20ac\n rule"), 1)  # after a reload
    assert page.unreported() == Unreported(9, {("no-entry", "log", "the \u20ac\n rule"): 6})
    page.judged(1)
    page.clear()
    assert page.unreported() == Unreported(0, {})


@pytest.mark.parametrize(("name", "most"), [("r", 64), ("a" * 200, 15)])
def test_kinds_beyond_a_page_are_not_counted(name: str, most: int) -> None:
    page = Page(bytearray(PAGE_BYTES), QUEUE)
    page.hold([SHED])
    for number in range(100):
        decision = Decision(Action.DROP, f"{name}{number}")
        for _ in range(2):
            page.add(Reason.NO_ENTRY, decision, 1)
    found = page.unreported().packets
    assert len(found) == most
    assert set(found.values()) == {2}
    assert page.left().held == [SHED]


def test_events_beyond_a_page_are_not_kept() -> None:
    page = Page(bytearray(PAGE_BYTES), QUEUE)
    assert page.hold([SHED] * 10)
    assert not page.hold([SHED] * 1000)
    assert page.left().held == []
    assert page.hold([])


@pytest.mark.parametrize("octets", [b"", bytes(PAGE_BYTES - 1), b"\xff" * PAGE_BYTES])
def test_a_damaged_page_has_nothing(octets: bytes) -> None:
    assert left_in(octets) == Left(None, 0, 0, 0, 0, 0, [])


@pytest.mark.parametrize(
    ("word", "number"),
    [(0, 65537), (1, (1 << 40) + 1), (2, 1025), (3, 1 << 32), (4, (1 << 33) + 1)],
)
def test_a_page_with_an_absurd_number_has_nothing(word: int, number: int) -> None:
    octets = bytearray(PAGE_BYTES)
    Page(octets, QUEUE).judged(3)
    struct.pack_into("=Q", octets, 8 * word, number)
    assert left_in(bytes(octets)) == Left(None, 0, 0, 0, 0, 0, [])
    struct.pack_into("=Q", octets, 8 * word, number - 1)
    assert left_in(bytes(octets)) != Left(None, 0, 0, 0, 0, 0, [])


@pytest.mark.parametrize(
    "text",
    [
        b'[{"event":"packets_shed\xff","packets":1}]',
        b'[{"event":"packets_shed","packets":1,"more":' + b"[" * 3000,
        b'[{"event":"packets_shed","packets":-1}]',
        b'[{"event":"packets_shed","packets":' + b"9" * 30 + b"}]",
    ],
    ids=["not UTF-8", "nested", "negative", "absurd"],
)
def test_damaged_events_are_none(text: bytes) -> None:
    """The other numbers of the page stay."""
    octets = bytearray(PAGE_BYTES)
    page = Page(octets, QUEUE)
    page.judged(3)
    assert page.hold([SHED] * 90)
    start = bytes(octets).index(b"[")
    octets[start : start + len(text)] = text
    assert left_in(bytes(octets)) == Left(QUEUE, 3, 0, 0, 0, 0, [])


def test_the_next_daemon_reads_all_pages(tmp_path: Path) -> None:
    """Also one with other queues. What it has read it does not leave for the one after it."""
    first = ledger(tmp_path, [None, 3, 4, 5])
    assert first.left == []
    first.page(None).hold([SHED])
    first.page(4).judged(2)
    first.page(5).dropped(77, 6)
    killed(first)
    second = ledger(tmp_path, [4])
    left = [
        Left(None, 0, 0, 0, 0, 0, [SHED]),
        Left(3, 0, 0, 0, 0, 0, []),
        Left(4, 2, 0, 0, 0, 0, []),
        Left(5, 0, 0, 77, 6, 0, []),
    ]
    assert second.left == left
    assert second.left_by(4) == left[2]
    assert second.left_by(6) is None
    second.page(4).judging(1)
    second.page(4).judged(0)
    killed(second)
    with ledger(tmp_path, [4]) as third:
        assert third.left == [Left(4, 0, 0, 0, 0, 0, [])]


def test_for_how_long_no_daemon_served(tmp_path: Path) -> None:
    """Also if one in between was killed before it served. An orderly end is no such time."""
    first = ledger(tmp_path, [None, 3])
    assert first.unserved_s(100) is None
    first.page_of_daemon.serving(100)
    first.page_of_daemon.serving(101.5)
    killed(first)
    second = ledger(tmp_path)
    assert second.unserved_s(101.75) == 0.25
    assert second.unserved_s(101) is None
    killed(second)
    with ledger(tmp_path) as third:
        assert third.unserved_s(103) == 1.5
        third.page_of_daemon.serving(103)
    with ledger(tmp_path) as fourth:
        assert fourth.unserved_s(104) is None


_SERVED = """
import os, sys, time
from pathlib import Path
from nfq_guard.service.ledger import Ledger
one = Ledger([1], Path(sys.argv[1]), [])
before = one.unserved_s(time.monotonic())
one.begin()
one.serving(time.monotonic())
print(before, flush=True)
os._exit(0)
"""


@pytest.mark.kernel
def test_time_without_a_daemon_across_time_namespaces(tmp_path: Path) -> None:
    """A container may be given a clock of its own, and the next one another."""
    found: list[str] = []
    for ahead_s in (0, 86_400, 500, 0):
        clock = ("unshare", "--time", "--monotonic", str(ahead_s), "--fork") if ahead_s else ()
        done = subprocess.run(
            [*clock, sys.executable, "-c", _SERVED, str(tmp_path / "s")],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": import_path()},
        )
        found.append(done.stdout.strip())
    assert found[0] == "None"
    assert all(0 <= float(each) < 60 for each in found[1:])


@pytest.mark.parametrize(
    ("offsets", "ahead_s"),
    [
        ("monotonic           0         0\nboottime            9         0\n", 0),
        ("monotonic         -12  500000000\nboottime            9         0\n", -11.5),
        ("boottime            9         0\n", 0),
        (None, 0),
    ],
)
def test_the_clock_of_a_time_namespace(tmp_path: Path, offsets: str | None, ahead_s: float) -> None:
    path = tmp_path / "offsets"
    if offsets is not None:
        path.write_text(offsets, encoding="ascii")
    assert clock_ahead_s(path) == ahead_s


def test_a_file_of_another_boot(tmp_path: Path) -> None:
    """It has packets, but times of a clock that began anew; where /run is no tmpfs of its own."""
    first = ledger(tmp_path)
    first.page_of_daemon.serving(100)
    first.page(QUEUE).judged(2)
    first.page(QUEUE).dropped(77, 3)
    first.page_of_daemon.counted(8, 9)
    killed(first)
    path = tmp_path / "s.ledger"
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    path.write_bytes(path.read_bytes().replace(boot, boot.translate(_OTHER_DIGITS)))
    second = ledger(tmp_path)
    assert second.left == [Left(QUEUE, 2, 0, 0, 3, 0, [])]
    assert second.unserved_s(200) is None


def test_a_start_that_fails_leaves_all_to_the_next(tmp_path: Path) -> None:
    """Before the log is open it has stated nothing; behind that it has not served."""
    first = ledger(tmp_path)
    first.page_of_daemon.serving(100)
    first.page(QUEUE).judged(2)
    killed(first)
    with Ledger([QUEUE], tmp_path / "s", []) as second:
        assert [each.unrecorded for each in second.left] == [2]
    with ledger(tmp_path) as third:
        assert [each.unrecorded for each in third.left] == [2]
    with ledger(tmp_path) as fourth:
        assert [each.unrecorded for each in fourth.left] == [0]
        assert fourth.unserved_s(103) == 3
        fourth.page_of_daemon.serving(103)
    assert list(tmp_path.iterdir()) == []
    with Ledger([QUEUE], tmp_path / "s", []):
        pass
    assert list(tmp_path.iterdir()) == []


def test_packets_at_rules_that_stay_are_counted_on(tmp_path: Path) -> None:
    """After a kill, a start that is killed too, and an orderly end, which is no unserved time."""
    first = ledger(tmp_path, [None, 3])
    assert first.counted == (0, 0)
    first.page_of_daemon.counted(5, 6)
    first.page_of_daemon.serving(100)
    killed(first)
    second = ledger(tmp_path)
    assert second.counted == (5, 6)
    killed(second)
    with ledger(tmp_path) as third:
        assert third.counted == (5, 6)
        third.page_of_daemon.serving(101)
        third.page_of_daemon.counted(7, 6)
    with ledger(tmp_path) as fourth:
        assert fourth.counted == (7, 6)
        assert fourth.unserved_s(102) is None
        fourth.page_of_daemon.counted(0, 0)  # it has removed them
    assert list(tmp_path.iterdir()) == []


def test_an_orderly_end_leaves_no_file(tmp_path: Path) -> None:
    with ledger(tmp_path) as one:
        one.page(QUEUE).judged(2)
        assert (tmp_path / "s.ledger").stat().st_mode & 0o7777 == 0o600
        one.page(QUEUE).judged(0)
    assert list(tmp_path.iterdir()) == []
    one.close()
    with ledger(tmp_path) as one:
        one.page(QUEUE).judged(2)
    assert [each.unrecorded for each in ledger(tmp_path).left] == [2]


def test_two_daemons_have_each_their_own(tmp_path: Path) -> None:
    """The second, which finds the control socket in use too, does not write the first one's."""
    with socket.socket(socket.AF_UNIX) as listener, ledger(tmp_path) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        for _ in range(3):  # the second has room in the backlog, the third has none
            with ledger(tmp_path) as second:
                second.page(QUEUE).judged(9)
        assert first.page(QUEUE).left().unrecorded == 0
        first.page(QUEUE).judged(1)
        killed(first)
    assert [each.unrecorded for each in ledger(tmp_path).left] == [1]


def test_workers_of_a_killed_daemon_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the lock until they have ended, and write to their pages."""
    first = ledger(tmp_path)

    def end() -> None:
        first.page(QUEUE).judged(2)
        killed(first)

    worker = threading.Timer(0.2, end)
    worker.start()
    with ledger(tmp_path) as second:
        assert [each.unrecorded for each in second.left] == [2]
        worker.join()
        monkeypatch.setattr(ledger_module, "_ENDED_WITHIN_S", 0.05)
        with ledger(tmp_path, complaints=["s.ledger cannot be used, another process has it"]):
            pass


def test_a_file_that_is_removed_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the orderly end of another daemon: what is in it would be lost with this one."""
    path = tmp_path / "s.ledger"
    lock = fcntl.flock
    ends = [path.unlink]

    def late(fd: int, operation: int) -> None:
        if ends:
            ends.pop()()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    one = ledger(tmp_path)
    one.page(QUEUE).judged(2)
    killed(one)
    assert [each.unrecorded for each in ledger(tmp_path).left] == [2]


def test_packets_of_the_rules_that_an_earlier_daemon_accounted_for(tmp_path: Path) -> None:
    """After an orderly end, also behind a start that ended before it counted; not after a kill."""
    with ledger(tmp_path, [None, 3]) as first:
        assert first.accounted is None
        first.page_of_daemon.numbered(5)
        assert first.accounted is None
        first.page_of_daemon.unnumbered(100)
        assert first.accounted == 100
        first.page_of_daemon.numbered(7)
        first.page_of_daemon.numbered(8)
    with ledger(tmp_path) as second:
        assert second.accounted == 115
        second.page_of_daemon.numbered(10)
    third = ledger(tmp_path)
    assert third.accounted == 125
    third.page_of_daemon.still_bound()
    assert third.accounted == 100
    killed(third)
    with ledger(tmp_path) as fourth:
        assert fourth.accounted is None
        fourth.page_of_daemon.unnumbered(9)
        fourth.page_of_daemon.numbered(None)
        assert fourth.accounted is None
        fourth.page_of_daemon.unnumbered(-1)
        assert fourth.accounted is None
    assert list(tmp_path.iterdir()) == []


def test_an_orderly_end_long_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another daemon may have judged packets of the same rules since."""
    with ledger(tmp_path) as first:
        assert first.since_end_s(time.monotonic()) is None
        first.page_of_daemon.unnumbered(100)
    now = time.monotonic()
    with ledger(tmp_path) as second:
        assert second.since_end_s(now + 20) == pytest.approx(20, abs=5)
    monkeypatch.setattr(time, "monotonic", lambda: now + 161)
    with ledger(tmp_path) as third:
        assert third.accounted is None
        assert third.since_end_s(now + 161) is None


def test_a_file_of_an_older_or_damaged_format(tmp_path: Path) -> None:
    path = tmp_path / "s.ledger"
    path.write_bytes(b"nfq_guard ledger 3\n" + bytes(3 * PAGE_BYTES))
    with ledger(tmp_path) as one:
        assert one.left == []
    path.write_bytes(b"nfq_guard ledger 4\n" + b"\xff" * (2 * PAGE_BYTES - 30))
    with ledger(tmp_path) as one:
        assert [each.counts for each in one.left] == [False]


def test_what_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.ledger"
    path.write_text("notes of a user\n")
    with ledger(tmp_path, complaints=["s.ledger cannot be used, it is no ledger"]) as one:
        one.page(QUEUE).judged(1)
    assert path.read_text() == "notes of a user\n"
    path.unlink()
    path.mkdir()
    with ledger(tmp_path, complaints=["cannot be used"]):
        pass
    path.rmdir()
    other = tmp_path / "other"
    path.symlink_to(other)
    with ledger(tmp_path, complaints=["cannot be used"]):
        pass
    assert not other.exists()
    path.unlink()
    other.touch()
    path.hardlink_to(other)
    with ledger(tmp_path, complaints=["a file with several names"]):
        pass
    assert other.read_bytes() == b""


def test_without_a_control_socket_the_pages_are_in_memory(tmp_path: Path) -> None:
    notes: list[str] = []
    for beside in (None, tmp_path / "missing" / "s"):
        with Ledger([QUEUE], beside, notes) as one:
            one.begin()
            one.page(QUEUE).judged(1)
            assert one.page(QUEUE).left().unrecorded == 1
    assert not notes
    assert not list(tmp_path.iterdir())


@pytest.mark.kernel
def test_a_file_of_another_user(tmp_path: Path) -> None:
    """It is replaced in a directory of ours, such as after a daemon of root; elsewhere not."""
    path = tmp_path / "s.ledger"
    path.touch()
    os.chown(path, 65534, 65534)
    with ledger(tmp_path):
        assert path.stat().st_uid == 0
    path.write_bytes(b"something")
    os.chown(path, 65534, 65534)
    with ledger(tmp_path, complaints=["was that of a daemon of another user"]):
        assert path.stat().st_uid == 0
    path.touch()
    os.chown(path, 65534, 65534)
    os.chown(tmp_path, 65534, 65534)
    with ledger(tmp_path, complaints=["a file of another user"]):
        assert path.stat().st_uid == 65534


def test_what_was_left_is_logged_once(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "events", 1 << 20)
    sink = LineSink(tmp_path / "log")
    events = EventLog(sink, recording)
    state_left(Left(None, 0, 0, 0, 0, 0, [SHED]), events)
    state_left(Left(4, 2, 3, 0, 0, 0, [GAP]), events)
    # Nothing else has the number, should this process be killed now.
    assert "packets_unrecorded" in (tmp_path / "events").read_text()
    events.close(0)
    log = (tmp_path / "log").read_text()
    assert log.count("packets_unrecorded") == 1
    recorded = (tmp_path / "events").read_text()
    for words in ('"packets":5,"queue":4', "packets_shed", "kernel_dropped_packets"):
        assert words in recorded.replace('"queue":4,"packets":5', '"packets":5,"queue":4')


def test_the_log_keeps_what_it_holds_for_the_recording(tmp_path: Path) -> None:
    """Until it is written; at once what is too much to keep."""
    events = EventLog(LineSink(tmp_path / "log"), Recording(tmp_path / "events", 1 << 20))
    page = Page(bytearray(PAGE_BYTES))
    events.keep = page.hold
    events.push(0)
    events.emit(SHED)
    events.emit(SHED)
    assert page.left().held == [PacketsShed(packets=10)]
    events.push(100)
    assert page.left().held == []
    for queue in range(100):
        events.emit(
            KernelDroppedPackets(queue=queue, queue_full=1, buffer_full=0, since_last=1, waiting=0)
        )
    kept = len(page.left().held)
    events.close(200)
    assert 0 < kept < 100
    assert page.left().held == []
    recorded = (tmp_path / "events").read_text()
    assert recorded.count("kernel_dropped_packets") == 100
