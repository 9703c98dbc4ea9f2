# SPDX-License-Identifier: MIT
"""Composition root of the daemon: creates its parts from the settings and connects them.

`worker/open.py` opens the parts of one queue, because each queue may have its own process.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec
from structlog.typing import Processor

from nfq_guard import capabilities
from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError, UsageError, for_operator
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.firewall.legacy_tables import LegacyTables
from nfq_guard.firewall.queued import queued_packets
from nfq_guard.flows import log_settings, pins
from nfq_guard.flows.libbpf import Program
from nfq_guard.flows.open import load_ahead
from nfq_guard.nfqueue.counters import CounterFile
from nfq_guard.nfqueue.reader import release
from nfq_guard.raw_rules import RawReading
from nfq_guard.service import last_good, passed_sockets
from nfq_guard.service.activation import METRICS, take_sockets
from nfq_guard.service.config import DEFAULT_PATH, LoadedPolicy, load_policy_for, prepared
from nfq_guard.service.control.commands import Commands, ControlledDaemon
from nfq_guard.service.control.server import ControlServer
from nfq_guard.service.control.socket_path import listen, make_directory
from nfq_guard.service.daemon import Daemon, Parts
from nfq_guard.service.firewall_spec import firewall_of, unjudged_mark
from nfq_guard.service.ledger import Ledger, Page, hold_left, state_left
from nfq_guard.service.limited_event import log_failed_housekeeping
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.passed import Numbered, PassedPackets, numbered_in
from nfq_guard.service.settings import JOURNAL, STDOUT, Settings, parse_listen
from nfq_guard.service.supervisor.supervisor import Supervisor
from nfq_guard.service.supervisor.worker_main import Open
from nfq_guard.service.supervisor.workers import InProcess, Workers
from nfq_guard.service.unit import UNDER_SYSTEMD, only_from_here
from nfq_guard.service.worker.open import open_queue
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.console import Console, wants_colour, wants_console
from nfq_guard.telemetry.eve import eve_line, eve_octets
from nfq_guard.telemetry.event_json import json_octets
from nfq_guard.telemetry.events import (
    ControlSocketRestored,
    Event,
    MetricsFileFailed,
    Note,
)
from nfq_guard.telemetry.exposition import Exposition, MetricsFile, Observed
from nfq_guard.telemetry.http import MetricsServer
from nfq_guard.telemetry.http import listen as listen_http
from nfq_guard.telemetry.journal import SOCKET, JournalRenderer, stdout_is_the_journal
from nfq_guard.telemetry.log import EventLog, Output, json_line
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink

_STDOUT: Final = 1
# For a file, and for an output that is not a terminal.
_RENDERERS: Final[dict[str, Processor]] = {
    "auto": json_line,
    "json": json_line,
    "eve": eve_line,
    "console": Console(colour=False),
}
_METRICS_FILE_S: Final = 15.0
_LISTEN_NOTE: Final = (
    "reachable from other hosts only if the unit has IPAddressAllow= with their networks; "
    "see `nfq-guard check`"
)
_OBSERVE_S: Final = 1.0
_FOLLOW_S: Final = 1.0

GiveUp = Callable[[Settings, Collection[Path]], list[str]]
"""Gives up privileges; returns notes for the operator."""


class ObservedDaemon(ControlledDaemon, Protocol):
    """The part of the daemon that its endpoints use."""

    def observed(self, now: float) -> Observed:
        """The values for the metrics at `now`, monotonic seconds."""


def _keep_privileges(_settings: Settings, _read: Collection[Path]) -> list[str]:
    return []


def _no_raw_rules(_queues: Sequence[int], _copy: LegacyCopy) -> RawReading:
    return RawReading()


def run(
    path: Path | None,
    override: Callable[[Settings], Settings],
    give_up: GiveUp = _keep_privileges,
    survey: Callable[[Sequence[int], LegacyCopy], Event] | None = None,
    last_good_at: Path | None = None,
    raw_rules: Callable[[Sequence[int], LegacyCopy], RawReading] = _no_raw_rules,
) -> bool:
    """Load the configuration and serve until SIGTERM or SIGINT.

    Args:
        path: The configuration file; None as in `config.read_config`.
        override: Applies the command line to the settings of the file.
        give_up: Gives up privileges of the whole process, after the steps that take them, as
            `privileges.give_up`; by default all are kept.
        survey: Examines the rules of the host once the daemon has started; gets what root has
            read of them.
        raw_rules: Reads the host's rules before conntrack; gets the numbers of our queues as well.
        last_good_at: The file with the last good configuration; None to use none.

    Returns:
        Whether it was SIGINT.

    Raises:
        NfqGuardError: The configuration has mistakes, or a part of the daemon cannot be made;
            everything that was opened is closed again.
    """
    config, refused, last_good_of = last_good.load(path, last_good_at)
    settings = override(config.settings)
    rules = firewall_of(settings)
    loaded = prepared(config, config.settings, override)
    instance = pins.instance_of(path)
    ahead = _load_ahead(settings)

    def read() -> LoadedPolicy:
        return load_policy_for(config.settings, path, override)

    with ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in passed_sockets.take(passed_sockets.TABLES)]
        copy = LegacyCopy(passed_sockets.take_rules(), sockets)
        keeper = passed_sockets.QueueKeeper()
        for program in ahead.values():
            if isinstance(program, Program):
                stack.callback(program.close)
        numbers = settings.queue_numbers
        pages: list[int | None] = [None, *numbers] if len(numbers) > 1 else [*numbers]
        notes: list[str] = []
        beside = Path(settings.control_socket) if settings.control_socket else None
        if beside is not None:
            make_directory(beside)
        ledger = stack.enter_context(Ledger(pages, beside, notes))
        notes += _turn_log_on(settings, instance, ahead, stack)
        notes += give_up(settings, {path or DEFAULT_PATH, *map(Path, config.files)})
        events = open_log(settings)
        stack.callback(lambda: events.close(time.monotonic()))
        ledger.begin()
        events.keep = ledger.page_of_daemon.hold
        left = None if keeper.kept is None or len(numbers) > 1 else ledger.left_by(numbers[0])
        for each in ledger.left:
            if each is left:  # the worker states its packets
                ledger.page(each.queue).resume(each)
                hold_left(each, events)
            else:
                state_left(each, events)
        recording = events.recording
        loop = stack.enter_context(Loop(log_failed_housekeeping(events)))
        if len(numbers) > 1:
            if keeper.kept is not None:
                # systemd closes its copy only later, and until then no worker could bind the queue.
                release(keeper.kept, numbers)
            if recording is not None:
                # The workers write into it. A worker that is restarted must inherit the right file,
                # and the daemon must not keep a removed one open.
                loop.every(_FOLLOW_S, recording.push)
            workers: Workers = Supervisor(
                numbers,
                loaded=loaded,
                read=read,
                open_queue=lambda number, mode: _opener(
                    settings, number, mode, instance, ledger.page(number), ahead.get(number)
                ),
                inherited=lambda number: _descriptors(ahead.get(number), recording),
                mode=settings.mode,
                unjudged_mark=unjudged_mark(settings),
                loop=loop,
                events=events,
                ledger=ledger,
                rebound=lambda: daemon.count_passed(),  # noqa: PLW0108 - it is made later
                lost=lambda packets: daemon.count_lost(packets),  # noqa: PLW0108 - as above
            )
        else:
            (queue_num,) = numbers
            workers = InProcess(
                open_queue(
                    settings,
                    queue_num,
                    loaded.policy,
                    events,
                    loop,
                    notes,
                    instance,
                    ledger.page(queue_num),
                    ahead.get(queue_num),
                    keeper,
                    left,
                )
            )
        passed, unserved = _passed_packets(settings, sockets, stack)
        daemon = Daemon(
            Parts(
                settings=settings,
                source=config.source,
                workers=workers,
                loop=loop,
                events=events,
                rules=rules,
                loaded=loaded,
                read=read,
                ledger=ledger,
                notifier=Notifier(),
                open_more=lambda daemon: open_endpoints(settings, daemon, loop, events, notes),
                jumps=LegacyTables(sockets, fallback=settings.fail_mode == "kernel-drop").jumps,
                raw_rules=partial(raw_rules, settings.queue_numbers, copy),
                passed=passed,
                unserved=unserved,
                survey=None if survey is None else partial(survey, settings.queue_numbers, copy),
                keep=None if last_good_at is None else partial(last_good.save, last_good_at),
                refused="" if refused is None else str(refused),
                last_good=last_good_of,
            )
        )
        daemon.run()
        return daemon.interrupted


def _passed_packets(
    settings: Settings, sockets: Sequence[socket.socket], stack: ExitStack
) -> tuple[PassedPackets, PassedPackets]:
    """Counters of packets that no queue took, from the kernel's counters that this daemon can read.

    The first is for the fail mode open, in which they passed, the second for the others.

    Args:
        settings: The settings of the daemon.
        sockets: Inherited sockets for legacy iptables, if any.
        stack: Closes the sockets that this function opens.
    """
    through = list(sockets)
    if not through:
        for family in (socket.AF_INET, socket.AF_INET6):
            # The sandbox of a service allows none, and a kernel may lack a family.
            with suppress(OSError):
                own = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                through.append(own)
    legacy = LegacyTables(through)
    try:
        file: CounterFile | None = stack.enter_context(CounterFile())
    except OSError:
        file = None

    def numbered() -> Numbered | None:
        return None if file is None else numbered_in(file, settings.queue_numbers)

    def queued() -> int | None:
        return queued_packets(legacy)

    return PassedPackets(queued, numbered), PassedPackets(queued, numbered)


def open_log(settings: Settings) -> EventLog:
    """Open the outputs of the log, and the file for the events of packets, if any.

    Raises:
        UsageError: A file cannot be opened.
    """
    recording = _open_recording(settings)
    recorded = eve_octets if settings.log_format == "eve" else json_octets
    with ExitStack() as stack:
        if recording is not None:
            stack.callback(recording.sink.close, 0.0)
        outputs: list[Output] = []
        for name in settings.logs:
            outputs.append(_open_output(name, settings.log_format))
            stack.callback(outputs[-1].sink.close, 0.0)
        stack.pop_all()
    return EventLog(outputs, recording, recorded)


def _open_output(name: str, log_format: str) -> Output:
    auto = log_format == "auto"
    if name == JOURNAL or (name == STDOUT and auto and stdout_is_the_journal()):
        if not SOCKET.exists():
            # Its lines wait for the socket; nothing else would say so.
            sys.stderr.write(f"nfq-guard: daemon.log: {name}: there is no {SOCKET}\n")
        return Output(LineSink(SOCKET, datagrams=True), JournalRenderer(), name)
    if name == STDOUT:
        sys.stdout.flush()
        console = wants_console(log_format, _STDOUT)
        render = Console(colour=wants_colour(_STDOUT)) if console else _RENDERERS[log_format]
        return Output(LineSink(_STDOUT), render, name)
    try:
        return Output(LineSink(Path(name)), _RENDERERS[log_format], name)
    except OSError as error:
        raise for_operator(UsageError, f"daemon.log: {name} cannot be opened", error) from None


def _open_recording(settings: Settings) -> Recording | None:
    path = settings.events_file
    if not path:
        return None
    try:
        return Recording(Path(path), settings.events_file_max_bytes)
    except OSError as error:
        text = f"daemon.events_file: {path} cannot be opened"
        raise for_operator(UsageError, text, error) from None


def _load_ahead(settings: Settings) -> dict[int, Program | str]:
    """The BPF program of each queue, or why there is none; empty if only a pinned one can run."""
    if not capabilities.has(capabilities.BPF) or settings.evidence not in {"auto", "bpf"}:
        return {}
    numbers = settings.queue_numbers
    loaded = load_ahead(len(numbers))
    if isinstance(loaded, str):
        return dict.fromkeys(numbers, loaded)
    return dict(zip(numbers, loaded, strict=True))


def _turn_log_on(
    settings: Settings, instance: str, ahead: dict[int, Program | str], stack: ExitStack
) -> list[str]:
    """Turn the kernel's log on if the settings or the lack of a window require it.

    A daemon that is not root's leaves that to `nfq-guard prepare`.

    Args:
        settings: The settings of the daemon.
        instance: Its name.
        ahead: The BPF programs that were loaded, or why none was.
        stack: Restores the sysctls when it closes.

    Returns:
        Why the kernel does not log although it should; empty if it does or need not.
    """
    wanted = settings.evidence == "kernel-log" or (
        settings.evidence == "auto" and any(isinstance(each, str) for each in ahead.values())
    )
    if not wanted or os.geteuid() != 0 or len(settings.queue_numbers) > 1:
        return []
    try:
        log_settings.turn_on(instance)
    except NfqGuardError as error:
        return [str(error)]
    stack.callback(log_settings.turn_off, instance)
    return []


def _descriptors(ahead: Program | str | None, recording: Recording | None) -> set[int]:
    """The open descriptors of the daemon that a worker process needs."""
    of_program = set(ahead.descriptors) if isinstance(ahead, Program) else set()
    return of_program if recording is None else of_program | {recording.sink.fileno()}


def _opener(
    settings: Settings,
    queue_num: int,
    mode: Mode,
    instance: str,
    page: Page,
    ahead: Program | str | None,
) -> Open:
    """A function that opens a queue in `mode`, called by a worker process after the fork."""
    current = msgspec.structs.replace(settings, mode=mode)

    def open_it(
        loaded: LoadedPolicy, events: EventLog, loop: Loop, notes: list[str]
    ) -> QueueServer:
        return open_queue(
            current, queue_num, loaded.policy, events, loop, notes, instance, page, ahead
        )

    return open_it


def open_endpoints(
    settings: Settings, daemon: ObservedDaemon, loop: Loop, events: EventLog, notes: list[str]
) -> Callable[[], None]:
    """Open the control socket, the metrics endpoint and the metrics file: all of them or none.

    Returns a stack that closes them in reverse order.

    Raises:
        NfqGuardError: One of them cannot be opened.
    """
    with ExitStack() as stack:
        _open_control(settings, daemon, loop, events, notes, stack)
        for note in notes:
            events.emit(Note(text=note))
        _open_metrics(settings, daemon, loop, events, stack)
        return stack.pop_all().close


def _open_control(
    settings: Settings,
    daemon: ObservedDaemon,
    loop: Loop,
    events: EventLog,
    notes: list[str],
    stack: ExitStack,
) -> None:
    if not settings.control_socket:
        return
    path = Path(settings.control_socket)
    listener = listen(path, notes)
    if listener is not None:
        commands = Commands(daemon, path.stat().st_gid)

        def restored() -> None:
            events.emit(ControlSocketRestored(path=str(path)))

        failed = log_failed_housekeeping(events)
        stack.callback(ControlServer(listener, path, loop, commands, restored, failed).close)


def _open_metrics(
    settings: Settings, daemon: ObservedDaemon, loop: Loop, events: EventLog, stack: ExitStack
) -> None:
    listeners = take_sockets(METRICS)
    for listener in listeners:
        stack.callback(listener.close)
    address = parse_listen(settings.metrics_listen)
    if address is not None:
        try:
            listeners.append(listen_http(*address))
            if os.environ.get(UNDER_SYSTEMD) and not only_from_here(settings):
                text = f"{settings.metrics_listen} is {_LISTEN_NOTE}"
                events.emit(Note(text=text))
        except OSError as error:
            more = ""
            if error.errno == errno.EAFNOSUPPORT:
                more = "; the service may open no such sockets unless its unit has metrics.conf"
            text = f"daemon.metrics_listen: {settings.metrics_listen}"
            raise for_operator(UsageError, text, error, more=more) from None
        stack.callback(listeners[-1].close)
    if not listeners and not settings.metrics_file:
        return
    exposition = Exposition(daemon.observed(time.monotonic()))

    def observe(now: float) -> None:
        exposition.observed = daemon.observed(now)

    loop.every(_OBSERVE_S, observe)
    for listener in listeners:
        stack.callback(MetricsServer(listener, exposition).close)
    if settings.metrics_file:
        try:
            file = MetricsFile(
                exposition,
                Path(settings.metrics_file),
                lambda problem: events.emit(MetricsFileFailed(problem=problem)),
            )
        except OSError as error:
            text = f"daemon.metrics_file: {settings.metrics_file}"
            raise for_operator(UsageError, text, error) from None
        stack.callback(file.close)
        try:
            file.write()  # no packet is queued yet
        except OSError as error:
            file.wrote(error)
        loop.every(
            _METRICS_FILE_S,
            lambda _now: loop.background(file.write, file.wrote, file.wrote),
        )
