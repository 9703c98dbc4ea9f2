# SPDX-License-Identifier: MIT
"""Verifies that each packet that the guard accepts takes the same path as without the guard."""

import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import parse
from tests.support.crossroads import FAMILIES, Crossroads, Seen
from tests.support.queue import GuardProcess, wait_for

_ALLOW = '[policy]\ndefault = "allow"\non_unknown = "allow"\n'
_DROP = '[policy]\ni_know = "drops everything"\ndefault = "drop"\non_unknown = "drop"\n'
_SHORT_QUEUE = 5

Configure = Callable[..., Path]


@pytest.fixture(scope="module")
def without(crossroads: Crossroads) -> list[Seen]:
    """The segments seen without the guard."""
    seen = crossroads.observe()
    # The foreign rules are effective: all uplinks are used, and packets are copied.
    assert {one.place for one in seen} == {"up1", "up2", "up3", "inner"}
    assert {one.mark for one in seen} == {0, 1, 2, 3, 5, 6}
    assert {one.family for one in seen} == set(FAMILIES)
    return seen


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    def write(mode: str, *lines: str, policy: str = _ALLOW) -> Path:
        file = tmp_path / "c.toml"
        head = ("[daemon]", f'mode = "{mode}"', 'control_socket = ""', *lines)
        file.write_text("\n".join(head) + "\n" + policy, encoding="ascii")
        return file

    return write


class NoHarm:
    """The comparisons; a subclass has a fixture `crossroads` with foreign rules loaded."""

    @pytest.mark.parametrize(
        ("mode", "fail_mode", "policy"),
        [
            ("dry-run", "open", _DROP),
            ("dry-run", "kernel-drop", _DROP),
            ("enforce", "open", _ALLOW),
            ("enforce", "closed", _ALLOW),
            ("enforce", "kernel-drop", _ALLOW),
        ],
        ids=["dry-run", "dry-run-kernel-drop", "open", "closed", "kernel-drop"],
    )
    def test_with_the_daemon(
        self,
        crossroads: Crossroads,
        without: list[Seen],
        configure: Configure,
        tmp_path: Path,
        mode: str,
        fail_mode: str,
        policy: str,
    ) -> None:
        file = configure(mode, f'fail_mode = "{fail_mode}"', policy=policy)
        with GuardProcess(
            crossroads.host, tmp_path / "log", "--config", str(file)
        ).ready() as guard:
            assert crossroads.observe(len(without)) == without
            assert guard.stop() == 0
            (stopped,) = guard.events("stopped")
        assert sum(stopped["reasons"].values()) >= len(without) // 2

    def test_without_the_daemon_while_its_rules_are_there(
        self, crossroads: Crossroads, without: list[Seen], configure: Configure
    ) -> None:
        words = (sys.executable, "-m", "nfq_guard", "rules")
        for mode in ("dry-run", "enforce"):
            file = str(configure(mode))
            crossroads.host.run(*words, "install", "--config", file)
            assert crossroads.observe(len(without)) == without
        crossroads.host.run(*words, "remove")
        assert crossroads.observe(len(without)) == without

    def test_with_a_full_queue(
        self, crossroads: Crossroads, without: list[Seen], configure: Configure, tmp_path: Path
    ) -> None:
        """Packets that find the queue full pass at once, others later; all take the same path."""
        file = configure("enforce", f"queue_length = {_SHORT_QUEUE}")
        with GuardProcess(
            crossroads.host, tmp_path / "log", "--config", str(file)
        ).ready() as guard:
            guard.process.send_signal(signal.SIGSTOP)
            with crossroads.cross() as crossing:
                wait_for(lambda: _waiting(crossroads.host) == _SHORT_QUEUE)
                guard.process.send_signal(signal.SIGCONT)
                assert Counter(crossing.seen(len(without))) == Counter(without)
            assert guard.stop() == 0


def _waiting(host: Namespace) -> int:
    text = host.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
    return parse(text)[0].waiting
