# SPDX-License-Identifier: MIT
"""What the daemon needs of whatever serves its queues, and the one that serves in this process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, final

from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.policy.decision import Policy
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.metrics import Stats


class WorkerState(StrEnum):
    """How a queue is served."""

    STARTING = "starting"
    SERVING = "serving"
    STUCK = "stuck"
    DOWN = "down"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """One queue, as it stands.

    Attributes:
        queue_num: Its number.
        pid: Process that serves it; 0 for none.
        state: Whether it does.
        restarts: How often another process had to be started for it.
        stats: Its numbers, of all these processes together.
    """

    queue_num: int
    pid: int
    state: WorkerState
    restarts: int
    stats: Stats


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFacts:
    """What people are told of a policy.

    Attributes:
        source: Where it is from.
        digest: The same for the same rules, wherever they are written.
        rules: How many it has.
    """

    source: str
    digest: str
    rules: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A policy read from disk, whole, with the one on trial.

    Attributes:
        policy: Ready for packets, its shadow within.
        told: Of it.
        shadow: Of the one on trial; None when there is none.
        restart_for: Settings of the daemon that changed in the file and wait for a restart.
    """

    policy: Policy
    told: PolicyFacts
    shadow: PolicyFacts | None = None
    restart_for: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of both policies."""
        return self.told.digest if self.shadow is None else self.told.digest + self.shadow.digest


class Workers(Protocol):
    """What the daemon needs of them; every call is from its loop."""

    @property
    def evidence(self) -> Evidence:
        """Where flows are looked up."""

    def begin(self) -> dict[str, object]:
        """Serve all queues; returns when all are served, with facts for the log.

        Raises:
            NfqGuardError: One of them cannot be.
        """

    def queues(self) -> list[QueueState]:
        """How they stand."""

    def refresh(self) -> None:
        """Bring numbers up to date as far as that takes no time."""

    def last_error(self) -> dict[str, object] | None:
        """The last event of level error that the daemon's own log does not know."""

    def set_mode(self, mode: Mode) -> None:
        """Judge in that mode from the next turn on."""

    def adopt(self, loaded: Loaded, done: Callable[[str], None]) -> None:
        """Judge by that policy from some next turn on, all or none.

        `done` gets an empty string, or why none does.
        """

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        """Respond with the flows shown last."""

    def alive(self, now: float) -> bool:
        """Whether each queue is served, or is about to be again."""

    def finish(self) -> None:
        """Let go of all queues, what waits in them answered."""


@final
class InProcess:
    """One queue, served by this process (`Workers`)."""

    def __init__(self, serving: QueueServer, history: History, evidence: Evidence) -> None:
        """Nothing happens before `begin`."""
        self.evidence = evidence
        self._serving = serving
        self._history = history

    def begin(self) -> dict[str, object]:
        """Watch the queue."""
        self._serving.begin()
        queue = self._serving.queue
        return {
            "queue": queue.queue_num,
            "socket_buffer_bytes": queue.socket_buffer_bytes,
            "flags_refused": queue.refused,
        }

    def queues(self) -> list[QueueState]:
        """The one."""
        return [
            QueueState(
                queue_num=self._serving.queue.queue_num,
                pid=os.getpid(),
                state=WorkerState.SERVING,
                restarts=0,
                stats=self._serving.worker.stats,
            )
        ]

    def refresh(self) -> None:
        """Look at what others count."""
        self._serving.worker.refresh()

    def last_error(self) -> dict[str, object] | None:
        """None: it is all in one log."""
        return None

    def set_mode(self, mode: Mode) -> None:
        """At once."""
        self._serving.set_mode(mode)

    def adopt(self, loaded: Loaded, done: Callable[[str], None]) -> None:
        """At once."""
        self._serving.adopt(loaded.policy)
        done("")

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        """At once."""
        respond(Response.ok(self._history.flows(address, flows)))

    def alive(self, now: float) -> bool:  # noqa: ARG002 - whoever can ask this is
        """Always."""
        return True

    def finish(self) -> None:
        """Drain and unbind."""
        self._serving.finish()
