# SPDX-License-Identifier: MIT
"""Latency added to a judged packet, at 10,000 packets a second.

The receiver takes the time at which the kernel handed the packet to the far interface, by the same
clock. The path without a queue is measured in the same rounds. The added latency is each percentile
minus the median of that path, so that the jitter of the path counts against the queue.

Another part has the guard read many rules before conntrack meanwhile, in a thread.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import contenders, machine
from benchmarks.path import FLOWS, PACED_PPS, Arena
from benchmarks.rows import Results, percentile
from benchmarks.site import BUILD, FAR_PORT, INVALID, Site

SECTION: Final = "latency"
NO_QUEUE: Final = "no queue"
# Rules before conntrack, the seconds between two readings, and the delay that counts as long.
_RULES: Final = 300
_READINGS_S: Final = {"no readings": 0, f"{_RULES} raw rules read each second": 1}
_LONG_MS: Final = 5
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
    _while_rules_are_read(results, say, rounds, count)


def _while_rules_are_read(
    results: Results, say: Callable[[str], None], rounds: int, count: int
) -> None:
    """The delay of packets while a thread of the guard reads a long ruleset, and without that.

    One guard at a time, because each takes CPU time from the other.
    """
    rules = (
        f"-A PREROUTING -s 198.18.{number >> 8}.{number & 255}/32 -p tcp -j CT --notrack"
        for number in range(_RULES)
    )
    restored = "\n".join(("*raw", *rules, "COMMIT", ""))
    for _ in range(rounds):
        for what, seconds in _READINGS_S.items():
            guard = contenders.guard(
                compiled=True, name=f"guard, {what}", daemon=f"verify_rules_s = {seconds}"
            )
            with Site() as site:
                arena = Arena(site, say)
                site.iptables("-t", "mangle", "-R", "FORWARD", "1", *INVALID)
                site.router.run("iptables-restore", "--noflush", stdin=restored)
                if not arena.enter(guard, results, SECTION):
                    return
                # The thread and its programs run where the host lets them.
                machine.unpin(arena.process(guard.name).pid)
                site.open_flows(FLOWS)
                frames = site.seq_over(FLOWS, payload=8)
                delays = _delays(arena, guard.name, frames, count)
            say(f"latency, {guard.name}: {len(delays)} of {count} packets arrived")
            for label, percent in _PERCENTILES:
                taken = percentile(delays, percent) / 1000
                results.add(SECTION, guard.name, f"delay, {label}", "us", taken)
            long = sum(delay > _LONG_MS * 1e6 for delay in delays)
            results.add(SECTION, guard.name, f"over {_LONG_MS} ms", "%", long / len(delays) * 100)


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
