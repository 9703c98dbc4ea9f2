# SPDX-License-Identifier: MIT
"""The retained packets, and the files written from them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nfq_guard.capture.reader import Capture
from nfq_guard.engine import Judgment
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import Hook
from nfq_guard.seqno import seq
from nfq_guard.service.worker.capture_files import CaptureFiles
from nfq_guard.service.worker.frames import comment_of, headers_len, records
from nfq_guard.service.worker.history import DumpEntry, newest
from nfq_guard.service.worker.packet_ring import PER_S, PacketRing
from nfq_guard.telemetry.events import Event, PacketsNotSaved, PacketsSaved
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Queued
from tests.support.judgments import LOG_REST, judgment, snapshot
from tests.support.packets import A4, A6, B4, B6, error, icmp, ip, tcp, udp


def judged(octets: bytes, *, hook: int = Hook.PREROUTING) -> Judgment:
    return judgment(decode(octets), came_as=Queued(octets, hook, "eth0", "eth1", 0, 0))


def kept(ring: PacketRing) -> list[Judgment]:
    return [one for _, judgments in ring.batches() for one in judgments]


def test_the_oldest_batch_makes_room() -> None:
    ring = PacketRing(4)
    batches = [[judgment()] * 2 for _ in range(4)]
    for second, batch in enumerate(batches):
        ring.add(batch, second)
    assert kept(ring) == [*batches[2], *batches[3]]
    assert (ring.added, ring.skipped) == (8, 0)


def test_a_flood_does_not_replace_what_came_before() -> None:
    ring = PacketRing(2048)
    before = judgment()
    ring.add([before], 0)
    for _ in range(100):
        ring.add([judgment()] * 64, 1.5)
    assert kept(ring)[0] is before
    assert len(kept(ring)) == PER_S + 1
    assert ring.skipped == 6400 - PER_S
    ring.add([before], 2.5)
    assert kept(ring)[-1] is before


def test_a_ring_of_none() -> None:
    ring = PacketRing(0)
    ring.add([judgment()], 0)
    assert (kept(ring), ring.skipped) == ([], 1)


@pytest.mark.parametrize(
    ("octets", "length"),
    [
        (tcp(A4, B4, 1, 2, 0) + b"secret", 40),
        (tcp(A6, B6, 1, 2, 0) + b"secret", 60),
        (udp(A4, B4, 1, 2, b"secret"), 28),
        (icmp(A4, B4, 8, bytes(4) + b"secret"), 28),
        (error(A4, B4, 3, udp(A4, B4, 1, 2, b"secret")), 56),
        (error(A6, B6, 1, udp(A6, B6, 1, 2, b"secret")), 96),
        (icmp(A4, B4, 3, bytes(4))[:28], 28),
        (ip(A4, B4, 47, b"secret"), 20),
        (tcp(A4, B4, 1, 2, 0)[:30] + b"secret", 60),
    ],
)
def test_headers(octets: bytes, length: int) -> None:
    assert headers_len(decode(octets), octets) == length


def test_records_of_a_batch() -> None:
    """They are in order, without the payload, with the interface of the hook."""
    secret = udp(A4, B4, 1, 2, b"secret")
    batches = [(5.0, [judged(secret), judged(secret, hook=Hook.OUTPUT)])]
    one, other = records(batches, 10**18, payload=False)
    assert (one.interface, other.interface) == ("eth0", "eth1")
    assert one.time_ns == 10**18 + 5 * 10**9 == other.time_ns - 1
    assert (one.octets, one.wire_len) == (secret[:28], 34)
    assert next(records(batches, 0, payload=True)).octets == secret
    assert len(list(records(batches, 0, payload=False, end="10.2.0.1"))) == 2
    assert list(records(batches, 0, payload=False, end="10.9.0.1")) == []


def test_comments() -> None:
    assert comment_of(judgment(flow=snapshot())) == (
        "INVALID seq-over: seq 5000 is 100 bytes beyond 4900, the last byte that the receiver "
        "agreed to take; flow ESTABLISHED, nat dnat; rule translated: drop; verdict drop"
    )
    dry = judgment(reason=Reason.NO_ENTRY, verdict=1)
    assert comment_of(dry) == (
        "INVALID no-entry; rule translated: drop; verdict accept (in enforce: drop)"
    )
    just = judgment()
    just.finding = Finding(Reason.ACK_OVER, Breach(Reason.ACK_OVER, seq(2), seq(1), 1), "or not")
    assert comment_of(just).startswith(
        "INVALID ack-over: ack 2 is 1 byte beyond 1, the last byte that the other side has sent, "
        "or not; rule"
    )
    detailed = judgment(decision=LOG_REST, verdict=1, reason=Reason.BAD_TRANSITION)
    detailed.finding = Finding(Reason.BAD_TRANSITION, None, "reply syn in ESTABLISHED")
    assert comment_of(detailed) == (
        "INVALID bad-transition: reply syn in ESTABLISHED; rule rest: log; verdict accept"
    )


def test_a_dump_has_room_for_so_much() -> None:
    entries = [DumpEntry(f"{number:03}", bytes(1 << 20)) for number in range(5)]
    assert [entry.last for entry in newest(entries, 9)] == ["004", "003", "002"]
    assert [entry.last for entry in newest(entries, 1)] == ["004"]


class Worked:
    """Background work that is done at once, or fails."""

    def background(
        self,
        work: Callable[[], int],
        done: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        try:
            result = work()
        except OSError as error:
            failed(error)
        else:
            done(result)


class Written:
    """The files of one queue."""

    def __init__(self, directory: Path, *, alert: int = 20, files: int = 3) -> None:
        self.directory = directory
        self.ring = PacketRing(100)
        self.stats = Stats()
        self.events: list[Event] = []
        self.files = CaptureFiles(
            directory, 7, self.ring, self.stats, Worked(), self.events.append,
            alert_packets=alert, files_max=files, payload=False, hash_addresses=True,
        )  # fmt: skip

    def packets(self, count: int, now: float) -> None:
        judgments = [judged(tcp(A4, B4, 1, 2, 0)) for _ in range(count)]
        self.stats.count(judgments)
        self.ring.add(judgments, now)

    def saved(self) -> list[tuple[int, str]]:
        return [
            (event.packets, event.cause) for event in self.events if isinstance(event, PacketsSaved)
        ]

    def captures(self) -> list[Path]:
        return sorted(self.directory.iterdir())


def test_a_burst_is_written_with_what_came_before_and_after(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.packets(5, 0)
    written.files.tick(0)
    written.packets(30, 10)
    written.files.tick(10)
    written.packets(2, 11)
    written.files.tick(11)
    assert written.saved() == []
    written.files.tick(12)
    assert written.saved() == [(37, "30 packets within a second that are seq-over")]
    (file,) = written.captures()
    with closing(Capture(str(file))) as capture:
        frames = [frame for batch in capture.batches() for frame in batch]
    assert len(frames) == 37
    assert A4 not in frames[0].octets
    assert file.stat().st_mode & 0o777 == 0o640


def test_one_file_a_minute(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for second in range(200):
        written.packets(25, second)
        written.files.tick(second)
    assert len(written.saved()) == 4


@pytest.mark.parametrize("name", ["queue_full_drops", "judging_failures"])
def test_other_alerts(tmp_path: Path, name: str) -> None:
    written = Written(tmp_path)
    written.packets(1, 0)
    written.stats.counters[name] = 1
    for second in range(4):
        written.files.tick(second)
    assert written.saved() == [(1, name)]


def test_an_alert_without_packets_writes_nothing(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.stats.counters["buffer_full_drops"] = 1
    for second in range(4):
        written.files.tick(second)
    assert (written.saved(), written.captures()) == ([], [])


def test_all_packets_each_once(tmp_path: Path) -> None:
    """A file is written each minute, or when half of the ring is new."""
    written = Written(tmp_path, alert=0, files=9)
    for second in range(100):
        written.packets(2, second)
        written.files.tick(second)
    written.files.tick(1000)
    assert sum(packets for packets, _ in written.saved()) == 200
    assert {cause for _, cause in written.saved()} == {"all packets"}
    assert len(written.captures()) == len(written.saved()) == 5  # also within one second


def test_old_files_make_room(tmp_path: Path) -> None:
    written = Written(tmp_path, alert=0, files=2)
    for number in range(4):
        (tmp_path / f"nfq-guard-q7-2020010{number}T000000Z.pcapng").touch()
    (tmp_path / "nfq-guard-q8-20200101T000000Z.pcapng").touch()
    written.packets(1, 0)
    written.files.tick(0)
    names = [path.name for path in written.captures()]
    assert len(names) == 3
    assert names[0] == "nfq-guard-q7-20200103T000000Z.pcapng"


def test_the_newest_file_stays_although_the_clock_was_set_back(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"nfq-guard-q7-2999010{number + 1}T000000Z.pcapng").touch()
    written = Written(tmp_path, alert=0, files=2)
    written.packets(1, 0)
    written.files.tick(0)
    (saved,) = [event for event in written.events if isinstance(event, PacketsSaved)]
    names = [path.name for path in written.captures()]
    assert names == [Path(saved.path).name, "nfq-guard-q7-29990103T000000Z.pcapng"]


def test_a_directory_that_takes_no_files_is_told_before_the_first_alert(tmp_path: Path) -> None:
    good = Written(tmp_path)
    good.files.tick(0)
    assert (good.events, good.captures()) == ([], [])
    missing = Written(tmp_path / "gone")
    file = Written(tmp_path / "file")
    (tmp_path / "file").touch()
    for written, problem in ((missing, "No such file or directory"), (file, "Not a directory")):
        written.files.tick(0)
        written.files.tick(1)
        (told,) = written.events
        assert isinstance(told, PacketsNotSaved)
        assert told.problem == f"{written.directory}: {problem}"


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    written = Written(tmp_path / "gone", alert=0)
    for second in (0, 100, 200):
        written.packets(1, second)
        written.files.tick(second)
    (told,) = written.events
    assert isinstance(told, PacketsNotSaved)
    assert told.problem == f"{tmp_path}/gone: No such file or directory"
    (tmp_path / "gone").mkdir()
    written.packets(1, 300)
    written.files.tick(300)
    assert isinstance(written.events[-1], PacketsSaved)
