# SPDX-License-Identifier: MIT
"""A queue served from a loop, and garbage collection between its batches."""

import _thread
import gc
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfq_guard.engine import Mode
from nfq_guard.lab.pace import limit
from nfq_guard.policy.default import default_policy
from nfq_guard.service.loop import Loop
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.service.worker.queue_server import GarbageCollection, KeptPackets, QueueServer
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import Queued
from tests.support.judgments import FakeEngine, queued


class _Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def garbage() -> Iterator[GarbageCollection]:
    """The collector, started before the test and stopped after it."""
    one = GarbageCollection()
    one.begin()
    yield one
    one.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_search_does_not_start_by_itself(garbage: GarbageCollection) -> None:
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert garbage is not None


def test_new_cycle_goes_within_a_second(garbage: GarbageCollection) -> None:
    """Cycles that a bug creates must not accumulate."""
    lost = weakref.ref(_Cycle())
    assert lost() is not None
    garbage.tick(1.0)
    assert lost() is None


def test_old_cycle_goes_within_a_minute(garbage: GarbageCollection) -> None:
    """A full collection finds a policy that was replaced when it was in the oldest generation."""
    old = _Cycle()
    for second in range(3):
        garbage.tick(float(second))
    lost = weakref.ref(old)
    del old
    for second in range(60):
        garbage.tick(float(second))
    assert lost() is None


class FakeQueue:
    """A bound queue that hands out packets; `waiting` is what the kernel reports."""

    def __init__(self, packets: int) -> None:
        self.queue_num = 7
        self.lost = 0
        self.wants_stamp = False
        self.stamp_us = 0
        self.taken_over = False
        self.unread = 0
        self.missing = 0
        self.last_id = 0
        self.verdict_errors = 0
        self.messages = 0
        self.refused: list[str] = []
        self.socket_buffer_bytes = 4096
        self.packets = packets
        self.answered = 0
        self.fail_open: list[bool] = []
        self.closed = False
        self.collected_when_closed: bool | None = None
        self._end, self._other = socket.socketpair()

    def fileno(self) -> int:
        return self._end.fileno()

    def arrive(self, packets: int) -> None:
        self.packets += packets
        self._other.send(b"x")

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        taken = min(budget, self.packets)
        self.packets -= taken
        return list(range(taken)), [queued(b"a")] * taken

    def forget_names(self) -> None:
        return

    def send(self, ids: list[int], verdicts: list[int], marks: list[int | None]) -> None:
        assert len(ids) == len(verdicts) == len(marks)
        self.answered += len(ids)

    def send_up_to(self, last: int, verdict: int) -> None:
        raise AssertionError((last, verdict))

    def set_fail_open(self, *, on: bool) -> None:
        self.fail_open.append(on)

    def close(self) -> None:
        if not self.closed:
            self.collected_when_closed = gc.isenabled()
        self.closed = True
        self._end.close()
        self._other.close()


class UnchangingEvidence:
    """Evidence that stays as it is."""

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass


class FakeKeeper:
    """Keeps a descriptor by its number, as systemd would."""

    def __init__(self) -> None:
        self.kept: int | None = None

    def keep(self, fd: int) -> None:
        self.kept = fd

    def forget(self) -> None:
        self.kept = None


class Served:
    """A server of a fake queue, whose loop is driven by the test."""

    def __init__(self, log: Path, packets: int = 0, *, fail_open: bool = False) -> None:
        self.queue = FakeQueue(packets)
        self.keeper = FakeKeeper()
        self.loop = Loop()
        self.sink = LineSink(log)
        self.log = log
        self.judge = FakeEngine()
        events = EventLog(self.sink)
        opened = ExitStack()
        opened.callback(self.queue.close)
        self.server = QueueServer(
            self.queue,
            Worker(
                reader=self.queue,
                verdicts=self.queue,
                judge=self.judge,
                stats=Stats(),
                events=events,
                limiter=EventLimiter(interval_s=100, events_per_s=0),
                budget=8,
            ),
            History(),
            UnchangingEvidence(),
            events,
            self.loop,
            fail_open=fail_open,
            packets=KeptPackets(PacketRing(0), None, payload=False),
            opened=opened,
            keeper=self.keeper,
        )

    def logged(self) -> str:
        self.sink.push(0)
        return self.log.read_text()

    def close(self) -> None:
        self.loop.close()
        self.sink.close(0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def build(packets: int = 0, *, fail_open: bool = False) -> Served:
        made.append(Served(tmp_path / "log", packets, fail_open=fail_open))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_packets_are_answered_from_the_loop(make: Callable[..., Served]) -> None:
    one = make()
    one.server.begin()
    assert not gc.isenabled()
    one.queue.arrive(20)
    for _ in range(5):
        one.loop.turn(0.1)
    assert one.queue.answered == 20
    one.server.finish(lambda: False)
    assert one.queue.closed
    # Packets of the time since the last look at the queue are lost.
    assert one.queue.collected_when_closed is False
    assert gc.isenabled()


def test_the_end_answers_what_waits(make: Callable[..., Served]) -> None:
    one = make(packets=100)
    one.server.begin()
    one.server.finish(lambda: False)
    assert one.queue.answered == 100
    assert "stopped_under_load" not in one.logged()


def test_a_hurried_end_leaves_packets_to_the_kernel(make: Callable[..., Served]) -> None:
    one = make(packets=100)
    one.server.begin()
    one.server.finish(lambda: True)
    assert one.queue.answered == 16
    assert "stopped_under_load" in one.logged()


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_queue_fails_open_in_dry_run(make: Callable[..., Served], *, fail_open: bool) -> None:
    """In mode enforce the fail mode decides; the queue is kept where packets would be lost."""
    one = make(fail_open=fail_open)
    one.server.begin()
    kept = None if fail_open else one.queue.fileno()
    assert one.keeper.kept == kept
    one.server.set_mode(Mode.DRY_RUN, 0)
    assert one.keeper.kept is None
    one.server.set_mode(Mode.ENFORCE, 0x1000)
    assert one.keeper.kept == kept
    assert one.queue.fail_open == [fail_open, True, fail_open]
    assert (one.judge.mode, one.judge.unjudged_mark) == (Mode.ENFORCE, 0x1000)
    assert one.server.worker.stats.gauges["enforcing"] == 1.0
    one.server.finish(lambda: False)


def test_a_policy_is_adopted(make: Callable[..., Served]) -> None:
    one = make()
    policy = default_policy()
    one.server.adopt(policy)
    assert one.judge.policy is policy
    one.server.begin()
    one.server.finish(lambda: False)


def test_packets_are_dumped_or_the_reason_is_said(
    make: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    found: list[object] = []
    one.server.dump_packets(None, 5, found.append, found.append)
    one.loop.run_until(lambda: bool(found), lambda: time.monotonic() + limit(10))
    assert found == [[]]

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    one.server.dump_packets(None, 5, found.append, found.append)
    one.loop.turn(1)
    assert found[1:] == ["the packets cannot be dumped: RuntimeError: can't start new thread"]
    one.queue.close()
