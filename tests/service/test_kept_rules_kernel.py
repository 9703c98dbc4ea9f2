# SPDX-License-Identifier: MIT
"""Another program changes rules that a daemon maintains with the privileges of the unit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.engine import Mode
from nfq_guard.firewall import Backend
from nfq_guard.lab.netns import Namespace
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import Settings
from tests.support.queue import GuardProcess, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

# As with `AmbientCapabilities` and `CapabilityBoundingSet` of the unit.
ONE_CAPABILITY = (
    "setpriv", "--no-new-privs", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin",
)  # fmt: skip
# Leaves sockets for legacy iptables, as systemd does with those of `prepare`.
WITH_SOCKETS = """
import os, socket, sys
for number, family in enumerate((socket.AF_INET, socket.AF_INET6), 3):
    made = socket.socket(family, socket.SOCK_DGRAM)
    os.dup2(made.detach(), number)
    os.set_inheritable(number, True)
names = ":".join(["nfq-guard-tables"] * 2)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES=names)
os.execvp(sys.argv[1], sys.argv[1:])
"""
SETTINGS = Settings(mode=Mode.ENFORCE, fail_mode="closed", backend="nft")


class Kept:
    """A namespace with our rules in iptables-nft, and the configuration of the daemon."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self.host = host
        self.config = directory / "c.toml"
        self.log = directory / "log"
        lines = ["[daemon]", 'mode = "enforce"', 'fail_mode = "closed"', 'backend = "nft"']
        lines += ['control_socket = ""', "verify_rules_s = 3600"]
        self.config.write_text("\n".join(lines) + "\n", encoding="ascii")
        with host.entered():
            firewall_of(SETTINGS).install()

    def daemon(self, **env: str) -> GuardProcess:
        return GuardProcess(
            self.host,
            self.log,
            "--keep-rules",
            "--config",
            str(self.config),
            prefix=ONE_CAPABILITY,
            env=env,
        ).ready()

    def correct(self) -> bool:
        with self.host.entered():
            return firewall_of(SETTINGS).verify() == []


@pytest.fixture
def kept(namespace: Make, tmp_path: Path) -> Kept:
    return Kept(namespace("host"), tmp_path)


def test_a_flushed_ruleset_is_put_back(kept: Kept) -> None:
    """`verify_rules_s` is an hour: the change itself starts the check."""
    expected: list[bool] = []

    def is_told() -> bool:
        return [event["reinstalled"] for event in guard.events("rules_changed")] == expected

    with kept.daemon() as guard:
        for _ in range(2):
            kept.host.run("nft", "flush", "ruleset")
            assert not kept.correct()
            expected.append(True)
            # The rules are installed before the event is logged.
            wait_for(is_told)
            assert kept.correct()
        assert guard.stop() == 0
        assert is_told()
    assert kept.correct(), "who installed them removes them"


def test_our_jump_is_moved_behind_rules_that_others_append(kept: Kept) -> None:
    with kept.daemon() as guard:
        words = ("-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "7")
        kept.host.run("iptables-nft", *words)
        wait_for(kept.correct)
        saved = kept.host.run("iptables-nft-save", "-t", "mangle").stdout
        assert guard.stop() == 0
    rules = [line for line in saved.splitlines() if line.startswith("-A PREROUTING")]
    assert ["NFQ_GUARD" in rule for rule in rules] == [False, True]


def test_a_daemon_that_cannot_put_them_back_ends(kept: Kept, tmp_path: Path) -> None:
    """Its unit then restarts it, after root has installed the rules."""
    broken = tmp_path / f"iptables-{Backend.NFT}-restore"
    broken.write_text("#!/bin/sh\necho 'the disk is on fire' >&2\nexit 1\n", encoding="ascii")
    broken.chmod(0o755)
    with kept.daemon(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}") as guard:
        kept.host.run("nft", "flush", "ruleset")
        try:
            assert guard.process.wait(timeout=60) == 1
        except subprocess.TimeoutExpired:
            pytest.fail("it goes on without rules")
        assert "the rules are gone and cannot be restored" in guard.stderr()


@pytest.mark.parametrize("line", ['rules = "none"', "reinstall_rules = false"])
def test_legacy_rules_that_the_daemon_does_not_restore_end_it_not(
    namespace: Make, tmp_path: Path, line: str
) -> None:
    """The operator removes them while the service runs, which is reported."""
    host = namespace("host")
    config = tmp_path / "c.toml"
    lines = ["[daemon]", 'mode = "enforce"', 'backend = "legacy"', 'control_socket = ""', line]
    config.write_text("\n".join(lines) + "\n", encoding="ascii")
    with host.entered():
        firewall_of(Settings(mode=Mode.ENFORCE, backend="legacy")).install()
    prefix = (sys.executable, "-c", WITH_SOCKETS, *ONE_CAPABILITY)
    words = ("--keep-rules", "--config", str(config))
    with GuardProcess(host, tmp_path / "log", *words, prefix=prefix).ready() as guard:
        # Later than the first check, which finds that it may not list them.
        wait_for(lambda: bool(guard.events("host_accepts")))
        host.run("iptables-legacy", "-t", "mangle", "-F")
        wait_for(lambda: bool(guard.events("rules_check_failed")))
        (failed,) = guard.events("rules_check_failed")
        assert failed["problem"].startswith("the rules are gone")
        assert guard.stop() == 0
