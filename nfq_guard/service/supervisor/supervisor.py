# SPDX-License-Identifier: MIT
"""Several queues: one worker process each, forked from the daemon, supervised and restarted.

A fork takes a few milliseconds, a new interpreter a few hundred. Each worker opens its own queue
socket and BPF memory after the fork, because they must not be shared.

The daemon's process judges no packet. Workers report over sockets on which neither side blocks; the
sender drops and counts messages for which there is no room.

No fault and no message of one worker ends the other workers: an exception while the daemon handles
it is logged with its traceback as `supervision_failed`, and the daemon continues.
"""

import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, assert_never, final

import orjson

from nfq_guard.engine import Mode
from nfq_guard.errors import (
    BusyError,
    NfqGuardError,
    NotRunningError,
    PrivilegeError,
    UnavailableError,
    UsageError,
    for_operator,
)
from nfq_guard.nfqueue import counters
from nfq_guard.raw_rules import RawRule
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.ledger import Ledger, state_left
from nfq_guard.service.limited_event import LimitedEvent
from nfq_guard.service.loop import Loop
from nfq_guard.service.supervisor.messages import (
    Abort,
    Commit,
    Count,
    Counted,
    Dump,
    Failed,
    Flows,
    Numbers,
    Prepare,
    Prepared,
    Ready,
    RecordSocket,
    Refused,
    Report,
    SetMode,
    SetRawRules,
    Stop,
    daemon_channel,
    pair,
)
from nfq_guard.service.supervisor.worker_handle import WorkerHandle
from nfq_guard.service.supervisor.worker_main import (
    Open,
    WorkerProcess,
    detach,
    report_crash,
    run_and_exit,
)
from nfq_guard.service.supervisor.workers import QueueState, ServedQueues, WorkerState
from nfq_guard.service.worker.history import DumpEntry, newest
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.events import (
    KernelDroppedPackets,
    MessageRefused,
    Note,
    SupervisionFailed,
    WorkerEnded,
    WorkerFailed,
    WorkerKilled,
    WorkerLeftBehind,
    WorkerRestarted,
    WorkerRestartFailed,
    WorkerStuck,
    exception_texts,
)
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink

_SUPERVISE_S: Final = 0.05
# A longer time between two rounds means that the daemon itself was stopped or starved of CPU time.
_PAUSED_S: Final = 0.5
# A worker reads the kernel's counters within milliseconds, between two batches.
_COUNT_S: Final = 0.5
# A worker takes at most two seconds to send the verdicts of the packets in its queue.
_FINISH_S: Final = 3.0
# SIGKILL takes milliseconds, except for a process in an uninterruptible system call.
_KILLED_S: Final = 1.0
_DUMP_S: Final = 2.0
# Reading a policy takes tens of milliseconds; a file system that hangs must not block restarts.
_RELOAD_S: Final = 10.0
# How long a restart may wait for threads to end (see `_may_fork`).
_THREADS_S: Final = 2.0

_ERRORS: Final[Mapping[int | None, type[NfqGuardError]]] = {
    kind.exit_status: kind
    for kind in (
        NfqGuardError,
        UsageError,
        NotRunningError,
        UnavailableError,
        BusyError,
        PrivilegeError,
    )
}


@final
class Supervisor:
    """Serves several queues by one process each (`workers.Workers`)."""

    def __init__(
        self,
        queues: range,
        *,
        loaded: LoadedPolicy,
        read: Callable[[], LoadedPolicy],
        open_queue: Callable[[int, Mode], Open],
        inherited: Callable[[int], set[int]],
        mode: Mode,
        unjudged_mark: int,
        loop: Loop,
        events: EventLog,
        ledger: Ledger,
        rebound: Callable[[], None],
        lost: Callable[[int], None],
    ) -> None:
        """Start nothing before `begin`.

        Args:
            queues: Their numbers.
            loaded: The initial policy.
            read: Reads the policy again, in a worker.
            open_queue: Binds a queue, in a worker, in a mode.
            inherited: The descriptors of this process that a worker needs to bind its queue.
            mode: The initial mode.
            unjudged_mark: Mark bits that the rules set on a packet before they queue it.
            loop: The loop of the daemon.
            events: The log of the daemon, which takes the lines of all processes.
            ledger: Has a page for each queue.
            rebound: Called as soon as a queue is unbound because its worker ended, and when the
                next worker serves it.
            lost: Called with the number of packets that wait for a worker that is killed, because
                the kernel drops them.
        """
        self._rebound = rebound
        self._lost = lost
        self._handles = [WorkerHandle(number) for number in queues]
        self._loaded = loaded
        self._read = read
        self._open_queue = open_queue
        self._inherited = inherited
        self._mode = mode
        self._unjudged_mark = unjudged_mark
        self._raw_rules: tuple[RawRule, ...] = ()
        self._loop = loop
        self._events = events
        self._ledger = ledger
        self._reload: _Reload | None = None
        self._reloads = 0
        self._dumps: dict[int, _Dump] = {}
        self._dumps_begun = 0
        self._supervised_at = time.monotonic()
        self._counting: set[int] = set()
        self._finishing = False
        self._messages = LimitedEvent(events)
        self._faults = LimitedEvent(events)

    @property
    def messages_refused(self) -> int:
        """Messages that were dropped in either direction."""
        return self._messages.count + sum(handle.messages_refused for handle in self._handles)

    def begin(self, started_at: float) -> ServedQueues:
        """Fork all workers, and wait until all serve their queue or the loop is stopped."""
        gc.collect()
        gc.freeze()  # existing objects stay shared with the workers
        for handle in self._handles:
            handle.stats.gauges["start_time_seconds"] = started_at
            try:
                self._fork(handle)
            except OSError as error:
                raise for_operator(UnavailableError, "cannot start a worker", error) from None
        while not self._loop.stopped and any(
            handle.state is WorkerState.STARTING for handle in self._handles
        ):
            self._loop.turn(_SUPERVISE_S)
            for handle in self._handles:
                if handle.failure is not None:
                    raise _error_of(handle.failure)
                if handle.silent(time.monotonic()) or handle.pid == 0:
                    # Killed, or on a host that is too busy: another attempt may succeed.
                    raise NfqGuardError(f"the worker of queue {handle.queue_num} does not start")
        self._supervised_at = time.monotonic()
        self._loop.every(_SUPERVISE_S, self._supervise)
        ready = self._handles[0].ready
        return ServedQueues(
            queues=[handle.queue_num for handle in self._handles],
            pids=[handle.pid for handle in self._handles],
            socket_buffer_bytes=None if ready is None else ready.socket_buffer_bytes,
            flags_refused=None if ready is None else ready.flags_refused,
        )

    def queues(self) -> list[QueueState]:
        """The state of the queues, as of the last report of each worker."""
        return [handle.described() for handle in self._handles]

    def refresh(self) -> None:
        """Do nothing: workers report by themselves."""

    def settle(self, hurried: Callable[[], bool]) -> None:
        """Have all workers read the kernel's counters now."""
        self._counting = {
            handle.queue_num
            for handle in self._handles
            if handle.state is WorkerState.SERVING and handle.send(Count())
        }
        until = time.monotonic() + _COUNT_S
        self._loop.run_until(self._all_counted, lambda: 0.0 if hurried() else until)

    def last_error(self) -> dict[str, object] | None:
        """The last event of level error of any worker."""
        found = [handle.last_error for handle in self._handles if handle.last_error is not None]
        return max(found, key=lambda error: str(error["at"]), default=None)

    def set_mode(self, mode: Mode, unjudged_mark: int) -> None:
        """Order all workers to switch; workers that start later begin in this mode."""
        self._mode = mode
        self._unjudged_mark = unjudged_mark
        for handle in self._handles:
            self._insist(handle, SetMode(mode=mode, unjudged_mark=unjudged_mark))

    def set_raw_rules(self, rules: tuple[RawRule, ...]) -> None:
        """Order all workers, also later ones, to allow packets that these rules hide."""
        self._raw_rules = rules
        for handle in self._handles:
            self._insist(handle, SetRawRules(rules=rules))

    def adopt(self, loaded: LoadedPolicy, done: Callable[[str], None]) -> None:
        """Make each worker prepare the policy that the daemon read, then all adopt it or none.

        A starting worker is included: it was forked with the previous policy.
        """
        self._reloads += 1
        order = Prepare(reload=self._reloads)
        waiting = {
            handle.queue_num
            for handle in self._handles
            if handle.state is not WorkerState.STUCK and self._insist(handle, order)
        }
        until = time.monotonic() + _RELOAD_S
        self._reload = _Reload(self._reloads, loaded, done, waiting, until)
        self._decide()

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        """Order all workers to dump; respond once all have replied or `_DUMP_S` is over."""
        self._dumps_begun += 1
        number = self._dumps_begun
        order = Dump(dump=number, address=address, flows=flows, packets=packets)
        waiting = {
            handle.queue_num
            for handle in self._handles
            if handle.state is WorkerState.SERVING and handle.send(order)
        }
        if not waiting:
            respond(Response.error("no worker serves its queue at the moment"))
            return
        self._dumps[number] = _Dump(flows, respond, waiting, time.monotonic() + _DUMP_S)

    def alive(self, now: float) -> bool:
        """Whether each queue is served or is about to be."""
        return all(handle.alive(now) for handle in self._handles)

    def finish(self, hurried: Callable[[], bool]) -> None:
        """Order all workers to stop; kill those that still run after a bound, or once `hurried`."""
        self._finishing = True
        for handle in self._handles:
            handle.send(Stop())
        until = time.monotonic() + _FINISH_S
        self._loop.run_until(self._all_ended, lambda: 0.0 if hurried() else until)
        for handle in self._handles:
            if handle.pid:
                self._events.emit(WorkerKilled(queue=handle.queue_num, pid=handle.pid))
                if handle.state is not WorkerState.STUCK:
                    self._count_drops(handle)
                handle.kill()
        until = time.monotonic() + _KILLED_S
        self._loop.run_until(self._all_ended, lambda: until)
        for handle in self._handles:
            if handle.pid:
                self._events.emit(WorkerLeftBehind(queue=handle.queue_num, pid=handle.pid))
                self._ledger.page_of_daemon.unnumbered(None)

    def _all_counted(self) -> bool:
        return not any(
            handle.pid and handle.queue_num in self._counting for handle in self._handles
        )

    def _all_ended(self) -> bool:
        return not any(handle.pid for handle in self._handles)

    def _insist(
        self, handle: WorkerHandle, order: SetMode | SetRawRules | Prepare | Commit
    ) -> bool:
        """Send an order that must not be lost; kill the worker if its channel is full.

        Its replacement starts with the policy and the mode in force.
        """
        if handle.pid == 0:
            return False
        if handle.send(order):
            return True
        handle.kill()
        return False

    def _fork(self, handle: WorkerHandle) -> None:
        """Start a process for the queue.

        Raises:
            OSError: There are too many processes or descriptors, or there is too little memory.
        """
        queue_num = handle.queue_num
        ours, theirs = pair()
        try:
            our_log, their_log = pair()
        except OSError:
            ours.close()
            theirs.close()
            raise
        self._events.push(time.monotonic())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                run_and_exit(
                    lambda: self._work(queue_num, theirs, their_log.fileno()),
                    lambda trace: report_crash(theirs, trace),
                )
            pidfd = _pidfd_of(pid)
        except OSError:
            ours.close()
            our_log.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
            their_log.close()

        def refuse(problem: str) -> None:
            self._messages.happened(
                lambda since_last: MessageRefused(
                    sender="worker", queue=queue_num, problem=problem, since_last=since_last
                )
            )

        def unsent(problem: str) -> None:
            self._messages.happened(
                lambda since_last: MessageRefused(
                    sender="daemon", queue=queue_num, problem=problem, since_last=since_last
                )
            )

        channel = daemon_channel(ours, refuse, unsent)
        log = RecordSocket(our_log, refuse)
        handle.started(pid, pidfd, channel, log)
        self._loop.watch(pidfd, lambda: self._exited(handle))
        self._loop.watch(channel.fileno(), lambda: self._receive(handle))
        self._loop.watch(log.fileno(), lambda: self._copy(handle))

    def _work(self, queue_num: int, end: socket.socket, log_fd: int) -> None:
        """Run the worker, in the child process."""
        kept = {end.fileno(), log_fd} | self._inherited(queue_num)
        detach(f"nfq-guard/{queue_num}", kept)
        events = self._events.for_worker(LineSink(log_fd))
        events.keep = self._ledger.page(queue_num).hold
        open_queue = self._open_queue(queue_num, self._mode)

        def opened(
            loaded: LoadedPolicy, events: EventLog, loop: Loop, notes: list[str]
        ) -> QueueServer:
            serving = open_queue(loaded, events, loop, notes)
            serving.set_raw_rules(self._raw_rules)
            return serving

        WorkerProcess(end, queue_num, events, self._loaded, self._read).run(opened)
        events.close(time.monotonic())

    def _receive(self, handle: WorkerHandle) -> None:
        channel = handle.channel
        if channel is None:
            return
        reports = channel.receive()
        if reports is None:  # `_exited` follows
            self._loop.forget(channel.fileno())
            return
        handle.heard()
        self._take_all(handle, reports)

    def _take_all(self, handle: WorkerHandle, reports: list[Report]) -> None:
        for report in reports:
            with self._surviving(handle):
                self._take(handle, report)

    def _take(self, handle: WorkerHandle, report: Report) -> None:
        match report:
            case Numbers():
                handle.report(report)
            case Ready():
                handle.serving(report)
                order = SetMode(mode=self._mode, unjudged_mark=self._unjudged_mark)
                self._insist(handle, order)
                if handle.restarts:
                    self._rebound()
                if handle.restarts == 0 and handle is self._handles[0]:
                    for note in report.notes:
                        self._events.emit(Note(text=note))
            case Failed():
                handle.failure = report
                self._events.emit(WorkerFailed(queue=handle.queue_num, problem=report.problem))
            case Prepared():
                self._prepared(handle, report)
            case Refused():
                self._policy_refused(handle, report)
            case Flows():
                self._dumped(handle, report)
            case Counted():
                self._counting.discard(handle.queue_num)
            case _:
                assert_never(report)

    def _copy(self, handle: WorkerHandle, at_most: int | None = 64) -> None:
        """Copy log lines of a worker into the daemon's log."""
        log = handle.log
        if log is None:
            return
        lines = log.receive(at_most)
        if lines is None:
            self._loop.forget_if_watched(log.fileno())
            return
        for line in lines:
            if not self._events.write_of_worker(line + b"\n"):
                log.refuse("a line for an unknown output")
        self._events.push(time.monotonic())

    def _exited(self, handle: WorkerHandle) -> None:
        """Handle a worker's exit; reads its last records from the sockets first."""
        self._loop.forget(handle.pidfd)
        pid = handle.pid
        how = handle.reap()
        with self._surviving(handle):
            self._take_rest(handle)
            self._state_gaps(handle)
        handle.down(time.monotonic())
        with self._surviving(handle):
            self._go_on_without(handle.queue_num)
        if not self._finishing:
            self._events.emit(WorkerEnded(queue=handle.queue_num, pid=pid, how=how))
            with self._surviving(handle):
                self._rebound()

    def _state_gaps(self, handle: WorkerHandle) -> None:
        """State the packets that an exited process did not record; at an orderly end, none."""
        page = self._ledger.page(handle.queue_num)
        handle.add_unreported(page.unreported())
        left = page.left()
        state_left(left, self._events)
        if self._finishing:
            self._ledger.page_of_daemon.numbered(left.numbered)
        page.clear()

    def _take_rest(self, handle: WorkerHandle) -> None:
        channel, log = handle.channel, handle.log
        if channel is not None:
            self._loop.forget_if_watched(channel.fileno())
            self._take_all(handle, channel.receive(None) or [])
        if log is not None:
            self._loop.forget_if_watched(log.fileno())
            self._copy(handle, None)

    def _go_on_without(self, queue_num: int) -> None:
        if self._reload is not None:
            self._reload.waiting.discard(queue_num)
            self._decide()
        for number, dump in list(self._dumps.items()):
            dump.waiting.discard(queue_num)
            self._answer_dump(number, dump)

    def _supervise(self, now: float) -> None:
        """Kill stuck workers, restart exited ones, and end overdue dumps and reloads."""
        paused_s = now - self._supervised_at - _SUPERVISE_S
        self._supervised_at = now
        for handle in self._handles:
            if paused_s > _PAUSED_S:
                handle.excuse(paused_s)
            with self._surviving(handle):
                self._supervise_one(handle, now)
        if self._reload is not None and now > self._reload.until:
            slow = ", ".join(str(number) for number in sorted(self._reload.waiting))
            self._reload.problem = f"no answer from the worker of queue {slow}"
            self._reload.waiting.clear()
            self._decide()
        for number, dump in list(self._dumps.items()):
            if now > dump.until:
                dump.waiting.clear()
                self._answer_dump(number, dump)

    def _supervise_one(self, handle: WorkerHandle, now: float) -> None:
        if self._finishing:
            return  # `finish` has its own bound
        if handle.state is not WorkerState.STUCK and handle.silent(now):
            self._events.emit(WorkerStuck(queue=handle.queue_num, pid=handle.pid))
            self._count_drops(handle)
            handle.stuck()
        if handle.pid == 0 and now >= handle.restart_at and self._may_fork(handle, now):
            try:
                self._fork(handle)
            except OSError as error:
                handle.postpone(now)
                self._events.emit(WorkerRestartFailed(queue=handle.queue_num, problem=str(error)))
                return
            handle.restarts += 1
            self._events.emit(WorkerRestarted(queue=handle.queue_num, pid=handle.pid))

    def _count_drops(self, handle: WorkerHandle) -> None:
        """Count and log what the kernel dropped while a worker that is to be killed was silent.

        Of the packets that wait, the kernel drops those that the worker gives no verdict.
        """
        kernel = None if handle.ready is None else counters.owner(handle.queue_num)
        if kernel is not None:
            page = self._ledger.page(handle.queue_num)
            page.numbered(kernel.last_id + kernel.queue_dropped)
            self._lost(max(0, kernel.waiting - page.left().judging))
        since_last = 0 if kernel is None else handle.dropped(kernel)
        if kernel is not None and since_last:
            self._events.emit(
                KernelDroppedPackets(
                    queue=handle.queue_num,
                    queue_full=kernel.queue_dropped,
                    buffer_full=kernel.user_dropped,
                    since_last=since_last,
                    waiting=kernel.waiting,
                )
            )

    def _may_fork(self, handle: WorkerHandle, now: float) -> bool:
        """Whether a fork is safe now: no reload is under way, and no thread of the loop is running.

        A lock that a thread holds during a fork is never released in the child. Threads of the loop
        end soon, so a restart waits for them, up to a bound. The threads of the metrics endpoint
        and of the log's files never end, but a worker uses no lock of prometheus_client, of the
        socket server or of the log, and the C library and the interpreter reinitialise their locks
        in the child. A worker that hangs nevertheless is killed as stuck and restarted.
        """
        if self._reload is not None:
            return False
        return not self._loop.busy or now >= handle.restart_at + _THREADS_S

    def _prepared(self, handle: WorkerHandle, report: Prepared) -> None:
        reload = self._reload
        if reload is None or report.reload != reload.number:
            return
        reload.waiting.discard(handle.queue_num)
        if report.digest != reload.loaded.digest:
            reload.problem = (
                f"the worker of queue {handle.queue_num} read another policy: "
                "the file changed meanwhile"
            )
        self._decide()

    def _policy_refused(self, handle: WorkerHandle, report: Refused) -> None:
        reload = self._reload
        if reload is None or report.reload != reload.number:
            return
        reload.waiting.discard(handle.queue_num)
        reload.problem = report.problem
        self._decide()

    def _decide(self) -> None:
        reload = self._reload
        if reload is None or reload.waiting:
            return
        self._reload = None
        if reload.problem:
            for handle in self._handles:
                handle.send(Abort(reload=reload.number))
        else:
            self._loaded = reload.loaded
            for handle in self._handles:
                self._insist(handle, Commit(reload=reload.number))
        reload.done(reload.problem)

    def _dumped(self, handle: WorkerHandle, report: Flows) -> None:
        dump = self._dumps.get(report.dump)
        if dump is None:
            return
        dump.found += report.flows
        dump.problem = dump.problem or report.problem
        if report.complete:
            dump.waiting.discard(handle.queue_num)
            self._answer_dump(report.dump, dump)

    def _answer_dump(self, number: int, dump: "_Dump") -> None:
        if dump.waiting:
            return
        del self._dumps[number]
        if dump.problem:
            dump.respond(Response.error(dump.problem))
            return
        found = newest(dump.found, dump.flows)
        dump.respond(Response.ok([orjson.Fragment(entry.json) for entry in found]))

    @contextmanager
    def _surviving(self, handle: WorkerHandle) -> Iterator[None]:
        """Log an exception instead of raising it, which would end the daemon and all workers."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            problem, trace = exception_texts(error)
            self._faults.happened(
                lambda since_last: SupervisionFailed(
                    queue=handle.queue_num, problem=problem, traceback=trace, since_last=since_last
                )
            )


@final
class _Reload:
    """A policy that workers prepare."""

    def __init__(
        self,
        number: int,
        loaded: LoadedPolicy,
        done: Callable[[str], None],
        waiting: set[int],
        until: float,
    ) -> None:
        self.number = number
        self.loaded = loaded
        self.done = done
        self.waiting = waiting
        self.until = until
        self.problem = ""


@final
class _Dump:
    """A dump that workers contribute to."""

    def __init__(self, flows: int, respond: Responder, waiting: set[int], until: float) -> None:
        self.flows = flows
        self.respond = respond
        self.waiting = waiting
        self.until = until
        self.found: list[DumpEntry] = []
        self.problem = ""


def _error_of(failure: Failed) -> Exception:
    """A worker's failure to start, as an error of the daemon."""
    kind = _ERRORS.get(failure.exit_status)
    return RuntimeError(failure.problem) if kind is None else kind(failure.problem)


def _pidfd_of(pid: int) -> int:
    """The pidfd of a process that was just forked; without one it cannot be supervised.

    Raises:
        OSError: No pidfd could be opened; the process has been killed.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # no system call of the new process can delay SIGKILL
        raise
