# SPDX-License-Identifier: MIT
"""Faults within the daemon: an exception while judging, and a child process that outlives it."""

import os
import random
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.faults.gateway import ALLOWED, DENIED, port_of
from tests.faults.outcome import Outcome, ms
from tests.faults.rig import Rig, Size, shed
from tests.support.queue import import_path, wait_for

_PPS: Final = 2000
# One packet in so many raises an exception.
_RAISING: Final = 7
# Run by Python before the daemon. The number of a packet is its sequence number.
_DEFECT: Final = f"""
from nfq_guard.policy.matcher import CompiledPolicy
sound = CompiledPolicy.decide
def decide(self, queued, *rest):
    if int.from_bytes(queued.octets[24:28], "big") % {_RAISING} == 0:
        raise KeyError("a defect")
    return sound(self, queued, *rest)
CompiledPolicy.decide = decide
"""
_PROGRAMS: Final = (
    "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy", "iptables-nft-save",
    "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft",
)  # fmt: skip
_LIVES_S: Final = 60


def judging_raises(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F19."""
    (at.folder / "sitecustomize.py").write_text(_DEFECT)
    env = {"PYTHONPATH": f"{at.folder}:{import_path()}"}
    count = min(size.packets, 20_000) // 2
    said: list[str] = []
    met = exact = True
    sent = 0
    for mode in ("open", "closed"):
        with at.start(f'fail_mode = "{mode}"', log=mode, env=env).ready() as guard:
            with at.gateway.stream(_PPS) as stream:
                wait_for(lambda: stream.sent >= count, timeout_s=count / _PPS * 2 + 5)
            at.ask("reload", wait=True)
            lost, waiting = shed(at.gateway.host), at.gateway.waiting()
            assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
        failed = range(0, stream.sent, _RAISING)
        by_port = {
            port: [number for number in failed if port_of(number) == port]
            for port in (ALLOWED, DENIED)
        }
        harmed = (stream.lost(), stream.leaked())
        expected = ([], by_port[DENIED]) if mode == "open" else (by_port[ALLOWED], [])
        told = stopped.get("judging_failures", 0)
        met = met and harmed == expected and not lost and not waiting
        exact = exact and not stream.discrepancy() and told == len(failed)
        sent += stream.sent
        said.append(f"{mode}: {told} raised, {stream.harm()}")
    return Outcome(
        "F19",
        f"{sent} packets, of which judging every {_RAISING}th raises, fail modes open and closed",
        "those alone get the verdict of the fail mode, each is counted, the daemon goes on",
        "; ".join(said),
        met,
        exact,
    )


def outlived(at: Rig, size: Size, _rng: random.Random) -> Outcome:
    """F18."""
    programs, armed = at.folder / "programs", at.folder / "armed"
    programs.mkdir()
    for name in _PROGRAMS:
        real = shutil.which(name)
        if real is not None:
            lines = ("#!/bin/sh", f"[ ! -e {armed} ] || exec sleep {_LIVES_S}", f'exec {real} "$@"')
            (programs / name).write_text("\n".join(lines) + "\n")
            (programs / name).chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    settings = ('fail_mode = "closed"', "verify_rules_s = 1")
    slowest = 0.0
    lived = leaked = 0
    exact = True
    with ExitStack() as daemons:
        guard = daemons.enter_context(at.start(*settings, log="first", env=env).ready())
        for number in range(size.starts):
            with at.gateway.stream(_PPS) as stream:
                armed.touch()
                running = _stand_ins(guard.process.pid)
                guard.process.kill()
                guard.process.wait()
                armed.unlink()
                begun = time.monotonic()
                following = at.start(*settings, log=f"log{number}", env=env)
                guard = daemons.enter_context(following.ready())
                slowest = max(slowest, time.monotonic() - begun)
                lived += all(_name(each) == "sleep" for each in running)
            for each in running:
                os.kill(each, signal.SIGKILL)
            leaked += len(stream.leaked())
            exact = exact and not stream.discrepancy()
        assert guard.stop() == 0
    return Outcome(
        "F18",
        f"{size.starts} times SIGKILL while a program runs that the daemon started",
        "the next daemon binds the queue within 2 s, before that program ends; nothing let through",
        f"the next one served after {ms(slowest)} at most, {lived} times before the program had "
        f"ended, {leaked} let through",
        lived == size.starts and slowest <= 2 and not leaked,
        exact,
    )


def _stand_ins(pid: int) -> list[int]:
    """The stand-ins that a process runs instead of its programs, once there are any."""
    found: list[int] = []

    def sleep() -> bool:
        children = Path(f"/proc/{pid}/task").glob("*/children")
        text = " ".join(path.read_text(encoding="ascii") for path in children)
        found[:] = [int(each) for each in text.split() if _name(int(each)) == "sleep"]
        return bool(found)

    wait_for(sleep)
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
