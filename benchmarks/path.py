# SPDX-License-Identifier: MIT
"""The packet path: the cost of one INVALID packet in each program that reads a queue.

Every program has a queue of its own from the start. The rule that queues packets is directed to one
program after another, round after round, so that other load on the machine affects all alike. The
packets are the same: far beyond the window of flows that the router tracks. A rule in FORWARD
counts and drops accepted packets, so that the packets of all programs take the same path.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import contenders, machine
from benchmarks.contenders import Contender
from benchmarks.rows import Results
from benchmarks.site import INVALID, Site, lost, wait_until_drained

SECTION: Final = "path"
SATURATED: Final = "saturated"
PACED: Final = "at 10,000 pps"
TRANSLATED: Final = "saturated, translated flows"
PACED_PPS: Final = 10_000
FLOWS: Final = 1000
# Saturated: bounds of the number of packets that wait in the queue. The lower one is well over a
# batch, the upper one fits into the default socket buffer.
BACKLOG: Final = (128, 240)
_WARM_UP: Final = 2000


class Cost(NamedTuple):
    """The measured cost of a run.

    Attributes:
        process_us: CPU time of the program itself per packet.
        all_us: The same, including the sender and the kernel's softirq threads.
        pps: Verdicts per second.
    """

    process_us: float
    all_us: float
    pps: float


class Arena:
    """A site with contenders on their own queues, and the rule that feeds one of them."""

    def __init__(self, site: Site, say: Callable[[str], None]) -> None:
        """Install the rules; `say` reports progress."""
        self.site = site
        self._say = say
        self._running: dict[str, tuple[int, subprocess.Popen[str]]] = {}
        self._next_queue = 1
        self._share: dict[str, float] = {}
        site.iptables("-t", "mangle", "-A", "PREROUTING", *INVALID)
        site.iptables("-t", "mangle", "-A", "FORWARD", *INVALID, "-j", "DROP")
        self._softirq = machine.softirq_threads()

    def enter(
        self, contender: Contender, results: Results, section: str, *, queues_in_all: int = 1
    ) -> bool:
        """Start a contender; if it cannot run, record a row with the reason."""
        if contender.missing:
            results.missing(section, contender.name, contender.missing)
            return False
        queue_num = self._next_queue
        try:
            process = contenders.start(self.site, contender, queue_num)
        except RuntimeError as error:
            results.missing(section, contender.name, str(error))
            return False
        # opensnitch also binds the next queue.
        self._next_queue += max(2, queues_in_all)
        if queues_in_all == 1:
            machine.pin(process.pid, 1)
        self._running[contender.name] = queue_num, process
        self._share[contender.name] = contender.share
        return True

    def leave(self, name: str) -> None:
        """Stop a contender."""
        self.site.end(self._running.pop(name)[1])

    def process(self, name: str) -> subprocess.Popen[str]:
        """Pid of a contender."""
        return self._running[name][1]

    def feed(self, name: str | None, *, queues_in_all: int = 1) -> None:
        """Direct the rule to a contender's queues, to DROP (`kernel DROP`), or to no target."""
        if name is None:
            target: tuple[str, ...] = ()
        elif name == contenders.KERNEL_DROP:
            target = ("-j", "DROP")
        elif queues_in_all > 1:
            first = self._running[name][0]
            span = f"{first}:{first + queues_in_all - 1}"
            target = ("-j", "NFQUEUE", "--queue-balance", span)
        else:
            target = ("-j", "NFQUEUE", "--queue-num", str(self._running[name][0]))
        self.site.iptables("-t", "mangle", "-R", "PREROUTING", "1", *INVALID, *target)

    def cost(
        self,
        name: str,
        frames: Path,
        count: int,
        *,
        pps: int = 0,
        from_server: bool = False,
        backlog: tuple[int, int] = BACKLOG,
        queues_in_all: int = 1,
    ) -> Cost:
        """Send packets to a contender and measure its CPU time.

        Args:
            name: The contender.
            frames: File of the frames to send.
            count: How many packets.
            pps: Packets a second; 0 keeps `backlog` packets waiting.
            from_server: Whether to send from the server's side.
            backlog: Lower and upper bound of the waiting packets.
            queues_in_all: Number of queues that the contender serves.

        Raises:
            RuntimeError: Packets were lost or not queued, so there is no figure.
        """
        site = self.site
        sender = site.server if from_server else site.client
        share = self._share.get(name, 1.0)
        count, warm_up = int(count * share), int(_WARM_UP * share)
        self.feed(name, queues_in_all=queues_in_all)
        site.iptables("-t", "mangle", "-Z", "PREROUTING")
        if name == contenders.KERNEL_DROP:
            site.generate(sender, frames, warm_up, pps=pps)
            before = self._softirq_time()
            run = site.generate(sender, frames, count, pps=pps)
            spent = self._softirq_time() - before
            self._check(name, run.sent + warm_up)
            return Cost(0.0, (run.cpu_s + spent) / run.sent * 1e6, run.sent / run.seconds)
        pid = self._running[name][1].pid
        kept = None if pps else (pid, *backlog)
        site.generate(sender, frames, warm_up, pps=pps, backlog=kept)
        wait_until_drained(pid)
        dropped = lost(pid)
        spent = -self._softirq_time()
        used = -machine.family_seconds(pid)
        run = site.generate(sender, frames, count, pps=pps, backlog=kept)
        wait_until_drained(pid)
        used += machine.family_seconds(pid)
        spent += self._softirq_time()
        self._check(name, run.sent + warm_up)
        if lost(pid) != dropped:
            raise RuntimeError("the queue or its socket buffer overflowed")
        everything = used + spent + run.cpu_s
        return Cost(used / run.sent * 1e6, everything / run.sent * 1e6, run.sent / run.seconds)

    def _check(self, name: str, expected: int) -> None:
        met = self.site.counted("mangle", "PREROUTING")
        if met != expected:
            raise RuntimeError(f"{met} of {expected} packets were INVALID and met the rule")
        self._say(f"{name}: {met} packets")

    def _softirq_time(self) -> float:
        return sum(map(machine.cpu_seconds, self._softirq))


def field(*, quick: bool) -> list[Contender]:
    """The contenders."""
    some = [
        contenders.c_program(),
        contenders.guard(compiled=True),
        contenders.guard(compiled=False),
        *contenders.python_peers(),
    ]
    return some if quick else [*some, contenders.opensnitch()]


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    rounds, count = (3, 10_000) if quick else (7, 20_000)
    with Site() as site:
        arena = Arena(site, say)
        names = [
            contender.name
            for contender in field(quick=quick)
            if arena.enter(contender, results, SECTION)
        ]
        # opensnitch empties the flow table some time after it has started.
        time.sleep(3 if contenders.OPENSNITCH in names else 0.2)
        site.open_flows(FLOWS)
        frames = site.seq_over(FLOWS)
        for _ in range(rounds):
            for name in [contenders.KERNEL_DROP, *names]:
                _once(arena, results, name, SATURATED, frames, count)
            for name in names:
                used = machine.memory_mb(arena.process(name).pid)
                results.add(SECTION, name, "memory after each round", "MB", used)
        for _ in range(max(2, rounds // 2)):
            for name in [contenders.KERNEL_DROP, *names]:
                _once(arena, results, name, PACED, frames, count // 2, pps=PACED_PPS)
    _translated(results, say, rounds, count)


def _once(
    arena: Arena,
    results: Results,
    name: str,
    how: str,
    frames: Path,
    count: int,
    *,
    pps: int = 0,
    from_server: bool = False,
) -> None:
    try:
        cost = arena.cost(name, frames, count, pps=pps, from_server=from_server)
    except (RuntimeError, TimeoutError) as error:
        results.add(SECTION, name, f"CPU a packet, {how}", "us", note=str(error))
        return
    if name != contenders.KERNEL_DROP:
        results.add(SECTION, name, f"CPU a packet, {how}", "us", cost.process_us)
    results.add(SECTION, name, f"CPU a packet with the sender, {how}", "us", cost.all_us)


def _translated(results: Results, say: Callable[[str], None], rounds: int, count: int) -> None:
    """The case that the guard is for: the flow is translated and the verdict is drop."""
    some: Sequence[Contender] = (
        contenders.c_program(drop=True),
        contenders.guard(compiled=True),
        contenders.guard(compiled=False),
    )
    with Site() as site:
        arena = Arena(site, say)
        site.translate()
        names = [one.name for one in some if arena.enter(one, results, SECTION)]
        site.open_flows(FLOWS, translated=True)
        frames = site.seq_over(FLOWS, translated=True)
        time.sleep(0.2)
        for _ in range(rounds):
            for name in names:
                _once(arena, results, name, TRANSLATED, frames, count, from_server=True)
