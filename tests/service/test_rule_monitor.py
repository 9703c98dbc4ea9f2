# SPDX-License-Identifier: MIT
"""What is logged and reported of our rules, with rules made up by the test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from nfq_guard.errors import NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.firewall import RuleCounters
from nfq_guard.service.loop import Loop
from nfq_guard.service.rule_monitor import RuleMonitor
from nfq_guard.service.status import RulesState
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink

MISSING = "mangle NFQ_GUARD: missing"


class Changes(NamedTuple):
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class FakeRules:
    """Rules that differ as `differences` says; `error` is raised by `verify`."""

    def __init__(self) -> None:
        self.differences: list[str] = []
        self.error: Exception | None = None
        self.install_error: NfqGuardError | None = None
        self.installed = 0
        self.packets = RuleCounters()

    def verify(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return list(self.differences)

    def install(self) -> Changes:
        if self.install_error is not None:
            raise self.install_error
        self.installed += 1
        self.differences.clear()
        return Changes()

    def remove(self) -> Changes:
        return Changes()

    def rule_counters(self) -> RuleCounters:
        return self.packets


class Monitored:
    """A monitor, its loop turned by the test."""

    def __init__(self, log: Path, *, reinstall: bool, ours: bool = True) -> None:
        self.rules = FakeRules()
        self.loop = Loop()
        self._log = log
        self._sink = LineSink(log)
        self.monitor = RuleMonitor(
            self.rules, EventLog(self._sink), self.loop, ours=ours, reinstall=reinstall
        )

    def check(self) -> None:
        self.monitor.check(0)
        while self.loop.busy:
            self.loop.turn(0.1)

    def state(self) -> RulesState:
        return self.monitor.status().state

    def logged(self) -> list[str]:
        self._sink.push(0)
        return [orjson.loads(line)["event"] for line in self._log.read_bytes().splitlines()]

    def close(self) -> None:
        self.loop.close()
        self._sink.close(0)


Make = Callable[..., Monitored]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Monitored] = []

    def build(*, reinstall: bool, ours: bool = True) -> Monitored:
        made.append(Monitored(tmp_path / "log", reinstall=reinstall, ours=ours))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_missing_rules_are_put_back(make: Make) -> None:
    one = make(reinstall=True)
    assert one.state() is RulesState.PENDING
    one.check()
    assert one.state() is RulesState.CORRECT
    one.rules.differences.append(MISSING)
    one.check()
    one.check()
    assert (one.rules.installed, one.monitor.changes, one.logged()) == (1, 1, ["rules_changed"])


def test_a_difference_is_logged_once_and_so_is_its_end(make: Make) -> None:
    one = make(reinstall=False)
    one.rules.differences.append(MISSING)
    for _ in range(3):
        one.check()
    assert one.monitor.status().differences == (MISSING,)
    one.rules.differences.clear()
    one.check()
    assert (one.rules.installed, one.monitor.changes) == (0, 3)
    assert one.logged() == ["rules_changed", "rules_restored"]


def test_a_check_that_fails(make: Make) -> None:
    one = make(reinstall=True)
    one.rules.error = UnavailableError("iptables is gone")
    one.check()
    assert one.logged() == ["rules_check_failed"]
    assert one.monitor.status().problem == "iptables is gone"


def test_a_failed_check_does_not_call_the_rules_restored(make: Make) -> None:
    one = make(reinstall=False)
    one.rules.differences.append(MISSING)
    one.check()
    one.rules.error = UnavailableError("iptables is gone")
    one.check()
    assert one.logged() == ["rules_changed", "rules_check_failed"]
    assert one.state() is RulesState.DIFFER


def test_a_bug_in_a_check_is_a_failed_check(make: Make) -> None:
    one = make(reinstall=True)
    one.rules.error = ZeroDivisionError("a bug")
    one.check()
    assert one.logged() == ["rules_check_failed"]
    assert one.monitor.status().problem == "ZeroDivisionError: a bug"
    one.rules.error = None
    one.check()
    assert one.state() is RulesState.CORRECT


def test_rules_that_cannot_be_put_back(make: Make) -> None:
    one = make(reinstall=True)
    one.rules.differences.append(MISSING)
    one.rules.install_error = UnavailableError("iptables is gone")
    one.check()
    assert one.logged() == ["rules_check_failed", "rules_changed"]
    assert one.state() is RulesState.DIFFER


def test_one_check_at_a_time(make: Make) -> None:
    one = make(reinstall=True)
    one.rules.differences.append(MISSING)
    one.monitor.check(0)
    one.check()
    assert one.monitor.changes == 1


def test_a_closed_monitor_puts_nothing_back(make: Make) -> None:
    """Otherwise it would install rules that the daemon is removing."""
    one = make(reinstall=True)
    one.rules.differences.append(MISSING)
    one.monitor.close()
    one.check()
    assert one.rules.installed == 0


def test_packets_never_decrease(make: Make) -> None:
    """Rules that were made anew count from 0, and the sum goes on."""
    one = make(reinstall=True)
    for shed, total in ((5, 5), (9, 9), (2, 11), (2, 11), (10, 19)):
        one.rules.packets = RuleCounters(shed=shed, unjudged=0)
        one.check()
        assert one.monitor.packets.shed == total


def test_rules_of_the_operator_are_not_missed(make: Make) -> None:
    """Where the daemon does not install them, only what was seen once can be missing."""
    one = make(reinstall=False, ours=False)
    one.rules.differences.append(MISSING)
    one.check()
    assert one.logged() == []
    assert one.state() is RulesState.FOREIGN
    one.rules.differences.clear()
    one.check()
    assert one.state() is RulesState.CORRECT
    one.rules.differences.append(MISSING)
    one.check()
    assert one.logged() == ["rules_changed"]
    assert one.state() is RulesState.DIFFER


def test_a_missing_privilege_is_reported_and_ends_the_checks(make: Make) -> None:
    one = make(reinstall=False)
    one.rules.error = PrivilegeError("CAP_NET_ADMIN is missing")
    one.check()
    assert one.state() is RulesState.FORBIDDEN
    assert one.monitor.status().problem == "CAP_NET_ADMIN is missing"
    assert one.logged() == []
    one.monitor.check(0)
    assert not one.loop.busy
