# SPDX-License-Identifier: MIT
"""Several queues: one worker process each, forked from the daemon, watched and started again.

Forking takes a few milliseconds where a new interpreter would take a few hundred. What a worker
must not share with others, the queue's socket and BPF's memory, it opens after the fork.

The daemon itself touches no packet. What workers say comes over sockets that never keep them
waiting; what is too much is dropped and counted by them.
"""

import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, final

import orjson

from nfq_guard import errors
from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError, UnavailableError
from nfq_guard.flow import Evidence
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.loop import Loop
from nfq_guard.service.supervisor.messages import Channel, pair
from nfq_guard.service.supervisor.worker_handle import WorkerHandle
from nfq_guard.service.supervisor.worker_main import Open, WorkerProcess, detach, run_and_exit
from nfq_guard.service.supervisor.workers import Loaded, QueueState, WorkerState
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.sink import LineSink

_LOOK_S: Final = 0.05
# What waits in a queue has two seconds to be answered (`serving`).
_FINISH_S: Final = 3.0
_DUMP_S: Final = 2.0
# A queue that nobody served for so long is a fault that the service manager should see.
_HOPELESS_S: Final = 30.0


@final
class Supervisor:
    """Serves several queues by one process each (`workers.Workers`)."""

    def __init__(
        self,
        queues: range,
        *,
        loaded: Loaded,
        read: Callable[[], Loaded],
        open_queue: Callable[[int, Mode], Open],
        make_log: Callable[[LineSink], EventLog],
        mode: Mode,
        loop: Loop,
        events: EventLog,
        sink: LineSink,
    ) -> None:
        """Nothing happens before `begin`.

        Args:
            queues: Their numbers.
            loaded: The policy to begin with.
            read: Reads it anew, in a worker.
            open_queue: Binds a queue, in a worker, in a mode.
            make_log: Makes the log of a worker, in the form of ours.
            mode: The mode to begin in.
            loop: The daemon's.
            events: The daemon's.
            sink: Takes the lines of all.
        """
        self.evidence = Evidence.NONE
        self._handles = [WorkerHandle(number) for number in queues]
        self._loaded = loaded
        self._read = read
        self._open_queue = open_queue
        self._make_log = make_log
        self._mode = mode
        self._loop = loop
        self._events = events
        self._sink = sink
        self._adopting: _Adopting | None = None
        self._dumps: dict[int, _Dump] = {}
        self._asked = 0
        self._finishing = False

    def begin(self) -> dict[str, object]:
        """Fork all, and wait for all to serve."""
        gc.collect()
        gc.freeze()  # what is here already is shared with the workers, and stays so
        for handle in self._handles:
            self._fork(handle)
        while any(handle.state is WorkerState.STARTING for handle in self._handles):
            self._loop.turn(_LOOK_S)
            for handle in self._handles:
                if handle.failure is not None:
                    raise _error_of(*handle.failure)
                if handle.silent(time.monotonic()) or handle.pid == 0:
                    raise UnavailableError(
                        f"the worker of queue {handle.queue_num} does not come up"
                    )
        self._loop.every(_LOOK_S, self._look)
        return {
            "queues": [handle.queue_num for handle in self._handles],
            "pids": [handle.pid for handle in self._handles],
            **self._handles[0].facts,
        }

    def queues(self) -> list[QueueState]:
        """How they stand, as of the last report of each."""
        return [handle.described() for handle in self._handles]

    def refresh(self) -> None:
        """Nothing: workers report by themselves."""

    def last_error(self) -> dict[str, object] | None:
        """The last event of level error of any worker."""
        found = [handle.error for handle in self._handles if handle.error is not None]
        return max(found, key=lambda error: str(error["at"]), default=None)

    def set_mode(self, mode: Mode) -> None:
        """Tell all; those that start later begin with it."""
        self._mode = mode
        for handle in self._handles:
            handle.send({"do": "mode", "mode": mode.value})

    def adopt(self, loaded: Loaded, done: Callable[[str], None]) -> None:
        """Have each read and check what the daemon read; if all agree, have each judge by it."""
        waiting = {
            handle.queue_num
            for handle in self._handles
            if handle.state is WorkerState.SERVING and handle.send({"do": "prepare"})
        }
        self._adopting = _Adopting(loaded, done, waiting)
        self._decide()

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        """Ask all; respond when all have answered, or have had their time."""
        self._asked += 1
        order: dict[str, object] = {"do": "dump", "address": address, "flows": flows}
        order["asked"] = self._asked
        waiting = {
            handle.queue_num
            for handle in self._handles
            if handle.state is WorkerState.SERVING and handle.send(order)
        }
        if not waiting:
            respond(Response.error("no worker serves its queue at the moment"))
            return
        self._dumps[self._asked] = _Dump(flows, respond, waiting, time.monotonic() + _DUMP_S)

    def alive(self, now: float) -> bool:
        """Whether no queue is without a worker for so long that there is no hope."""
        return all(
            handle.state is not WorkerState.DOWN or now - handle.down_since < _HOPELESS_S
            for handle in self._handles
        )

    def finish(self) -> None:
        """Tell all to end; end those that do not."""
        self._finishing = True
        for handle in self._handles:
            handle.send({"do": "stop"})
        deadline = time.monotonic() + _FINISH_S
        while any(handle.pid for handle in self._handles):
            if time.monotonic() > deadline:
                for handle in self._handles:
                    handle.kill()
            self._loop.turn(_LOOK_S)

    def _fork(self, handle: WorkerHandle) -> None:
        ours, theirs = pair()
        our_log, their_log = pair()
        self._sink.push(time.monotonic())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            channel = Channel(theirs)
            run_and_exit(
                lambda: self._work(handle.queue_num, channel, their_log.fileno()),
                lambda trace: channel.send({"failed": trace, "kind": "crash"}),
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        their_log.close()
        channel = Channel(ours)
        log = Channel(our_log)
        handle.forked(pid, channel, log)
        self._loop.watch(handle.pidfd, lambda: self._ended(handle))
        self._loop.watch(channel.fileno(), lambda: self._hear(handle, channel))
        self._loop.watch(log.fileno(), lambda: self._copy(log))

    def _work(self, queue_num: int, channel: Channel, log_fd: int) -> None:
        """In the child."""
        detach(f"nfq-guard/{queue_num}", {channel.fileno(), log_fd})
        sink = LineSink(log_fd)
        events = self._make_log(sink)
        WorkerProcess(channel, sink, events, self._loaded, self._read).run(
            self._open_queue(queue_num, self._mode)
        )
        sink.close(time.monotonic())

    def _hear(self, handle: WorkerHandle, channel: Channel) -> None:
        messages = channel.receive()
        if messages is None:  # `_ended` follows
            self._loop.forget(channel.fileno())
            return
        for octets in messages:
            handle.heard()
            self._take(handle, orjson.loads(octets))

    def _take(self, handle: WorkerHandle, message: dict[str, Any]) -> None:
        if "stats" in message:
            handle.report(message["stats"], message["error"])
        elif "ready" in message:
            handle.ready(message["ready"])
            handle.send({"do": "mode", "mode": self._mode.value})
            self.evidence = Evidence(message["evidence"])
            if handle.restarts == 0 and handle is self._handles[0]:
                for note in message["notes"]:
                    self._events.warning("note", text=note)
        elif "failed" in message:
            handle.failure = (message["failed"], message["kind"])
            self._events.error("worker_failed", queue=handle.queue_num, problem=message["failed"])
        elif "prepared" in message or "refused" in message:
            self._prepared(handle, message)
        elif "flows" in message:
            self._dumped(handle, message)

    def _copy(self, log: Channel) -> None:
        """Log lines of a worker into ours."""
        lines = log.receive()
        if lines is None:
            self._loop.forget(log.fileno())
            return
        for line in lines:
            self._sink.write(line + b"\n")
        self._sink.push(time.monotonic())

    def _ended(self, handle: WorkerHandle) -> None:
        """A worker is gone; what it still said is here by then."""
        channel, log = handle.channel, handle.log
        self._loop.forget(handle.pidfd)
        for end, take in ((channel, self._hear_rest), (log, self._copy_rest)):
            if end is not None:
                take(handle, end)
                self._loop.forget_if_watched(end.fileno())
        pid = handle.pid
        how = handle.ended(time.monotonic())
        if self._adopting is not None:
            self._adopting.waiting.discard(handle.queue_num)
            self._decide()
        for asked, dump in list(self._dumps.items()):
            dump.waiting.discard(handle.queue_num)
            self._answer_dump(asked, dump)
        if not self._finishing:
            self._events.error("worker_ended", queue=handle.queue_num, pid=pid, how=how)

    def _hear_rest(self, handle: WorkerHandle, channel: Channel) -> None:
        for octets in channel.receive() or ():
            self._take(handle, orjson.loads(octets))

    def _copy_rest(self, _handle: WorkerHandle, log: Channel) -> None:
        while lines := log.receive():
            for line in lines:
                self._sink.write(line + b"\n")

    def _look(self, now: float) -> None:
        """End who is stuck, start who is missing."""
        for handle in self._handles:
            if handle.state is not WorkerState.STUCK and handle.silent(now):
                handle.state = WorkerState.STUCK
                self._events.error("worker_stuck", queue=handle.queue_num, pid=handle.pid)
                handle.kill()
            may_start = self._adopting is None and not self._finishing
            if handle.pid == 0 and now >= handle.restart_at and may_start:
                handle.restarts += 1
                self._fork(handle)
                self._events.warning("worker_restarted", queue=handle.queue_num, pid=handle.pid)
        for asked, dump in list(self._dumps.items()):
            if now > dump.until:
                dump.waiting.clear()
                self._answer_dump(asked, dump)

    def _prepared(self, handle: WorkerHandle, message: dict[str, Any]) -> None:
        adopting = self._adopting
        if adopting is None or handle.queue_num not in adopting.waiting:
            return
        adopting.waiting.discard(handle.queue_num)
        if "refused" in message:
            adopting.problem = message["refused"]
        elif message["prepared"] != adopting.loaded.digest:
            adopting.problem = (
                f"the worker of queue {handle.queue_num} read another policy: "
                "the file changed meanwhile"
            )
        self._decide()

    def _decide(self) -> None:
        adopting = self._adopting
        if adopting is None or adopting.waiting:
            return
        self._adopting = None
        if not adopting.problem:
            self._loaded = adopting.loaded
        order = "abort" if adopting.problem else "commit"
        for handle in self._handles:
            handle.send({"do": order})
        adopting.done(adopting.problem)

    def _dumped(self, handle: WorkerHandle, message: dict[str, Any]) -> None:
        dump = self._dumps.get(message["asked"])
        if dump is None:
            return
        dump.found += message["flows"]
        if message["last"]:
            dump.waiting.discard(handle.queue_num)
            self._answer_dump(message["asked"], dump)

    def _answer_dump(self, asked: int, dump: "_Dump") -> None:
        if dump.waiting:
            return
        del self._dumps[asked]
        dump.found.sort(key=lambda flow: str(flow["last"]), reverse=True)
        dump.respond(Response.ok(dump.found[: dump.flows]))


@final
class _Adopting:
    """A policy on its way to the workers."""

    def __init__(self, loaded: Loaded, done: Callable[[str], None], waiting: set[int]) -> None:
        self.loaded = loaded
        self.done = done
        self.waiting = waiting
        self.problem = ""


@final
class _Dump:
    """A dump of which some workers have yet to give their part."""

    def __init__(self, flows: int, respond: Responder, waiting: set[int], until: float) -> None:
        self.flows = flows
        self.respond = respond
        self.waiting = waiting
        self.until = until
        self.found: list[dict[str, Any]] = []


def _error_of(text: str, kind: str) -> Exception:
    """What a worker could not begin for, as the daemon's own error."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, NfqGuardError):
        return found(text)
    return RuntimeError(text)
