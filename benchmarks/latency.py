# SPDX-License-Identifier: MIT
"""Latency added to a judged packet, at 10,000 packets a second.

The receiver takes the time at which the kernel handed the packet to the far interface, by the same
clock. The path without a queue is measured in the same rounds. The added latency is each percentile
minus the median of that path, so that the jitter of the path counts against the queue.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.path import FLOWS, PACED_PPS, Arena
from benchmarks.rows import Results, percentile
from benchmarks.site import BUILD, FAR_PORT, INVALID, Site

SECTION: Final = "latency"
NO_QUEUE: Final = "no queue"
_PERCENTILES: Final = (("median", 50.0), ("p99", 99.0), ("p99.9", 99.9))


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    rounds, count = (3, 10_000) if quick else (5, 20_000)
    with Site() as site:
        arena = Arena(site, say)
        site.iptables("-t", "mangle", "-R", "FORWARD", "1", *INVALID)
        names = [
            one.name
            for one in (
                contenders.c_program(),
                contenders.guard(compiled=True),
                contenders.guard(compiled=False),
            )
            if arena.enter(one, results, SECTION)
        ]
        site.open_flows(FLOWS)
        # The payload is a timestamp of eight bytes; the segment is far beyond the window.
        frames = site.seq_over(FLOWS, payload=8)
        for name in names:
            arena.feed(name)
            site.generate(site.client, frames, PACED_PPS // 2, pps=PACED_PPS)
        for _ in range(rounds):
            plain = _delays(arena, None, frames, count)
            floor = percentile(plain, 50) / 1000
            for label, percent in _PERCENTILES:
                results.add(SECTION, NO_QUEUE, label, "us", percentile(plain, percent) / 1000)
            for name in names:
                delays = _delays(arena, name, frames, count)
                say(f"latency, {name}: {len(delays)} of {count} packets arrived")
                results.add(SECTION, name, "lost", "packets", count - len(delays))
                for label, percent in _PERCENTILES:
                    taken = percentile(delays, percent) / 1000
                    results.add(SECTION, name, label, "us", taken)
                    results.add(SECTION, name, f"added, {label}", "us", taken - floor)


def _delays(arena: Arena, name: str | None, frames: Path, count: int) -> list[float]:
    """Latency of each packet in nanoseconds, sorted."""
    site = arena.site
    arena.feed(name)
    receiver = site.server.popen(str(BUILD / "arrive"), "eth0", str(FAR_PORT))
    try:
        assert receiver.stderr is not None
        if receiver.stderr.readline() != "ready\n":
            raise RuntimeError("the receiver is not listening")
        site.generate(site.client, frames, count, pps=PACED_PPS, stamp=True)
        time.sleep(0.1)
        receiver.send_signal(signal.SIGTERM)
        out, _ = receiver.communicate(timeout=10)
    finally:
        if receiver.poll() is None:
            receiver.kill()
            receiver.communicate()
    delays = sorted(map(float, out.split()))
    if not delays:
        raise RuntimeError("no packet arrived")
    return delays
