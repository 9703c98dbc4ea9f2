# SPDX-License-Identifier: MIT
"""Puts a daemon together from its settings: what fails here fails before anything is changed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from structlog.typing import Processor

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.engine import Engine, Mode
from nfq_guard.errors import UsageError
from nfq_guard.flow import Evidence
from nfq_guard.flows.open import open_flows
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.decision import Policy
from nfq_guard.service.control.commands import Requests
from nfq_guard.service.control.server import ControlServer
from nfq_guard.service.control.socket_path import listen
from nfq_guard.service.daemon import Daemon, Parts, Rules
from nfq_guard.service.firewall_spec import judged_mark
from nfq_guard.service.limited_event import LimitedEvent
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.settings import Settings, parse_listen
from nfq_guard.service.supervisor.supervisor import Supervisor
from nfq_guard.service.supervisor.worker_main import Open, Opened
from nfq_guard.service.supervisor.workers import InProcess, Loaded, Workers
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.offload import open_offloader
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.console import Console, wants_colour, wants_console
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.journal import SOCKET, JournalRenderer, stdout_is_the_journal
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.metrics import Exposition, MetricsFile, serve
from nfq_guard.telemetry.sink import LineSink

_STDOUT: Final = 1
_SYSCTLS: Final = Path("/proc/sys/net/netfilter")
_METRICS_FILE_S: Final = 15.0


def run(
    settings: Settings,
    *,
    source: str,
    loaded: Loaded,
    rules: Rules,
    read: Callable[[], Loaded],
) -> None:
    """Serve until a signal says stop.

    Args:
        settings: Of the daemon.
        source: Where they are from, for the log.
        loaded: The first policy.
        rules: Our rules as they should be.
        read: Reads the policy anew.

    Raises:
        NfqGuardError: A queue cannot be had, or the rules cannot be installed.
    """
    sink, make_log = open_log(settings)
    events = make_log(sink)
    notes: list[str] = []
    with Loop(LimitedEvent(events, "housekeeping_failed").raised) as loop:
        if len(settings.queue_numbers) > 1:
            workers: Workers = Supervisor(
                settings.queue_numbers,
                loaded=loaded,
                read=read,
                open_queue=lambda number, mode: _opener(settings, number, mode),
                make_log=make_log,
                mode=settings.mode,
                loop=loop,
                events=events,
                sink=sink,
            )
        else:
            (queue_num,) = settings.queue_numbers
            workers = InProcess(
                *open_queue(settings, queue_num, loaded.policy, events, sink, loop, notes)
            )
        daemon = Daemon(
            Parts(
                settings=settings,
                source=source,
                workers=workers,
                loop=loop,
                events=events,
                sink=sink,
                rules=rules,
                loaded=loaded,
                read=read,
                notifier=Notifier(),
                open_more=lambda daemon: _open_more(settings, daemon, loop, events, notes),
            )
        )
        daemon.run()


def _opener(settings: Settings, queue_num: int, mode: Mode) -> Open:
    """For a worker: opens its queue once it is forked."""
    as_now = msgspec.structs.replace(settings, mode=mode)

    def open_it(
        loaded: Loaded, events: EventLog, sink: LineSink, loop: Loop, notes: list[str]
    ) -> Opened:
        return open_queue(as_now, queue_num, loaded.policy, events, sink, loop, notes)

    return open_it


def _open_more(
    settings: Settings, daemon: Daemon, loop: Loop, events: EventLog, notes: list[str]
) -> Callable[[], None]:
    """Control socket and metrics; call what is returned at the end."""
    stops = [_control(settings, daemon, loop, notes)]
    for note in notes:
        events.warning("note", text=note)
    try:
        stops.append(_metrics(settings, daemon, loop, events))
    except UsageError:
        stops[0]()
        raise

    def stop() -> None:
        for one in stops:
            one()

    return stop


def open_queue(
    settings: Settings,
    queue_num: int,
    policy: Policy,
    events: EventLog,
    sink: LineSink,
    loop: Loop,
    notes: list[str],
) -> tuple[QueueServer, History, Evidence]:
    """Bind a queue and open what its packets are judged by, in the process that will serve it.

    Raises:
        NfqGuardError: The queue cannot be had.
    """
    flows, lack = open_flows(settings.zones)
    if lack is not None:
        notes.append(lack)
    fail_open = settings.fail_mode == "open"
    reader = QueueReader(
        queue_num,
        queue_length=settings.queue_length,
        copy_bytes=settings.copy_bytes,
        socket_buffer_bytes=settings.socket_buffer_bytes,
        fail_open=fail_open or settings.mode is Mode.DRY_RUN,
    )
    history = History()
    worker = Worker(
        reader=reader,
        verdicts=VerdictSender(reader.socket, queue_num),
        engine=Engine(
            policy=policy,
            flows=flows,
            mode=settings.mode,
            kernel=rules_of(os.uname().release),
            sysctls=_sysctls(),
        ),
        evidence=flows.evidence,
        events=events,
        sink=sink,
        limiter=EventLimiter(
            interval_s=settings.log_interval_s, events_per_s=settings.log_events_per_s
        ),
        budget=settings.batch,
        drops_failures=settings.fail_mode == "closed",
        judged_mark=judged_mark(settings),
        history=history,
    )
    worker.offloader = open_offloader(settings, worker.engine, worker.stats, events)
    serving = QueueServer(reader, worker, events, loop, fail_open=fail_open)
    return serving, history, flows.evidence


def _control(
    settings: Settings, daemon: Daemon, loop: Loop, notes: list[str]
) -> Callable[[], None]:
    """Open the control socket; call what is returned at the end."""
    if not settings.control_socket:
        return _nothing
    path = Path(settings.control_socket)
    listener = listen(path, notes)
    if listener is None:
        return _nothing
    return ControlServer(listener, path, loop, Requests(daemon, path.stat().st_gid)).close


def open_log(settings: Settings) -> tuple[LineSink, Callable[[LineSink], EventLog]]:
    """The log that the settings name, and what writes events into it or on the way to it.

    Raises:
        UsageError: The file cannot be opened.
    """
    if settings.log == "-" and settings.log_format == "auto" and stdout_is_the_journal():
        return _opened(SOCKET, JournalRenderer())
    if settings.log == "journal":
        return _opened(SOCKET, JournalRenderer())
    if settings.log != "-":
        console = settings.log_format == "console"
        return _opened(Path(settings.log), Console(colour=False) if console else None)
    sys.stdout.flush()
    console = wants_console(settings.log_format, _STDOUT)
    render = Console(colour=wants_colour(_STDOUT)) if console else None
    return LineSink(_STDOUT), lambda sink: EventLog(sink, render)


def _opened(
    path: Path, render: Processor | None
) -> tuple[LineSink, Callable[[LineSink], EventLog]]:
    try:
        return LineSink(path), lambda sink: EventLog(sink, render)
    except OSError as error:
        raise UsageError(f"daemon.log: {path} cannot be opened: {error.strerror}") from None


def _metrics(
    settings: Settings, daemon: Daemon, loop: Loop, events: EventLog
) -> Callable[[], None]:
    """Start what the settings ask for; call what is returned at the end."""
    stops: list[Callable[[], None]] = []
    if settings.metrics_listen or settings.metrics_file:
        exposition = Exposition(
            lambda: {queue.queue_num: queue.stats for queue in daemon.queues()}, daemon.counters
        )
        listen_at = parse_listen(settings.metrics_listen)
        if listen_at is not None:
            try:
                stops.append(serve(exposition, *listen_at))
            except OSError as error:
                raise UsageError(
                    f"daemon.metrics_listen: {settings.metrics_listen}: {error.strerror}"
                ) from None
        if settings.metrics_file:
            try:
                file = MetricsFile(
                    exposition,
                    Path(settings.metrics_file),
                    lambda problem: events.warning("metrics_file_failed", problem=problem),
                )
            except OSError as error:
                raise UsageError(
                    f"daemon.metrics_file: {settings.metrics_file}: {error.strerror}"
                ) from None
            loop.every(_METRICS_FILE_S, file.write)
            stops.append(file.close)

    def stop() -> None:
        for one in stops:
            one()

    return stop


def _nothing() -> None:
    return


def _sysctls() -> Sysctls:
    """Those of this network namespace that decide about reasons; the kernel's default unread."""
    return Sysctls(
        loose=_is_set("nf_conntrack_tcp_loose", default=True),
        ignore_invalid_rst=_is_set("nf_conntrack_tcp_ignore_invalid_rst", default=False),
    )


def _is_set(name: str, *, default: bool) -> bool:
    try:
        return (_SYSCTLS / name).read_text(encoding="ascii").strip() != "0"
    except OSError:
        return default
