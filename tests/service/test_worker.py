# SPDX-License-Identifier: MIT
import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP

from nfq_guard.engine import Engine, Mode
from nfq_guard.flow import Evidence, FlowKey, FlowTuple, LookupFailed, LookupResult
from nfq_guard.flows.open import NoFlows
from nfq_guard.nfqueue.counters import CounterFile
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.default import default_policy
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.parse import parse_policy
from nfq_guard.service.ledger import PAGE_BYTES, Left, Page
from nfq_guard.service.worker.worker import FlowHistory, Worker, _epoch
from nfq_guard.telemetry.events import PacketJudged, Pod
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import Queued
from tests.support.judgments import ALLOW_REST, FakeEngine, queued


class FakeQueue:
    """A queue that yields packets and keeps their verdicts."""

    def __init__(self, *packets: Queued) -> None:
        self.queue_num = 7
        self.lost = 0
        self.verdict_errors = 0
        self.messages = 0
        self.waiting = list(enumerate(packets, 1))
        self.wants_stamp = False
        self.stamp_us = 0
        self.taken_over = False
        self.unread = 0
        self.missing = 0
        self.last_id = 0
        self.verdicts: list[tuple[int, int, int | None]] = []

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        turn, self.waiting = self.waiting[:budget], self.waiting[budget:]
        return [number for number, _ in turn], [packet for _, packet in turn]

    def forget_names(self) -> None:
        return

    def send(self, ids: list[int], verdicts: list[int], marks: list[int | None]) -> None:
        self.verdicts += zip(ids, verdicts, marks, strict=True)

    def send_up_to(self, last: int, verdict: int) -> None:
        self.verdicts += [(number, verdict, None) for number in range(1, last + 1)]


def worker(
    queue: FakeQueue,
    log: Path,
    engine: FakeEngine | Engine,
    *,
    history: FlowHistory | None = None,
    log_allowed: bool = False,
    recording: Recording | None = None,
    counter_file: CounterFile | None = None,
    events_per_s: int = 1000,
    interval_s: float = 0,
    page: Page | None = None,
    left: Left | None = None,
) -> Worker:
    sink = LineSink(log)
    return Worker(
        reader=queue,
        verdicts=queue,
        judge=engine,
        stats=Stats(),
        events=EventLog(sink, recording=recording),
        limiter=EventLimiter(interval_s=interval_s, events_per_s=events_per_s),
        budget=3,
        history=history,
        log_allowed=log_allowed,
        counter_file=counter_file,
        page=page,
        left=left,
    )


def events(log: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in log.read_bytes().splitlines()]


def test_every_packet_one_verdict(tmp_path: Path) -> None:
    queue = FakeQueue(*(queued(octets) for octets in (b"D", b"a", b"X", b"D", b"X")))
    one = worker(queue, tmp_path / "log", FakeEngine(drops_failures=True))
    assert [one.process_batch(), one.process_batch(), one.process_batch()] == [3, 2, 0]
    assert queue.verdicts == [(1, 0, None), (2, 1, None), (3, 0, None), (4, 0, None), (5, 0, None)]
    one.tick(100)
    assert one.stats.counters["packets"] == 5
    assert one.stats.counters["judging_failures"] == 2
    names = [event["event"] for event in events(tmp_path / "log")]
    assert names.count("packet_judged") == 3
    assert names.count("judging_failed") == 1
    unjudged = [each for each in events(tmp_path / "log") if each["event"] == "packets_unjudged"]
    assert [(each["unread"], each["failed"]) for each in unjudged] == [(0, 2)]
    one.close(100)


def test_dry_run_accepts_all(tmp_path: Path) -> None:
    queue = FakeQueue(queued(b"D"), queued(b"X"), queued(b"a"))
    one = worker(queue, tmp_path / "log", FakeEngine(Mode.DRY_RUN, drops_failures=True))
    one.process_batch()
    assert [verdict for _, verdict, _ in queue.verdicts] == [1, 1, 1]
    first = events(tmp_path / "log")[-2]
    assert (first["verdict"], first["would"]) == ("accept", "drop")
    one.close(0)


@pytest.mark.parametrize(
    ("mode", "drops", "verdict"),
    [(Mode.ENFORCE, True, 0), (Mode.ENFORCE, False, 1), (Mode.DRY_RUN, True, 1)],
)
def test_packets_that_were_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, *, drops: bool, verdict: int
) -> None:
    """They get the verdict of the fail mode, before a batch verdict of later ones covers them."""
    queue = FakeQueue(queued(b"a"), queued(b"a"))
    queue.waiting = [(number + 3, packet) for number, packet in queue.waiting]
    queue.unread = 3
    told = tmp_path / "queue"
    file = kernel_file(told, buffer=0, last=5, waiting=5)
    send_up_to = queue.send_up_to

    def as_the_kernel(last: int, verdict: int) -> None:
        """Another packet comes meanwhile."""
        send_up_to(last, verdict)
        kernel_file(told, buffer=0, last=6, waiting=3).close()

    monkeypatch.setattr(queue, "send_up_to", as_the_kernel)
    engine = FakeEngine(mode, drops_failures=drops)
    one = worker(queue, tmp_path / "log", engine, counter_file=file)
    assert one.process_batch() == 2
    answered = [(number, given) for number, given, _ in queue.verdicts]
    assert answered == [(1, verdict), (2, verdict), (3, verdict), (4, 1), (5, 1)]
    assert one.stats.counters["unread_packets"] == 3
    assert one.process_batch() == 0
    one.close(0)
    unjudged = [each for each in events(tmp_path / "log") if each["event"] == "packets_unjudged"]
    assert [(each["unread"], each["failed"]) for each in unjudged] == [(3, 0)]


@pytest.mark.parametrize(
    ("unread", "read", "last"), [(3, 2, 3), (3, 5, 5), (0xFFFF_FFFF, 2, 2), (2, 0xFFFF_FFFE, 2)]
)
def test_the_last_id_wraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int, read: int, last: int
) -> None:
    """As in a queue that was taken over after four billion packets."""
    queue = FakeQueue(queued(b"a"))
    queue.unread, queue.last_id = unread, read
    sent: list[int] = []
    monkeypatch.setattr(queue, "send_up_to", lambda upto, _verdict: sent.append(upto))
    one = worker(queue, tmp_path / "log", FakeEngine())
    one.process_batch()
    assert (sent, queue.last_id) == ([unread], last)
    one.close(0)


def kernel_file(path: Path, *, buffer: int, last: int, waiting: int = 0) -> CounterFile:
    line = f"    7   34  {waiting} 2  256  0 {buffer} {last} 1\n"
    path.write_text(line, encoding="ascii")
    return CounterFile(path)


def test_what_was_neither_read_nor_dropped_has_passed(tmp_path: Path) -> None:
    """Missing packet ids show it, and at the end the kernel's last id."""
    queue = FakeQueue(queued(b"a"))
    told = tmp_path / "queue"
    file = kernel_file(told, buffer=4, last=10)
    one = worker(queue, tmp_path / "log", FakeEngine(), counter_file=file)
    counters = one.stats.counters
    queue.missing, queue.last_id = 3, 10
    one.refresh()
    assert counters["buffer_full_passes"] == 0
    queue.missing = 9
    one.refresh()
    assert counters["buffer_full_passes"] == 5
    kernel_file(told, buffer=4, last=30, waiting=1).close()
    for _ in range(2):  # packets in transit may have the ids that were not read
        one.refresh()
        time.sleep(0.2)
    assert counters["buffer_full_passes"] == 5
    kernel_file(told, buffer=4, last=30).close()
    one.refresh()
    assert counters["buffer_full_passes"] == 25
    kernel_file(told, buffer=4, last=40).close()
    for _ in range(2):  # the packets with the new ids may be in transit
        one.refresh()
    assert counters["buffer_full_passes"] == 25
    one.close(0)


@pytest.mark.parametrize(("port_id", "since_last"), [(34, 3), (35, 0), (0, 0)])
def test_drops_that_a_killed_daemon_had_not_logged(
    tmp_path: Path, port_id: int, since_last: int
) -> None:
    """Known only if it was the daemon from which the queue is taken over."""
    queue = FakeQueue(queued(b"a"))
    queue.taken_over = True
    file = kernel_file(tmp_path / "queue", buffer=4, last=10)
    page = Page(bytearray(PAGE_BYTES))
    left = Left(7, 0, 0, port_id, 1, 0, [])
    one = worker(queue, tmp_path / "log", FakeEngine(), counter_file=file, page=page, left=left)
    one.refresh()
    one.refresh()
    dropped = [
        each for each in events(tmp_path / "log") if each["event"] == "kernel_dropped_packets"
    ]
    assert sum(each["since_last"] for each in dropped) == since_last
    assert len(dropped) == bool(since_last)
    assert (page.left().port_id, page.left().drops) == (34, 4)
    one.close(0)


def test_what_a_killed_daemon_had_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the packets that it was judging, those without a verdict are no packets that it judged."""
    queue = FakeQueue(queued(b"a"))
    queue.waiting = [(4, queued(b"a"))]
    queue.unread = 3
    told = tmp_path / "queue"
    file = kernel_file(told, buffer=0, last=4, waiting=4)
    send_up_to = queue.send_up_to

    def as_the_kernel(last: int, verdict: int) -> None:
        send_up_to(last, verdict)
        kernel_file(told, buffer=0, last=4, waiting=1).close()

    monkeypatch.setattr(queue, "send_up_to", as_the_kernel)
    page = Page(bytearray(PAGE_BYTES))
    one = worker(
        queue,
        tmp_path / "log",
        FakeEngine(),
        counter_file=file,
        page=page,
        left=Left(7, 10, 5, 77, 6, 0, []),
    )
    assert page.left() == Left(None, 10, 5, 77, 6, 0, [])  # should this one be killed too
    one.process_batch()
    assert page.left().unrecorded == 15 + 3
    one.tick(0)
    one.close(0)
    found = {each["event"]: each for each in events(tmp_path / "log")}
    assert found["packets_unjudged"]["unread"] == 3
    assert found["packets_unrecorded"]["packets"] == 10 + 5 - 3
    assert page.left().unrecorded == one.unrecorded() == 0


def test_the_page_has_what_has_no_event_yet(tmp_path: Path) -> None:
    """At each moment, whatever becomes of the packets; and those that are being judged."""
    page = Page(bytearray(PAGE_BYTES))
    engine = FakeEngine()
    queue = FakeQueue(*(queued(octets) for octets in (b"D", b"D", b"D", b"X", b"a", b"D", b"D")))
    one = worker(queue, tmp_path / "log", engine, interval_s=100, events_per_s=2, page=page)
    during: list[int] = []
    send = queue.send

    def look(ids: list[int], verdicts: list[int], marks: list[int | None]) -> None:
        during.append(page.left().judging)
        send(ids, verdicts, marks)

    queue.send = look  # type: ignore[method-assign]
    assert [one.process_batch(), page.left().unrecorded] == [3, 2]
    assert [one.process_batch(), page.left().unrecorded] == [3, 2 + 2]
    assert page.left().judging == 0
    one.tick(0)  # the failure is counted
    assert page.left().unrecorded == 3
    one.process_batch()
    assert during == [3, 3, 1]
    assert page.left().unrecorded == one.unrecorded() == 4
    one.set_mode(Mode.DRY_RUN, 0)
    assert page.left().unrecorded == 4  # the limit of events was hit, which no event says yet
    one.close(0)
    assert page.left().unrecorded == 0
    found = {each["event"]: each for each in events(tmp_path / "log")}
    assert found["events_suppressed"]["packets"] == 4


def test_nobody_writes_what_an_orphan_logs(tmp_path: Path) -> None:
    page = Page(bytearray(PAGE_BYTES))
    one = worker(FakeQueue(queued(b"D"), queued(b"D")), tmp_path / "log", FakeEngine(), page=page)
    one.unheard = True
    one.process_batch()
    one.close(0)
    assert page.left().unrecorded == 2


def test_drops_under_the_daemon_before_are_not_logged_again(tmp_path: Path) -> None:
    """The kernel counts since the queue was bound, which outlives the daemon that bound it."""
    queue = FakeQueue(queued(b"a"))
    queue.taken_over = True
    told = tmp_path / "queue"
    file = kernel_file(told, buffer=4, last=10)
    one = worker(queue, tmp_path / "log", FakeEngine(), counter_file=file)
    queue.missing, queue.last_id = 5, 10
    one.refresh()
    assert one.stats.counters["buffer_full_passes"] == 5
    kernel_file(told, buffer=6, last=10).close()
    one.tick(0)
    one.close(0)
    (dropped,) = (
        event for event in events(tmp_path / "log") if event["event"] == "kernel_dropped_packets"
    )
    assert (dropped["buffer_full"], dropped["since_last"]) == (6, 2)


@given(st.lists(st.binary(max_size=120), max_size=20))
def test_any_bytes_get_a_verdict(packets: list[bytes]) -> None:
    """Engine, default policy and log handle them without a failure."""
    policy = default_policy()
    queue = FakeQueue(*(queued(octets) for octets in packets))
    engine = Engine(policy=policy, flows=NoFlows(), mode=Mode.ENFORCE)
    one = worker(queue, Path(os.devnull), engine)
    while one.process_batch():
        pass
    assert [number for number, _, _ in queue.verdicts] == list(range(1, len(packets) + 1))
    one.tick(0)
    assert one.stats.counters["judging_failures"] == 0
    one.close(0)


def test_times_are_taken_of_one_batch_in_eight(tmp_path: Path) -> None:
    """Each of its packets is timed, and the wait of the first one if it has a timestamp."""
    queue = FakeQueue(*(queued(b"a") for _ in range(3 * 16)))
    one = worker(queue, tmp_path / "log", FakeEngine())
    wanted = []
    for number in range(16):
        wanted.append(queue.wants_stamp)
        if queue.wants_stamp:
            ahead = number > 8  # the clock was set back after the timestamp
            queue.stamp_us = (time.time_ns() // 1000) + (10**9 if ahead else -5_000_000)
        one.process_batch()
        queue.stamp_us = 0
    assert [number for number, asked in enumerate(wanted) if asked] == [7, 15]
    assert sum(one.stats.judge_us.counts) == 6
    assert sum(one.stats.queue_us.counts) == 2
    assert one.stats.queue_us.counts[0] == 1
    assert one.stats.queue_us.total >= 5_000_000
    one.close(0)


def test_suppressed_events_are_logged(tmp_path: Path) -> None:
    queue = FakeQueue(*(queued(b"D") for _ in range(1100)))
    one = worker(queue, tmp_path / "log", FakeEngine(), events_per_s=10)
    while one.process_batch():
        pass
    one.tick(100)
    (gap,) = [event for event in events(tmp_path / "log") if event["event"] == "events_suppressed"]
    shown = [event for event in events(tmp_path / "log") if event["event"] == "packet_judged"]
    assert len(shown) + gap["packets"] == 1100
    one.close(100)


@pytest.mark.parametrize("change", ["policy", "tick"])
def test_packets_are_judged_between_many_events(tmp_path: Path, change: str) -> None:
    """A thousand events at once, of folded packets, would delay them by tens of milliseconds."""
    strays = [
        queued(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=port, flags="SF")))
        for port in range(1, 201)
    ]
    queue = FakeQueue(*strays, *strays)
    engine = Engine(policy=default_policy(), flows=NoFlows(), mode=Mode.ENFORCE)
    one = worker(queue, tmp_path / "log", engine, interval_s=60)
    while one.process_batch():
        pass
    queue.waiting = list(enumerate(strays[:9], 401))
    if change == "policy":
        one.adopt(default_policy())
    else:
        one.tick(time.monotonic() + 60)
    assert queue.waiting == []
    one.close(0)
    told = [event for event in events(tmp_path / "log") if event["event"] == "packet_judged"]
    assert sum(event.get("count", 1) for event in told) == 409


@pytest.mark.parametrize("change", ["policy", "time", "evidence"])
def test_whenever_a_kill_comes_events_and_page_have_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What the page no longer has is written: not only in memory that would be lost."""
    strays = [
        queued(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=port, flags="SF")))
        for port in range(1, 201)
    ]
    queue = FakeQueue(*strays, *strays)
    engine = Engine(policy=default_policy(), flows=NoFlows(), mode=Mode.ENFORCE)
    page = Page(bytearray(PAGE_BYTES))
    log = tmp_path / "log"
    one = worker(queue, log, engine, interval_s=60, events_per_s=10_000, page=page)
    while one.process_batch():
        pass
    judged = page.judged

    def look(unrecorded: int) -> None:
        judged(unrecorded)
        told = [event for event in events(log) if event["event"] == "packet_judged"]
        written = sum(event.get("count", 1) for event in told)
        assert written + unrecorded == one.stats.counters["packets"]

    monkeypatch.setattr(page, "judged", look)
    queue.waiting = list(enumerate(strays[:9], 401))
    if change == "policy":
        one.adopt(default_policy())
    elif change == "time":
        one.tick(time.monotonic() + 60)
    else:
        one.stats.evidence = Evidence.CTNETLINK
        one.process_batch()
    one.close(0)
    assert page.left().unrecorded == 0


def test_events_of_packets_go_into_the_file_of_events(tmp_path: Path) -> None:
    queue = FakeQueue(*(queued(b"D") for _ in range(1100)))
    log, file = tmp_path / "log", tmp_path / "events.jsonl"
    recording = Recording(file, 1 << 20)
    one = worker(queue, log, FakeEngine(), recording=recording, events_per_s=10)
    while one.process_batch():
        pass
    one.tick(100)
    one.close(100)
    assert [event["event"] for event in events(log)] == ["events_suppressed"]
    judged = [event for event in events(file) if event["event"] == "packet_judged"]
    (gap,) = [event for event in events(file) if event["event"] == "events_suppressed"]
    assert len(judged) + gap["packets"] == 1100
    recording.sink.close(100)


def test_a_full_file_of_events_is_told_once_a_minute_and_at_the_end(tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "events.jsonl"
    queue = FakeQueue(*(queued(b"D") for _ in range(30)))
    recording = Recording(file, 1)
    one = worker(queue, log, FakeEngine(), recording=recording)
    for now in (100, 101, 159, 160):
        one.process_batch()
        one.tick(now)
    one.process_batch()
    one.close(161)
    told = [(event["event"], event["packets"], event["file_full"]) for event in events(log)]
    assert told == [("events_suppressed", packets, True) for packets in (3, 9, 3)]
    assert [event["packets"] for event in events(file)] == [3, 9, 3]
    one.refresh()
    assert one.stats.counters["events_suppressed"] == 15
    recording.sink.close(161)


class RefusingFlows:
    """A kernel that refuses every lookup."""

    evidence = Evidence.BPF

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        return [LookupFailed(errno.EINVAL)] * len(tuples)


def test_failed_lookups_are_counted_and_logged_once_a_minute(tmp_path: Path) -> None:
    policy = default_policy()
    engine = Engine(policy=policy, flows=RefusingFlows(), mode=Mode.ENFORCE)
    queue = FakeQueue()
    one = worker(queue, tmp_path / "log", engine)
    packet = bytes(IP() / TCP(sport=5, flags="SA"))
    for second, packets in ((100, 2), (101, 1), (159, 0), (160, 0), (161, 3)):
        queue.waiting = [(number, queued(packet)) for number in range(packets)]
        one.process_batch()
        one.tick(second)
    assert one.stats.counters["lookup_errors"] == 6
    told = [event for event in events(tmp_path / "log") if event["event"] == "lookups_failed"]
    assert [(event["lookups"], event["last_error"]) for event in told] == [
        (2, "EINVAL"),
        (1, "EINVAL"),
    ]
    one.close(200)


def test_accepted_packets_lose_the_mark_of_unjudged_ones(tmp_path: Path) -> None:
    """The later rule drops packets that still have it: those whose judging raised."""
    queue = FakeQueue(queued(b"a", mark=0x1005), queued(b"D", mark=0x1000), queued(b"X"))
    one = worker(queue, tmp_path / "log", FakeEngine(unjudged_mark=0x1000))
    one.process_batch()
    assert queue.verdicts == [(1, 1, 0x5), (2, 0, None), (3, 1, None)]
    one.close(0)


def test_dry_run_gives_each_packet_the_mark_that_it_came_with(tmp_path: Path) -> None:
    """Another mark could change the route, and the later rule must drop nothing."""
    marks = {b"a": 0x1005, b"D": 0x1000, b"X": 0x1003, b"M": 0x1000}
    queue = FakeQueue(*(queued(octets, mark=mark) for octets, mark in marks.items()))
    one = worker(queue, tmp_path / "log", FakeEngine(Mode.DRY_RUN, unjudged_mark=0x1000))
    while one.process_batch():
        pass
    assert queue.verdicts == [(1, 1, 0x5), (2, 1, 0), (3, 1, 0x3), (4, 1, 0)]
    one.close(0)


def test_the_mark_of_a_policy_does_not_call_a_packet_unjudged(tmp_path: Path) -> None:
    queue = FakeQueue(queued(b"M", mark=0x1000))
    one = worker(queue, tmp_path / "log", FakeEngine(unjudged_mark=0x1010))
    one.process_batch()
    assert queue.verdicts == [(1, 1, 0x89)]
    one.close(0)


def test_the_mark_of_a_policy_is_set_in_enforce_mode_only(tmp_path: Path) -> None:
    for mode, mark in ((Mode.ENFORCE, 0x99), (Mode.DRY_RUN, None)):
        queue = FakeQueue(queued(b"M"))
        one = worker(queue, tmp_path / "log", FakeEngine(mode))
        one.process_batch()
        assert queue.verdicts == [(1, 1, mark)]
        one.close(0)


def test_a_failed_event_does_not_end_the_worker(tmp_path: Path) -> None:
    """The verdicts are sent first; every failure is counted, and the first one is logged."""

    class Broken:
        def add(self, key: FlowKey, event: PacketJudged, at: float) -> None:
            raise KeyError(key, event.count, at)

    queue = FakeQueue(*[queued(b"0"), queued(b"1"), queued(b"2")])
    broken = worker(queue, tmp_path / "log", FakeEngine(), history=Broken())
    assert broken.process_batch() == 3
    assert len(queue.verdicts) == 3
    assert broken.stats.counters["event_failures"] >= 1
    broken.tick(0.0)
    told = [event for event in events(tmp_path / "log") if event["event"] == "event_failed"]
    assert len(told) == 1
    assert "KeyError" in told[0]["traceback"]


class AllowsAll:
    """A policy that allows everything."""

    shadow = None

    def decide(self, *_: object) -> Decision:
        return ALLOW_REST


def test_allowed_packets_have_events_or_are_counted(tmp_path: Path) -> None:
    for log_allowed in (False, True):
        engine = Engine(policy=AllowsAll(), flows=NoFlows(), mode=Mode.DRY_RUN)
        log = tmp_path / f"log-{log_allowed}"
        one = worker(FakeQueue(queued(b"a"), queued(b"b")), log, engine, log_allowed=log_allowed)
        one.process_batch()
        assert one.unrecorded() == (0 if log_allowed else 2)
        one.tick(100)
        assert one.unrecorded() == 0
        one.tick(101)
        found = [event["event"] for event in events(log)]
        if log_allowed:
            assert found == ["packet_judged", "packet_judged"]
        else:
            assert found == ["allowed_unrecorded"]
            assert events(log)[0]["packets"] == 2


def stray_and_reset(flags: str = "R") -> tuple[Queued, Queued]:
    """A segment without a connection, and the RST with which a host answers it."""
    stray = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(
        sport=80, dport=40000, flags="PA", seq=5, ack=900
    )
    reset = IP(src="10.0.0.2", dst="10.0.0.1") / TCP(
        sport=40000, dport=80, flags=flags, seq=900, ack=0
    )
    return queued(bytes(stray / b"data")), queued(bytes(reset))


def test_folded_packets_keep_the_evidence_with_which_they_were_judged(tmp_path: Path) -> None:
    """Also where no flow was found, so that nothing of a flow says where it was looked up."""
    queue = FakeQueue(*[queued(b"D")] * 6)
    one = worker(queue, tmp_path / "log", FakeEngine(), interval_s=10)
    one.stats.evidence = Evidence.BPF
    one.process_batch()
    one.stats.evidence = Evidence.CTNETLINK
    one.process_batch()
    one.close(0)
    judged = [each for each in events(tmp_path / "log") if each["event"] == "packet_judged"]
    packets = [(each["evidence"], each.get("count", 1)) for each in judged]
    assert packets == [("bpf", 1), ("bpf", 2), ("ctnetlink", 1), ("ctnetlink", 2)]


@pytest.mark.parametrize(
    ("acting", "on_trial", "counter"),
    [
        ("drop", "log", "shadow_would_pass"),
        ("log", "drop", "shadow_would_drop"),
        ("log", "allow", "shadow_differs_otherwise"),
        ("log", "log", None),
    ],
)
def test_disagreements_with_a_policy_on_trial_are_counted(
    tmp_path: Path, acting: str, on_trial: str, counter: str | None
) -> None:
    policy = compile_policy(everything(acting), compile_policy(everything(on_trial)))
    engine = Engine(policy=policy, flows=NoFlows(), mode=Mode.ENFORCE)
    one = worker(FakeQueue(queued(b"D")), tmp_path / "log", engine)
    one.process_batch()
    found = {name for name, count in one.stats.counters.items() if "shadow" in name and count}
    assert found == ({counter} if counter else set())


def everything(action: str) -> PolicyModel:
    table = {"default": action, "on_unknown": action, "i_know": "drops everything"}
    return parse_policy(table, source="test")


def test_pods_are_those_of_the_time_of_the_event(tmp_path: Path) -> None:
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2))
    queue = FakeQueue(*[queued(packet)] * 3)
    one = worker(queue, tmp_path / "log", FakeEngine(), log_allowed=True)
    one._budget = 1
    pod = Pod("shop", "cart-0", "c0")
    for pods in (None, {bytes((10, 0, 0, 2)): pod}, {}):
        if pods is not None:
            one.set_pods(pods)
        one.process_batch()
    before, named, after = events(tmp_path / "log")
    assert named["dst_pod"] == {"namespace": "shop", "name": "cart-0", "container": "c0"}
    assert not {"src_pod", "dst_pod"} & (before.keys() | after.keys())
    assert "src_pod" not in named
    one.close(0)


def test_a_reset_is_linked_to_the_packet_that_it_answers(tmp_path: Path) -> None:
    """Its event is written although the policy allows it and allowed packets have none."""
    engine = Engine(policy=AllowsAll(), flows=NoFlows(), mode=Mode.ENFORCE)
    one = worker(FakeQueue(*stray_and_reset()), tmp_path / "log", engine)
    one.process_batch()
    one.close(0)
    (event,) = (event for event in events(tmp_path / "log") if event["event"] == "packet_judged")
    assert (event["tcp_flags"], event["caused_by"]["rule"]) == ("R", ALLOW_REST.rule)
    assert event["caused_by"]["reason"] == "unsupported"
    assert event["caused_by"]["delay_us"] == 0
    assert event["caused_by"]["timestamp"] == event["timestamp"]
    assert one.stats.counters["caused_resets"] == 1


def test_a_packet_that_was_dropped_causes_no_reset(tmp_path: Path) -> None:
    class DropsAll:
        shadow = None

        def decide(self, *_: object) -> Decision:
            return Decision(Action.DROP, "all")

    for mode, caused in ((Mode.ENFORCE, 0), (Mode.DRY_RUN, 1)):
        engine = Engine(policy=DropsAll(), flows=NoFlows(), mode=mode)
        one = worker(FakeQueue(*stray_and_reset()), tmp_path / f"log-{mode}", engine)
        one.process_batch()
        one.close(0)
        assert one.stats.counters["caused_resets"] == caused


def test_a_packet_has_the_same_time_in_all_events_unless_the_clock_is_set() -> None:
    zero = _epoch(0.0)
    assert any(_epoch(zero) == zero for _ in range(100)), "some readings were not interrupted"
    assert _epoch(zero - 0.5) > zero - 0.4


def test_lines_that_were_lost_last_are_logged_at_the_end(tmp_path: Path) -> None:
    one = worker(FakeQueue(), tmp_path / "log", FakeEngine())
    (output,) = one._events.outputs
    output.sink.dropped = 1
    one.tick(0)
    output.sink.dropped = 3
    one.close(1)
    lost = [one["lines"] for one in events(tmp_path / "log") if "lines" in one]
    assert lost == [1, 2]


def test_packets_that_are_no_segments_are_not_linked(tmp_path: Path) -> None:
    datagram = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2))
    engine = Engine(policy=AllowsAll(), flows=NoFlows(), mode=Mode.ENFORCE)
    queue = FakeQueue(queued(datagram), queued(b"junk"), stray_and_reset("A")[1])
    one = worker(queue, tmp_path / "log", engine)
    one.process_batch()
    one.close(0)
    assert one.stats.counters["caused_resets"] == 0
