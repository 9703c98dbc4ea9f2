# SPDX-License-Identifier: MIT
"""Opens all parts that serve one queue, in the process that serves it."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.engine import Engine, Mode
from nfq_guard.flow import Evidence
from nfq_guard.flows.libbpf import Program
from nfq_guard.flows.log_settings import SYSCTLS
from nfq_guard.flows.source import EvidenceSource
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.decision import Policy
from nfq_guard.service.firewall_spec import unjudged_mark
from nfq_guard.service.ledger import Left, Page
from nfq_guard.service.loop import Loop
from nfq_guard.service.passed_sockets import QueueKeeper
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker.capture_files import CaptureFiles
from nfq_guard.service.worker.evidence import EvidenceFollower
from nfq_guard.service.worker.heal import heals, open_healer
from nfq_guard.service.worker.history import History
from nfq_guard.service.worker.offload import open_offloader
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.service.worker.pods import PodFiles, PodFollower
from nfq_guard.service.worker.queue_server import KeptPackets, QueueServer
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.events import Event
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats

# Interval at which they are read again: an operator may change them while the daemon runs.
_SYSCTLS_S: Final = 1.0


def open_queue(
    settings: Settings,
    queue_num: int,
    policy: Policy,
    events: EventLog,
    loop: Loop,
    notes: list[str],
    instance: str,
    page: Page,
    ahead: Program | str | None = None,
    keeper: QueueKeeper | None = None,
    left: Left | None = None,
) -> QueueServer:
    """Bind a queue and open all parts that judging needs; if a step fails, undo all steps.

    Args:
        settings: The settings of the daemon, with the initial mode.
        queue_num: Number of the queue.
        policy: The initial policy.
        events: The log of events.
        loop: The loop that will serve the queue.
        notes: Takes one line for each feature that this host lacks.
        instance: The daemon's name, by which its BPF program is pinned.
        page: The page of the queue.
        ahead: As `open_lookup` takes it.
        keeper: Keeps the queue bound across a restart of the service; None without one.
        left: What the process left that the queue may be taken over from.

    Raises:
        NfqGuardError: The queue cannot be bound, or a kernel feature that is required is missing.
    """
    fail_open = settings.fail_mode == "open"
    with ExitStack() as stack:
        source = EvidenceSource(
            settings.evidence,
            zones=settings.zones,
            instance=instance,
            ahead=ahead,
            queues=len(settings.queue_numbers),
        )
        stack.callback(source.close)
        if source.note is not None:
            notes.append(source.note)
        if source.evidence is not Evidence.BPF and heals(policy):
            notes.append("rules that heal never match: a heal takes the kernel's window")
        reader = QueueReader(
            queue_num,
            queue_length=settings.queue_length,
            copy_bytes=settings.copy_bytes,
            socket_buffer_bytes=settings.socket_buffer_bytes,
            fail_open=fail_open or settings.mode is Mode.DRY_RUN,
            kept=None if keeper is None else keeper.kept,
        )
        stack.callback(reader.close)
        if reader.taken_over:
            page.still_bound()
        engine = Engine(
            policy=policy,
            flows=source.flows,
            log=source.log,
            mode=settings.mode,
            kernel=rules_of(os.uname().release),
            sysctls=_sysctls(),
            drops_failures=not fail_open,
            unjudged_mark=unjudged_mark(settings),
        )
        stats = Stats()
        history = History()
        ring = PacketRing(settings.capture_packets)
        # The last step that can fail: what follows need not be undone.
        offloader = open_offloader(settings, engine, stats, events)
        worker = Worker(
            reader=reader,
            verdicts=VerdictSender(reader.socket, queue_num),
            judge=engine,
            stats=stats,
            events=events,
            limiter=EventLimiter(
                interval_s=settings.log_interval_s, events_per_s=settings.log_events_per_s
            ),
            budget=settings.batch,
            history=history,
            log_allowed=settings.log_allowed,
            offloader=offloader,
            ring=ring,
            healer=open_healer(settings, queue_num, engine, stats, events),
            page=page,
            left=left,
        )
        loop.every(_SYSCTLS_S, lambda _: _reread(engine))
        pods = None
        if settings.pods_dir:
            # Of several processes, only one reports what it cannot read.
            says = queue_num == settings.queue_numbers[0]
            pods = PodFollower(
                PodFiles(Path(settings.pods_dir)).read,
                worker.set_pods,
                events.emit if says else _say_nothing,
                stats.gauges,
                loop,
            )
        files = None
        if settings.capture_dir:
            files = CaptureFiles(
                Path(settings.capture_dir),
                queue_num,
                ring,
                stats,
                loop,
                events.emit,
                alert_packets=settings.capture_alert_packets,
                files_max=settings.capture_files,
                payload=settings.capture_payload,
                hash_addresses=settings.capture_hash_addresses,
            )
        return QueueServer(
            reader,
            worker,
            history,
            EvidenceFollower(source, engine, stats, queue_num, events, loop),
            events,
            loop,
            fail_open=fail_open,
            packets=KeptPackets(ring, files, payload=settings.capture_payload),
            keeper=keeper,
            pods=pods,
            opened=stack.pop_all(),
        )


def _say_nothing(_event: Event) -> None:
    return


def _reread(engine: Engine) -> None:
    engine.sysctls = _sysctls()


def _sysctls() -> Sysctls:
    """The sysctls of this network namespace that a diagnosis depends on.

    A sysctl that cannot be read counts as the kernel's default.
    """
    return Sysctls(
        loose=_is_set("nf_conntrack_tcp_loose", default=True),
        checksum=_is_set("nf_conntrack_checksum", default=True),
        ignore_invalid_rst=_is_set("nf_conntrack_tcp_ignore_invalid_rst", default=False),
    )


def _is_set(name: str, *, default: bool) -> bool:
    try:
        return (SYSCTLS / name).read_text(encoding="ascii").strip() != "0"
    except OSError:
        return default
