# SPDX-License-Identifier: MIT
"""Hostile neighbours: the lock of the rules, escapes, planted links, input without bound."""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.faults.gateway import DENIED, HOST
from tests.faults.outcome import Outcome, ms
from tests.faults.rig import Rig, Size, rss_kb
from tests.support.conversation import Conversation
from tests.support.queue import import_path, wait_for

_PPS: Final = 2000
# Whether the input of a script has ended. The pause leaves the processor to the guard.
_IS_OVER: Final = """
import os, time
os.set_blocking(0, False)
def is_over():
    time.sleep(0.001)
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False
"""
# What a local user may try with each name of the guard, again and again: to open and to lock it, to
# replace it by a link, and to take its directory. Prints the number of successes at the end.
_NOBODY: Final = f"""{_IS_OVER}
import fcntl, sys
from contextlib import suppress
from pathlib import Path
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
folder, lock = Path("/run/nfq-guard"), Path("/run/nfq-guard", sys.argv[1])
taken = tries = 0
print("trying", flush=True)
while not is_over():
    for attempt in (
        lambda: fcntl.flock(os.open(lock, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda: os.open(lock, os.O_RDWR | os.O_CREAT),
        lambda: os.symlink("/etc/passwd", lock),
        lambda: os.mkdir(folder),
        lambda: os.rename(folder, "/run/other"),
        lambda: list(folder.iterdir()),
    ):
        tries += 1
        with suppress(OSError):
            attempt()
            taken += 1
print(tries, taken)
"""

_SECRET: Final = b"what the links lead to"
# Puts symbolic and hard links to a file, and a link to a file that does not exist, at a path and
# at the names that unfinished files might have, until its input ends.
_PLANT: Final = f"""{_IS_OVER}
import sys
from contextlib import suppress
out, victim, created = sys.argv[1:]
turn = 0
while not is_over():
    turn += 1
    for name in (out, out + ".part", out + ".tmp"):
        with suppress(OSError):
            os.unlink(name)
        with suppress(OSError):
            if turn % 3 == 0:
                os.link(victim, name)
            else:
                os.symlink(victim if turn % 3 == 1 else created, name)
"""


def lock_taken(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """A1."""
    host = at.gateway.host
    with host.entered():
        lock = f"rules-{Path('/proc/thread-self/ns/net').stat().st_ino}.lock"
    slowest = 0.0
    before = host.run("iptables-save", "-t", "mangle").stdout.count("\n-A")
    abstract: set[str] = set()
    with subprocess.Popen(
        host.argv([sys.executable, "-c", _NOBODY, lock]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as user:  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "trying\n"
        for number in range(size.starts):
            begun = time.monotonic()
            with at.start('fail_mode = "closed"', log=f"log{number}").ready() as guard:
                slowest = max(slowest, time.monotonic() - begun)
                # A name that is not a file has no owner: any local user may take it first.
                names = host.run("cat", "/proc/net/unix").stdout.split()
                abstract.update(name for name in names if name.startswith("@") and "nfq" in name)
                assert guard.stop() == 0
        user.stdin.close()
        tries, taken = map(int, user.stdout.read().split())
    left = host.run("iptables-save", "-t", "mangle").stdout.count("\n-A") - before
    return Outcome(
        "A1",
        f"{tries} times an unprivileged user tries to take the lock, over {size.starts} starts and "
        "ends",
        "never taken, each start within 5 s, the rules removed, no abstract socket name",
        f"{taken} times taken, slowest start {ms(slowest)}, {left} rules left, "
        f"{len(abstract)} abstract names",
        not taken and tries > 100 and slowest <= 5 and not left and not abstract,
    )


def _evil(rng: random.Random) -> str:
    """Characters with which a text could deceive the reader of a terminal."""
    signs = ["\x1b[2J", "\x1b]0;x\x07", "\x9b31m", "\r", "\b", "\x7f", "\u202e", "\u2066", "\u2028"]
    return "E" + "".join(rng.choice(signs) for _ in range(4))


def escapes(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """A12: keys, rules, file names and interfaces, by each command and by the log of a console."""
    shown: list[str] = []
    told = 0
    times = max(1, size.corrupted // 60)
    at.gateway.host.run("ip", "link", "set", "h0", "name", "h\x1b[31m\x07")
    with at.start('fail_mode = "closed"', 'log_format = "console"') as guard:
        wait_for(at.socket.exists)
        with at.gateway.stream(_PPS):
            for _ in range(times):
                evil = _evil(rng)
                name = at.folder / evil.replace("/", "")
                name.write_text(at.text() + f"{json.dumps(evil)} = 1\n", encoding="utf-8")
                at.config.write_bytes(name.read_bytes())
                control = ["--socket", str(at.socket)]
                for words in (
                    ["check", str(name)], ["reload", "--wait", *control], ["status", *control],
                    ["dump", *control], ["replay", str(name)], ["report", str(name) + "x"],
                    ["rules", "verify", "--config", str(name)], ["stats", *control, evil],
                ):  # fmt: skip
                    text = _told(at, words)
                    told += "E" in text
                    shown.append(text)
        guard.stop()
    shown.append(guard.log.read_text(encoding="utf-8"))
    raw = sum(not _is_clean(text) for text in shown)
    return Outcome(
        "A12",
        f"{len(shown)} outputs of commands and of a console about keys, files and an interface "
        "whose names are escapes",
        "no control character reaches the terminal",
        f"{raw} with one",
        not raw and told >= times and "x1b[31m" in shown[-1],
    )


def _is_clean(shown: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in shown)


def _told(at: Rig, words: Sequence[str]) -> str:
    done = subprocess.run(
        at.gateway.host.argv([sys.executable, "-m", "nfq_guard", *words]),
        env={**os.environ, "PYTHONPATH": import_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    return (done.stdout + done.stderr).decode("utf-8", "backslashreplace")


def links(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """A13: links that another process plants while a command writes its output there."""
    talk = Conversation()
    talk.open()
    talk.client("A", 1, 20_000)
    capture = talk.save(at.folder / "talk.pcap")
    victims = [at.folder / "victim", at.folder / "created"]
    victims[0].write_bytes(_SECRET)
    shared = at.folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    out = shared / "out"
    times = max(2, size.corrupted // 50)
    harmed = unwritten = 0
    with subprocess.Popen(
        [sys.executable, "-c", _PLANT, *map(str, (out, *victims))], stdin=subprocess.PIPE
    ) as planter:
        for number in range(times):
            option = rng.choice(["--write", "--report"])
            # A capture that cannot be read leaves what is there.
            name = capture if number % 4 else str(victims[0])
            done = _told(at, ["replay", name, option, str(out)])
            unwritten += "Traceback" in done
            harmed += victims[0].read_bytes() != _SECRET or victims[1].exists()
        assert planter.stdin is not None
        planter.stdin.close()
    left = [path.name for path in shared.iterdir() if path.name.startswith(".out")]
    return Outcome(
        "A13",
        f"{times} outputs of `replay` to a path at which links are planted all the time",
        "nothing is written through a link, no unfinished file is left",
        f"{harmed} times written through one, {unwritten} tracebacks, {len(left)} files left",
        not harmed and not unwritten and not left,
    )


def unbounded(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """A14: mistakes, events of forged flows, and keys of rate limits."""
    mistakes = min(20_000, size.packets)
    limit_per_s, memory_kb = 200, 32 << 10
    rules = "".join(
        f'[[policy.rule]]\nname = "r{number}"\ndport = {DENIED}\n'
        'rate = { over = 1000000, in_s = 3600, by = "source" }\naction = "drop"\n'
        for number in range(200)
    )
    lines = ('fail_mode = "closed"', f"log_events_per_s = {limit_per_s}", "log_interval_s = 10")
    policy = f'[policy]\ndefault = "log"\non_unknown = "log"\n{rules}'
    with at.start(*lines, policy=policy).ready() as guard:
        pid, begun = guard.process.pid, time.monotonic()
        before = rss_kb(pid)
        with at.gateway.peer.entered():
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for number in range(size.packets):
            out.sendto(_forged(rng), (HOST, 0))
            if number % 500 == 499:
                wait_for(lambda: at.gateway.waiting() < 2_000)
        out.close()
        wait_for(lambda: at.gateway.waiting() == 0)
        wrong = "".join(f"k{number}{'x' * 200} = 1\n" for number in range(mistakes))
        at.config.write_text(at.text(*lines, wrong, policy=policy))
        refused = at.ask("reload", wait=True)["return"] != "OK"
        more_kb = rss_kb(pid) - before
        took = time.monotonic() - begun
        assert guard.stop() == 0
    written = guard.log.read_bytes().splitlines()
    events = sum(b'"packet_judged"' in line for line in written)
    longest = max(map(len, written))
    whole = all(line.startswith(b"{") and line.endswith(b"}") for line in written)
    return Outcome(
        "A14",
        f"{size.packets} packets from forged addresses, judged by 200 `rate` rules, and a reload "
        f"with {mistakes} mistakes",
        f"{limit_per_s} events a second at most, lines of 64 kB at most, none cut or lost, "
        f"{memory_kb >> 10} MB more at most",
        f"{events} events in {took:.1f} s, the longest line {longest} octets, {more_kb} kB more",
        refused and whole and 0 < events <= limit_per_s * (took + 1) and longest <= 65_536
        and more_kb <= memory_kb,
    )  # fmt: skip


def _forged(rng: random.Random) -> bytes:
    """An IPv4 packet with an RST to `DENIED`, from any address."""
    source = bytes([rng.randrange(1, 127), *rng.randbytes(3)])
    flow = source + socket.inet_aton(HOST)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + flow
    ports = rng.randrange(1024, 65_536), DENIED
    segment = struct.pack("!HHIIBBHHH", *ports, rng.getrandbits(32), 0, 5 << 4, 4, 0, 0, 0)
    total: int = sum(struct.unpack("!16H", flow + struct.pack("!HH", 6, 20) + segment))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header + segment[:16] + (~total & 0xFFFF).to_bytes(2, "big") + segment[18:]
