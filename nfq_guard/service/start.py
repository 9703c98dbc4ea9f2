# SPDX-License-Identifier: MIT
"""Puts a daemon together from its settings: what fails here fails before anything is changed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from structlog.typing import Processor

from nfq_guard.conntrack.kernels import rules_of
from nfq_guard.engine import Engine, FlowLookup, Mode
from nfq_guard.errors import UsageError
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.decision import Policy
from nfq_guard.service.daemon import Daemon, Rules
from nfq_guard.service.loop import Loop
from nfq_guard.service.rules import judged_mark
from nfq_guard.service.settings import Settings, parse_listen
from nfq_guard.service.worker import Worker
from nfq_guard.telemetry.console import Console, wants_colour, wants_console
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.journal import SOCKET, JournalRenderer, stdout_is_the_journal
from nfq_guard.telemetry.limits import EventLimiter
from nfq_guard.telemetry.metrics import Exposition, serve
from nfq_guard.telemetry.sink import LineSink

_STDOUT: Final = 1
_LOOSE: Final = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
_METRICS_FILE_S: Final = 15.0


def run(
    settings: Settings,
    *,
    source: str,
    policy: Policy,
    flows: FlowLookup,
    rules: Rules | None,
    reload: Callable[[], Policy],
    notes: list[str],
) -> None:
    """Serve one queue until a signal says stop.

    Args:
        settings: Of the daemon.
        source: Where they are from, for the log.
        policy: The first policy.
        flows: Where flows are looked up.
        rules: Our rules, or None to leave the packet filter alone.
        reload: Reads the policy anew.
        notes: What the operator should read in the log, such as what evidence is missing.

    Raises:
        NfqGuardError: The queue cannot be had, or the rules cannot be installed.
    """
    (queue_num,) = settings.queue_numbers
    sink, events = open_log(settings)
    with (
        Loop() as loop,
        QueueReader(
            queue_num,
            queue_length=settings.queue_length,
            copy_bytes=settings.copy_bytes,
            socket_buffer_bytes=settings.socket_buffer_bytes,
            fail_open=settings.fail_mode == "open" or settings.mode is Mode.DRY_RUN,
        ) as reader,
    ):
        for note in notes:
            events.warning("note", text=note)
        engine = Engine(
            policy=policy,
            flows=flows,
            mode=settings.mode,
            kernel=rules_of(os.uname().release),
            loose=_loose(),
        )
        worker = Worker(
            reader=reader,
            verdicts=VerdictSender(reader.socket, queue_num),
            engine=engine,
            evidence=flows.evidence,
            events=events,
            sink=sink,
            limiter=EventLimiter(
                interval_s=settings.log_interval_s, events_per_s=settings.log_events_per_s
            ),
            budget=settings.batch,
            drops_failures=settings.fail_mode == "closed",
            judged_mark=judged_mark(settings),
        )
        daemon = Daemon(
            queue=reader,
            worker=worker,
            events=events,
            sink=sink,
            loop=loop,
            rules=rules,
            reload=reload,
            fail_open=settings.fail_mode == "open",
            verify_rules_s=settings.verify_rules_s,
            reinstall_rules=settings.reinstall_rules,
            facts={"config": source, "evidence": flows.evidence, "fail_mode": settings.fail_mode},
        )
        stop_metrics = _metrics(settings, daemon, queue_num)
        try:
            daemon.run()
        finally:
            stop_metrics()


def open_log(settings: Settings) -> tuple[LineSink, EventLog]:
    """The log that the settings name.

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
    sink = LineSink(_STDOUT)
    if not wants_console(settings.log_format, _STDOUT):
        return sink, EventLog(sink)
    return sink, EventLog(sink, Console(colour=wants_colour(_STDOUT)))


def _opened(path: Path, render: Processor | None) -> tuple[LineSink, EventLog]:
    try:
        sink = LineSink(path)
    except OSError as error:
        raise UsageError(f"daemon.log: {path} cannot be opened: {error.strerror}") from None
    return sink, EventLog(sink, render)


def _metrics(settings: Settings, daemon: Daemon, queue_num: int) -> Callable[[], None]:
    """Start what the settings ask for; call what is returned at the end."""
    stops: list[Callable[[], None]] = []
    if settings.metrics_listen or settings.metrics_file:
        exposition = Exposition(lambda: {queue_num: daemon.worker.stats})
        listen = parse_listen(settings.metrics_listen)
        if listen is not None:
            try:
                stops.append(serve(exposition, *listen))
            except OSError as error:
                raise UsageError(
                    f"daemon.metrics_listen: {settings.metrics_listen}: {error.strerror}"
                ) from None
        if settings.metrics_file:
            path = Path(settings.metrics_file)
            daemon.loop.every(_METRICS_FILE_S, lambda _now: exposition.write(path))
            stops.append(lambda: path.unlink(missing_ok=True))

    def stop() -> None:
        for one in stops:
            one()

    return stop


def _loose() -> bool:
    """The sysctl nf_conntrack_tcp_loose of this network namespace; the kernel's default is on."""
    try:
        return _LOOSE.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return True
