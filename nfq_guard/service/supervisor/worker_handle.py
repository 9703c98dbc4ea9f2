# SPDX-License-Identifier: MIT
"""The daemon's handle on one queue: its worker process, running or to be restarted."""

import os
import signal
import time
from contextlib import suppress
from typing import Final, final

import msgspec

from nfq_guard.finding import Reason
from nfq_guard.nfqueue.counters import QueueCounters
from nfq_guard.policy.decision import Action
from nfq_guard.service.ledger import Unreported
from nfq_guard.service.supervisor.messages import (
    DaemonChannel,
    Failed,
    Numbers,
    Order,
    Ready,
    RecordSocket,
)
from nfq_guard.service.supervisor.workers import QueueState, WorkerState
from nfq_guard.telemetry.metrics import Stats

# A worker reports four times a second; one that is silent for longer than this is stuck.
STUCK_S: Final = 2.0
# Binding a queue and loading BPF takes a tenth of this on a busy machine.
_START_S: Final = 10.0
# A queue without a worker for longer than this is a fault for the service manager.
_HOPELESS_S: Final = 30.0
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
# After this time of service the next restart is as quick as the first.
_STEADY_S: Final = 10.0


@final
class WorkerHandle:
    """One queue and the process that serves it.

    Attributes:
        queue_num: The queue.
        pid: The process; 0 for none.
        pidfd: Its pidfd; -1 for none.
        state: How the queue is served.
        restarts: Processes after the first one.
        restart_at: When to start the next process, monotonic seconds; valid while there is none.
        stats: Sums over all its processes.
        messages_refused: Orders that its processes refused, and reports that they could not send.
        channel: The channel to the process.
        log: Its log lines, one a record.
        last_error: Its last event of level error.
        failure: Why the current or the last process could not start.
        ready: The process's report that it serves the queue; None before.
    """

    def __init__(self, queue_num: int) -> None:
        """Start without a process."""
        now = time.monotonic()
        self.queue_num = queue_num
        self.pid = 0
        self.pidfd = -1
        self.state = WorkerState.DOWN
        self.restarts = 0
        self.restart_at = 0.0
        self.stats = Stats()
        self.messages_refused = 0
        self.channel: DaemonChannel | None = None
        self.log: RecordSocket | None = None
        self.last_error: dict[str, object] | None = None
        self.failure: Failed | None = None
        self.ready: Ready | None = None
        self._delay_s = _FIRST_DELAY_S
        self._stats_before = Stats()
        self._refused_before = 0
        self._heard_at = now
        self._serving_since = now
        self._unserved_since = now

    def started(self, pid: int, pidfd: int, channel: DaemonChannel, log: RecordSocket) -> None:
        """Supervise a newly forked process."""
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.log = log
        self.state = WorkerState.STARTING
        self.failure = None
        self.ready = None
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """Record that the process reported."""
        self._heard_at = time.monotonic()

    def excuse(self, seconds: float) -> None:
        """Do not count the last `seconds` as silence, because the daemon itself did not run."""
        self._heard_at += seconds

    def serving(self, ready: Ready) -> None:
        """Record that the queue is served."""
        self.ready = ready
        self.stats.evidence = ready.evidence
        self.stats.evidence_reason = ready.evidence_reason
        self.state = WorkerState.SERVING
        self._serving_since = time.monotonic()

    def report(self, numbers: Numbers) -> None:
        """Add the counts of the process to those of the processes before it."""
        self.stats.sum_of(self._stats_before, msgspec.structs.asdict(numbers))
        self.messages_refused = self._refused_before + numbers.messages_refused
        self.last_error = numbers.last_error or self.last_error

    def add_unreported(self, unreported: Unreported) -> None:
        """Add what the process that ended had judged since the last report that arrived."""
        counters = self.stats.counters
        if counters["packets"] - self._stats_before.counters["packets"] != unreported.reported:
            return  # it ended right behind a report, which has these
        for (reason, action, rule), packets in unreported.packets.items():
            self.stats.judged[Reason(reason)][Action(action)] += packets
            self.stats.rules[rule] = self.stats.rules.get(rule, 0) + packets
            counters["packets"] += packets

    def dropped(self, kernel: QueueCounters) -> int:
        """Take over the kernel's counts of drops, which vanish with a process that is to be killed.

        Returns the number of packets that the process has not reported.
        """
        found = {
            "queue_full_drops": kernel.queue_dropped,
            "buffer_full_drops": kernel.user_dropped,
        }
        more = 0
        for name, count in found.items():
            unreported = self._stats_before.counters[name] + count - self.stats.counters[name]
            if unreported > 0:
                self.stats.counters[name] += unreported
                more += unreported
        return more

    def silent(self, now: float) -> bool:
        """Whether there is a process whose last report is too old."""
        if self.pid == 0:
            return False
        limit = _START_S if self.state is WorkerState.STARTING else STUCK_S
        return now - self._heard_at > limit

    def alive(self, now: float) -> bool:
        """Whether the queue is served or is about to be.

        A stuck worker has been sent SIGKILL; until it ends, nothing can serve its queue.
        """
        if self.state is WorkerState.SERVING:
            return True
        return self.state is not WorkerState.STUCK and now - self._unserved_since < _HOPELESS_S

    def stuck(self) -> None:
        """Treat the process as stuck and kill it."""
        self._leave_service(time.monotonic())
        self.state = WorkerState.STUCK
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL, if there is a process."""
        if self.pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def send(self, order: Order) -> bool:
        """Whether there is a process and its channel had room for `order`."""
        return self.channel is not None and self.channel.send(order)

    def reap(self) -> str:
        """Reap the exited process. Returns how it ended, for example `exit status 1`.

        Never raises. The channels stay open for the last reports of the process; `down` follows.
        """
        pid, self.pid = self.pid, 0
        pidfd, self.pidfd = self.pidfd, -1
        with suppress(OSError):
            os.close(pidfd)
        try:
            reaped, status = os.waitpid(pid, os.WNOHANG)
        except OSError:  # the daemon inherited SIGCHLD ignored: the kernel reaps
            return "unknown exit status"
        # 0: an attached debugger has not collected the status yet.
        return ending(status) if reaped else "unknown exit status"

    def down(self, now: float) -> None:
        """Close the channels of the exited process and plan the next one."""
        for end in (self.channel, self.log):
            if end is not None:
                with suppress(OSError):
                    end.close()
        self.channel = self.log = None
        self._stats_before = self.stats.copy()
        self._refused_before = self.messages_refused
        self._leave_service(now)
        self.state = WorkerState.DOWN
        self.postpone(now)

    def postpone(self, now: float) -> None:
        """Plan the next start, with a delay that grows up to a bound."""
        self.restart_at = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)

    def described(self) -> QueueState:
        """The state of the queue, for status and metrics."""
        return QueueState(
            queue_num=self.queue_num,
            pid=self.pid,
            state=self.state,
            restarts=self.restarts,
            stats=self.stats,
        )

    def _leave_service(self, now: float) -> None:
        if self.state is WorkerState.SERVING:
            self._unserved_since = now
            if now - self._serving_since > _STEADY_S:
                self._delay_s = _FIRST_DELAY_S


def ending(status: int) -> str:
    """How a process ended, from its wait status.

    Signals 32, 33 and 35 to 63 have no name.
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
