# SPDX-License-Identifier: MIT
"""One queue of several, as the daemon sees it: its worker process, alive or about to be again."""

import os
import signal
import time
from typing import Any, Final, final

from nfq_guard.service.supervisor.messages import Channel
from nfq_guard.service.supervisor.workers import QueueState, WorkerState
from nfq_guard.telemetry.metrics import Stats

# A worker reports four times a second; one that is silent so long is stuck.
STUCK_S: Final = 2.0
# Binding a queue and loading BPF takes a tenth of it on a busy machine.
_START_S: Final = 10.0
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
# After so long at work the next crash is a first one again.
_STEADY_S: Final = 10.0


@final
class WorkerHandle:
    """One queue and the process that serves it.

    Attributes:
        queue_num: The queue.
        pid: The process; 0 for none.
        state: How it stands.
        restarts: Processes after the first one.
        stats: Numbers of all its processes.
        channel: To the process.
        log: Its log lines, one a message.
        error: Its last event of level error.
        failure: Why it could not start, and of which kind.
    """

    def __init__(self, queue_num: int) -> None:
        """Nobody serves it yet."""
        self.queue_num = queue_num
        self.pid = 0
        self.pidfd = -1
        self.state = WorkerState.DOWN
        self.restarts = 0
        self.stats = Stats()
        self.channel: Channel | None = None
        self.log: Channel | None = None
        self.error: dict[str, object] | None = None
        self.failure: tuple[str, str] | None = None
        self.facts: dict[str, object] = {}
        self.down_since = time.monotonic()
        self.restart_at = 0.0
        self._delay_s = _FIRST_DELAY_S
        self._base = Stats()
        self._heard_at = 0.0
        self._serving_since = 0.0

    def forked(self, pid: int, channel: Channel, log: Channel) -> None:
        """A process was started for it."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.log = log
        self.state = WorkerState.STARTING
        self.failure = None
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """It said something."""
        self._heard_at = time.monotonic()

    def ready(self, facts: dict[str, Any]) -> None:
        """It serves."""
        self.facts = facts
        self.state = WorkerState.SERVING
        self._serving_since = time.monotonic()

    def report(self, plain: dict[str, Any], error: dict[str, object] | None) -> None:
        """Its numbers since it was started."""
        self.stats.sum_of(self._base, plain)
        self.error = error or self.error

    def silent(self, now: float) -> bool:
        """Whether it said nothing for too long."""
        if self.pid == 0:
            return False
        limit = _START_S if self.state is WorkerState.STARTING else STUCK_S
        return now - self._heard_at > limit

    def kill(self) -> None:
        """End it; `ended` comes when it is gone."""
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def send(self, message: dict[str, object]) -> bool:
        """Whether there is somebody who took it."""
        return self.channel is not None and self.channel.send(message)

    def ended(self, now: float) -> str:
        """It is gone: take leave of it; how it ended, in words."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        os.close(self.pidfd)
        for channel in (self.channel, self.log):
            if channel is not None:
                channel.close()
        self.channel = self.log = None
        self.pid = 0
        self.pidfd = -1
        self._base = self.stats.copy()
        if self.state is WorkerState.SERVING and now - self._serving_since > _STEADY_S:
            self._delay_s = _FIRST_DELAY_S
        self.state = WorkerState.DOWN
        self.down_since = now
        self.restart_at = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
        return how

    def described(self) -> QueueState:
        """For status and metrics."""
        return QueueState(
            queue_num=self.queue_num,
            pid=self.pid,
            state=self.state,
            restarts=self.restarts,
            stats=self.stats,
        )
