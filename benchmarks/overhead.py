# SPDX-License-Identifier: MIT
"""Cost of each mitigation for valid traffic, and surviving connections, under INVALID packets.

A client behind a translating router talks to a server. Besides its requests and its download,
the server's side sends packets far beyond the window of other translated connections. Without
treatment each of them reaches a socket without that connection, and the RST ends the connection.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks import contenders, machine
from benchmarks.rows import Results, percentile
from benchmarks.site import BUILD, INVALID, REPO, SERVER, Site, lost, queued
from benchmarks.survivors import CONNECTIONS, Survivors
from nfq_guard.service.settings import Settings

SECTION: Final = "overhead"
OPEN: Final = "guard, enforce"
KERNEL_DROP: Final = "guard, kernel-drop"
_PORT: Final = 5001
_PERCENTILES: Final = (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mitigation:
    """One treatment of INVALID packets.

    Attributes:
        name: Display name.
        liberal: Whether conntrack skips window checks (be_liberal).
        drop_at: Table and chain of a DROP rule.
        mode: Mode of the guard; empty if it does not run.
        daemon: Further lines of its configuration.
        missing: Why the treatment cannot be measured; empty if it can.
    """

    name: str
    liberal: bool = False
    drop_at: tuple[str, str] | None = None
    mode: str = ""
    daemon: str = ""
    missing: str = ""


def mitigations() -> list[Mitigation]:
    """All treatments; the guard from its wheel, or from the sources if it is not built."""
    there = "offload" in Settings.__struct_fields__
    return [
        Mitigation(name="none"),
        Mitigation(name="be_liberal", liberal=True),
        Mitigation(name="DROP in PREROUTING", drop_at=("mangle", "PREROUTING")),
        Mitigation(name="DROP in FORWARD", drop_at=("filter", "FORWARD")),
        Mitigation(name="DROP in INPUT", drop_at=("filter", "INPUT")),
        Mitigation(name="guard, dry-run", mode="dry-run"),
        Mitigation(name=OPEN, mode="enforce"),
        Mitigation(name=KERNEL_DROP, mode="enforce", daemon='fail_mode = "kernel-drop"'),
        Mitigation(
            name="guard with offload",
            mode="enforce",
            daemon=f"offload = true\n{contenders.OFFLOADABLE}",
            missing="" if there else "this version of the guard has no offload",
        ),
    ]


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    rounds, seconds, rates = (
        (1, 0.4, (0, 10_000)) if quick else (3, 1.0, (0, 1000, 10_000, 100_000))
    )
    for _ in range(rounds):
        for one in mitigations():
            if one.missing:
                results.missing(SECTION, one.name, one.missing)
                continue
            with Site() as site, _in_force(site, one) as pid:
                for pps in rates:
                    _cell(site, results, one.name, pid, pps, seconds)
                    say(f"overhead, {one.name}: {pps} INVALID packets/s")


@contextmanager
def _in_force(site: Site, one: Mitigation) -> Iterator[int]:
    """Apply a mitigation; returns the guard's pid, or 0."""
    # A rule must use conntrack before the first connection is opened (kernel.md 2).
    site.iptables("-t", "mangle", "-A", "POSTROUTING", *INVALID)
    site.translate("10.77.0.0/24")
    if one.liberal:
        site.router.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)
    if one.drop_at:
        table, chain = one.drop_at
        site.iptables("-t", table, "-A", chain, *INVALID, "-j", "DROP")
    with ExitStack() as stack:
        pid = 0
        if one.mode:
            process = _guard(site, one)
            stack.callback(site.end, process)
            pid = process.pid
        words = [str(BUILD / "traffic"), "serve", SERVER, str(_PORT)]
        server = site.start(site.server, *words)
        stack.callback(site.end, server)
        site.await_word(server, "ready")
        yield pid


def _guard(site: Site, one: Mitigation) -> subprocess.Popen[str]:
    """Start the guard with its own rules and the priority of its unit."""
    tree = contenders.COMPILED if contenders.COMPILED.exists() else REPO
    config = contenders.configuration(site, 0, daemon=one.daemon)
    process = site.start(
        site.router, "nice", "-n", unit_nice(), "env", "-C", str(tree), f"PYTHONPATH={tree}",
        sys.executable, "-m", "nfq_guard", "run", "--config", str(config), "--mode", one.mode,
    )  # fmt: skip
    contenders.await_queue(site, process, 0)
    deadline = time.monotonic() + 10
    while "NFQUEUE" not in site.router.run("iptables-save").stdout:
        if time.monotonic() > deadline:
            raise RuntimeError("the guard has not installed its rules")
        time.sleep(0.05)
    # The guard verifies its rules once more, in a thread that must not end within a measurement.
    time.sleep(0.5)
    return process


def unit_nice() -> str:
    """The priority that the systemd unit sets."""
    unit = (REPO / "systemd" / "nfq-guard.service").read_text(encoding="utf-8")
    return next(line.split("=")[1] for line in unit.splitlines() if line.startswith("Nice="))


def _cell(site: Site, results: Results, name: str, pid: int, pps: int, seconds: float) -> None:
    survivors = Survivors(site)
    try:
        killers = survivors.killers()
        retransmitted, dropped, unjudged = _retransmitted(site), _lost(pid), _unjudged(site, pid)
        used, softirq, busy = _used(pid), machine.softirq_seconds(), machine.busy_seconds()
        began = time.monotonic()
        with site.flood(site.server, killers, pps):
            delays, failed = _requests(site, seconds)
            rate = _bulk(site, seconds)
        took = time.monotonic() - began
        x = float(pps)
        if delays:
            for label, percent in _PERCENTILES:
                results.add(
                    SECTION, name, f"request {label}", "us", percentile(delays, percent) / 1000, x=x
                )
        results.add(SECTION, name, "goodput", "Mbit/s", rate, x=x)
        results.add(SECTION, name, "requests failed", "connections", failed, x=x)
        results.add(SECTION, name, "survived", f"of {CONNECTIONS}", survivors.alive(), x=x)
        results.add(
            SECTION, name, "all CPUs", "CPU s/s", (machine.busy_seconds() - busy) / took, x=x
        )
        results.add(
            SECTION, name, "softirq", "CPU s/s", (machine.softirq_seconds() - softirq) / took, x=x
        )
        results.add(
            SECTION, name, "retransmissions", "segments", _retransmitted(site) - retransmitted, x=x
        )
        if pid:
            results.add(SECTION, name, "guard CPU", "CPU s/s", (_used(pid) - used) / took, x=x)
            results.add(SECTION, name, "INVALID lost", "packets", _lost(pid) - dropped, x=x)
            results.add(
                SECTION, name, "INVALID unjudged", "packets", _unjudged(site, pid) - unjudged, x=x
            )
    finally:
        survivors.close()


def _requests(site: Site, seconds: float) -> tuple[list[float], int]:
    """Latency of requests in nanoseconds, sorted, and the number of broken connections."""
    words = [str(BUILD / "traffic"), "requests", SERVER, str(_PORT), str(seconds)]
    *lines, last = site.client.run(*words).stdout.splitlines()
    return sorted(map(float, lines)), int(last.split()[1])


def _bulk(site: Site, seconds: float) -> float:
    """Throughput of one download in megabits a second."""
    words = [str(BUILD / "traffic"), "bulk", SERVER, str(_PORT), str(seconds)]
    octets, nanoseconds = map(int, site.client.run(*words).stdout.split())
    return octets * 8000 / nanoseconds


def _used(pid: int) -> float:
    return machine.family_seconds(pid) if pid else 0.0


def _lost(pid: int) -> int:
    return lost(pid) if pid else 0


def _unjudged(site: Site, pid: int) -> int:
    """Packets that passed unjudged because the queue was full."""
    if not pid:
        return 0
    saved = site.router.run("iptables-save", "-c").stdout
    met = re.findall(r"^\[(\d+):.*-j NFQUEUE", saved, re.MULTILINE)
    return sum(map(int, met)) - queued(pid)


def _retransmitted(site: Site) -> int:
    """Segments that the two ends retransmitted."""
    sum_of_both = 0
    for one in (site.client, site.server):
        lines = one.run("cat", "/proc/net/snmp").stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        sum_of_both += int(values[names.index("RetransSegs")])
    return sum_of_both
