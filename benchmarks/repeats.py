# SPDX-License-Identifier: MIT
"""Cost of a flood of repeats that the guard offloads to the kernel, against a plain DROP rule.

Each mitigation has a site of its own, and all sites exist at the same time. The same flood passes
one site after another, round after round: segments far beyond the window of a translated flow, as
fast as the sender can send. CPU time is that of the sender (which includes most of the kernel's
work), of the kernel's softirq threads, and of the guard. The same measurement with valid segments
of one flow gives the cost of the guard's rules for valid packets.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import contenders, frames, machine
from benchmarks.rows import Results
from benchmarks.site import INVALID, REPO, ROUTER_OUTSIDE, Site, queued, wait_until_drained
from nfq_guard.firewall.offload import TABLE

SECTION: Final = "repeats"
DROP: Final = "DROP in PREROUTING"
ENFORCE: Final = "guard, enforce"
OFFLOAD: Final = "guard with offload"
REPEAT: Final = "CPU a repeat"
VALID: Final = "CPU a valid packet"
_FLOWS: Final = 10
_READY_S: Final = 10
# Slow enough for a guard that judges each packet, and enough packets to trigger the offload.
_WARM_PPS: Final = 5_000
_WARM_UP: Final = 1_000


@dataclass(slots=True)
class _Place:
    """A site with its mitigation in force.

    Attributes:
        name: The mitigation.
        site: Its site.
        pid: The guard's pid; 0 for none.
        softirq: The kernel's softirq threads.
    """

    name: str
    site: Site
    pid: int = 0
    softirq: list[int] = field(default_factory=machine.softirq_threads)

    def cost(self, path: Path, count: int) -> float:
        """CPU time in microseconds per packet of a flood of `count` from the server's side.

        Raises:
            RuntimeError: More than a hundredth of them was queued, so the kernel did not drop the
                flood by itself.
        """
        had = self._queued()
        before = self._used()
        # Moving between CPUs would cost a quarter of a packet's time, whichever side drops it.
        run = self.site.generate(self.site.server, path, count, cpu=0)
        if self.pid:
            wait_until_drained(self.pid)
        cost = (self._used() - before + run.cpu_s) / run.sent * 1e6
        came = self._queued() - had
        if came > run.sent / 100:
            raise RuntimeError(f"{self.name}: {came} of {run.sent} packets were queued")
        return cost

    def _queued(self) -> int:
        """Packets that the guard's queue has received."""
        return queued(self.pid) if self.pid else 0

    def _used(self) -> float:
        used = machine.family_seconds(self.pid) if self.pid else 0.0
        return used + sum(map(machine.cpu_seconds, self.softirq))


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    # Many short rounds, because other load changes from one second to the next.
    rounds, count = (3, 50_000) if quick else (31, 100_000)
    with ExitStack() as stack:
        places: list[_Place] = []
        for name in (DROP, ENFORCE, OFFLOAD):
            place = _Place(name, stack.enter_context(Site()))
            _prepare(place)
            places.append(place)
        for number in range(rounds):
            for place in places:
                site = place.site
                repeats = site.seq_over(_FLOWS, translated=True)
                site.generate(site.server, repeats, _WARM_UP, pps=_WARM_PPS)
                # A guard that judges every packet cannot keep up with the sender.
                if place.name != ENFORCE:
                    results.add(SECTION, place.name, REPEAT, "us", place.cost(repeats, count))
                valid = _valid(site)
                results.add(SECTION, place.name, VALID, "us", place.cost(valid, count // 2))
            say(f"repeats: round {number + 1} of {rounds}")


def _prepare(place: _Place) -> None:
    site = place.site
    site.translate()
    if place.name == DROP:
        site.iptables("-t", "mangle", "-A", "PREROUTING", *INVALID, "-j", "DROP")
    else:
        process = contenders.start(site, _guard(place.name), 0)
        place.pid = process.pid
        _await_rules(place)
    # Valid packets end here, because the receiving host has no socket for them.
    site.iptables("-t", "filter", "-A", "FORWARD", "-o", "inside", "-j", "DROP")
    site.open_flows(_FLOWS, translated=True)


def _guard(name: str) -> contenders.Contender:
    """Start the guard with its own rules, as an operator runs it."""
    tree = contenders.COMPILED if contenders.COMPILED.exists() else REPO

    def words(site: Site, queue_num: int) -> list[str]:
        offload = "offload = true" if name == OFFLOAD else ""
        policy = contenders.OFFLOADABLE
        config = contenders.configuration(site, queue_num, daemon=offload, policy=policy)
        return [
            sys.executable,
            "-m",
            "nfq_guard",
            "run",
            "--config",
            str(config),
            "--mode",
            "enforce",
        ]

    return contenders.Contender(name=name, words=words, path=str(tree))


def _await_rules(place: _Place) -> None:
    deadline = time.monotonic() + _READY_S
    router = place.site.router
    while True:
        laid = "NFQUEUE" in router.run("iptables-save").stdout
        if place.name == OFFLOAD:
            laid = laid and TABLE in router.run("nft", "list", "tables").stdout
        if laid:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the guard has not installed its rules")
        time.sleep(0.05)


def _valid(site: Site) -> Path:
    """Valid frames of a flow, which repeat an earlier acknowledgment."""
    path = site.directory / "valid"
    if not path.exists():
        far, near = frames.address("10.210.0.1"), frames.address(ROUTER_OUTSIDE)
        isn = 1000
        segment = frames.segment(
            site.from_server, far, near, 8080, 10_000, isn + 1, isn + 1, frames.ACK
        )
        frames.write(path, [segment])
    return path
