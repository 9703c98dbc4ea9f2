# SPDX-License-Identifier: MIT
"""Runs many trials, a few at a time, each in a worker thread.

Python delivers signals to the main thread, which only waits, so a signal never interrupts a trial
in the middle of a step. Cancelled trials clean up after themselves.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_guard import capabilities
from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.flow import IPV4
from nfq_guard.lab import netns
from nfq_guard.lab.addresses import Family
from nfq_guard.lab.outcome import Mitigation, Result
from nfq_guard.lab.scenarios.base import Scenario
from nfq_guard.lab.trial import DIRECTORY_PREFIX, Keep, run

_CAPABILITIES: Final = (
    1 << capabilities.SYS_ADMIN | 1 << capabilities.NET_ADMIN | 1 << capabilities.NET_RAW
)
_PROGRAMS: Final = {"ip": "iproute2", "iptables-restore": "iptables"}
# Not in the PATH of a user, which `su` without `-` keeps.
_SBIN: Final = "/usr/sbin:/sbin"
# Trials mostly wait, so there are more of them than CPUs.
_AT_ONCE: Final = min(8, 2 * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Task:
    """One trial to run."""

    scenario: Scenario
    mitigation: Mitigation
    family: Family = IPV4


def check_requirements() -> None:
    """Check that the lab can run here, and let this process find the programs of administrators.

    Raises:
        PrivilegeError: Not root, or root without a capability, as in a container; it is named.
        UnavailableError: A program is missing; the message names its Debian package.
    """
    if os.geteuid() != 0:
        raise PrivilegeError("the lab needs root, because it creates network namespaces")
    held = capabilities.effective()
    missing = ", ".join(capabilities.names(_CAPABILITIES & ~held))
    if held and missing:
        raise PrivilegeError(
            f"the lab creates network namespaces, and root does not have {missing} here"
        )
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise UnavailableError(f"program {program} (Debian package {package}) is missing")


def clean() -> list[str]:
    """Remove the namespaces and directories of processes that no longer exist.

    Returns:
        Names of what was removed.
    """
    removed: list[str] = []
    for name in netns.stale():
        netns.remove(name)
        removed.append(f"namespace {name}")
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*")):
        pid = path.name.removeprefix(DIRECTORY_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)
            removed.append(f"directory {path}")
    return removed


def run_all(tasks: Iterable[Task], keep: Keep) -> Generator[Result, None, None]:
    """Run the tasks and yield their results in the order of `tasks`, each once available.

    Calls `clean` first. However the iteration ends, all namespaces, processes and directories of
    the tasks are gone when the generator has closed.
    """
    check_requirements()
    clean()
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
    try:
        futures = [
            pool.submit(
                run,
                task.scenario,
                task.mitigation,
                family=task.family,
                keep=keep,
                cancelled=cancelled,
            )
            for task in tasks
        ]
        for future in futures:
            _wait_for(future, futures)
            yield future.result()
    finally:
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(future: "Future[Result]", futures: "list[Future[Result]]") -> None:
    """Wait for `future`; raises at once if any of `futures` fails."""
    while not future.done():
        pending = [each for each in futures if not each.done()]
        for completed in wait(pending, return_when=FIRST_COMPLETED).done:
            completed.result()
