# SPDX-License-Identifier: MIT
"""The daemon of one queue, from bound to unbound.

Order matters at both ends. At the start: queue, then rules, then READY. At the end: rules, then
what still waits in the queue gets its verdicts, then the queue; so no packet meets a queue that
nobody serves, except between the kernel and a crash.
"""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol, final

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.policy.decision import Policy
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.rulewatch import RulesWatch
from nfq_guard.service.worker import Worker
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.sink import LineSink

# How long packets that wait at the end may take; a flood would never let us go.
_DRAIN_S: Final = 2.0
_SECOND_S: Final = 1.0


class RulesChange(Protocol):
    """What `Rules.install` and `Rules.remove` answer."""

    @property
    def done(self) -> Sequence[str]:
        """One sentence a change."""

    @property
    def notes(self) -> Sequence[str]:
        """What the operator should know besides."""


class Rules(Protocol):
    """Our rules in the packet filter (`firewall.Firewall`)."""

    def install(self) -> RulesChange:
        """Make them as they should be."""

    def remove(self) -> RulesChange:
        """Take them away."""

    def verify(self) -> Sequence[object]:
        """Every difference between what is live and what should be."""


class BoundQueue(Protocol):
    """What the daemon itself needs of `nfqueue.reader.QueueReader`."""

    queue_num: int
    refused: list[str]

    @property
    def socket_buffer_bytes(self) -> int:
        """As granted."""

    def fileno(self) -> int:
        """For epoll."""

    def set_fail_open(self, *, on: bool) -> None:
        """Say whether packets pass when the queue is full."""

    def close(self) -> None:
        """Unbind."""


@final
class Daemon:
    """Runs one worker until a signal says stop.

    Attributes:
        worker: The packets' side; `worker.engine` and `worker.stats` are what control works on.
        loop: Where further descriptors and timers can be hung in before `run`.
        last_reload_error: Why the last reload kept the old policy; empty when it did not.
    """

    def __init__(
        self,
        *,
        queue: BoundQueue,
        worker: Worker,
        events: EventLog,
        sink: LineSink,
        loop: Loop,
        rules: Rules | None = None,
        reload: Callable[[], Policy] | None = None,
        notifier: Notifier | None = None,
        fail_open: bool = True,
        verify_rules_s: float = 0,
        reinstall_rules: bool = True,
        facts: dict[str, object] | None = None,
    ) -> None:
        """Put the parts together; nothing happens before `run`.

        Args:
            queue: The bound queue; closed at the end.
            worker: Serves it.
            events: Where events go.
            sink: The lines under `events`; closed at the end.
            loop: The loop, in the main thread.
            rules: Rules to install and to remove; None leaves the packet filter alone.
            reload: Reads the policy anew, or raises NfqGuardError.
            notifier: Tells systemd.
            fail_open: Whether packets pass when the queue is full; in dry-run they always do.
            verify_rules_s: How often to look whether the rules are still there; 0: never.
            reinstall_rules: Whether to put them back then.
            facts: Further fields of the event that the daemon started.
        """
        self.worker = worker
        self.loop = loop
        self.last_reload_error = ""
        self._queue = queue
        self._events = events
        self._sink = sink
        self._rules = rules
        self._reload = reload
        self._notifier = notifier or Notifier()
        self._fail_open = fail_open
        self._facts = facts or {}
        self._watch: RulesWatch | None = None
        if rules is not None and verify_rules_s:
            self._watch = RulesWatch(
                rules, events, reinstall=reinstall_rules, count=self._count_missing_rules
            )
            loop.every(verify_rules_s, self._watch.check)
            loop.every(_SECOND_S, self._watch.collect)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            NfqGuardError: The rules could not be installed; the queue is let go of first.
        """
        self.worker.stats.gauges["start_time_seconds"] = datetime.now(UTC).timestamp()
        self._prepare()
        try:
            if self._rules is not None:
                self._tell_rules("rules_installed", self._serve_during(self._rules.install))
            self._started()
            self.loop.run()
        finally:
            self._stop()

    def set_mode(self, mode: Mode) -> None:
        """Switch between two turns; the next packet is judged in the new mode."""
        before = self.worker.engine.mode
        self.worker.engine.mode = mode
        self._queue.set_fail_open(on=self._fail_open or mode is Mode.DRY_RUN)
        self.worker.stats.gauges["enforcing"] = float(mode is Mode.ENFORCE)
        if mode is not before:
            self._events.warning("mode_changed", before=before, now=mode)

    def reload(self) -> bool:
        """Swap the policy whole, or keep it; whether it was swapped."""
        counters = self.worker.stats.counters
        self._sink.reopen()
        if self._reload is None:
            return False
        self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            policy = self._reload()
        except NfqGuardError as error:
            counters["reload_failures"] += 1
            self.last_reload_error = str(error)
            self._events.error("reload_failed", mistakes=str(error).splitlines())
        else:
            self.worker.engine.policy = policy
            counters["reloads"] += 1
            self.last_reload_error = ""
            self._events.info("reloaded")
        self._notifier.tell("READY=1")
        self._sink.push(time.monotonic())
        return not self.last_reload_error

    def _prepare(self) -> None:
        loop = self.loop
        loop.on(signal.SIGTERM, loop.stop)
        loop.on(signal.SIGINT, loop.stop)
        loop.on(signal.SIGHUP, self._hang_up)
        loop.on(signal.SIGUSR1, self._dump)
        loop.watch(self._queue.fileno(), self._packets)
        loop.every(_SECOND_S, self.worker.second)
        self.set_mode(self.worker.engine.mode)
        if self._notifier.watchdog_s:
            loop.every(self._notifier.watchdog_s / 3, self._alive)

    def _packets(self) -> None:
        self.worker.turn()

    def _count_missing_rules(self) -> None:
        self.worker.stats.counters["rules_changed"] += 1

    def _hang_up(self) -> None:
        self.reload()

    def _alive(self, _now: float) -> None:
        self._notifier.tell("WATCHDOG=1")

    def _started(self) -> None:
        self.worker.turn()  # brings in the kernel's answers to the queue's flags
        self._events.info(
            "started",
            queue=self._queue.queue_num,
            mode=self.worker.engine.mode,
            socket_buffer_bytes=self._queue.socket_buffer_bytes,
            flags_refused=self._queue.refused,
            **self._facts,
        )
        self._sink.push(time.monotonic())
        self._notifier.tell("READY=1", f"STATUS=queue {self._queue.queue_num}, serving")

    def _dump(self) -> None:
        self._events.info("counters", **self._numbers())
        self._sink.push(time.monotonic())

    def _numbers(self) -> dict[str, object]:
        stats = self.worker.stats
        self.worker.refresh()
        actions: dict[str, int] = {}
        reasons: dict[str, int] = {}
        for reason, by_action in stats.judged.items():
            for action, packets in by_action.items():
                if packets:
                    actions[action.value] = actions.get(action.value, 0) + packets
                    reasons[reason.value] = reasons.get(reason.value, 0) + packets
        return {
            "queue": self._queue.queue_num,
            "reasons": reasons,
            "actions": actions,
            "rules": dict(stats.rules),
            **stats.counters,
        }

    def _stop(self) -> None:
        self._notifier.tell("STOPPING=1")
        if self._rules is not None:
            self._wait_for_watch()
            try:
                self._tell_rules("rules_removed", self._serve_during(self._rules.remove))
            except NfqGuardError as error:
                self._events.error("rules_left_behind", problem=str(error))
        self._drain()
        numbers = self._numbers()
        self._queue.close()
        now = time.monotonic()
        self.worker.close(now)
        self._events.info("stopped", **numbers)
        self._sink.close(now)

    def _wait_for_watch(self) -> None:
        """A check that is under way might put back what is about to be removed."""
        if self._watch is not None:
            self._watch.close()
            while self._watch.busy:
                self.loop.turn(0.01)

    def _drain(self) -> None:
        """Answer what still waits, until the kernel says that nothing does."""
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            if self.worker.turn():
                continue
            found = self.worker.kernel_counters()
            if found is None or found.waiting == 0:
                return
            time.sleep(0.001)
        self._events.warning("stopped_under_load", waited_s=_DRAIN_S)

    def _serve_during(self, change: Callable[[], RulesChange]) -> RulesChange:
        """Change the packet filter in a thread, for that takes longer than the queue can wait."""
        outcome: list[RulesChange] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                outcome.append(change())
            except Exception as error:  # noqa: BLE001 - raised again in the loop's thread
                failure.append(error)

        thread = threading.Thread(target=work, name="rules", daemon=True)
        thread.start()
        while thread.is_alive():
            self.loop.turn(0.01)
        if failure:
            raise failure[0]
        return outcome[0]

    def _tell_rules(self, event: str, change: RulesChange) -> None:
        self._events.info(event, done=list(change.done), notes=list(change.notes))
