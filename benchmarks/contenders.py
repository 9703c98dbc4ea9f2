# SPDX-License-Identifier: MIT
"""The programs that are compared, each with its own queue."""

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.site import BUILD, REPO, Site, queues

COMPILED: Final = REPO / "build" / "compiled"
PEERS: Final = Path(__file__).parent / "peers"
# Flows that a policy may heal are not offloaded.
OFFLOADABLE: Final = '[policy]\ni_know = "drops everything"\ninclude = "preset:strict"'
_READY_S: Final = 10

C: Final = "C, accept only"
C_DROP: Final = "C, drop only"
BARE: Final = "netfilterqueue, bare"
SCAPY: Final = "netfilterqueue + scapy"
FNFQUEUE: Final = "fnfqueue"
OPENSNITCH: Final = "opensnitch"
GUARD: Final = "guard, compiled"
GUARD_PURE: Final = "guard, pure Python"
KERNEL_DROP: Final = "kernel DROP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One program that sends the verdicts of a queue.

    Attributes:
        name: Display name.
        words: The command for the queue of this number.
        missing: Why the program cannot run; empty if it can.
        path: The import path of nfq_guard; empty for other programs.
        share: The fraction of the packets sent to it; below 1 for a slow program.
    """

    name: str
    words: Callable[[Site, int], list[str]]
    missing: str = ""
    path: str = ""
    share: float = 1.0


def guard(
    *,
    compiled: bool,
    name: str = "",
    daemon: str = "",
    policy: str = "",
    mode: str = "enforce",
    workers: int = 1,
) -> Contender:
    """The guard as a contender: without its own rules, with metrics, events discarded.

    Args:
        compiled: Whether to run the built wheel's tree or the sources.
        name: Overrides the default name.
        daemon: Further lines of the table `[daemon]` of its configuration.
        policy: Further tables.
        mode: `enforce` or `dry-run`.
        workers: Queues from the given number on, one worker each.
    """
    tree = COMPILED if compiled else REPO

    def words(site: Site, queue_num: int) -> list[str]:
        config = configuration(site, queue_num, daemon=daemon, policy=policy)
        which = ["--queue", str(queue_num)]
        if workers > 1:
            which = ["--queues", f"{queue_num}:{queue_num + workers - 1}"]
        return [
            sys.executable, "-m", "nfq_guard", "run", "--config", str(config), "--mode", mode,
            *which, "--no-rules",
        ]  # fmt: skip

    return Contender(
        name=name or (GUARD if compiled else GUARD_PURE),
        words=words,
        missing=_no_daemon()
        or ("" if tree.exists() else "`make wheels compiled` has not been run"),
        path=str(tree),
    )


def configuration(site: Site, queue_num: int, *, daemon: str = "", policy: str = "") -> Path:
    """A configuration file for the guard on this queue."""
    path = site.directory / f"guard-{queue_num}.toml"
    lines = [
        "[daemon]",
        f'control_socket = "{site.directory}/control-{queue_num}.sock"',
        f'metrics_listen = "127.0.0.1:{9477 + queue_num}"',
        daemon,
        policy,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def c_program(*, drop: bool = False) -> Contender:
    """The reference: one verdict per packet and nothing else."""
    verdict = "drop" if drop else "accept"
    return Contender(
        name=C_DROP if drop else C,
        words=lambda _site, queue_num: [str(BUILD / "accept_only"), str(queue_num), verdict],
    )


def python_peers() -> list[Contender]:
    """Other Python libraries that read NFQUEUE."""
    return [
        _peer(BARE, "bare.py", "netfilterqueue"),
        _peer(FNFQUEUE, "fnf.py", "fnfqueue"),
        _peer(SCAPY, "dissecting.py", "scapy"),
    ]


def _peer(name: str, script: str, package: str) -> Contender:
    absent = importlib.util.find_spec(package) is None
    return Contender(
        name=name,
        words=lambda _site, queue_num: [sys.executable, str(PEERS / script), str(queue_num)],
        missing=f"package {package} is not installed" if absent else "",
    )


def _no_daemon() -> str:
    there = importlib.util.find_spec("nfq_guard.cli.run") is not None
    return "" if there else "`nfq-guard run` is not in this tree"


def start(site: Site, contender: Contender, queue_num: int) -> subprocess.Popen[str]:
    """Start a contender in the router and wait until it has bound its queue.

    Raises:
        RuntimeError: It did not; with what it said.
    """
    # `python -m` looks in the working directory first.
    place = ["env", "-C", contender.path, f"PYTHONPATH={contender.path}"] if contender.path else []
    process = site.start(site.router, *place, *contender.words(site, queue_num))
    try:
        await_queue(site, process, queue_num)
    except BaseException:
        site.end(process)
        raise
    return process


def await_queue(site: Site, process: subprocess.Popen[str], queue_num: int) -> None:
    """Wait until a process has bound its queue.

    Raises:
        RuntimeError: It did not; with what it said.
    """
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        if _has_bound(process.pid, queue_num):
            return
        time.sleep(0.01)
    raise RuntimeError(f"did not bind queue {queue_num}: {_said(site, process)}")


def _has_bound(pid: int, queue_num: int) -> bool:
    try:
        return queue_num in queues(pid)
    except OSError:  # not in the router yet, or exited
        return False


def _said(site: Site, process: subprocess.Popen[str]) -> str:
    """The last line of a program's standard error, or else its state."""
    if process.poll() is None:
        return f"it still runs after {_READY_S} s"
    lines = site.complaints(process).splitlines()
    return lines[-1] if lines else f"it ended with status {process.returncode}"


def opensnitch() -> Contender:
    """The only other daemon in Debian that judges packets by NFQUEUE.

    It looks for the process that sent a packet; a forwarded packet has none, which its default
    then accepts.
    """
    absent = shutil.which("opensnitchd") is None

    def words(site: Site, queue_num: int) -> list[str]:
        rules = site.directory / "opensnitch"
        rules.mkdir(exist_ok=True)
        return [
            "opensnitchd", "-queue-num", str(queue_num), "-process-monitor-method", "proc",
            "-rules-path", str(rules), "-ui-socket", f"unix://{rules}/none.sock", "-error",
            "-log-file", str(rules / "log"),
        ]  # fmt: skip

    return Contender(
        name=OPENSNITCH,
        words=words,
        missing="Debian package opensnitch is not installed" if absent else "",
        share=0.05,
    )
