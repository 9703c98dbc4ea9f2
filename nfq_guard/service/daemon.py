# SPDX-License-Identifier: MIT
"""The daemon, from binding the queues to unbinding them.

Except after a crash, the rules exist only while the queues are served. At the start the daemon
binds the queues, installs the rules and sends READY. At the end it removes the rules, sends the
verdicts of all waiting packets and unbinds the queues. Every wait at the end has a bound, and a
second SIGTERM or SIGINT shortens it.

An exception that ends the daemon is logged before anything is undone.
"""

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, final

import msgspec

from nfq_guard import __version__, capabilities
from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError, UsageError, shortage_in
from nfq_guard.firewall import FailMode, RuleCounters
from nfq_guard.raw_rules import RawReading
from nfq_guard.service.changed_files import ChangedFiles
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.control.protocol import Responder
from nfq_guard.service.firewall_spec import Rules, RulesChange, fail_mode_of, mark_in, spec_of
from nfq_guard.service.ledger import Ledger
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.observe import observed
from nfq_guard.service.passed import PassedPackets
from nfq_guard.service.raw_rule_monitor import RawRuleMonitor
from nfq_guard.service.reload import Reloader
from nfq_guard.service.rule_monitor import RuleMonitor
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import (
    ActingPolicy,
    Rates,
    ReloadStatus,
    Status,
    pods_status,
    queue_status,
    totals,
)
from nfq_guard.service.supervisor.workers import QueueState, ServedQueues, Workers, least_evidence
from nfq_guard.telemetry.events import (
    ConfigRefused,
    Counters,
    DaemonFailed,
    Event,
    KernelPassedPackets,
    ModeChanged,
    Note,
    PacketsUnserved,
    RulesInstalled,
    RulesLeftBehind,
    RulesRemoved,
    Started,
    Stopped,
    Totals,
    UnservedTime,
    exception_texts,
    timestamp,
)
from nfq_guard.telemetry.exposition import Observed
from nfq_guard.telemetry.log import EventLog

_SECOND_S: Final = 1.0
# A followed file that has not changed for this time is complete.
_SETTLED_S: Final = 1.0
# How long after the start the rules of the host are examined. That loads as much as a third of the
# daemon, and the first packets need the interpreter.
_SURVEY_AFTER_S: Final = 2.0
# Changing rules takes tens of milliseconds, unless another program holds the lock of xtables.
_RULES_S: Final = 10.0
# Remaining time of a wait after a second SIGTERM.
_HURRIED_S: Final = 1.0


def _ignore(_problem: str) -> None:
    """Does nothing, for a caller that does not wait for the rules."""


TotalsT = TypeVar("TotalsT", bound=Totals)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a daemon.

    Attributes:
        settings: Its settings.
        source: The source of the settings, for the log.
        workers: Serves the queues.
        loop: The loop, in the main thread.
        events: The log of events.
        rules: Our rules in the packet filter.
        loaded: The initial policy.
        read: Reads the policy again, or raises NfqGuardError.
        ledger: Tells the next daemon when this one last served.
        notifier: Notifies the service manager.
        open_more: Opens the control socket and the metrics endpoint once all queues are served;
            returns a stack that closes them.
        jumps: Where rules lead to our chains, see `RuleMonitor`.
        raw_rules: Reads the host's rules before conntrack, in a thread.
        passed: Counts packets that passed because a queue was full or not served.
        unserved: Counts packets that were dropped because a queue was not served.
        survey: Examines the rules of the host, in a thread; None to leave that out.
        keep: Saves the policy in force as the last good one, in a thread; None to save none.
        refused: The mistakes of the file, one a line, if `loaded` is the last good policy; empty if
            `loaded` is from the file.
        last_good: When a daemon adopted `loaded`, if that is the last good policy.
    """

    settings: Settings
    source: str
    workers: Workers
    loop: Loop
    events: EventLog
    rules: Rules
    loaded: LoadedPolicy
    read: Callable[[], LoadedPolicy]
    ledger: Ledger
    notifier: Notifier
    open_more: Callable[["Daemon"], Callable[[], None]]
    jumps: Callable[[], frozenset[object] | None]
    raw_rules: Callable[[], RawReading]
    passed: PassedPackets
    unserved: PassedPackets
    survey: Callable[[], Event] | None
    keep: Callable[[LoadedPolicy], None] | None = None
    refused: str = ""
    last_good: str = ""


@final
class Daemon:
    """Runs until SIGTERM or SIGINT, and carries out control requests (`ControlledDaemon`).

    Attributes:
        mode: Whether decisions are carried out.
        fail_mode: The fail mode in the rules.
        interrupted: Whether SIGINT ended it, as Ctrl-C does.
        reloader: The policy in force, and its reloads.
    """

    def __init__(self, parts: Parts) -> None:
        """Start nothing before `run`."""
        self.mode = parts.settings.mode
        self.fail_mode = fail_mode_of(parts.settings)
        self._parts = parts
        self._settings = parts.settings
        self._workers = parts.workers
        self._loop = parts.loop
        self._events = parts.events
        self._notifier = parts.notifier
        self._rates = Rates()
        self._since = ""
        self._started_at = 0.0
        self._failure: Exception | None = None
        self._hurried_at: float | None = None
        self._changing_rules = 0
        self._handed_over = False
        self._finishing = False
        self._files = ChangedFiles()
        self._files_changed = False
        self._keeping = False
        self._kept_next: LoadedPolicy | None = None
        self.interrupted = False
        self.reloader = Reloader(
            loaded=parts.loaded,
            read=parts.read,
            workers=parts.workers,
            loop=parts.loop,
            events=parts.events,
            notifier=parts.notifier,
            keep=self._keep,
            set_mode=self.set_mode,
        )
        reinstall = self._keeps_rules and self._settings.reinstall_rules
        shed, unjudged = parts.ledger.counted
        self._monitor = RuleMonitor(
            parts.rules,
            parts.events,
            parts.loop,
            ours=self._keeps_rules,
            reinstall=reinstall,
            fail=self._fail if reinstall and not self._owns_rules else None,
            jumps=parts.jumps,
            made_anew=self._rules_made_anew,
            counted=RuleCounters(shed=shed, unjudged=unjudged),
            keep=self._note_counted,
        )
        self._logged_passed = 0
        self._logged_unserved = 0

        self._raw_rules = RawRuleMonitor(
            parts.raw_rules,
            parts.rules.generation,
            parts.workers.set_raw_rules,
            parts.events,
            parts.loop,
        )

    @property
    def _owns_rules(self) -> bool:
        return self._settings.rules == "install"

    @property
    def _keeps_rules(self) -> bool:
        return self._settings.rules != "none"

    @property
    def _leaves_rules(self) -> bool:
        return self._keeps_rules and not self._owns_rules

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            NfqGuardError: A queue could not be served, or the rules could not be installed.
                Completed steps are undone.
        """
        self._since = timestamp()
        self._started_at = time.monotonic()
        self._watch_signals()
        if self._parts.refused:
            mistakes = self._parts.refused.splitlines()
            self.reloader.last = ReloadStatus(at=self._since, mistakes=tuple(mistakes))
            refused = ConfigRefused(mistakes=mistakes, last_good=self._parts.last_good)
            self._events.emit(refused)
        with ExitStack() as undo:
            more = undo.enter_context(ExitStack())
            undo.callback(self._log_stopped)
            undo.callback(self._finish_workers)
            try:
                self._serve(undo, more)
            except BaseException as error:
                self._log_failure(error)
                raise
            finally:
                self._loop.stop()
                self._notifier.stopping()

    def _serve(self, undo: ExitStack, more: ExitStack) -> None:
        served = self._workers.begin(datetime.now(UTC).timestamp())
        if not self._count_on() and not served.taken_over:
            self._note_unserved(self._parts.ledger.since_end_s(time.monotonic()))
        self._events.begin_waiting_elsewhere(self._loop.soon)
        if self._loop.stopped:
            return
        self._note_service(time.monotonic(), began=not served.taken_over)
        more.callback(self._parts.open_more(self))
        if self._owns_rules:

            def install() -> tuple[list[RuleCounters], RulesChange]:
                # Rules of an earlier daemon may be replaced by others, whose counts begin at 0.
                if any(self._parts.ledger.counted):
                    return self._monitor.install()
                return [], self._parts.rules.install()

            def installed(result: tuple[list[RuleCounters], RulesChange]) -> None:
                counted, change = result
                for one in counted:
                    self._monitor.count(one)
                self._events.emit(RulesInstalled(done=list(change.done), notes=list(change.notes)))
                if not self._loop.stopped:
                    self._started(served)

            undo.callback(self._remove_rules)
            undo.callback(self._count_rules)
            # The counters of the rules vanish with them.
            undo.callback(self._workers.settle, self._hurried)
            undo.callback(self._end_background)
            self._loop.background(install, installed, self._fail)
        elif self._keeps_rules:
            undo.callback(self._count_rules)
            undo.callback(self._end_background)

            def possible(_: None) -> None:
                if not self._loop.stopped:
                    self._started(served)

            # An exit status that prevents restarts, in place of a start that fails again and again.
            self._loop.background(self._parts.rules.require, possible, self._fail)
        else:
            self._started(served)
        self._loop.run()
        self.count_passed()
        if self._failure is not None:
            raise self._failure

    def set_mode(self, mode: Mode, done: Callable[[str], None] = _ignore) -> None:
        """Judge in `mode` from the next turn on, and have the rules follow it.

        `done` is called when the fail mode of `mode` is in the rules, with an empty string, or with
        the reason why the rules keep the fail mode of the other mode. Rules that another program
        installs are left to it.
        """
        before = self.mode
        self.mode = mode
        spec = spec_of(msgspec.structs.replace(self._settings, mode=mode))

        def ended(problem: str = "") -> None:
            with ExitStack() as steps:
                steps.callback(done, problem)
                self._set_mode_of_workers()
                if mode is not before:
                    kept = None if spec.fail_mode is self.fail_mode else self.fail_mode
                    self._events.emit(
                        ModeChanged(
                            before=before,
                            now=mode,
                            fail_mode_until_restart=kept,
                            problem=problem or None,
                        )
                    )

        def changed(problem: str) -> None:
            self._changing_rules -= 1
            if not problem:
                self.fail_mode = spec.fail_mode
            ended(problem)

        if not self._keeps_rules or (spec.fail_mode is self.fail_mode and not self._changing_rules):
            ended()
            return
        # Packets lose the mark from before the rules set it until after they stop setting it.
        self._changing_rules += 1
        self._set_mode_of_workers()
        self._monitor.change(spec, changed)

    def hand_rules_over(self) -> Settings:
        """The settings that the rules should have, for root to install them.

        Until `rules_installed`, packets lose the mark that the rules of either mode set.

        Raises:
            UsageError: The daemon changes its rules itself.
        """
        if not self._monitor.forbidden:
            raise UsageError("the daemon changes its rules itself")
        self._handed_over = True
        self._monitor.hand_over()
        self._set_mode_of_workers()
        return msgspec.structs.replace(self._settings, mode=self.mode)

    def rules_installed(self, fail_mode: FailMode | None) -> None:
        """Note that root has installed the rules that were handed over, with this fail mode.

        None: it could not, and the former rules are in place.
        """
        self._handed_over = False
        self._monitor.begin()
        if fail_mode is None:
            self._set_mode_of_workers()
            return
        self.fail_mode = fail_mode
        self._set_mode_of_workers()
        done = f"the rules have fail mode {fail_mode}"
        self._events.emit(RulesInstalled(done=[done], notes=["by root"]))

    def _set_mode_of_workers(self) -> None:
        changing = self._changing_rules or self._handed_over
        fail_mode = FailMode(self._settings.fail_mode) if changing else self.fail_mode
        self._workers.set_mode(self.mode, mark_in(fail_mode))

    def reload(self, respond: Responder | None = None) -> None:
        """Reopen the log, and read the policy again; respond once it is in force or refused."""
        self._events.reopen()
        self.reloader.request(respond)

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        """Respond with the most recent flows or packets."""
        self._workers.dump(address, flows, respond, packets=packets)

    def queues(self) -> list[QueueState]:
        """How the queues are served."""
        return self._workers.queues()

    def counters(self) -> dict[str, int]:
        """Counters of the daemon, not of a queue."""
        return {
            "reloads": self.reloader.taken,
            "reload_failures": self.reloader.refused,
            "rules_changed": self._monitor.changes,
            "shed_packets": self._monitor.packets.shed,
            "queue_full_passes": self._parts.passed.count,
            "unserved_drops": self._parts.unserved.count,
            "unjudged_drops": self._monitor.packets.unjudged,
            "worker_restarts": sum(queue.restarts for queue in self.queues()),
            "messages_refused": self._workers.messages_refused,
        }

    def _lost_lines(self) -> dict[str, int]:
        """What the log of this process lost, where no queue counts that: it serves none itself."""
        if len(self._settings.queue_numbers) == 1:
            return {}
        return {"log_lines_dropped": self._events.dropped, "log_errors": self._events.errors}

    def observed(self, now: float) -> Observed:
        """The values for the metrics; counts are at most a second old."""
        return observed(
            now,
            settings=self._settings,
            queues=self._workers.queues(),
            counters=self.counters(),
            loaded=self.reloader.loaded,
            rules=self._monitor.status(),
            raw_rules=self._raw_rules.status(),
            last_reload=self.reloader.last,
            events=self._events,
        )

    def status(self) -> Status:
        """The response to the control command `status`; counts are at most a second old."""
        self._workers.refresh()
        self.count_passed()
        queues = self._workers.queues()
        sums = totals(queues)
        loaded = self.reloader.loaded
        evidence, evidence_reason = least_evidence(queues)
        return Status(
            version=__version__,
            pid=os.getpid(),
            mode=self.mode,
            since=self._since,
            uptime_s=round(time.monotonic() - self._started_at, 3),
            config=self._parts.source,
            policy=ActingPolicy(
                source=loaded.facts.source,
                digest=loaded.facts.digest,
                rules=loaded.facts.rules,
                restart_for=loaded.restart_for,
            ),
            shadow=loaded.shadow,
            evidence=evidence.value,
            evidence_reason=evidence_reason,
            fail_mode=self.fail_mode.value,
            max_rate_pps=self._settings.max_rate_pps,
            rules=self._monitor.status(),
            raw_rules=self._raw_rules.status(),
            pods=pods_status(queues) if self._settings.pods_dir else None,
            queues=tuple(queue_status(queue, self._rates.of(queue.queue_num)) for queue in queues),
            reasons=sums.reasons,
            actions=sums.actions,
            decided_by=sums.rules,
            counters=self.counters() | self._lost_lines(),
            last_reload=self.reloader.last,
            last_error=self._last_error(),
        )

    def _last_error(self) -> dict[str, object] | None:
        found = [self._events.last_error, self._workers.last_error()]
        errors = [error for error in found if error is not None]
        return max(errors, key=lambda error: str(error["at"]), default=None)

    def _watch_signals(self) -> None:
        loop = self._loop
        loop.on(signal.SIGTERM, self._stop_requested)
        loop.on(signal.SIGINT, self._interrupt)
        loop.on(signal.SIGHUP, self.reload)
        loop.on(signal.SIGUSR1, self._log_counters)
        loop.every(_SECOND_S, self._tick)
        if self._settings.follow_files_s:
            loop.after(self._settings.follow_files_s, self._follow_files)
        if self._notifier.watchdog_s:
            loop.every(self._notifier.watchdog_s / 3, self._feed_watchdog)

    def _follow_files(self, _now: float) -> None:
        """Reload changed files; the next check starts after this one has ended.

        A file that is being written in place is empty or incomplete for a moment, and may be valid
        nevertheless. It is read once it has not changed for `_SETTLED_S`.
        """
        files = self.reloader.loaded.files
        interval_s = self._settings.follow_files_s

        def looked(changed: bool) -> None:  # noqa: FBT001 - the result of a thread
            if self._files_changed and not changed:
                self.reload()
            self._files_changed = changed
            again_s = min(interval_s, _SETTLED_S) if changed else interval_s
            self._loop.after(again_s, self._follow_files)

        def failed(error: Exception) -> None:
            problem, _ = exception_texts(error)
            self._events.emit(Note(text=f"the configuration could not be followed: {problem}"))
            self._loop.after(self._settings.follow_files_s, self._follow_files)

        self._loop.background(lambda: self._files.look(files), looked, failed)

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop_requested()

    def _stop_requested(self) -> None:
        if self._loop.stopped:
            self._hurried_at = time.monotonic()
        self._loop.stop()

    def _hurried(self) -> bool:
        return self._hurried_at is not None

    def _note_service(self, now: float, *, began: bool = False) -> None:
        """Note that the queues are served at `now`; log since when none was if that `began` now."""
        ledger = self._parts.ledger
        if began:
            self._note_unserved(ledger.unserved_s(now))
        ledger.serving(now)

    def _note_unserved(self, unserved_s: float | None) -> None:
        if unserved_s is not None:
            self._events.emit(UnservedTime(unserved_s=unserved_s))

    def _note_counted(self, counted: RuleCounters) -> None:
        """Tell a next daemon that finds these rules how far their packets are counted."""
        self._parts.ledger.page_of_daemon.counted(counted.shed, counted.unjudged)

    def _tick(self, now: float) -> None:
        self._note_service(now)
        self._rates.note(self.queues(), now)
        self.count_passed()
        self._events.log_lost(now)
        self._events.push(now)

    def _rules_made_anew(self) -> None:
        self._parts.passed.forget()
        self._parts.unserved.forget()
        self.count_passed()

    def _count_on(self) -> bool:
        """Count packets since queues were unbound in order, here or by the daemon before.

        False if they are unknown: the counters cannot be read, or the rules are others.
        """
        accounted = self._parts.ledger.accounted
        if accounted is None:
            return True
        passes = self.fail_mode is FailMode.OPEN
        counting = self._parts.passed if passes else self._parts.unserved
        counting.resume(accounted)
        self._look(between=True)
        return counting.goes_on

    def count_lost(self, packets: int) -> None:
        """Count packets that the kernel drops with the queue of a worker that is killed."""
        self._parts.unserved.add(packets)

    def count_passed(self) -> None:
        """Count and log packets that no queue took: they passed unjudged, or were dropped."""
        # A look at queues that are being unbound would take their packets for ones that none took.
        if not self._finishing:
            self._look()

    def _look(self, *, between: bool = False) -> None:
        """As `count_passed`, at the end of a daemon or the start of the next if `between`."""
        passed, unserved = self._parts.passed, self._parts.unserved
        counting, other = passed, unserved
        if self.fail_mode is not FailMode.OPEN:
            counting, other = other, counting
        other.forget()
        if self._changing_rules:
            counting.forget()
        elif between or self.fail_mode is FailMode.OPEN or len(self._settings.queue_numbers) > 1:
            # The one queue of a daemon is served until its end, and a full one counts its drops.
            counting.look(exact=between)
        if self._leaves_rules:
            self._parts.ledger.page_of_daemon.unnumbered(counting.unnumbered)
        self._log_unserved()
        buffer_full = sum(queue.stats.counters["buffer_full_passes"] for queue in self.queues())
        total = passed.count + buffer_full
        if total > self._logged_passed:
            self._events.emit(
                KernelPassedPackets(
                    queue_full=passed.count,
                    buffer_full=buffer_full,
                    since_last=total - self._logged_passed,
                )
            )
        self._logged_passed = total

    def _log_unserved(self) -> None:
        dropped = self._parts.unserved.count
        if dropped > self._logged_unserved:
            self._events.emit(PacketsUnserved(packets=dropped - self._logged_unserved))
        self._logged_unserved = dropped

    def _feed_watchdog(self, now: float) -> None:
        if self._workers.alive(now):
            self._notifier.alive()

    def _started(self, served: ServedQueues) -> None:
        loaded = self.reloader.loaded
        # What happens to packets and rules once `started` is out is compared with this.
        self._rules_made_anew()
        self._monitor.begin()
        evidence, evidence_reason = least_evidence(self.queues())
        self._events.emit(
            Started(
                queue=served.queue,
                queues=served.queues,
                pids=served.pids,
                socket_buffer_bytes=served.socket_buffer_bytes,
                flags_refused=served.flags_refused,
                mode=self.mode,
                config=self._parts.source,
                policy=loaded.facts.digest,
                evidence=evidence,
                evidence_reason=evidence_reason,
                fail_mode=self.fail_mode.value,
                uid=os.geteuid(),
                capabilities=capabilities.names(capabilities.effective()),
            )
        )
        self._loop.after(_SURVEY_AFTER_S, self._begin_survey)
        now = time.monotonic()
        self._events.push(now)
        self._rates.note(self.queues(), now)
        numbers = [queue.queue_num for queue in self.queues()]
        self._notifier.ready(numbers, last_good=self._parts.last_good)
        if not self._parts.refused:
            self._keep(loaded)
        self._raw_rules.check(now)
        if self._settings.verify_rules_s:
            self._monitor.check(now)
            for monitor in (self._monitor, self._raw_rules):
                self._loop.every(self._settings.verify_rules_s, monitor.check)
                self._loop.every(_SECOND_S, monitor.watch)

    def _keep(self, loaded: LoadedPolicy) -> None:
        """Keep a policy as the last good one, once an earlier one is kept: disks may be slow."""
        keep = self._parts.keep
        if keep is None:
            return
        if self._keeping:
            self._kept_next = loaded
            return
        self._keeping = True
        self._loop.background(lambda: keep(loaded), self._kept, self._keep_failed)

    def _kept(self, _: None) -> None:
        self._keeping = False
        waiting, self._kept_next = self._kept_next, None
        if waiting is not None:
            self._keep(waiting)

    def _keep_failed(self, error: Exception) -> None:
        problem, _ = exception_texts(error)
        self._events.emit(Note(text=f"the last good configuration could not be kept: {problem}"))
        self._kept(None)

    def _begin_survey(self, _now: float) -> None:
        if self._parts.survey is not None:
            self._loop.background(self._parts.survey, self._surveyed, self._survey_failed)

    def _surveyed(self, event: Event) -> None:
        gc.freeze()  # the modules that it loaded stay; a collection of them would take 10 ms
        self._events.emit(event)

    def _survey_failed(self, error: Exception) -> None:
        problem, _ = exception_texts(error)
        self._events.emit(Note(text=f"the rules of the host could not be examined: {problem}"))

    def _log_counters(self) -> None:
        self._workers.refresh()
        self._events.emit(self._totals(Counters))
        self._events.push(time.monotonic())

    def _totals(self, event: type[TotalsT]) -> TotalsT:
        queues = self.queues()
        counters: dict[str, int] = {}
        for queue in queues:
            for name, count in queue.stats.counters.items():
                counters[name] = counters.get(name, 0) + count
        for name, count in self._lost_lines().items():
            counters[name] += count
        reasons, actions, rules = totals(queues)
        return event(
            queues=[queue.queue_num for queue in queues],
            reasons={reason: sum(by_name.values()) for reason, by_name in reasons.items()},
            actions={action: packets for action, packets in actions.items() if packets},
            rules=rules,
            counters=counters | self.counters(),
        )

    def _fail(self, error: Exception) -> None:
        """End the daemon with `error`."""
        self._failure = error
        self._loop.stop()

    def _log_failure(self, error: BaseException) -> None:
        """Log the error that ends the daemon; with a traceback if it is a bug."""
        short = shortage_in(error)
        known = short or isinstance(error, NfqGuardError)
        trace = None if known else exception_texts(error)[1]
        problem = short or str(error) or type(error).__name__
        self._events.emit(DaemonFailed(problem=problem, traceback=trace))
        self._events.push(time.monotonic())

    def _end_background(self) -> None:
        """Wait for threads: a check might restore rules that are about to be removed."""
        self._monitor.close()
        self._raw_rules.close()
        self._wait_for_threads()

    def _wait_for_threads(self) -> bool:
        until = time.monotonic() + _RULES_S

        def deadline() -> float:
            return until if self._hurried_at is None else min(until, self._hurried_at + _HURRIED_S)

        return self._loop.run_until(lambda: not self._loop.busy, deadline)

    def _finish_workers(self) -> None:
        if self._leaves_rules:
            self._look(between=True)
        self._finishing = True
        self._workers.finish(self._hurried)
        self._count_on()
        if _rules_go():
            self._parts.ledger.page_of_daemon.unnumbered(None)

    def _count_rules(self) -> None:
        """Read the counters of the rules once more, after the last check of the rules."""
        read = self._parts.rules.rule_counters
        self._loop.background(read, self._monitor.count, lambda _: None)
        self._wait_for_threads()

    def _remove_rules(self) -> None:
        def removed(change: RulesChange) -> None:
            self._note_counted(RuleCounters())
            self._events.emit(RulesRemoved(done=list(change.done), notes=list(change.notes)))

        def failed(error: Exception) -> None:
            problem = str(error) or type(error).__name__
            self._events.emit(RulesLeftBehind(problem=problem))

        self._loop.background(self._parts.rules.remove, removed, failed)
        if not self._wait_for_threads():
            self._events.emit(RulesLeftBehind(problem="their removal does not end"))

    def _log_stopped(self) -> None:
        self._log_unserved()  # of workers that were killed because they did not stop
        self._events.log_lost(time.monotonic(), ending=True)
        self._events.emit(self._totals(Stopped))


def _rules_go() -> bool:
    """Whether the unit of the service removes the rules after this daemon, or makes them anew.

    For a restart that keeps them, its steps.sh has made a directory before the end.
    """
    directory = os.environ.get("RUNTIME_DIRECTORY")
    return directory is not None and not Path(directory, "prepared").is_dir()
