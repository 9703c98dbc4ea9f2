# SPDX-License-Identifier: MIT
"""The daemon, from queues bound to queues unbound.

Order matters at both ends. At the start: queues, then rules, then READY. At the end: rules, then
what still waits in the queues gets its verdicts, then the queues; so no packet meets a queue that
nobody serves, except between the kernel and a crash.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, final

from nfq_guard import __version__
from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.firewall import Counted, FailMode
from nfq_guard.service.control.protocol import Responder
from nfq_guard.service.firewall_spec import fail_mode_of
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.reload import Reloader
from nfq_guard.service.rule_monitor import RuleMonitor
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import Rates, described, policy_facts, totals
from nfq_guard.service.supervisor.workers import Loaded, QueueState, Workers
from nfq_guard.telemetry.events import EventLog, timestamp
from nfq_guard.telemetry.sink import LineSink

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

    def counted(self) -> Counted:
        """What the kernel counted at them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a daemon is made of.

    Attributes:
        settings: Its settings.
        source: Where they are from, for the log.
        workers: Serves the queues.
        loop: The loop, in the main thread.
        events: Where events go.
        sink: The lines under `events`; closed at the end.
        rules: Our rules as they should be.
        loaded: The policy to begin with.
        read: Reads the policy anew, or raises NfqGuardError.
        notifier: Tells systemd.
        open_more: Opens what is there for onlookers, once all queues are served; what it returns
            closes that again.
    """

    settings: Settings
    source: str
    workers: Workers
    loop: Loop
    events: EventLog
    sink: LineSink
    rules: Rules
    loaded: Loaded
    read: Callable[[], Loaded]
    notifier: Notifier
    open_more: Callable[["Daemon"], Callable[[], None]]


@final
class Daemon:
    """Runs until a signal says stop; what requests ask (`requests.Guard`) is asked of it.

    Attributes:
        mode: Whether decisions are carried out.
        reloading: The policy and how it changed.
    """

    def __init__(self, parts: Parts) -> None:
        """Nothing happens before `run`."""
        self.mode = parts.settings.mode
        self._parts = parts
        self._settings = parts.settings
        self._workers = parts.workers
        self._loop = parts.loop
        self._events = parts.events
        self._notifier = parts.notifier
        self._rates = Rates()
        self._since = ""
        self._started_at = 0.0
        self._rules_changed = 0
        self._rules_touched = False
        self._close_more: Callable[[], None] = _nothing
        self.reloading = Reloader(
            loaded=parts.loaded,
            read=parts.read,
            workers=parts.workers,
            loop=parts.loop,
            events=parts.events,
            notifier=parts.notifier,
        )
        self._watch = RuleMonitor(
            parts.rules,
            parts.events,
            ours=self._owns_rules,
            reinstall=self._owns_rules and self._settings.reinstall_rules,
            count=self._count_changed_rules,
            counted=parts.rules.counted,
        )

    @property
    def _owns_rules(self) -> bool:
        return self._settings.rules == "install"

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            NfqGuardError: A queue could not be served, or the rules could not be installed; what
                was done by then is undone.
        """
        self._since = timestamp()
        self._started_at = time.monotonic()
        self._prepare()
        try:
            facts = self._workers.begin()
            self._close_more = self._parts.open_more(self)
            self._begin_metrics()
            if self._owns_rules:
                self._rules_touched = True
                self._tell_rules("rules_installed", self._serve_during(self._parts.rules.install))
            self._started(facts)
            self._loop.run()
        finally:
            self._stop()

    def set_mode(self, mode: Mode) -> None:
        """Switch between two turns; the next packet is judged in the new mode."""
        before = self.mode
        self.mode = mode
        self._workers.set_mode(mode)
        if mode is not before:
            rest: dict[str, object] = {}
            if self._settings.fail_mode != FailMode.OPEN.value:
                # It is a matter of rules, which stay as they were made at the start.
                rest["fail_mode_until_restart"] = fail_mode_of(self._settings)
            self._events.warning("mode_changed", before=before, now=mode, **rest)

    def reload(self, respond: Responder | None = None) -> None:
        """Open the log anew, and swap the policy whole, or keep it; respond when that is done."""
        self._parts.sink.reopen()
        self.reloading.ask(respond)

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        """Respond with the flows shown last."""
        self._workers.dump(address, flows, respond)

    def queues(self) -> list[QueueState]:
        """How the queues stand."""
        return self._workers.queues()

    def counters(self) -> dict[str, int]:
        """What is counted of the daemon and not of a queue."""
        return {
            "reloads": self.reloading.taken,
            "reload_failures": self.reloading.refused,
            "rules_changed": self._rules_changed,
            "shed_packets": self._watch.packets.shed,
            "unjudged_drops": self._watch.packets.unjudged,
            "worker_restarts": sum(queue.restarts for queue in self.queues()),
        }

    def status(self) -> dict[str, object]:
        """How the daemon stands, numbers at most a second old."""
        self._workers.refresh()
        queues = self._workers.queues()
        reasons, actions, decided_by = totals(queues)
        loaded = self.reloading.loaded
        last = self.reloading.last
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mode": self.mode.value,
            "since": self._since,
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "config": self._parts.source,
            "policy": {**policy_facts(loaded.told), "restart_for": loaded.restart_for},
            "shadow": None if loaded.shadow is None else policy_facts(loaded.shadow),
            "evidence": self._workers.evidence.value,
            "fail_mode": fail_mode_of(self._settings).value,
            "max_rate_pps": self._settings.max_rate_pps,
            "rules": self._watch.status(),
            "queues": [described(queue, self._rates.of(queue.queue_num)) for queue in queues],
            "reasons": reasons,
            "actions": actions,
            "decided_by": decided_by,
            **self.counters(),
            "last_reload": None if last is None else {"at": last.at, "mistakes": last.mistakes},
            "last_error": self._last_error(),
        }

    def _last_error(self) -> dict[str, object] | None:
        found = [self._events.last_error, self._workers.last_error()]
        errors = [error for error in found if error is not None]
        return max(errors, key=lambda error: str(error["at"]), default=None)

    def _prepare(self) -> None:
        loop = self._loop
        loop.on(signal.SIGTERM, loop.stop)
        loop.on(signal.SIGINT, loop.stop)
        loop.on(signal.SIGHUP, self.reload)
        loop.on(signal.SIGUSR1, self._tell_counters)
        loop.every(_SECOND_S, self._second)
        if self._notifier.watchdog_s:
            loop.every(self._notifier.watchdog_s / 3, self._alive)

    def _begin_metrics(self) -> None:
        started = datetime.now(UTC).timestamp()
        for queue in self.queues():
            queue.stats.gauges["start_time_seconds"] = started

    def _second(self, now: float) -> None:
        self._rates.note(self.queues(), now)
        self._watch.collect(now)
        self._parts.sink.push(now)

    def _count_changed_rules(self) -> None:
        self._rules_changed += 1

    def _alive(self, now: float) -> None:
        if self._workers.alive(now):
            self._notifier.tell("WATCHDOG=1")

    def _started(self, facts: dict[str, object]) -> None:
        loaded = self.reloading.loaded
        self._events.info(
            "started",
            **facts,
            mode=self.mode,
            config=self._parts.source,
            policy=loaded.told.digest,
            evidence=self._workers.evidence,
            fail_mode=fail_mode_of(self._settings),
        )
        now = time.monotonic()
        self._parts.sink.push(now)
        self._rates.note(self.queues(), now)
        numbers = ", ".join(str(queue.queue_num) for queue in self.queues())
        self._notifier.tell("READY=1", f"STATUS=queue {numbers}: serving")
        if self._settings.verify_rules_s:
            self._watch.check(now)
            self._loop.every(self._settings.verify_rules_s, self._watch.check)

    def _tell_counters(self) -> None:
        self._workers.refresh()
        self._events.info("counters", **self._numbers())
        self._parts.sink.push(time.monotonic())

    def _numbers(self) -> dict[str, object]:
        queues = self.queues()
        counters: dict[str, int] = {}
        for queue in queues:
            for name, count in queue.stats.counters.items():
                counters[name] = counters.get(name, 0) + count
        reasons, actions, rules = totals(queues)
        return {
            "queues": [queue.queue_num for queue in queues],
            "reasons": {reason: sum(by_name.values()) for reason, by_name in reasons.items()},
            "actions": {action: packets for action, packets in actions.items() if packets},
            "rules": rules,
            **counters,
            **self.counters(),
        }

    def _stop(self) -> None:
        self._notifier.tell("STOPPING=1")
        self._wait_for_watch()
        self._workers.refresh()  # what our rules counted goes with them
        if self._rules_touched:
            try:
                self._tell_rules("rules_removed", self._serve_during(self._parts.rules.remove))
            except NfqGuardError as error:
                self._events.error("rules_left_behind", problem=str(error))
        self._workers.finish()
        self._events.info("stopped", **self._numbers())
        self._close_more()
        self._parts.sink.close(time.monotonic())

    def _wait_for_watch(self) -> None:
        """A check that is under way might put back what is about to be removed."""
        self._watch.close()
        while self._watch.busy:
            self._loop.turn(0.01)

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
            self._loop.turn(0.01)
        if failure:
            raise failure[0]
        return outcome[0]

    def _tell_rules(self, event: str, change: RulesChange) -> None:
        self._events.info(event, done=list(change.done), notes=list(change.notes))


def _nothing() -> None:
    """There was nothing to close."""
