# SPDX-License-Identifier: MIT
"""The worker on a real queue, with a policy or a lookup that raises."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pytest

from nfq_guard.engine import Engine, Mode
from nfq_guard.finding import Finding
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import Malformed, Packet, Queued
from tests.support.queue import QUEUE, Datagrams, kernel_line, queue_udp

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


class EveryThirdRaises:
    """A policy with a bug that a packet can reach."""

    shadow = None

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
    ) -> Decision:
        assert packet.proto
        assert snapshot is None
        assert finding.reason
        assert now
        number = int.from_bytes(queued.octets[28:32], "big")
        if number % 3 == 0:
            raise KeyError(number)
        return Decision(Action.DROP if number % 3 == 1 else Action.LOG, "odd")


class Nothing:
    evidence = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        return [None] * len(tuples)


class Broken:
    """A kernel that stops answering."""

    evidence = Evidence.BPF

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        raise OSError(5, f"no answer about {len(tuples)} flows")


def worker(
    reader: QueueReader, log: Path, policy: Policy, flows: Nothing | Broken, *, drops: bool
) -> Worker:
    sink = LineSink(log)
    return Worker(
        reader=reader,
        verdicts=VerdictSender(reader.socket, QUEUE),
        judge=Engine(policy=policy, flows=flows, mode=Mode.ENFORCE, drops_failures=drops),
        stats=Stats(),
        events=EventLog(sink),
        limiter=EventLimiter(interval_s=10, events_per_s=100),
        budget=64,
    )


@pytest.mark.parametrize("drops", [False, True])
def test_policy_that_raises(namespace: Make, tmp_path: Path, *, drops: bool) -> None:
    """Each packet gets its own verdict; one whose judging raised gets that of the fail mode."""
    inside = namespace("q")
    queue_udp(inside)
    log = tmp_path / "log"
    with Datagrams(inside) as udp, inside.entered(), QueueReader(QUEUE) as reader:
        one = worker(reader, log, EveryThirdRaises(), Nothing(), drops=drops)
        udp.send(200)
        while one.process_batch():
            pass
        assert kernel_line(inside).waiting == 0
        expected = [2] if drops else [0, 2]
        assert udp.received() == [number for number in range(200) if number % 3 in expected]
        one.tick(1e9)
        assert one.stats.counters["judging_failures"] == 67
        one.close(1e9)
    (failed,) = [line for line in log.read_bytes().splitlines() if b"judging_failed" in line]
    assert b"Traceback" in failed


def test_lookup_that_raises(namespace: Make, tmp_path: Path) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, inside.entered(), QueueReader(QUEUE) as reader:
        one = worker(reader, tmp_path / "log", EveryThirdRaises(), Broken(), drops=False)
        udp.send(100)
        while one.process_batch():
            pass
        assert udp.received() == list(range(100))
        assert kernel_line(inside).waiting == 0
        one.close(0)


def test_packets_that_a_killed_daemon_had_read(namespace: Make, tmp_path: Path) -> None:
    """They get the verdict of the fail mode and are counted; packets still queued are judged."""
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, inside.entered():
        for later in (0, 2):
            with QueueReader(QUEUE) as killed:
                udp.send(5)
                ids, _ = killed.drain(4)
                VerdictSender(killed.socket, QUEUE).send(ids[:2], [1, 1], [None] * 2)
                kept = socket.socket(fileno=os.dup(killed.fileno()))
                if not later:
                    killed.drain(1)
            with QueueReader(QUEUE, kept=kept) as reader:
                one = worker(reader, tmp_path / "log", EveryThirdRaises(), Nothing(), drops=True)
                udp.send(later)
                one.tick(0)
                assert kernel_line(inside).waiting == 0
                assert one.stats.counters["unread_packets"] == (2 if later else 3)
                assert one.stats.counters["packets"] == (3 if later else 0)
                one.tick(1)
                assert one.stats.counters["verdict_errors"] == 0
                one.close(2)
            assert udp.received() == [0, 1]


def test_packets_that_the_kernel_drops_are_logged_once(namespace: Make, tmp_path: Path) -> None:
    """By whichever daemon served the queue then, although the queue outlives each."""
    inside = namespace("q")
    queue_udp(inside, bypass=False)
    log = tmp_path / "log"
    kept: socket.socket | None = None
    with Datagrams(inside) as udp, inside.entered():
        for count in (12, 7, 9):
            with QueueReader(QUEUE, queue_length=5, fail_open=False, kept=kept) as reader:
                one = worker(reader, log, EveryThirdRaises(), Nothing(), drops=False)
                udp.send(count)
                while one.process_batch():
                    pass
                one.tick(0)
                one.close(0)
                kept = socket.socket(fileno=os.dup(reader.fileno()))
        dropped = kernel_line(inside).queue_dropped
        if kept is not None:
            kept.close()
    events = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    since_last = [
        event["since_last"] for event in events if event["event"] == "kernel_dropped_packets"
    ]
    assert (since_last, dropped) == ([7, 2, 4], 13)
