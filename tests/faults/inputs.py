# SPDX-License-Identifier: MIT
"""Faulty input: packets decoded in the process, configurations, events, metrics clients."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from nfq_guard.wire.ip import decode
from tests import fuzz_inputs
from tests.faults.outcome import Outcome, ms
from tests.faults.rig import Rig, Size
from tests.support import reference_decoder
from tests.support.queue import import_path

_METRICS: Final = 9477
_PPS: Final = 2000


def decoding(_at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F15."""
    different = 0
    begun = time.monotonic()
    for _ in range(size.inputs):
        octets = reference_decoder.packet(rng)
        different += bool(reference_decoder.difference(octets, decode(octets)))
    return Outcome(
        "F15",
        f"{size.inputs} random packets, decoded by the guard and by a slow second decoder",
        "no exception, no difference",
        f"{different} with a difference, {time.monotonic() - begun:.0f} s",
        not different,
    )


def damaged(_at: Rig, size: Size, rng: random.Random) -> Outcome:
    """A11 and other foreign input."""
    seed = rng.randrange(1 << 32)
    try:
        counts = fuzz_inputs.fuzz(seed, size.inputs)
        said = "all read or refused: " + ", ".join(f"{n} {name}" for name, n in counts.items())
        met = True
    except AssertionError as error:
        said, met = str(error)[:200].replace("|", "/"), False
    return Outcome(
        "A11",
        f"{size.inputs} damaged configurations, requests, messages, events and log lines",
        "each is read or refused",
        said,
        met,
    )


# Inputs that take gigabytes to parse naively: 40 kB of one key, nested arrays, one long number.
_BOMBS: Final = (
    "[policy]\n" + "a." * 20_000 + "b = 1\n",
    "a = " + "[" * 20_000 + "]" * 20_000 + "\n",
    "[policy]\ndefault = " + "9" * 100_000 + "\n",
    "\n".join(f"[{'x.' * n}y]" for n in range(1, 600)) + "\n",
    "[policy]\n" + '[[policy.rule]]\nname = "a"\n' * 20_000,
)


def bombs(at: Rig, _size: Size, _rng: random.Random) -> Outcome:
    """A7: each in a process limited to 256 MB, and once in a reload of a running daemon."""
    slowest = 0.0
    refused = taken = 0
    with at.start('fail_mode = "closed"').ready() as guard:
        with at.gateway.stream(_PPS) as stream:
            for bomb in _BOMBS:
                begun = time.monotonic()
                at.config.write_text(bomb)
                taken += at.ask("reload", wait=True)["return"] == "OK"
                refused += _check(at.config) in {2, 3}
                slowest = max(slowest, time.monotonic() - begun)
        status = Path(f"/proc/{guard.process.pid}/status").read_text(encoding="ascii")
        peak_mb = int(status.partition("VmHWM:")[2].split()[0]) // 1024
        assert guard.stop() == 0
    return Outcome(
        "A7",
        f"{len(_BOMBS)} configurations that grow when they are parsed, by `check` and by reload",
        "all refused, by `check` with 256 MB, and the daemon below 256 MB; nothing lost",
        f"{refused} refused by `check`, {taken} taken, slowest {ms(slowest)}, the daemon had "
        f"{peak_mb} MB at most, {stream.harm()}",
        refused == len(_BOMBS) and not taken and peak_mb < 256 and stream.unharmed,
        not stream.discrepancy(),
    )


def _check(config: Path) -> int:
    limited = ["prlimit", f"--as={256 << 20}", sys.executable, "-m", "nfq_guard"]
    return subprocess.run(
        [*limited, "check", str(config)],
        env={**os.environ, "PYTHONPATH": import_path()},
        capture_output=True,
        check=False,
    ).returncode


def metrics_clients(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """A3: silent connections, one after the other and all at once."""
    count = min(400, size.requests)
    lines = ('fail_mode = "closed"', f'metrics_listen = "127.0.0.1:{_METRICS}"')
    clients: list[socket.socket] = []
    with at.start(*lines).ready() as guard:
        before = _tasks_and_files(guard.process.pid)
        with at.gateway.stream(_PPS) as stream:
            for _ in range(count):
                with at.gateway.host.entered(), contextlib.suppress(OSError):
                    client = socket.socket()
                    clients.append(client)
                    client.settimeout(0.5)
                    client.connect(("127.0.0.1", _METRICS))
            most = _tasks_and_files(guard.process.pid)
            begun = time.monotonic()
            with at.gateway.host.entered(), socket.socket() as reader:
                reader.settimeout(60)
                reader.connect(("127.0.0.1", _METRICS))
                reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answered = reader.recv(64).startswith(b"HTTP/1")
            took = time.monotonic() - begun
        for client in clients:
            client.close()
        assert guard.stop() == 0
    threads, files = most[0] - before[0], most[1] - before[1]
    return Outcome(
        "A3",
        f"{count} clients of the metrics at a time that say nothing",
        "the daemon lives, 64 descriptors and no thread more at most, the next client is answered "
        "within 5 s, nothing lost",
        f"{threads} threads and {files} descriptors more, answered after {ms(took)}, "
        f"{stream.harm()}",
        answered and took <= 5 and files <= 64 and threads <= 0 and stream.unharmed,
        not stream.discrepancy(),
    )


def _tasks_and_files(pid: int) -> tuple[int, int]:
    tasks, files = Path(f"/proc/{pid}/task"), Path(f"/proc/{pid}/fd")
    return len(list(tasks.iterdir())), len(list(files.iterdir()))
