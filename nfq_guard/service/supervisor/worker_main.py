# SPDX-License-Identifier: MIT
"""The program of a worker process, which serves one of several queues for the daemon.

Signals to the service reach its workers too. Workers ignore them, because a worker must serve until
the rules are removed. When the daemon has ended, a worker sends the verdicts of all waiting packets
and exits.
"""

import ctypes
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Final, Never, assert_never, final

import msgspec
import orjson

from nfq_guard.errors import NfqGuardError
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.limited_event import LimitedEvent, log_failed_housekeeping
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
    Order,
    Prepare,
    Prepared,
    Ready,
    Refused,
    SetMode,
    SetRawRules,
    Stop,
    WorkerChannel,
    worker_channel,
)
from nfq_guard.service.worker.history import DumpEntry
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.events import MessageRefused
from nfq_guard.telemetry.log import EventLog

REPORT_S: Final = 0.25
# Maximum number of flows or packets in one message of a dump.
_FLOWS_A_MESSAGE: Final = 16
_PR_SET_NAME: Final = 15
_SERVICE_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
)

Open = Callable[[LoadedPolicy, EventLog, Loop, list[str]], QueueServer]


@final
class WorkerProcess:
    """The worker's side of the channel; made after the fork."""

    def __init__(
        self,
        end: socket.socket,
        queue_num: int,
        events: EventLog,
        loaded: LoadedPolicy,
        read: Callable[[], LoadedPolicy],
    ) -> None:
        """Serve nothing before `run`.

        Args:
            end: The worker's end of the channel.
            queue_num: Number of the queue.
            events: Takes events to the log of the daemon.
            loaded: The initial policy.
            read: Reads the policy again.
        """
        self._refused = LimitedEvent(events)
        self._channel: WorkerChannel = worker_channel(
            end,
            lambda problem: self._refused.happened(
                lambda since_last: MessageRefused(
                    sender="daemon", problem=problem, since_last=since_last
                )
            ),
            lambda problem: self._refused.happened(
                lambda since_last: MessageRefused(
                    sender="worker", queue=queue_num, problem=problem, since_last=since_last
                )
            ),
        )
        self._events = events
        self._loaded = loaded
        self._read = read
        self._prepared: tuple[int, LoadedPolicy] | None = None
        self._loop = Loop(log_failed_housekeeping(events))

    def run(self, open_queue: Open) -> None:
        """Serve until ordered to stop, or until the daemon has ended."""
        with self._loop:
            self._serve(open_queue)

    def _serve(self, open_queue: Open) -> None:
        notes: list[str] = []
        try:
            serving = open_queue(self._loaded, self._events, self._loop, notes)
        except NfqGuardError as error:
            self._channel.send(Failed(problem=str(error), exit_status=error.exit_status))
            return
        self._events.begin_waiting_elsewhere(self._loop.soon)
        self._loop.watch(self._channel.fileno(), lambda: self._receive(serving))
        self._loop.every(REPORT_S, lambda _now: self._report(serving))
        serving.worker.keep_unreported()
        serving.begin()
        self._channel.send(
            Ready(
                socket_buffer_bytes=serving.queue.socket_buffer_bytes,
                flags_refused=serving.queue.refused,
                evidence=serving.worker.stats.evidence,
                evidence_reason=serving.worker.stats.evidence_reason,
                notes=notes,
            )
        )
        self._loop.run()
        serving.finish(lambda: False)
        self._events.write_held()
        self._report(serving)

    def _report(self, serving: QueueServer) -> None:
        numbers = {
            **serving.worker.stats.plain(),
            "messages_refused": self._refused.count,
            "last_error": self._events.last_error,
        }
        if self._channel.send(msgspec.convert(numbers, Numbers)):
            serving.worker.reported()

    def _receive(self, serving: QueueServer) -> None:
        orders = self._channel.receive()
        if orders is None:
            # The daemon has ended. Of what this process logs, only the events file has anything.
            serving.worker.unheard = self._events.recording is None
            self._loop.forget(self._channel.fileno())
            self._loop.stop()
            return
        for order in orders:
            self._obey(order, serving)

    def _obey(self, order: Order, serving: QueueServer) -> None:
        match order:
            case Stop():
                self._loop.stop()
            case SetMode():
                serving.set_mode(order.mode, order.unjudged_mark)
            case SetRawRules():
                serving.set_raw_rules(order.rules)
            case Prepare():
                self._prepare(order.reload)
            case Commit():
                if self._prepared is not None and self._prepared[0] == order.reload:
                    serving.adopt(self._prepared[1].policy)
                self._prepared = None
            case Abort():
                self._prepared = None
            case Dump():
                self._dump(order, serving)
            case Count():
                serving.worker.refresh()
                self._report(serving)
                self._channel.send(Counted())
            case _:
                assert_never(order)

    def _prepare(self, reload: int) -> None:
        def prepared(loaded: LoadedPolicy) -> None:
            self._prepared = (reload, loaded)
            self._channel.send(Prepared(reload=reload, digest=loaded.digest))

        def refused(error: Exception) -> None:
            self._channel.send(Refused(reload=reload, problem=str(error)))

        self._loop.background(self._read, prepared, refused)

    def _dump(self, order: Dump, serving: QueueServer) -> None:
        def failed(problem: str) -> None:
            self._channel.send(Flows(dump=order.dump, flows=[], complete=True, problem=problem))

        if order.packets:
            serving.dump_packets(
                order.address, order.flows, lambda found: self._send_dump(order, found), failed
            )
            return
        flows = [
            DumpEntry(last=f"{flow.at:020.6f}", json=orjson.dumps(flow.record))
            for flow in serving.flows(order.address, order.flows)
        ]
        self._send_dump(order, flows)

    def _send_dump(self, order: Dump, flows: list[DumpEntry]) -> None:
        while True:
            part, flows = flows[:_FLOWS_A_MESSAGE], flows[_FLOWS_A_MESSAGE:]
            self._channel.send(Flows(dump=order.dump, flows=part, complete=not flows))
            if not flows:
                return


def detach(name: str, keep: set[int]) -> None:
    """Become a worker after the fork, with signals blocked: close the daemon's descriptors.

    Objects of the daemon whose descriptors are closed here stay referenced by frames that never
    return.

    Args:
        name: The process's name in `ps`.
        keep: Descriptors that stay open, besides the standard streams.
    """
    signal.set_wakeup_fd(-1)
    for number in _SERVICE_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - closes while it walks
        if int(entry) > 2 and int(entry) not in keep:
            try:
                os.close(int(entry))
            except OSError:  # the listing's own
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Landlock forbids writing to /proc/self/comm. The name is only informative, so failure is
    # harmless.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode("ascii")[:15], 0, 0, 0)


def run_and_exit(work: Callable[[], None], report: Callable[[str], object]) -> Never:
    """Do `work` and end the process whatever happens; never return into the daemon's code.

    `report` gets the traceback of an exception, and may itself raise.
    """
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the frames above are the daemon's
        report(traceback.format_exc())
    finally:
        os._exit(status)


def report_crash(end: socket.socket, trace: str) -> None:
    """Report an exception that ends the worker; needs nothing that the worker set up."""
    worker_channel(end, _ignore, _ignore).send(Failed(problem=trace))


def _ignore(_problem: str) -> None:
    return
