# SPDX-License-Identifier: MIT
"""Many runs, a few at a time, always in threads of their own.

Signals reach the main thread only, which waits; a run is never torn in the middle of a step, and
removes itself when it is told to stop.
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

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.lab import netns
from nfq_guard.lab.outcome import Mitigation, Result
from nfq_guard.lab.scenarios.base import Scenario
from nfq_guard.lab.trial import DIRECTORY_PREFIX, Keep, run

_PROGRAMS: Final = {"ip": "iproute2", "iptables-restore": "iptables"}
# A run waits more than it computes.
_AT_ONCE: Final = max(2, min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Task:
    """One run to do."""

    scenario: Scenario
    mitigation: Mitigation


def check_requirements() -> None:
    """Return if the lab can work here.

    Raises:
        PrivilegeError: Not root.
        UnavailableError: A program is missing; the message names its Debian package.
    """
    if os.geteuid() != 0:
        raise PrivilegeError("the lab needs root: it makes network namespaces")
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise UnavailableError(f"program {program} (Debian package {package}) is missing")


def clean() -> list[str]:
    """Remove what runs of dead processes left behind; what they were."""
    done: list[str] = []
    for name in netns.stale():
        netns.remove(name)
        done.append(f"namespace {name}")
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*")):
        maker = path.name.removeprefix(DIRECTORY_PREFIX).split("-")[0]
        if maker.isdigit() and not Path("/proc", maker).exists():
            shutil.rmtree(path, ignore_errors=True)
            done.append(f"directory {path}")
    return done


def run_all(tasks: Iterable[Task], keep: Keep) -> Generator[Result, None, None]:
    """Do the tasks and yield each result when it is there, in the order of `tasks`.

    First removes what dead runs have left. Whatever ends the iteration, a signal too, all that
    was made is removed when it has ended.
    """
    check_requirements()
    clean()
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
    try:
        futures = [
            pool.submit(run, task.scenario, task.mitigation, keep=keep, cancelled=cancelled)
            for task in tasks
        ]
        for future in futures:
            _wait_for(future, futures)
            yield future.result()
    finally:
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(future: "Future[Result]", futures: "list[Future[Result]]") -> None:
    """Return when `future` is done; a failure of any other ends the wait at once."""
    while not future.done():
        pending = [one for one in futures if not one.done()]
        for one in wait(pending, return_when=FIRST_COMPLETED).done:
            one.result()
