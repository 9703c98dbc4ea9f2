# SPDX-License-Identifier: MIT
"""The interface of the parts that serve queues, and the implementation in this process."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, final

import orjson

from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.raw_rules import RawRule
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.worker.history import DumpEntry
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.metrics import Stats


class WorkerState(StrEnum):
    """The state of a queue.

    A stuck worker did not report for too long. It was sent SIGKILL and has not ended yet.
    """

    STARTING = "starting"
    SERVING = "serving"
    STUCK = "stuck"
    DOWN = "down"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """One queue.

    Attributes:
        queue_num: Its number.
        pid: The process that serves it; 0 for none.
        state: Its state.
        restarts: Processes after the first one.
        stats: Sums over all these processes; read-only.
    """

    queue_num: int
    pid: int
    state: WorkerState
    restarts: int
    stats: Stats


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServedQueues:
    """The queues and their processes at the start, for the event `started`.

    Attributes:
        queue: The queue, if the daemon's own process serves one.
        queues: The queues, if worker processes serve them.
        pids: Those processes.
        socket_buffer_bytes: Receive buffer of a queue's socket, as granted.
        flags_refused: Flags of the queue that the kernel does not support.
        taken_over: Whether the packets waited for this daemon.
    """

    queue: int | None = None
    queues: list[int] | None = None
    pids: list[int] | None = None
    socket_buffer_bytes: int | None = None
    flags_refused: list[str] | None = None
    taken_over: bool = False


def least_evidence(queues: Sequence[QueueState]) -> tuple[Evidence, str | None]:
    """The evidence of the queue with the least, and why it has no better."""
    ranks = list(Evidence)
    stats = max((queue.stats for queue in queues), key=lambda each: ranks.index(each.evidence))
    return stats.evidence, stats.evidence_reason


class Workers(Protocol):
    """Serves all queues of the daemon; every call is from the daemon's loop."""

    @property
    def messages_refused(self) -> int:
        """Number of messages between processes that were dropped."""

    def begin(self, started_at: float) -> ServedQueues:
        """Serve all queues. Returns once all are served.

        Args:
            started_at: When the daemon started, seconds of the Unix epoch, for metrics.

        Raises:
            NfqGuardError: A queue cannot be served.
        """

    def queues(self) -> list[QueueState]:
        """The state of the queues."""

    def refresh(self) -> None:
        """Update the counts, without waiting for other processes."""

    def settle(self, hurried: Callable[[], bool]) -> None:
        """Update the counts; wait for other processes within a bound, or until `hurried`."""

    def last_error(self) -> dict[str, object] | None:
        """The last event of level error that did not pass through the daemon's own log."""

    def set_mode(self, mode: Mode, unjudged_mark: int) -> None:
        """Judge in `mode` from the next turn on; accepted packets lose the bits `unjudged_mark`."""

    def set_raw_rules(self, rules: tuple[RawRule, ...]) -> None:
        """Allow packets that these rules before conntrack make INVALID, from the next turn on."""

    def adopt(self, loaded: LoadedPolicy, done: Callable[[str], None]) -> None:
        """Adopt a policy soon, in all queues or in none.

        `done` is called within a bounded time: with an empty string, or with the reason why the
        policy was not adopted.
        """

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        """Respond with the most recent flows or packets, within a bounded time."""

    def alive(self, now: float) -> bool:
        """Whether each queue is served or is about to be."""

    def finish(self, hurried: Callable[[], bool]) -> None:
        """Send the verdicts of waiting packets, within a bounded time, and unbind all queues.

        `hurried` returns true when the operator does not want to wait.
        """


@final
class InProcess:
    """One queue, served by the daemon's own process (`Workers`)."""

    messages_refused: Final = 0

    def __init__(self, server: QueueServer) -> None:
        """Serve nothing before `begin`."""
        self._server = server

    def begin(self, started_at: float) -> ServedQueues:
        """Process packets in each round of the loop."""
        self._server.worker.stats.gauges["start_time_seconds"] = started_at
        self._server.begin()
        queue = self._server.queue
        return ServedQueues(
            queue=queue.queue_num,
            socket_buffer_bytes=queue.socket_buffer_bytes,
            flags_refused=queue.refused,
            taken_over=queue.taken_over,
        )

    def queues(self) -> list[QueueState]:
        """The state of the queue."""
        return [
            QueueState(
                queue_num=self._server.queue.queue_num,
                pid=os.getpid(),
                state=WorkerState.SERVING,
                restarts=0,
                stats=self._server.worker.stats,
            )
        ]

    def refresh(self) -> None:
        """Read the kernel's counters."""
        self._server.worker.refresh()

    def settle(self, _hurried: Callable[[], bool]) -> None:
        """Read the kernel's counters."""
        self._server.worker.refresh()

    def last_error(self) -> dict[str, object] | None:
        """None: all events go through the daemon's own log."""
        return None

    def set_mode(self, mode: Mode, unjudged_mark: int) -> None:
        """Switch at once."""
        self._server.set_mode(mode, unjudged_mark)

    def set_raw_rules(self, rules: tuple[RawRule, ...]) -> None:
        """Switch at once."""
        self._server.set_raw_rules(rules)

    def adopt(self, loaded: LoadedPolicy, done: Callable[[str], None]) -> None:
        """Switch at once."""
        self._server.adopt(loaded.policy)
        done("")

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        """Respond with flows at once, or with packets soon."""

        def done(found: list[DumpEntry]) -> None:
            respond(Response.ok([orjson.Fragment(entry.json) for entry in found]))

        def failed(problem: str) -> None:
            respond(Response.error(problem))

        if packets:
            self._server.dump_packets(address, flows, done, failed)
        else:
            found = self._server.flows(address, flows)
            respond(Response.ok([flow.record for flow in found]))

    def alive(self, now: float) -> bool:  # noqa: ARG002 - the loop that asks is the one that serves
        """Whether the queue is served: always."""
        return True

    def finish(self, hurried: Callable[[], bool]) -> None:
        """Drain and unbind the queue."""
        self._server.finish(hurried)
