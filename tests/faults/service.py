# SPDX-License-Identifier: MIT
"""Faults of the installed service, under a systemd of its own."""

import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from nfq_guard.lab.netns import PREFIX, Namespace
from tests.faults.connections import Connections
from tests.faults.gateway import POLICY, Gap, Gateway
from tests.faults.outcome import Outcome, ms, percentile
from tests.systemd.conftest import CONFIG, Guest, boot

_PPS: Final = 4000
_WATCHDOG_S: Final = 2.0
# Time before the first and after the last fault of a stream, seconds.
_BEFORE_S: Final = 0.5


class Run(NamedTuple):
    """The cost of several faults of one kind."""

    gaps: list[Gap]
    sent: int
    exact: bool
    same_rules: bool

    @property
    def lost(self) -> int:
        return max(one.lost for one in self.gaps)

    @property
    def leaked(self) -> int:
        return sum(one.leaked for one in self.gaps)

    def of(self, value: Callable[[Gap], float]) -> tuple[float, float]:
        """Median and 99th percentile."""
        values = [value(one) for one in self.gaps]
        return percentile(values, 0.5), percentile(values, 0.99)


class Rig:
    """The guest, with a peer that sends INVALID packets to it."""

    def __init__(self, guest: Guest, gateway: Gateway) -> None:
        self.guest = guest
        self.gateway = gateway

    def inject(self, fail_mode: str, script: str, times: int, spacing_s: float) -> Run:
        """Run `script`, with $PID, several times under load."""
        guest = self.guest
        guest.configure(f'mode = "enforce"\nfail_mode = "{fail_mode}"', POLICY.partition("]")[2])
        guest.sh("systemctl reset-failed nfq-guard; systemctl restart nfq-guard")
        before = self._rules()
        faults: list[float] = []
        with self.gateway.stream(_PPS) as stream:
            time.sleep(_BEFORE_S)
            for _ in range(times):
                # A pid of 0 would mean the process group of this program.
                guest.until(lambda: guest.show("ActiveState") == "active", "the service is up")
                pid = int(guest.show("MainPID"))
                assert pid > 1
                guest.sh("systemctl reset-failed nfq-guard")
                # The shell inside starts slowly, so it reports the time itself: the clock is the
                # same.
                told = guest.sh(f"PID={pid}; cut -d' ' -f1 /proc/uptime; {script}")
                faults.append(_monotonic(float(told.split()[0])))
                time.sleep(spacing_s)
            guest.until(lambda: guest.show("ActiveState") == "active", "the service is up again")
        gaps = stream.gaps(faults)
        return Run(gaps, stream.sent, not stream.discrepancy(), self._rules() == before)

    def _rules(self) -> list[str]:
        saved = self.guest.sh("iptables-save 2>/dev/null")
        return [line for line in saved.splitlines() if line.startswith("-A")]


def _monotonic(uptime_s: float) -> float:
    """CLOCK_BOOTTIME, of which /proc/uptime is hundredths, as CLOCK_MONOTONIC."""
    return uptime_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())


def killed_open(at: Rig, times: int) -> Outcome:
    """F1 in fail mode open."""
    run = at.inject("open", "kill -9 $PID", times, 2.5)
    outage, leak = run.of(lambda one: one.outage_s), run.of(lambda one: one.leak_s)
    return Outcome(
        "F1",
        f"{times} times SIGKILL, fail mode open, {_PPS} packets/s",
        "64 lost at most, 20 ms at most, enforcing again within 600 ms (99 %), rules intact",
        f"{run.lost} lost at most within {ms(outage[1])}, enforcing again after {ms(leak[0])} "
        f"(median), {ms(leak[1])} (99 %), rules {_same(run)}",
        run.lost <= 64 and outage[1] <= 0.02 and leak[1] <= 0.6 and run.same_rules,
        run.exact,
    )


def killed_closed(at: Rig, times: int) -> Outcome:
    """F1 in fail mode closed."""
    run = at.inject("closed", "kill -9 $PID", times, 2.5)
    outage = run.of(lambda one: one.wait_s)
    return Outcome(
        "F1",
        f"{times} times SIGKILL, fail mode closed, {_PPS} packets/s",
        "outage 600 ms at most (99 %), nothing let through, rules intact",
        f"{_outage(run)}, {run.leaked} let through, rules {_same(run)}",
        outage[1] <= 0.6 and not run.leaked and run.same_rules,
        run.exact and not run.leaked,
    )


def stopped(at: Rig, times: int) -> Outcome:
    """F2."""
    run = at.inject("closed", "kill -STOP $PID", times, 5)
    outage = run.of(lambda one: one.wait_s)
    return Outcome(
        "F2",
        f"{times} times SIGSTOP, fail mode closed, WatchdogSec={_WATCHDOG_S:.0f}s",
        "back within 2.5 s (99 %), nothing let through",
        f"{_outage(run)}, {run.leaked} let through, rules {_same(run)}",
        outage[1] <= _WATCHDOG_S + 0.5 and not run.leaked and run.same_rules,
        run.exact and not run.leaked,
    )


def restarted_open(at: Rig, times: int) -> Outcome:
    """F3 in fail mode open."""
    run = at.inject("open", "systemctl restart nfq-guard", times, 1)
    return Outcome(
        "F3",
        f"{times} times systemctl restart, fail mode open, {_PPS} packets/s",
        "8 lost at most in each",
        f"{run.lost} lost at most, rules {_same(run)}",
        run.lost <= 8 and run.same_rules,
        run.exact,
    )


def restarted_closed(at: Rig, times: int) -> Outcome:
    """F3 in fail mode closed, and A9."""
    run = at.inject("closed", "systemctl restart nfq-guard", times, 2)
    outage = run.of(lambda one: one.wait_s)
    return Outcome(
        "F3",
        f"{times} times systemctl restart, fail mode closed, {_PPS} packets/s",
        "outage 100 ms at most, nothing let through",
        f"{_outage(run)}, {run.leaked} let through, rules {_same(run)}",
        outage[1] <= 0.1 and not run.leaked and run.same_rules,
        run.exact and not run.leaked,
    )


def connections(at: Rig, times: int) -> Outcome:
    """F23."""
    count = 100
    with Connections(at.gateway, count) as flows:
        killed = at.inject("open", "kill -9 $PID", times, 1.5)
        restarted = at.inject("open", "systemctl restart nfq-guard", times, 1)
        health = flows.health()
    return Outcome(
        "F23",
        f"{times} times SIGKILL and {times} times systemctl restart under {count} healthy "
        "connections, fail mode open",
        "none broken, no number lost or out of order, no stall over 1 s",
        f"{health.broken} broken, {health.answers} numbers answered, longest stall "
        f"{ms(health.stall_s)}",
        not health.broken and health.stall_s <= 1 and health.answers > count,
        killed.exact and restarted.exact,
    )


def flushed(at: Rig, times: int) -> Outcome:
    """A5."""
    run = at.inject("closed", "iptables -t mangle -F", times, 8)
    leak = run.of(lambda one: one.leak_s)
    return Outcome(
        "A5",
        f"{times} times iptables -t mangle -F, fail mode closed",
        "the rules are back within 10 s",
        f"packets let through for {leak[0]:.1f} s (median), {leak[1]:.1f} s (99 %), rules "
        f"{_same(run)}",
        leak[1] <= 10 and run.same_rules,
    )


def _mistaken(fail_mode: str) -> Callable[[Rig, int], Outcome]:
    """A2 in a fail mode: a file with a mistake, a reload of it, and a crash."""

    def inject(at: Rig, times: int) -> Outcome:
        script = f"echo 'nonsense = [' >>{CONFIG}; systemctl reload nfq-guard; kill -9 $PID"
        run = at.inject(fail_mode, script, times, 2.5)
        outage = run.of(lambda one: one.wait_s)
        return Outcome(
            "A2",
            f"{times} times a configuration with a mistake, its reload and SIGKILL, fail mode "
            f"{fail_mode}",
            "nothing let through, back within 2 s (99 %), rules intact",
            f"{_outage(run)}, {run.leaked} let through, rules {_same(run)}",
            outage[1] <= 2 and not run.leaked and run.same_rules,
            run.exact and not run.leaked,
        )

    return inject


def _outage(run: Run) -> str:
    """The time without an arrival, and the losses, as text."""
    median, most = run.of(lambda one: one.wait_s)
    return f"outage {ms(median)} (median), {ms(most)} (99 %), {run.lost} lost at most in each"


def _same(run: Run) -> str:
    return "the same" if run.same_rules else "changed"


class Fault(NamedTuple):
    """A fault, and the number of injections in the short and in the long form."""

    inject: Callable[[Rig, int], Outcome]
    short: int
    long: int


FAULTS: Final[dict[str, Fault]] = {
    "killed-open": Fault(killed_open, 3, 25),
    "killed-closed": Fault(killed_closed, 3, 25),
    "stopped": Fault(stopped, 1, 5),
    "restarted-open": Fault(restarted_open, 2, 25),
    "restarted-closed": Fault(restarted_closed, 2, 25),
    "connections": Fault(connections, 1, 10),
    "mistaken-closed": Fault(_mistaken("closed"), 2, 10),
    "mistaken-kernel-drop": Fault(_mistaken("kernel-drop"), 2, 10),
    "flushed": Fault(flushed, 1, 3),
}


@contextlib.contextmanager
def _rig() -> Iterator[Rig]:
    with boot() as guest, Namespace("peer") as peer:
        host = Attached(guest.init)
        try:
            with Gateway(peer, host) as gateway:
                yield Rig(guest, gateway)
        finally:
            host.close()


class Attached(Namespace):
    """The network namespace of a process, under a name of ours."""

    def __init__(self, pid: int) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{pid}-guest"
        subprocess.run(["ip", "netns", "attach", self.name, str(pid)], check=True)


def outcomes(wanted: Sequence[str], *, short: bool) -> Iterator[Outcome | None]:
    """Inject the faults of these names, one after the other, into one service."""
    with _rig() as at:
        for name in wanted:
            fault = FAULTS[name]
            try:
                yield fault.inject(at, fault.short if short else fault.long)
            except Exception:  # noqa: BLE001 - the other faults are still to be injected
                sys.stderr.write(f"{name}: {traceback.format_exc()}\n")
                yield None
