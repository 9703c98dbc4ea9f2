# SPDX-License-Identifier: MIT
"""A worker process: one queue of several, told what to do by the daemon that forked it.

It listens to its daemon alone: signals that are meant for the service reach both, and must not
end a worker before the rules are gone. When the daemon is gone it answers what waits and ends.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import orjson

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import Evidence
from nfq_guard.service.loop import Loop
from nfq_guard.service.supervisor.messages import Channel
from nfq_guard.service.supervisor.workers import Loaded
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.sink import LineSink

REPORT_S: Final = 0.25
# Flows in one message of a dump.
_FLOWS_A_MESSAGE: Final = 16
_SERVICE_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
)

Opened = tuple[QueueServer, History, Evidence]
Open = Callable[[Loaded, EventLog, LineSink, Loop, list[str]], Opened]


@final
class WorkerProcess:
    """What happens in the child; made after the fork."""

    def __init__(
        self,
        channel: Channel,
        sink: LineSink,
        events: EventLog,
        loaded: Loaded,
        read: Callable[[], Loaded],
    ) -> None:
        """Put the parts together.

        Args:
            channel: To the daemon.
            sink: Lines on their way to the daemon.
            events: Events over `sink`.
            loaded: The policy to begin with.
            read: Reads it anew.
        """
        self._channel = channel
        self._sink = sink
        self._events = events
        self._loaded = loaded
        self._read = read
        self._prepared: Loaded | None = None
        self._loop = Loop()
        self._serving: QueueServer | None = None
        self._history = History()

    def run(self, open_queue: Open) -> None:
        """Serve until told to stop, or until the daemon is gone."""
        notes: list[str] = []
        try:
            opened = open_queue(self._loaded, self._events, self._sink, self._loop, notes)
        except NfqGuardError as error:
            self._channel.send({"failed": str(error), "kind": type(error).__name__})
            return
        self._serving, self._history, evidence = opened
        self._loop.watch(self._channel.fileno(), self._obey)
        self._loop.every(REPORT_S, self._report)
        self._serving.begin()
        self._channel.send(
            {
                "ready": {
                    "socket_buffer_bytes": self._serving.queue.socket_buffer_bytes,
                    "flags_refused": self._serving.queue.refused,
                },
                "evidence": evidence,
                "notes": notes,
            }
        )
        self._loop.run()
        self._serving.finish()
        self._report(time.monotonic())

    def _report(self, _now: float) -> None:
        if self._serving is not None:
            stats = self._serving.worker.stats.plain()
            self._channel.send({"stats": stats, "error": self._events.last_error})

    def _obey(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            self._loop.forget(self._channel.fileno())
            self._loop.stop()
            return
        for octets in messages:
            self._do(orjson.loads(octets))

    def _do(self, order: dict[str, Any]) -> None:
        """One order of the daemon's; their words are only used here and in `supervisor`."""
        match order["do"]:
            case "stop":
                self._loop.stop()
            case "mode" if self._serving is not None:
                self._serving.set_mode(Mode(order["mode"]))
            case "prepare":
                self._loop.background(self._read, self._prepare, self._refuse)
            case "commit" if self._serving is not None and self._prepared is not None:
                self._serving.adopt(self._prepared.policy)
                self._prepared = None
            case "abort":
                self._prepared = None
            case "dump":
                self._dump(order)
            case _:
                return

    def _prepare(self, loaded: Loaded) -> None:
        self._prepared = loaded
        self._channel.send({"prepared": loaded.digest})

    def _refuse(self, error: Exception) -> None:
        self._channel.send({"refused": str(error)})

    def _dump(self, order: dict[str, Any]) -> None:
        flows = self._history.flows(order["address"], order["flows"])
        for first in range(0, len(flows), _FLOWS_A_MESSAGE):
            part = flows[first : first + _FLOWS_A_MESSAGE]
            self._channel.send({"flows": part, "asked": order["asked"], "last": False})
        self._channel.send({"flows": [], "asked": order["asked"], "last": True})


def detach(name: str, keep: set[int]) -> None:
    """Become a worker, right after the fork, signals blocked: nothing of the daemon's stays open.

    Objects of the daemon's whose descriptors are closed here live on in frames that never return.
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
    try:
        Path("/proc/self/comm").write_text(name, encoding="ascii")
    except OSError:  # a name is only for people
        return


def run_and_exit(work: Callable[[], None], report: Callable[[str], object]) -> None:
    """Do `work` and end the process, whatever happens; never returns into the daemon's code."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the frames above are the daemon's, not ours
        report(traceback.format_exc())
    finally:
        os._exit(status)
