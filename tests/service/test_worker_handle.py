# SPDX-License-Identifier: MIT
"""The daemon's record of a worker: alive, silent, or due to start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence
from nfq_guard.policy.decision import Action
from nfq_guard.service.ledger import Unreported
from nfq_guard.service.supervisor.messages import Ready, RecordSocket, Stop, daemon_channel, pair
from nfq_guard.service.supervisor.worker_handle import WorkerHandle, ending
from nfq_guard.service.supervisor.workers import WorkerState


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(time, "monotonic", one.monotonic)
    return one


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def refuse(problem: str) -> None:
    raise AssertionError(problem)


def begin(handle: WorkerHandle, pid: int) -> socket.socket:
    ours, theirs = pair()
    log, their_log = pair()
    their_log.close()
    channel = daemon_channel(ours, refuse, refuse)
    handle.started(pid, os.pidfd_open(pid), channel, RecordSocket(log, refuse))
    return theirs


def ready() -> Ready:
    return Ready(
        evidence=Evidence.NONE,
        evidence_reason=None,
        socket_buffer_bytes=1,
        flags_refused=[],
        notes=[],
    )


def test_a_worker_lives_while_it_serves_or_may_soon(
    clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    handle = WorkerHandle(7)
    assert handle.alive(clock.now)
    theirs = begin(handle, child.pid)
    assert handle.alive(clock.now)
    handle.serving(ready())
    clock.now += 10_000
    assert handle.alive(clock.now)
    assert handle.silent(clock.now)
    handle.excuse(10_000)
    assert not handle.silent(clock.now)
    handle.stuck()
    assert handle.state is WorkerState.STUCK
    assert not handle.alive(clock.now)
    assert child.wait(60) == -signal.SIGKILL
    theirs.close()
    handle.reap()
    handle.down(clock.now)
    assert handle.alive(clock.now)
    assert not handle.alive(clock.now + 10_000), "a queue that nobody serves for hours"


def test_restarts_wait_longer_each_time_within_a_bound(clock: Clock) -> None:
    handle = WorkerHandle(7)
    waits: list[float] = []
    for _ in range(12):
        handle.postpone(clock.now)
        waits.append(handle.restart_at - clock.now)
    assert waits == sorted(waits)
    assert waits[0] < waits[1]
    assert waits[-1] == waits[-2] == 5.0


def test_no_process_takes_no_order() -> None:
    handle = WorkerHandle(7)
    assert not handle.send(Stop())
    assert not handle.silent(1e9)
    handle.kill()


def test_killing_one_that_ended_already(clock: Clock, child: subprocess.Popen[bytes]) -> None:
    handle = WorkerHandle(7)
    theirs = begin(handle, child.pid)
    child.kill()
    child.wait()
    handle.kill()
    assert handle.reap() == "unknown exit status"  # its status was collected already
    theirs.close()
    handle.down(clock.now)
    assert handle.described().state is WorkerState.DOWN


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, "exit status 0"), (3 << 8, "exit status 3"), (9, "SIGKILL"), (40, "signal 40")],
)
def test_how_a_process_ended(status: int, expected: str) -> None:
    assert ending(status) == expected


def test_what_an_ended_process_had_not_reported_is_added_once(clock: Clock) -> None:
    """Not if it ended between a report and the note of it."""
    one = WorkerHandle(3)
    one.stats.counters["packets"] = 5
    packets = {("no-entry", "drop", "r"): 4}
    one.add_unreported(Unreported(2, packets))
    assert one.stats.counters["packets"] == 5
    one.add_unreported(Unreported(5, packets))
    assert one.stats.counters["packets"] == 9
    assert one.stats.judged[Reason.NO_ENTRY][Action.DROP] == 4
    assert one.stats.rules == {"r": 4}
    one.down(clock.now)
    one.add_unreported(Unreported(0, packets))
    assert one.stats.counters["packets"] == 13
