# SPDX-License-Identifier: MIT
"""Healthy transfers through a translating router, over a link that loses and reorders packets.

The same transfers run alternately without a guard and with it in each of its modes. A guard that
dropped a segment that its receiver needs would slow the transfer down or end it. Kernels before 6.1
call late copies INVALID; later ones ignore them, so the guard sees few packets.
"""

import contextlib
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.wiretap import checksums_in_software
from tests.faults.outcome import Outcome, ms, percentile
from tests.faults.relay import DOUBLED, LATE, LOST
from tests.faults.rig import Rig, Size
from tests.support.queue import GuardProcess, wait_for

_CLIENT: Final = "10.79.0.1"
_ROUTER: Final = ("10.79.0.254", "10.80.0.254")
_SERVER: Final = "10.80.0.1"
_PORT: Final = 7600
_SIZE: Final = 60_000
_CONTENT: Final = bytes(range(256)) * (_SIZE // 256) + bytes(_SIZE % 256)
_BUFFER: Final = 32_768
_AT_ONCE: Final = 25
_ROUNDS: Final = 4
_LIMIT_S: Final = 60.0
# A daemon is idle if it takes less than this share of a CPU for so many seconds.
_IDLE_S: Final = 2.0
_IDLE_SHARE: Final = 0.15
_USUAL: Final = 0.99
# Accepted difference between two runs without a guard.
_NOISE: Final = 0.1
_MODES: Final = {
    "no guard": None,
    "dry-run": ('mode = "dry-run"',),
    "enforce": ('mode = "enforce"',),
    "enforce with offload": ('mode = "enforce"', "offload = true", "offload_after = 2"),
    "no guard again": None,
}


class _Run(NamedTuple):
    """A number of transfers, and the duration of each successful one, in seconds."""

    times: list[float]
    broken: int
    judged: int
    dropped: int


class BadLink(NamedTuple):
    """A link that loses, doubles, delays and reorders packets.

    Attributes:
        text: What it does, after "over".
        made: Connects the interfaces `near` and `far` of the namespace in the middle until the end
            of `with`; gets client, middle and router, and a seed.
        steady: Whether the speed of the machine allows to compare runs.
    """

    text: str
    made: Callable[[Namespace, Namespace, Namespace, int], contextlib.AbstractContextManager[None]]
    steady: bool = True


@contextlib.contextmanager
def _relayed(_: Namespace, middle: Namespace, __: Namespace, seed: int) -> Iterator[None]:
    words = (sys.executable, "-m", "tests.faults.relay", "near", "far", str(seed))
    with middle.popen(*words, stdin=subprocess.PIPE, stdout=None, stderr=None) as passing:
        assert passing.stdin is not None
        try:
            yield
        finally:
            passing.stdin.close()


_RELAY: Final = BadLink(
    f"a link that loses {LOST:.0%}, doubles {DOUBLED:.0%}, delays {LATE:.0%} by up to 0.5 s and "
    "reorders",
    _relayed,
)


def transfers(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """T1."""
    return compared(at.folder, size.transfers, rng, _RELAY)


def compared(folder: Path, count: int, rng: random.Random, link: BadLink) -> Outcome:
    """Run transfers in each mode over a bad link.

    Args:
        folder: For the configurations and logs of the daemons.
        count: The number of transfers in each mode.
        rng: Seeds the link.
        link: The link between client and router.
    """
    count = max(_AT_ONCE, count // _ROUNDS)
    runs: dict[str, list[_Run]] = {mode: [] for mode in _MODES}
    for number in range(_ROUNDS):
        for mode, lines in _MODES.items():
            seed = rng.randrange(1 << 32)
            with _path(link, seed) as (client, router, server):
                run = _run(client, server, count, folder, router, f"{number} {mode}", lines, link)
            runs[mode].append(run)
    times = {mode: sorted(each for run in runs[mode] for each in run.times) for mode in _MODES}
    goodput = {mode: _goodput(times[mode]) for mode in _MODES}
    late = {mode: percentile(times[mode], 0.99) for mode in _MODES}
    broken = {mode: sum(run.broken for run in runs[mode]) for mode in _MODES}
    judged = sum(run.judged for mode in _MODES for run in runs[mode])
    dropped = sum(run.dropped for mode in _MODES for run in runs[mode])
    if link.steady:
        least = min(goodput["no guard"], goodput["no guard again"]) * (1 - _NOISE)
        most = max(late["no guard"], late["no guard again"]) * (1 + _NOISE)
        target = (
            "none broken; goodput and 99th percentile of the time within 10 % of those without a "
            "guard"
        )
    else:
        least, most = 0.0, math.inf
        target = "with enforce none broken"
    guarded = [mode for mode, lines in _MODES.items() if lines]
    # Where conntrack calls late copies INVALID, they may end connections unless a guard enforces.
    whole = _MODES if link.steady else [mode for mode in guarded if "enforce" in mode]
    said_broken = ", ".join(f"{mode} {ends} broken" for mode, ends in broken.items() if ends)
    said_broken = said_broken or "0 broken"
    said = ", ".join(
        f"{mode} {goodput[mode] / 1e6:.2f} MB/s and {ms(late[mode])}" for mode in _MODES
    )
    return Outcome(
        "T1",
        f"{count * _ROUNDS} transfers a mode, of {_SIZE // 1000} kB there and back, by a router "
        f"that masquerades, over {link.text}",
        target,
        f"{said_broken}; {said}; of {judged} INVALID packets {dropped} dropped",
        not any(broken[mode] for mode in whole)
        and all(goodput[mode] >= least and late[mode] <= most for mode in guarded),
    )  # fmt: skip


def _goodput(times: list[float]) -> float:
    """Octets a second of transfers that run side by side, by their sorted durations.

    Without the slowest hundredth, which `late` judges: their durations are those of retransmission
    timers, and two runs without a guard differed by half because of one of them.
    """
    usual = times[: max(1, math.floor(len(times) * _USUAL))]
    return 2 * _SIZE * _AT_ONCE / statistics.fmean(usual) if usual else 0.0


@contextlib.contextmanager
def _path(link: BadLink, seed: int) -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Client, router and server, with the bad link between the first two."""
    with (
        Namespace("client") as client,
        Namespace("relay") as relay,
        Namespace("router") as router,
        Namespace("server") as server,
    ):
        for one in (client, relay, router, server):
            one.sysctl("ipv6.conf.all.disable_ipv6", 1)
            one.sysctl("ipv6.conf.default.disable_ipv6", 1)
        veth(client, "c0", relay, "near")
        veth(relay, "far", router, "lan")
        veth(router, "wan", server, "s0", (f"{_ROUTER[1]}/24", f"{_SERVER}/24"))
        client.ip("addr", "add", f"{_CLIENT}/24", "dev", "c0")
        router.ip("addr", "add", f"{_ROUTER[0]}/24", "dev", "lan")
        client.ip("route", "add", "default", "via", _ROUTER[0])
        # A relay takes whole frames, with their checksums.
        for one, device in ((client, "c0"), (router, "lan"), (router, "wan"), (server, "s0")):
            checksums_in_software(one, device)
        router.sysctl("ipv4.ip_forward", 1)
        router.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
        with link.made(client, relay, router, seed):
            # Wait until both links are up and packets pass.
            wait_for(lambda: _is_refused(client))
            yield client, router, server


def _is_refused(client: Namespace) -> bool:
    """Whether the server answers with a refusal, because nothing listens yet."""
    with client.entered():
        channel = socket.socket()
    with channel:
        channel.settimeout(0.5)
        try:
            channel.connect((_SERVER, _PORT))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _run(
    client: Namespace,
    server: Namespace,
    count: int,
    folder: Path,
    router: Namespace,
    name: str,
    lines: tuple[str, ...] | None,
    link: BadLink,
) -> _Run:
    if lines is None:
        return _transfer(client, server, count)
    config, log = folder / f"{name}.toml", folder / name
    head = ("[daemon]", f'control_socket = "{folder / "r"}"', 'fail_mode = "closed"', *lines)
    config.write_text("\n".join(head) + '\n[policy]\ninclude = "preset:default"\n')
    with GuardProcess(router, log, "--config", str(config)).ready() as guard:
        if not link.steady:
            _wait_until_idle(guard.process.pid)
        run = _transfer(client, server, count)
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    dropped = stopped["actions"].get("drop", 0) if lines != _MODES["dry-run"] else 0
    return run._replace(judged=stopped["packets"], dropped=dropped)


def _wait_until_idle(pid: int) -> None:
    """Wait until a daemon has examined the host, which takes seconds of an emulated CPU."""

    def is_idle() -> bool:
        before = _cpu_s(pid)
        time.sleep(_IDLE_S)
        return _cpu_s(pid) - before < _IDLE_SHARE * _IDLE_S

    wait_for(is_idle, _LIMIT_S)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and of the programs that it has run."""
    stat = Path("/proc", str(pid), "stat").read_text(encoding="ascii")
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


def _transfer(client: Namespace, server: Namespace, count: int) -> _Run:
    """Run a number of transfers, `_AT_ONCE` at a time."""
    with server.entered():
        listener = socket.create_server((_SERVER, _PORT), backlog=count)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    serving = threading.Thread(target=_serve, args=(listener, count))
    serving.start()
    left = iter(range(count))
    times: list[float] = []
    fetching = [
        threading.Thread(target=_fetch_all, args=(client, left, times)) for _ in range(_AT_ONCE)
    ]
    for thread in fetching:
        thread.start()
    for thread in fetching:
        thread.join()
    # Stop waiting for a connection that was never opened.
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    serving.join()
    listener.close()
    return _Run(times, count - len(times), 0, 0)


def _serve(listener: socket.socket, count: int) -> None:
    answering = []
    for _ in range(count):
        try:
            channel, _ = listener.accept()
        except OSError:
            break
        thread = threading.Thread(target=_answer, args=(channel,))
        thread.start()
        answering.append(thread)
    for thread in answering:
        thread.join()


def _answer(channel: socket.socket) -> None:
    with channel, contextlib.suppress(OSError):
        channel.settimeout(_LIMIT_S)
        if _whole(channel):
            channel.sendall(_CONTENT)


def _fetch_all(client: Namespace, left: Iterator[int], times: list[float]) -> None:
    for _ in left:
        begun = time.monotonic()
        with client.entered():
            channel = socket.socket()
        with channel, contextlib.suppress(OSError):
            channel.settimeout(_LIMIT_S)
            # With a small window, late segments are soon below it.
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            channel.connect((_SERVER, _PORT))
            channel.sendall(_CONTENT)
            channel.shutdown(socket.SHUT_WR)
            if _whole(channel):
                times.append(time.monotonic() - begun)


def _whole(channel: socket.socket) -> bool:
    """Whether the received stream equals the sent data."""
    parts = []
    while part := channel.recv(1 << 16):
        parts.append(part)
    return b"".join(parts) == _CONTENT
