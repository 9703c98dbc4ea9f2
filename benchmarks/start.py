# SPDX-License-Identifier: MIT
"""Time from the start of the guard's process to READY=1, with the kernel's window.

The wheels are measured in a virtual environment of their own, as hosts install them. In the
development environment the start took twice as long when both were measured.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import Contender
from benchmarks.rows import Results
from benchmarks.site import BUILD, REPO, Site

SECTION: Final = "start"
METRIC: Final = "process start to READY"
_LIMIT_S: Final = 10


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    rounds = 5 if quick else 15
    with Site() as site:
        some = []
        for one in (_installed(), contenders.guard(compiled=False)):
            if one.missing:
                results.missing(SECTION, one.name, one.missing)
            else:
                some.append(one)
        for index in range(rounds + 1):
            for one in some:
                try:
                    taken_ms = _once(site, one)
                except RuntimeError as error:
                    results.missing(SECTION, one.name, str(error))
                    continue
                # The first start writes byte code and fills the page cache.
                if index:
                    results.add(SECTION, one.name, METRIC, "ms", taken_ms)
                    say(f"start, {one.name}: {taken_ms:.0f} ms")


def _installed() -> Contender:
    """The guard as installed from its wheels."""
    guard = contenders.guard(compiled=True)
    if guard.missing:
        return guard
    home = BUILD / "installed"
    command = str(home / "bin" / "nfq-guard")

    def words(site: Site, queue_num: int) -> list[str]:
        _, _, _, *arguments = guard.words(site, queue_num)  # python -m nfq_guard
        return [command, *arguments]

    try:
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        _run(
            str(home / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet",
            "--no-index", "--find-links", str(REPO / "build" / "wheels"), "nfq-guard",
        )  # fmt: skip
    except RuntimeError as error:
        return replace(guard, missing=str(error))
    return replace(guard, words=words, path=str(home))


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"{words[0]} failed"])[-1])


def _once(site: Site, contender: Contender) -> float:
    address = str(site.directory / "notify.sock")
    log = site.directory / "start.log"
    Path(address).unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        log.open("w", encoding="utf-8") as output,
    ):
        channel.bind(address)
        channel.settimeout(_LIMIT_S)
        with site.router.entered():
            began = time.monotonic()
            process = subprocess.Popen(
                contender.words(site, 0),
                env={**os.environ, "NOTIFY_SOCKET": address, "PYTHONPATH": contender.path},
                cwd=contender.path,
                stdout=output,
                stderr=output,
            )
        try:
            while True:
                if "READY=1" in channel.recv(4096).decode():
                    break
            taken = time.monotonic() - began
        except TimeoutError:
            said = log.read_text(encoding="utf-8").strip().splitlines()
            raise RuntimeError(said[-1] if said else "READY=1 was not received") from None
        finally:
            process.terminate()
            process.wait(timeout=_LIMIT_S)
    events = log.read_text(encoding="utf-8").replace(" ", "")
    if '"evidence":"bpf"' not in events:
        raise RuntimeError("it started without bpf evidence")
    return taken * 1000
