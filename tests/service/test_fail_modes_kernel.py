# SPDX-License-Identifier: MIT
"""The fate of real INVALID packets that are not judged, counted.

The policy accepts every packet, so what does not arrive was dropped by the fail mode or by the
kernel. `systemd/README.md` describes these results in words.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_guard.engine import Mode
from nfq_guard.firewall import FailMode
from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import QueueCounters, parse
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import Settings
from nfq_guard.telemetry.reader import EventReader
from tests.support.overrun import PLAIN, REDIRECTED, Connection, Overrun
from tests.support.queue import GuardProcess, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

SENT = 60
QUEUE_LENGTH = 200
RATE_PPS = 100
POLICY = '[policy]\ndefault = "log"\non_unknown = "log"\n'
_QUEUED = re.compile(r"^\[(\d+):\d+\] -A NFQ_GUARD .*-j NFQUEUE", re.MULTILINE)
MODES = pytest.mark.parametrize("mode", list(FailMode))


class Faulty:
    """A guarded host with the daemon, and a peer with two live connections to overrun."""

    def __init__(self, peer: Namespace, host: Namespace, directory: Path) -> None:
        self.overrun = Overrun(peer, host)
        self.host = host
        self._directory = directory
        self._connections: list[Connection] = []

    def start(self, mode: FailMode, *lines: str, control_socket: str = "") -> GuardProcess:
        config = self._directory / "c.toml"
        head = ["[daemon]", 'mode = "enforce"', f'fail_mode = "{mode}"', 'backend = "nft"']
        head += [f'control_socket = "{control_socket}"']
        head += [f"queue_length = {QUEUE_LENGTH}", *lines]
        config.write_text("\n".join(head) + "\n" + POLICY)
        guard = GuardProcess(self.host, self._directory / "log", "--config", str(config)).ready()
        if not self._connections:
            self._connections = [self.overrun.connect(port) for port in (PLAIN, REDIRECTED)]
        return guard

    def send(self, count: int) -> None:
        self.overrun.overrun(self._connections, count)

    def arrived(self) -> int:
        return self.overrun.arrived()

    def line(self) -> QueueCounters:
        return self.lines()[0]

    def lines(self) -> dict[int, QueueCounters]:
        return parse(self.host.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout)

    def idle(self) -> bool:
        return all(line.waiting == 0 for line in self.lines().values())

    def queued(self) -> int:
        """The packets that the rules have led to a queue, of both families."""
        commands = ("iptables-nft-save", "ip6tables-nft-save")
        saved = "".join(self.host.run(command, "-c").stdout for command in commands)
        return sum(int(count) for count in _QUEUED.findall(saved))


@pytest.fixture
def faulty(namespace: Make, tmp_path: Path) -> Iterator[Faulty]:
    one = Faulty(namespace("peer"), namespace("host"), tmp_path)
    yield one
    one.overrun.close()


@MODES
def test_killed(faulty: Faulty, mode: FailMode) -> None:
    """Packets in the queue are dropped in every mode; later ones are treated by the fail mode."""
    with faulty.start(mode) as guard:
        faulty.send(SENT)
        wait_for(faulty.idle)
        assert faulty.arrived() == SENT
        guard.process.send_signal(signal.SIGSTOP)
        faulty.send(SENT)
        wait_for(lambda: faulty.line().waiting == SENT)
        guard.process.kill()
        guard.process.wait(timeout=60)
        assert faulty.arrived() == 0
        faulty.send(SENT)
        assert faulty.arrived() == (SENT if mode is FailMode.OPEN else 0)


def test_what_passes_while_workers_are_replaced_is_counted(faulty: Faulty) -> None:
    """The delay of a restart grows with each end, so that all packets come within the last one."""
    with faulty.start(FailMode.OPEN, 'queues = "0-1"') as guard:
        (started,) = guard.events("started")
        pids = started["pids"]
        for ended in range(2, 12, 2):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(guard.events("worker_ended")) == ended)  # noqa: B023 - called here
            if ended < 10:
                wait_for(lambda: len(guard.events("worker_restarted")) == ended)  # noqa: B023 - as above
                pids = [one["pid"] for one in guard.events("worker_restarted")[-2:]]
        faulty.send(SENT)
        assert faulty.arrived() == SENT
        wait_for(lambda: len(guard.events("worker_restarted")) == 10)
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    # As in `test_stopped`.
    assert stopped["packets"] == 0
    assert stopped["queue_full_passes"] == SENT + SENT // 2
    told = guard.events("kernel_passed_packets")
    assert sum(one["since_last"] for one in told) == SENT + SENT // 2


@pytest.mark.parametrize("mode", [FailMode.CLOSED, FailMode.KERNEL_DROP])
def test_what_is_dropped_while_a_worker_is_replaced_is_counted(
    faulty: Faulty, tmp_path: Path, mode: FailMode
) -> None:
    """Also in the recording."""
    recording = tmp_path / "events.jsonl"
    with faulty.start(mode, 'queues = "0-1"', f'events_file = "{recording}"') as guard:
        (started,) = guard.events("started")
        for pid in started["pids"]:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(guard.events("worker_ended")) == 2)
        faulty.send(SENT)
        wait_for(lambda: len(faulty.lines()) == 2)
        assert faulty.arrived() == 0
        wait_for(lambda: len(guard.events("packets_unserved")) > 0)
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert (stopped["unserved_drops"], stopped["queue_full_passes"]) == (SENT, 0)
    assert stopped["packets"] == stopped["queue_full_drops"] == 0
    assert sum(one["packets"] for one in guard.events("packets_unserved")) == SENT
    reader = EventReader()
    with recording.open("rb") as stream:
        assert list(reader.read(stream)) == []
    assert reader.unrecorded.unjudged == SENT


def test_what_passes_is_counted_where_another_worker_ends_next(faulty: Faulty) -> None:
    """The end of a worker begins the count anew; what passed the queue of the other one stays."""
    rounds = 3
    each = SENT + SENT // 2  # as in `test_stopped`
    with faulty.start(FailMode.OPEN, 'queues = "0-1"') as guard:
        (started,) = guard.events("started")
        pids = started["pids"]
        faulty.send(SENT)
        wait_for(lambda: sum(line.last_id for line in faulty.lines().values()) == each)
        busy = next(number for number, line in faulty.lines().items() if line.last_id)
        time.sleep(0.5)  # until its worker has reported them
        for ended in range(0, 2 * rounds, 2):
            os.kill(pids[busy], signal.SIGKILL)
            wait_for(lambda: len(guard.events("worker_ended")) == ended + 1)  # noqa: B023 - called here
            faulty.send(SENT)
            wait_for(lambda: len(faulty.lines()) == 2)
            time.sleep(0.05)  # until the daemon has its report
            os.kill(pids[1 - busy], signal.SIGKILL)
            wait_for(lambda: len(guard.events("worker_restarted")) == ended + 2)  # noqa: B023 - as above
            wait_for(lambda: len(faulty.lines()) == 2)
            for one in guard.events("worker_restarted")[-2:]:
                pids[one["queue"]] = one["pid"]
            time.sleep(0.5)  # as above
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert stopped["queue_full_passes"] > each
    assert stopped["packets"] + stopped["queue_full_passes"] == (rounds + 1) * each


@pytest.mark.parametrize("mode", [FailMode.OPEN, FailMode.CLOSED])
def test_what_waits_for_a_worker_that_hangs_is_counted(faulty: Faulty, mode: FailMode) -> None:
    """The kernel drops it with the queue, in every mode, once the daemon kills the worker."""
    with faulty.start(mode, 'queues = "0-1"') as guard:
        faulty.send(SENT)
        wait_for(lambda: len(faulty.lines()) == 2 and faulty.idle())
        busy = next(number for number, line in faulty.lines().items() if line.last_id)
        (started,) = guard.events("started")
        os.kill(started["pids"][busy], signal.SIGSTOP)
        faulty.send(SENT)
        assert (waiting := faulty.lines()[busy].waiting) >= SENT
        wait_for(lambda: len(guard.events("worker_restarted")) == 1)
        wait_for(lambda: len(faulty.lines()) == 2)
        queued = faulty.queued()
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert stopped["unserved_drops"] == waiting
    assert stopped["packets"] + stopped["unserved_drops"] + stopped["queue_full_passes"] == queued
    assert sum(one["packets"] for one in guard.events("packets_unserved")) == waiting


@MODES
@pytest.mark.parametrize("queues", ["queue = 0", 'queues = "0-1"'])
def test_every_packet_over_a_restart_is_counted(
    faulty: Faulty, tmp_path: Path, mode: FailMode, queues: str
) -> None:
    """Where the rules stay and systemd does not keep the queue."""
    last = 1 if "-" in queues else 0
    settings = Settings(
        mode=Mode.ENFORCE, fail_mode=mode.value, queues=f"0-{last}" if last else "", backend="nft"
    )
    with faulty.host.entered():
        firewall_of(settings).install()
    lines = (queues, 'rules = "keep"')
    for _ in range(3):
        with faulty.start(mode, *lines, control_socket=str(tmp_path / "s")) as guard:
            faulty.send(SENT)
            wait_for(faulty.idle)
            assert guard.stop() == 0
        faulty.send(SENT)  # without a daemon
    with faulty.start(mode, *lines, control_socket=str(tmp_path / "s")) as guard:
        wait_for(faulty.idle)
        before = faulty.queued()
        assert guard.stop() == 0
    ended = guard.events("stopped")
    assert len(ended) == 4
    judged = sum(one["packets"] for one in ended)
    passed = sum(one["queue_full_passes"] for one in ended)
    dropped = sum(one["unserved_drops"] for one in ended)
    # The host itself may send an INVALID packet at any time, such as neighbour discovery.
    assert before <= judged + passed + dropped <= faulty.queued()
    assert (passed if mode is FailMode.OPEN else dropped) >= 3 * SENT
    assert sum(one["since_last"] for one in guard.events("kernel_passed_packets")) == passed
    assert sum(one["packets"] for one in guard.events("packets_unserved")) == dropped
    assert guard.events("unserved_time") == []


def test_a_restart_that_replaces_the_rules_says_for_how_long(
    faulty: Faulty, tmp_path: Path
) -> None:
    """Their counters begin anew, so what came meanwhile is unknown."""
    lines = ['rules = "keep"']

    def install(queues: str) -> None:
        settings = Settings(
            mode=Mode.ENFORCE, fail_mode=FailMode.CLOSED.value, queues=queues, backend="nft"
        )
        with faulty.host.entered():
            firewall_of(settings).install()

    socket = str(tmp_path / "s")
    install("")
    with faulty.start(FailMode.CLOSED, *lines, control_socket=socket) as guard:
        faulty.send(SENT)
        wait_for(faulty.idle)
        assert guard.stop() == 0
    faulty.send(SENT)  # without a daemon
    install("0-1")
    lines += ['queues = "0-1"']
    with faulty.start(FailMode.CLOSED, *lines, control_socket=socket) as guard:
        assert guard.stop() == 0
    (said,) = guard.events("unserved_time")
    assert said["unserved_s"] > 0
    assert guard.events("packets_unserved") == []


@MODES
def test_stopped(faulty: Faulty, mode: FailMode) -> None:
    """A hung daemon holds as many packets as fit in the queue; the fail mode treats the rest."""
    beyond = 150
    with faulty.start(mode) as guard:
        guard.process.send_signal(signal.SIGSTOP)
        faulty.send(QUEUE_LENGTH + beyond)
        wait_for(lambda: faulty.line().waiting == QUEUE_LENGTH)
        assert faulty.arrived() == (beyond if mode is FailMode.OPEN else 0)
        dropped = faulty.line().queue_dropped
        assert dropped == (0 if mode is FailMode.OPEN else beyond)
        guard.process.send_signal(signal.SIGCONT)
        wait_for(faulty.idle)
        assert faulty.arrived() == QUEUE_LENGTH
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    # Every second packet is one of the translated flow, and the RST in answer to it passes too.
    passed = beyond + beyond // 2 if mode is FailMode.OPEN else 0
    assert (stopped["queue_full_passes"], stopped["buffer_full_passes"]) == (passed, 0)
    told = guard.events("kernel_passed_packets")
    assert sum(one["since_last"] for one in told) == passed
    assert bool(told) is (mode is FailMode.OPEN)


@MODES
def test_overloaded(faulty: Faulty, mode: FailMode) -> None:
    """The kernel sheds packets above the rate to the fail mode before they reach the queue."""
    flood = 2000
    with faulty.start(mode, f"max_rate_pps = {RATE_PPS}") as guard:
        faulty.send(flood)
        wait_for(faulty.idle)
        arrived = faulty.arrived()
        assert guard.stop() == 0  # before the next check of the rules
        (stopped,) = guard.events("stopped")
    judged = stopped["reasons"]["seq-over"]
    assert RATE_PPS // 10 <= judged < flood // 2
    assert arrived == (flood if mode is FailMode.OPEN else judged)
    assert stopped["queue_full_drops"] == stopped["buffer_full_drops"] == 0
    # INVALID packets of the host itself count too: neighbour discovery, and the RST in answer to a
    # packet of the translated flow that passed untranslated.
    assert stopped["shed_packets"] >= flood - judged
    shed = guard.events("packets_shed")
    assert sum(one["packets"] for one in shed) == stopped["shed_packets"]
    assert (stopped["unjudged_drops"] >= flood - judged) is (mode is FailMode.KERNEL_DROP)


@pytest.mark.parametrize("changed", [False, True])
def test_packets_above_the_rate_are_counted_once(
    faulty: Faulty, tmp_path: Path, *, changed: bool
) -> None:
    """Also by daemons that find the rules of the one before, which was killed, or replace them."""
    config = tmp_path / "c.toml"
    lines = ["[daemon]", 'mode = "enforce"', f'control_socket = "{tmp_path}/s"']
    lines += [f"max_rate_pps = {RATE_PPS}", "verify_rules_s = 0.5"]
    config.write_text("\n".join(lines) + "\n" + POLICY)
    words = ("--config", str(config))
    connections: list[Connection] = []
    for earlier in range(3):
        if changed:
            mode = FailMode.KERNEL_DROP if earlier % 2 else FailMode.OPEN
            config.write_text("\n".join([*lines, f'fail_mode = "{mode}"']) + "\n" + POLICY)
        with GuardProcess(faulty.host, tmp_path / "log", *words).ready() as guard:
            connections = connections or [faulty.overrun.connect(PLAIN)]
            faulty.overrun.overrun(connections, 500)
            wait_for(lambda: len(guard.events("packets_shed")) > earlier)  # noqa: B023 - called here
            guard.process.kill()
            guard.process.wait(timeout=60)
    with GuardProcess(faulty.host, tmp_path / "log", *words).ready() as guard:
        assert guard.stop(is_quiet=False) == 0
    shed = sum(one["packets"] for one in guard.events("packets_shed"))
    assert 1000 < shed < 1500
    assert not (tmp_path / "s.ledger").exists()
