# SPDX-License-Identifier: MIT
"""Faults of a daemon in a network namespace, without systemd."""

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import parse
from tests.faults import attack, hostile, inputs, inside, soak, transfers
from tests.faults.gateway import ALLOWED, POLICY, mutated
from tests.faults.outcome import Outcome, ms
from tests.faults.rig import Rig, Size, account, fewest_files, files, rss_kb, shed
from tests.support.queue import GuardProcess, import_path, wait_for

_PPS: Final = 2000
# A daemon under a constant stream of packets has settled once it grows by less than this a second.
_SETTLED_KB: Final = 64
_LOST_NONE: Final = "nothing lost or let through"


def reloads(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F4."""
    with at.start('fail_mode = "closed"', "queue_length = 8192").ready() as guard:
        pid = guard.process.pid
        with at.gateway.stream(_PPS) as stream:
            _settle(guard)
            # The first hundred take 0.4 MB, as much as all later ones.
            for _ in range(100):
                at.ask("reload", wait=True)
            files_before, memory = fewest_files(pid), rss_kb(pid)
            for _ in range(size.reloads):
                assert at.ask("reload", wait=True)["return"] == "OK"
        more_kb = rss_kb(pid) - memory
        more_files = fewest_files(pid) - files_before
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    gap = stream.longest_wait_s()
    return Outcome(
        "F4",
        f"{size.reloads} reloads under {_PPS} packets/s",
        "0 lost, longest gap 20 ms, no descriptor more, 1 MB more at most",
        f"{stream.harm()}, longest gap {ms(gap)}, "
        f"{more_files} descriptors more, {more_kb} kB more",
        stream.unharmed and gap <= 0.02 and more_files <= 0
        and more_kb <= 1024,
        told.exact,
    )  # fmt: skip


def _settle(guard: GuardProcess) -> None:
    """Wait until a daemon with packets has all that it keeps.

    The first packets fill what is bounded, such as the history of flows, and the daemon looks at
    the rules of the host two seconds after its start.
    """
    wait_for(lambda: bool(guard.events("host_accepts")))
    wait_for(lambda: _grows_kb(guard.process.pid) <= _SETTLED_KB, 60)


def _grows_kb(pid: int) -> int:
    """The growth of a process in five seconds, kB. It comes in steps of some seconds."""
    before = rss_kb(pid)
    time.sleep(5)
    return rss_kb(pid) - before


def corrupted(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F5."""
    slowest = 0.0
    adopted = 0
    with at.start('fail_mode = "closed"').ready() as guard:
        good = at.config.read_bytes()
        with at.gateway.stream(_PPS) as stream:
            for _ in range(size.corrupted):
                _corrupt(at.config, good, rng)
                begun = time.monotonic()
                answer = at.ask("reload", wait=True)
                slowest = max(slowest, time.monotonic() - begun)
                adopted += answer["return"] == "OK"
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
    told = account(stream, guard, lost)
    failures = stopped["reload_failures"]
    return Outcome(
        "F5",
        f"{size.corrupted} files: cut, bits flipped, empty, wrong types, 1 MB of one key, FIFO, "
        "directory, link to itself, absent",
        "all refused and counted, the old policy stays, 1 s each at most",
        f"{failures} refused, {adopted} taken, {stream.harm()}, "
        f"slowest {ms(slowest)}",
        adopted == 0 and failures == size.corrupted and stream.unharmed
        and slowest <= 1,
        told.exact,
    )  # fmt: skip


def _corrupt(config: Path, good: bytes, rng: random.Random) -> None:
    """Replace the file with something that is not a configuration."""
    if config.is_dir() and not config.is_symlink():
        config.rmdir()
    else:
        config.unlink(missing_ok=True)
    # Append a mistake if there is none yet.
    mistake = b"\n[[\n"
    kind = rng.randrange(9)
    if kind == 0:
        config.write_bytes(good[: rng.randrange(1, len(good))] + mistake)
    elif kind == 1:
        octets = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
        config.write_bytes(bytes(octets) + mistake)
    elif kind == 2:
        config.write_bytes(bytes(rng.randrange(1, 100)))
    elif kind == 3:
        wrong = rng.choice([b'"x"', b"1.5", b"[]", b"{}", b"1979-05-27", b"-1"])
        config.write_bytes(b"[policy]\ndefault = " + wrong + b"\n")
    elif kind == 4:
        config.write_bytes(b'[policy]\ndefault = "' + b"a" * (1 << 20) + b'"\n')
    elif kind == 5:
        os.mkfifo(config)
    elif kind == 6:
        config.mkdir()
    elif kind == 7:
        config.symlink_to(config)


def full_disk(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F6."""
    disk = at.folder / "disk"
    disk.mkdir()
    count = min(size.packets, 20_000)
    _mount(disk, "size=64k")
    try:
        lines = ('fail_mode = "closed"', f'log = "{disk}/log"', "log_interval_s = 0")
        with at.start(*lines, "log_events_per_s = 1000000") as guard:
            wait_for(lambda: b"started" in _read(disk / "log"))
            with at.gateway.stream(_PPS) as stream:
                wait_for(lambda: stream.sent >= count, timeout_s=count / _PPS * 2 + 5)
                full = (disk / "log").stat().st_size
                _mount(disk, "remount,size=256m")
                begun = time.monotonic()
                wait_for(lambda: (disk / "log").stat().st_size > full)
                back = time.monotonic() - begun
            lost = shed(at.gateway.host)
            assert guard.stop() == 0
            stopped = _last(_read(disk / "log"), "stopped")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    unaccounted = stream.sent - stopped["packets"] - lost
    return Outcome(
        "F6",
        f"{stream.sent} packets, each with a line, to a log on a disk of 64 kB",
        "0 lost, dropped lines counted, logging again within 1 s of space",
        f"{len(stream.lost())} lost, {stopped.get('log_lines_dropped', 0)} lines dropped, "
        f"logging again after {ms(back)}",
        stream.unharmed and back <= 1,
        not stream.discrepancy() and unaccounted == 0,
    )  # fmt: skip


def _mount(folder: Path, options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(words, check=True)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _last(log: bytes, name: str) -> dict[str, Any]:
    found = [line for line in log.splitlines() if f'"{name}"'.encode() in line]
    event: dict[str, Any] = json.loads(found[-1].strip(b"\0"))
    return event


def stalled_log(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F7."""
    reading, writing = os.pipe()
    count = min(size.packets, 20_000)
    try:
        at.config.write_text(at.text('fail_mode = "closed"', "log_interval_s = 0"))
        with GuardProcess(
            at.gateway.host, at.folder / "log", "--config", str(at.config), stdout=writing
        ) as guard:
            said = b""
            while b'"started"' not in said:
                said += os.read(reading, 1 << 16)
            with at.gateway.stream(_PPS) as stream:
                wait_for(lambda: stream.sent >= count, timeout_s=count / _PPS * 2 + 5)
            lost = shed(at.gateway.host)
            assert guard.stop() == 0
    finally:
        os.close(reading)
        os.close(writing)
    return Outcome(
        "F7",
        f"{stream.sent} packets while nobody reads the log",
        _LOST_NONE,
        f"{stream.harm()}, {lost} shed",
        stream.unharmed and not lost,
        not stream.discrepancy(),
    )


def overflow(at: Rig, size: Size, _rng: random.Random, *, mode: str, fault: str) -> Outcome:
    """F8 and F9: more than the queue, or the socket's buffer, takes; the daemon stands still."""
    limits = ["queue_length = 256"] if fault == "F8" else ["socket_buffer_bytes = 8192"]
    rounds = max(2, min(50, size.packets // 20_000))
    with at.start(f'fail_mode = "{mode}"', *limits).ready() as guard:
        with at.gateway.stream(4000) as stream:
            for _ in range(rounds):
                guard.process.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
                guard.process.send_signal(signal.SIGCONT)
                time.sleep(0.2)
        _quiet(at)
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    target = "nothing shed" if mode == "open" else "nothing let through"
    held = lost == 0 if mode == "open" else told.unjudged == 0 and lost > 0
    return Outcome(
        fault,
        f"{rounds} floods past the {'queue' if fault == 'F8' else 'buffer'}, fail mode {mode}, "
        f"{told.sent} packets",
        f"each packet has one fate, {target}, the daemon goes on",
        f"{told.judged} judged ({told.dropped} dropped), {told.shed} shed, "
        f"{told.unjudged} passed unjudged, of which the daemon counted {told.counted}",
        told.exact and held,
        told.exact,
    )


def _quiet(at: Rig) -> None:
    """Wait until the daemon has seen the queue idle."""
    for _ in range(2):
        at.ask("status")
        time.sleep(0.2)


def fuzz(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F14."""
    with at.start('fail_mode = "closed"', "queue_length = 65535").ready() as guard:
        begun = time.monotonic()
        for number in range(size.packets):
            at.gateway.send_octets(mutated(rng, number))
            if number % 500 == 499:
                # Fewer than fill the socket's buffer, which sheds before the queue is full.
                wait_for(lambda: at.gateway.waiting() < 1_000)
        wait_for(lambda: at.gateway.waiting() == 0)
        took = time.monotonic() - begun
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
    failures = stopped.get("judging_failures", 0)
    return Outcome(
        "F14",
        f"{size.packets} mutated segments",
        "no exception, no packet without a verdict",
        f"{stopped['packets']} INVALID ones judged, {failures} exceptions, {lost} shed, 0 left "
        f"without a verdict, {took:.0f} s",
        not failures and not lost and stopped["packets"] > size.packets // 10,
    )


def signals(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F16."""
    slowest = 0.0
    unclean = 0
    for number in range(size.signals):
        with at.start('fail_mode = "closed"', log=f"log{number}").ready() as guard:
            for _ in range(20):
                guard.process.send_signal(rng.choice([signal.SIGHUP, signal.SIGUSR1]))
                time.sleep(rng.random() * 0.005)
            begun = time.monotonic()
            unclean += guard.stop() != 0
            slowest = max(slowest, time.monotonic() - begun)
    return Outcome(
        "F16",
        f"{size.signals} times SIGTERM at any moment, after {size.signals * 20} of SIGHUP and "
        "SIGUSR1",
        "all acted on; the end, with the removal of the rules, within 1 s",
        f"{unclean} unclean, slowest end {ms(slowest)}",
        not unclean and slowest <= 1,
    )


def second_instance(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F17 and A10."""
    statuses: list[int] = []
    slowest = 0.0
    named = 0
    other = at.folder / "other.toml"
    with at.start('fail_mode = "closed"').ready() as guard:
        other.write_text(
            at.text("queue = 9", 'fail_mode = "open"').replace(f"{at.socket}", f"{at.socket}2")
        )
        before = at.gateway.host.run("iptables-save").stdout
        with at.gateway.stream(_PPS) as stream:
            for number in range(size.starts):
                begun = time.monotonic()
                # Alternately with the same queue and socket, and with its own.
                config = at.config if number % 2 == 0 else other
                second = at.gateway.host.popen(
                    *(sys.executable, "-m", "nfq_guard", "run", "--config", str(config)),
                    env={**os.environ, "PYTHONPATH": import_path()},
                )
                _, said = second.communicate(timeout=60)
                statuses.append(second.returncode)
                named += str(guard.process.pid) in said
                slowest = max(slowest, time.monotonic() - begun)
        lost = shed(at.gateway.host)
        same = _rules(before) == _rules(at.gateway.host.run("iptables-save").stdout)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    return Outcome(
        "F17",
        f"{size.starts} second daemons, on the same queue and on another",
        "status 75 within 2 s, the owner named; the first loses nothing, its rules stay",
        f"statuses {sorted(set(statuses))}, {named} named the owner, slowest {ms(slowest)}, "
        f"{stream.harm()}, rules "
        f"{'the same' if same else 'changed'}",
        set(statuses) == {75} and named == size.starts and slowest <= 2 and same
        and stream.unharmed,
        told.exact,
    )  # fmt: skip


def _rules(saved: str) -> list[str]:
    """Rules without counts and times."""
    return [line for line in saved.splitlines() if line.startswith("-A")]


def starts(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F20."""
    before = _rules(at.gateway.host.run("iptables-save").stdout)
    dirty = 0
    for number in range(size.starts):
        mode = rng.choice(["open", "closed", "kernel-drop"])
        with at.start(f'fail_mode = "{mode}"', log=f"log{number}").ready() as guard:
            if rng.random() < 0.5:
                guard.process.kill()
                guard.process.wait()
            else:
                assert guard.stop() == 0
        # The next daemon takes over the rules of a killed one, or this command removes them.
        words = (sys.executable, "-m", "nfq_guard", "rules", "remove", "--config", str(at.config))
        at.gateway.host.run("env", f"PYTHONPATH={import_path()}", *words)
        after = at.gateway.host.run("iptables-save").stdout
        dirty += _rules(after) != before or "NFQ_GUARD" in after
    return Outcome(
        "F20",
        f"{size.starts} starts, each ended by SIGTERM or SIGKILL, and `rules remove`",
        "the rules of the host as before",
        f"{dirty} with a difference",
        not dirty,
    )


def control_abuse(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F22."""
    kinds = [
        b"x" * 70_000,
        b'{"command": "status"}\n' * 200,
        b"{" * 30_000 + b"\n",
        b"\xff\n" * 50,
        b"",
    ]
    kept: list[socket.socket] = []
    with at.start('fail_mode = "closed"').ready() as guard:
        pid = guard.process.pid
        memory = rss_kb(pid)
        with at.gateway.stream(_PPS) as stream:
            for _ in range(size.requests):
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(0)
                with contextlib.suppress(OSError):
                    client.connect(str(at.socket))
                    client.send(rng.choice(kinds))
                kept.append(client)
                if len(kept) > 300:
                    kept.pop(0).close()
                time.sleep(0.0005)
        for client in kept:
            client.close()
        more_kb = rss_kb(pid) - memory
        open_files = files(pid)
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    return Outcome(
        "F22",
        f"{size.requests} idle, malformed, oversized and unread requests, 300 clients at a time",
        f"{_LOST_NONE}, memory and descriptors bounded",
        f"{stream.harm()}, {more_kb} kB more, {open_files} descriptors",
        stream.unharmed and more_kb <= 8192 and open_files < 64,
        told.exact,
    )


def bound_under_load(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """A4."""
    sent = judged = dropped = arrived = leaked = lost = 0
    exact = True
    rules = (sys.executable, "-m", "nfq_guard", "rules", "install", "--config", str(at.config))
    at.config.write_text(at.text('rules = "keep"', 'fail_mode = "closed"', "queue_length = 8192"))
    at.gateway.host.run("env", f"PYTHONPATH={import_path()}", *rules)
    lines = ('rules = "keep"', 'fail_mode = "closed"', "queue_length = 8192")
    for number in range(size.starts):
        with at.gateway.stream(8000) as stream:
            guard = at.start(*lines, log=f"log{number}").ready()
            time.sleep(0.3)
        with guard:
            text = at.gateway.host.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
            (line,) = parse(text).values()
            assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
        sent += line.last_id
        judged += stopped["packets"]
        dropped += stopped["actions"].get("drop", 0)
        arrived += len(stream.arrived)
        leaked += len(stream.leaked())
        lost += line.user_dropped
        exact = exact and not stream.discrepancy()
    return Outcome(
        "A4",
        f"{size.starts} binds under 8000 packets/s, fail mode closed, {sent} packets queued",
        "each packet id has a verdict of its own or that of the fail mode",
        f"{judged} judged, {lost} shed, {sent - judged - lost} never read, {leaked} let through",
        leaked == 0 and arrived == judged - dropped,
        exact,
    )


def full_table(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F10. The limit applies to the whole host: it is reached, not changed."""
    host = at.gateway.host
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(encoding="ascii"))
    wanted = min(size.entries, limit)
    host.sysctl("netfilter.nf_conntrack_udp_timeout", 600)
    with at.start('fail_mode = "closed"', "queue_length = 8192").ready() as guard:
        with at.gateway.stream(_PPS) as stream:
            _settle(guard)
            memory = rss_kb(guard.process.pid)
            at.gateway.fill_conntrack(wanted + wanted // 50)
            entries = _number(host, "nf_conntrack_count")
            time.sleep(0.5)
        more_kb = rss_kb(guard.process.pid) - memory
        lost = shed(host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    return Outcome(
        "F10",
        f"{entries} entries of conntrack, of {limit} that it may have, while packets come",
        f"{_LOST_NONE}, memory bounded",
        f"{stream.harm()}, {more_kb} kB more",
        stream.unharmed and more_kb <= 4096 and entries >= wanted - 8,
        told.exact,
    )


def _number(host: Namespace, name: str) -> int:
    return int(host.run("cat", f"/proc/sys/net/netfilter/{name}").stdout)


def clock_jumps(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F11: only the wall clock jumps, as when it is set."""
    library, offset = at.folder / "clock.so", at.folder / "offset"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(bytes(8))
    env = {"LD_PRELOAD": str(library), "FAKE_CLOCK": str(offset)}
    lines = ('fail_mode = "closed"', "log_interval_s = 0", "verify_rules_s = 1")
    with at.start(*lines, env=env).ready() as guard:
        with at.gateway.stream(_PPS) as stream:
            for number in range(size.starts):
                jump = (86_400, -86_400, 365 * 86_400, 0)[number % 4]
                with offset.open("r+b") as file:
                    file.write(jump.to_bytes(8, sys.byteorder, signed=True))
                time.sleep(0.5)
        age = at.ask("status")["message"]["rules"]["age_s"]
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    days = {event["timestamp"][:10] for event in guard.events("packet_judged")}
    gap = stream.longest_wait_s()
    return Outcome(
        "F11",
        f"{size.starts} jumps of the wall clock by a day and a year, forwards and backwards",
        f"{_LOST_NONE}, longest gap 20 ms, the rules are still checked, events follow the clock",
        f"{stream.harm()}, longest gap {ms(gap)}, "
        f"rules checked {age} s ago, events of {len(days)} days",
        stream.unharmed and gap <= 0.02 and age <= 5 and len(days) > 1,
        told.exact,
    )


def gone(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F12: an interface with packets in the queue, and the name of the network namespace."""
    waiting, judged_after, errors, dead = 100, 0, 0, 0
    gateway = at.gateway
    with at.start('fail_mode = "closed"').ready() as guard:
        for _ in range(size.starts):
            guard.process.send_signal(signal.SIGSTOP)
            for number in range(waiting):
                gateway.send(number, ALLOWED)
            wait_for(lambda: gateway.waiting() == waiting)
            gateway.host.ip("link", "del", "h0")
            wait_for(lambda: gateway.waiting() == 0)
            guard.process.send_signal(signal.SIGCONT)
            gateway.link()
            dead += guard.process.poll() is not None
            with gateway.stream(_PPS) as stream:
                time.sleep(0.3)
            judged_after += stream.unharmed and not stream.discrepancy()
        errors = at.ask("status")["message"]["queues"][0]["verdict_errors"]
        gateway.host.close()
        begun = time.monotonic()
        unclean = guard.stop() != 0
        took = time.monotonic() - begun
    return Outcome(
        "F12",
        f"{size.starts} times the interface with {waiting} packets in the queue removed, and the "
        "network namespace at the end",
        "the daemon lives, judges what comes by the next interface, and ends within 1 s",
        f"{dead} ended, {errors} verdicts came too late, {judged_after} of {size.starts} times all "
        f"judged afterwards, end {ms(took)}",
        not dead and not unclean and judged_after == size.starts and took <= 1,
        judged_after == size.starts,
    )


def memory(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F13: no memory beyond the daemon's own, or a little more, during a reload."""
    answered = taken = 0
    slowest = 0.0
    rounds = size.starts * 5
    injected = f"{rounds} reloads with at most 9 MB more memory than the daemon has"
    target = f"{_LOST_NONE}, each reload answered within 2 s, the last one taken, the rules checked"
    lines = ('fail_mode = "closed"', "queue_length = 8192", "verify_rules_s = 1")
    with at.start(*lines).ready() as guard:
        pid = guard.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_DATA)
        with at.gateway.stream(_PPS) as stream:
            for number in range(rounds):
                # Each needs more memory than the previous one, which left its own allocated.
                count = 100 + 800 * number // rounds
                rules = (f'[[policy.rule]]\nsport = {n}\naction = "log"\n' for n in range(count))
                at.config.write_text(at.text(*lines, policy=f"{POLICY}{''.join(rules)}"))
                more = rng.choice([-(1 << 20), 0, 1 << 14, 1 << 16, 1 << 20, 9 << 20])
                resource.prlimit(pid, resource.RLIMIT_DATA, (_data_bytes(pid) + more, before[1]))
                begun = time.monotonic()
                with contextlib.suppress(ValueError, OSError):
                    taken += at.ask("reload", wait=True)["return"] == "OK"
                    answered += 1
                slowest = max(slowest, time.monotonic() - begun)
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_DATA, before)
            try:
                last = at.ask("reload", wait=True)
                wait_for(lambda: at.ask("status")["message"]["rules"]["age_s"] < 2)
            except (ValueError, OSError):
                guard.process.wait(timeout=60)
                said = f"the daemon ended, {answered} answered"
                return Outcome("F13", injected, target, said, met=False)
            assert last["return"] == "OK", last
        lost = shed(at.gateway.host)
        assert guard.stop() == 0
    told = account(stream, guard, lost)
    return Outcome(
        "F13",
        injected,
        target,
        f"{stream.harm()}, {answered} answered, {taken} taken, slowest {ms(slowest)}",
        stream.unharmed and answered == rounds and slowest <= 2,
        told.exact,
    )


def _data_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmData:")[2].split()[0]) * 1024


Fault = Callable[[Rig, Size, random.Random], Outcome]


def _flood(mode: str, fault: str) -> Fault:
    return lambda at, size, rng: overflow(at, size, rng, mode=mode, fault=fault)


FAULTS: Final[dict[str, Fault]] = {
    "reloads": reloads,
    "corrupted": corrupted,
    "full-disk": full_disk,
    "stalled-log": stalled_log,
    "overflow-open": _flood("open", "F8"),
    "buffer-open": _flood("open", "F9"),
    "overflow-closed": _flood("closed", "F8"),
    "buffer-closed": _flood("closed", "F9"),
    "fuzz": fuzz,
    "signals": signals,
    "second-instance": second_instance,
    "starts": starts,
    "control-abuse": control_abuse,
    "bound-under-load": bound_under_load,
    "full-table": full_table,
    "clock-jumps": clock_jumps,
    "gone": gone,
    "memory": memory,
    "outlived": inside.outlived,
    "judging-raises": inside.judging_raises,
    "transfers": transfers.transfers,
    "attacked": attack.attacked,
    "decoding": inputs.decoding,
    "damaged-inputs": inputs.damaged,
    "bombs": inputs.bombs,
    "metrics-clients": inputs.metrics_clients,
    "lock": hostile.lock_taken,
    "escapes": hostile.escapes,
    "links": hostile.links,
    "unbounded": hostile.unbounded,
    "soak": soak.soak,
}
