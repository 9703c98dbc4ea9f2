# SPDX-License-Identifier: MIT
"""The fail modes with the real daemon: running, killed, and restarted."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from nfq_guard.engine import Mode
from nfq_guard.firewall import FailMode, Family
from nfq_guard.service.config import load_settings
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import Settings
from tests.firewall.conftest import ADDRESSES, Wire, received
from tests.support.queue import wait_for

pytestmark = pytest.mark.kernel

SENT = 5


@contextmanager
def daemon(
    wire: Wire, mode: FailMode, directory: Path, running: Mode = Mode.ENFORCE, more: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A daemon that accepts every packet that it judges."""
    file = directory / "nfq-guard.toml"
    text = (
        f'[daemon]\nmode = "{running}"\nfail_mode = "{mode}"\n{more}'
        f'control_socket = "{directory}/control.sock"\n'
        '[policy]\ndefault = "allow"\non_unknown = "allow"\n'
    )
    file.write_text(text, encoding="ascii")
    words = (sys.executable, "-m", "nfq_guard", "run", "--config", str(file))
    process = wire.guarded.ns.popen(*words, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        while '"started"' not in process.stdout.readline():
            assert process.poll() is None
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def queues(wire: Wire) -> list[str]:
    """The queues that are served."""
    listed = wire.guarded.ns.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
    return [line.split()[0] for line in listed.splitlines()]


def kill(wire: Wire, process: subprocess.Popen[str]) -> None:
    """Kill the daemon.

    A program that it starts at that moment holds its queue until it has closed its copy.
    """
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    wait_for(lambda: queues(wire) == [])


def _arrive(wire: Wire, family: Family) -> int:
    with wire.guarded.listen(family) as raw:
        wire.peer.send_invalid(family, ADDRESSES[family][1], SENT)
        return received(raw)


@pytest.mark.parametrize(
    ("mode", "family", "when_dead"),
    [
        (FailMode.OPEN, Family.IPV4, SENT),
        (FailMode.CLOSED, Family.IPV6, 0),
        (FailMode.KERNEL_DROP, Family.IPV4, 0),
        (FailMode.KERNEL_DROP, Family.IPV6, 0),
    ],
)
def test_judged_packets_pass_and_without_a_daemon_the_fail_mode_holds(
    wire: Wire, family: Family, tmp_path: Path, mode: FailMode, when_dead: int
) -> None:
    with daemon(wire, mode, tmp_path) as process:
        assert _arrive(wire, family) == SENT
        kill(wire, process)
        assert _arrive(wire, family) == when_dead
    with daemon(wire, mode, tmp_path):
        assert _arrive(wire, family) == SENT
        with wire.guarded.ns.entered():
            assert firewall_of(Settings(mode=Mode.ENFORCE, fail_mode=mode.value)).verify() == []
    assert _arrive(wire, family) == SENT


def test_a_dead_dry_run_lets_packets_pass_whatever_the_fail_mode(
    wire: Wire, tmp_path: Path
) -> None:
    with daemon(wire, FailMode.CLOSED, tmp_path, Mode.DRY_RUN) as process:
        kill(wire, process)
        assert _arrive(wire, Family.IPV4) == SENT


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("fail_mode", [FailMode.CLOSED, FailMode.KERNEL_DROP])
def test_the_rules_follow_the_mode(
    wire: Wire, tmp_path: Path, backend: str, fail_mode: FailMode
) -> None:
    """By a command: a daemon killed afterwards leaves the fail mode of the new mode."""
    more = f'backend = "{backend}"\n'
    if backend == "nft":
        more += 'queues = "0-1"\n'
    with daemon(wire, fail_mode, tmp_path, Mode.DRY_RUN, more) as process:

        def switch(mode: Mode) -> None:
            words = (sys.executable, "-m", "nfq_guard", "mode", mode, "--socket")
            wire.guarded.ns.run(*words, str(tmp_path / "control.sock"))
            settings = load_settings(tmp_path / "nfq-guard.toml")
            with wire.guarded.ns.entered():
                installed = firewall_of(msgspec.structs.replace(settings, mode=mode))
                assert installed.verify() == []
            assert _arrive(wire, Family.IPV4) == SENT

        switch(Mode.ENFORCE)
        switch(Mode.DRY_RUN)
        switch(Mode.ENFORCE)
        kill(wire, process)
        assert _arrive(wire, Family.IPV4) == 0
    with daemon(wire, fail_mode, tmp_path, Mode.ENFORCE, more) as process:
        switch(Mode.DRY_RUN)
        kill(wire, process)
        assert _arrive(wire, Family.IPV4) == SENT


def test_a_second_daemon_leaves_the_rules_of_the_first(wire: Wire, tmp_path: Path) -> None:
    """On another queue, with another control socket; its end must not remove them either."""
    with daemon(wire, FailMode.CLOSED, tmp_path) as first:
        words = (sys.executable, "-m", "nfq_guard", "run", "--queue", "9", "--config")
        second = wire.guarded.ns.run(*words, str(tmp_path / "nfq-guard.toml"), check=False)
        assert second.returncode == 75
        assert f"(pid {first.pid})" in second.stderr
        with wire.guarded.ns.entered():
            assert firewall_of(Settings(mode=Mode.ENFORCE, fail_mode="closed")).verify() == []
        assert _arrive(wire, Family.IPV4) == SENT
