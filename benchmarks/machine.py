# SPDX-License-Identifier: MIT
"""Describes the machine and its load, and measures the CPU time of processes."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import nfq_guard

# Share of the CPUs in use above which figures are unreliable.
_BUSY_SHARE: Final = 0.1
_LOOKED_S: Final = 2.0
_PROGRAMS: Final = {
    "gcc": ("gcc", "--version"),
    "iptables": ("iptables", "--version"),
    "valgrind": ("valgrind", "--version"),
    "tshark": ("tshark", "--version"),
    "clang": ("clang", "--version"),
}
_PACKAGES: Final = (
    "netfilterqueue", "scapy", "structlog", "msgspec", "mypy", "cython", "matplotlib", "fnfqueue",
)  # fmt: skip


def record() -> dict[str, object]:
    """The machine, and the versions of the programs that were measured."""
    return {
        "cpu": _line("/proc/cpuinfo", r"model name\s*:\s*(.*)"),
        "cpus": os.cpu_count(),
        "memory_mib": int(_line("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) // 1024,
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nfq_guard": nfq_guard.__version__,
        "revision": _said(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
        "programs": {name: _said(*words) for name, words in _PROGRAMS.items()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "load_before": list(os.getloadavg()),
    }


def too_busy() -> str:
    """Why the machine is too busy for reliable figures; empty if it is idle.

    Samples two seconds. The load average would still include an earlier build.
    """
    before = busy_seconds()
    time.sleep(_LOOKED_S)
    share = (busy_seconds() - before) / _LOOKED_S / (os.cpu_count() or 1)
    return (
        f"{share:.0%} of its CPUs used before the bench, over {_BUSY_SHARE:.0%}"
        if share > _BUSY_SHARE
        else ""
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of the living threads of a process, by the scheduler's own count.

    Includes the kernel's work on their behalf, and interrupts meanwhile.
    """
    sum_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end between the two calls.
        with suppress(FileNotFoundError, ProcessLookupError):
            sum_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return sum_ns / 1e9


def family_seconds(pid: int) -> float:
    """CPU time of a process and its living descendants.

    Raises:
        FileNotFoundError: The process itself has exited.
    """
    seconds = cpu_seconds(pid)
    family = [pid]
    for one in family:
        # A program that the guard runs for a moment may end between the calls.
        with suppress(FileNotFoundError, ProcessLookupError):
            if one != pid:
                seconds += cpu_seconds(one)
            for task in Path(f"/proc/{one}/task").iterdir():
                family += map(int, (task / "children").read_text(encoding="ascii").split())
    return seconds


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


def pin(pid: int, cpu: int) -> None:
    """Pin a process to one CPU if there are several."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {cpu})


def unpin(pid: int) -> None:
    """Let all threads of a process run on every CPU, and what it starts from then on."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), range(os.cpu_count() or 1))


def softirq_threads() -> list[int]:
    """Pids of the kernel's ksoftirqd threads, which run deferred softirqs."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        # Any other process may end between the two calls.
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_text(encoding="utf-8").startswith("ksoftirqd/"):
                found.append(int(path.parent.name))
    return found


def softirq_seconds() -> float:
    """Time of all CPUs in softirqs since boot, sampled by the kernel's tick."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return int(fields[7]) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Time that all CPUs were not idle since boot, by the kernel's tick."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    user, nice, system, _idle, _waiting, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _line(path: str, pattern: str) -> str:
    found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    return found[1] if found else ""


def _said(*words: str) -> str:
    """The first line of a program's output; empty if the program is missing."""
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).split("\n", 1)[0].strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
