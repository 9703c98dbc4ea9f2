# SPDX-License-Identifier: MIT
"""Events and status of our rules, with simulated rules."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from nfq_guard.errors import NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.firewall import Backend, Difference, FailMode, Family, Kind, RuleCounters, RulesSpec
from nfq_guard.service.loop import Loop
from nfq_guard.service.rule_monitor import RuleMonitor
from nfq_guard.service.ruleset_pace import cpu_time
from nfq_guard.service.status import RulesState
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink


def difference(kind: Kind) -> Difference:
    return Difference(
        kind=kind,
        family=Family.IPV4,
        backend=Backend.NFT,
        table="mangle",
        chain="PREROUTING",
        detail="as the test says",
    )


_NO_PACKETS = RuleCounters()
MISSING = difference(Kind.MISSING_CHAIN)
BEHIND = difference(Kind.JUMP_NOT_LAST)


class Changes(NamedTuple):
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class FakeRules:
    """Rules with the given `differences`; `verify` raises `error`."""

    def __init__(self) -> None:
        self.spec = RulesSpec()
        self.differences: list[Difference] = []
        self.error: Exception | None = None
        self.install_error: NfqGuardError | None = None
        self.installed = 0
        self.packets = RuleCounters()
        self.at_install: RuleCounters | None = None
        self.changed: int | None = 1
        self.takes_s = 0.0
        self.takes_cpu_s = 0.0
        self.cpu_s = 0.0
        self.jumps: frozenset[object] | None = None
        self.now = 1000.0

    def generation(self) -> int | None:
        return self.changed

    def verify(self) -> list[Difference]:
        self.now += self.takes_s
        self.cpu_s += self.takes_cpu_s
        if self.error is not None:
            raise self.error
        return list(self.differences)

    def require(self) -> None:
        """Nothing is missing."""

    def install(self) -> Changes:
        if self.install_error is not None:
            raise self.install_error
        self.installed += 1
        if self.at_install is not None:
            self.packets = self.at_install
        self.differences.clear()
        return Changes()

    def remove(self) -> Changes:
        return Changes()

    def rule_counters(self) -> RuleCounters:
        return self.packets


class Monitored:
    """A monitor whose loop is driven by the test."""

    def __init__(
        self,
        log: Path,
        *,
        reinstall: bool,
        ours: bool = True,
        keeps: bool = False,
        counted: RuleCounters = _NO_PACKETS,
    ) -> None:
        self.kept: list[RuleCounters] = []
        self.failure: Exception | None = None
        self.rules = FakeRules()
        self.loop = Loop()
        self._log = log
        self._sink = LineSink(log)
        self.monitor = RuleMonitor(
            self.rules,
            EventLog(self._sink),
            self.loop,
            ours=ours,
            reinstall=reinstall,
            fail=self._fail if keeps else None,
            jumps=lambda: self.rules.jumps,
            counted=counted,
            keep=self.kept.append,
            clock=lambda: self.rules.now,
            cpu_clock=lambda: self.rules.cpu_s,
        )

    def _fail(self, error: Exception) -> None:
        self.failure = error

    @property
    def now(self) -> float:
        return self.rules.now

    @now.setter
    def now(self, now: float) -> None:
        self.rules.now = now

    def check(self) -> None:
        self.monitor.check(self.now)
        self.finish()

    def watch(self, seconds: float) -> bool:
        """Watch `seconds` later; returns whether that started a check."""
        self.now += seconds
        self.monitor.watch(self.now)
        began = self.loop.busy
        self.finish()
        return began

    def finish(self) -> None:
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

    def build(
        *,
        reinstall: bool,
        ours: bool = True,
        keeps: bool = False,
        counted: RuleCounters = _NO_PACKETS,
    ) -> Monitored:
        log = tmp_path / "log"
        made.append(Monitored(log, reinstall=reinstall, ours=ours, keeps=keeps, counted=counted))
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
    assert one.monitor.status().differences == (str(MISSING),)
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
    """Rules that were installed anew count from 0; the sum continues."""
    one = make(reinstall=True)
    for shed, total in ((5, 5), (9, 9), (2, 11), (2, 11), (10, 19)):
        one.rules.packets = RuleCounters(shed=shed, unjudged=0)
        one.check()
        assert one.monitor.packets.shed == total


@pytest.mark.parametrize("before", [0, 5, 9])
def test_packets_that_an_earlier_daemon_counted(make: Make, before: int) -> None:
    """They are not counted again; how far this one has counted is kept for the next."""
    one = make(reinstall=True, counted=RuleCounters(shed=before, unjudged=before))
    one.rules.packets = RuleCounters(shed=9, unjudged=9)
    one.check()
    assert one.monitor.packets == RuleCounters(shed=9 - before, unjudged=9 - before)
    assert one.kept == [one.rules.packets]
    one.rules.packets = RuleCounters(shed=2)  # installed anew
    one.check()
    assert one.monitor.packets.shed == 9 - before + 2
    assert one.kept[1:] == [one.rules.packets]


def test_rules_of_the_operator_are_not_missed(make: Make) -> None:
    """If the daemon does not install them, only rules that were seen before can be missing."""
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


def test_a_change_of_the_ruleset_is_checked_at_once_and_no_other_time(make: Make) -> None:
    one = make(reinstall=True)
    one.check()
    assert not one.watch(5)
    one.rules.changed = 2
    one.rules.differences.append(MISSING)
    assert one.watch(5)
    assert one.rules.installed == 1
    assert not one.watch(5)


def test_a_ruleset_that_changes_all_the_time_is_checked_now_and_then(make: Make) -> None:
    one = make(reinstall=True)
    checks = 0
    for number in range(100):
        one.rules.changed = number
        checks += one.watch(0.5)
    assert 20 <= checks <= 30


def test_a_costly_check_makes_the_next_one_wait(make: Make) -> None:
    """Its share of CPU time is bounded."""
    one = make(reinstall=True)
    one.rules.takes_s = one.rules.takes_cpu_s = 1.0
    one.check()
    one.rules.changed = 2
    assert not one.watch(40)
    assert one.watch(20)


def test_a_busy_machine_does_not_make_the_next_check_wait(make: Make) -> None:
    """A check that waits for the CPU costs no more than another."""
    one = make(reinstall=True)
    one.rules.takes_s, one.rules.takes_cpu_s = 1.0, 0.03
    one.check()
    one.rules.changed = 2
    assert one.watch(2.5)


def test_a_process_that_ends_meanwhile_does_not_end_the_checks(make: Make) -> None:
    """The CPU time of a worker's whole life may be added during a check."""
    one = make(reinstall=True)
    one.rules.takes_s, one.rules.takes_cpu_s = 0.1, 86_400.0
    one.check()
    one.rules.changed = 2
    assert one.watch(6)


def test_programs_count_as_cpu_time() -> None:
    before = cpu_time()
    subprocess.run([sys.executable, "-c", "for _ in range(10**6): pass"], check=True)
    assert cpu_time() - before > 0.01


def test_rules_that_others_append_have_ours_moved_behind_them(make: Make) -> None:
    one = make(reinstall=True)
    one.rules.differences.append(BEHIND)
    one.check()
    one.check()
    assert (one.rules.installed, one.state()) == (1, RulesState.CORRECT)
    assert one.logged() == ["rules_changed"]


def test_a_tool_that_moves_its_rules_too_is_not_fought_for_ever(make: Make) -> None:
    """The rules are moved in a burst, then a few times an hour; logged once a minute at most."""
    one = make(reinstall=True)
    for _ in range(3600 // 30):
        one.rules.differences[:] = [BEHIND]
        one.check()
        one.now += 30
    assert one.rules.installed <= 5 + 6
    events = one.logged()
    assert set(events) == {"rules_changed", "rules_contested"}
    assert len(events) <= 60
    assert one.state() is RulesState.DIFFER


def test_rules_that_are_flushed_all_the_time_are_put_back_at_a_bounded_rate(make: Make) -> None:
    one = make(reinstall=True)
    for _ in range(100):
        one.rules.differences[:] = [MISSING]
        one.check()
        one.now += 1
    assert 15 <= one.rules.installed <= 21


def test_a_daemon_that_must_keep_its_rules_ends_when_it_cannot(make: Make) -> None:
    """Its unit restarts it, after installing the rules as root."""
    one = make(reinstall=True, keeps=True)
    one.check()
    one.rules.differences.append(MISSING)
    one.rules.install_error = UnavailableError("iptables is gone")
    one.rules.changed = 2
    for _ in range(3):
        assert one.failure is None
        assert one.watch(5)
    assert isinstance(one.failure, NfqGuardError)
    assert one.failure.exit_status == 1
    assert "iptables is gone" in str(one.failure)
    assert not one.watch(5)


def test_a_privilege_that_is_missing_ends_a_daemon_that_must_keep_its_rules(make: Make) -> None:
    one = make(reinstall=True, keeps=True)
    one.rules.differences.append(MISSING)
    one.rules.install_error = PrivilegeError("CAP_NET_ADMIN is missing")
    one.check()
    assert "CAP_NET_ADMIN is missing" in str(one.failure)


@pytest.mark.parametrize("seen", [True, False])
def test_rules_that_may_not_be_read_any_more_end_it_and_those_never_seen_do_not(
    make: Make, *, seen: bool
) -> None:
    """In the sandbox, legacy rules cannot be read from the start."""
    one = make(reinstall=True, keeps=True)
    if seen:
        one.check()
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.check()
    assert (one.failure is not None) is seen
    assert one.state() is RulesState.FORBIDDEN


def test_a_difference_that_can_wait_ends_no_daemon(make: Make) -> None:
    one = make(reinstall=True, keeps=True)
    one.rules.differences.append(BEHIND)
    one.rules.install_error = UnavailableError("iptables is gone")
    for _ in range(5):
        one.check()
        one.now += 100
    assert one.failure is None


def test_other_rules_are_installed_after_a_check_that_is_under_way(make: Make) -> None:
    closed = RulesSpec(fail_mode=FailMode.CLOSED)
    outcomes: list[str] = []
    one = make(reinstall=True)
    one.monitor.check(one.now)
    one.monitor.change(closed, outcomes.append)
    one.monitor.change(RulesSpec(), outcomes.append)
    assert one.rules.spec == RulesSpec()
    one.finish()
    assert one.rules.spec == RulesSpec()
    assert outcomes == ["", ""]
    assert one.rules.installed == 2
    assert one.logged() == ["rules_installed"] * 2


def test_a_change_of_rules_forgets_no_packet(make: Make) -> None:
    """The counters of the rules before vanish with them, and those of the new begin at 0."""
    outcomes: list[str] = []
    one = make(reinstall=True)
    one.rules.packets = RuleCounters(shed=100)
    one.monitor.check(one.now)
    one.finish()
    one.rules.packets = RuleCounters(shed=150, unjudged=7)
    one.rules.at_install = RuleCounters(shed=1)
    one.monitor.change(RulesSpec(fail_mode=FailMode.CLOSED), outcomes.append)
    one.finish()
    one.rules.packets = RuleCounters(shed=500)
    one.monitor.check(one.now)
    one.finish()
    assert one.monitor.packets == RuleCounters(shed=650, unjudged=7)


def test_a_repair_of_rules_forgets_no_packet(make: Make) -> None:
    """Other programs append a rule: the jumps are moved, and all counts begin at 0."""
    one = make(reinstall=True)
    one.rules.packets = RuleCounters(shed=489, unjudged=3)
    one.check()
    one.rules.at_install = RuleCounters()
    one.rules.differences = [BEHIND]
    one.check()
    assert one.rules.installed == 1
    one.rules.packets = RuleCounters(shed=989, unjudged=5)
    one.check()
    assert one.monitor.packets == RuleCounters(shed=489 + 989, unjudged=3 + 5)
    assert one.kept[-1] == one.rules.packets


def test_rules_that_cannot_be_changed_stay_what_they_should_be(make: Make) -> None:
    outcomes: list[str] = []
    one = make(reinstall=True)
    one.rules.install_error = NfqGuardError("the lock is held")
    one.monitor.change(RulesSpec(fail_mode=FailMode.CLOSED), outcomes.append)
    one.finish()
    assert outcomes == ["the lock is held"]
    assert one.rules.spec == RulesSpec()
    assert not one.monitor.forbidden, "the next change may succeed"


def test_rules_that_may_not_be_changed_are_for_root(make: Make) -> None:
    """The privilege is lost for good: later changes are refused for the same reason."""
    outcomes: list[str] = []
    one = make(reinstall=True)
    one.rules.install_error = PrivilegeError("CAP_NET_RAW is missing")
    for _ in range(2):
        one.monitor.change(RulesSpec(fail_mode=FailMode.CLOSED), outcomes.append)
        one.finish()
        assert one.monitor.forbidden
    assert outcomes == ["CAP_NET_RAW is missing"] * 2
    assert one.monitor.status().state is RulesState.FORBIDDEN


def test_nothing_is_changed_at_the_end(make: Make) -> None:
    """Neither a change that waits for a check then, nor one requested later."""
    outcomes: list[str] = []
    one = make(reinstall=True)
    one.monitor.check(one.now)
    one.monitor.change(RulesSpec(fail_mode=FailMode.CLOSED), outcomes.append)
    one.monitor.close()
    one.monitor.change(RulesSpec(), outcomes.append)
    one.finish()
    assert outcomes == ["the daemon is ending"] * 2
    assert one.rules.installed == 0


def test_jumps_that_are_gone_end_a_daemon_that_cannot_read_its_rules(make: Make) -> None:
    """The daemon is ended once."""
    one = make(reinstall=True, keeps=True)
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.check()
    one.watch(1)
    assert one.state() is RulesState.FORBIDDEN
    one.rules.jumps = frozenset({(2, 0), (2, 3)})
    one.watch(1)
    assert one.state() is RulesState.IN_PLACE
    assert one.failure is None
    one.rules.jumps = frozenset({(2, 3)})
    one.watch(1)
    assert "the rules are gone" in str(one.failure)
    one.failure = None
    one.rules.jumps = frozenset()
    one.watch(1)
    assert one.failure is None


def test_jumps_that_others_remove_are_reported(make: Make) -> None:
    """Where the daemon does not install the rules, their removal ends nothing."""
    one = make(reinstall=False, ours=False)
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.rules.jumps = frozenset({(2, 0), (2, 3)})
    one.monitor.begin()
    one.check()
    one.rules.jumps = frozenset()
    for _ in range(3):
        one.watch(1)
    assert one.logged() == ["rules_check_failed"]
    assert one.state() is RulesState.FORBIDDEN
    one.rules.jumps = frozenset({(2, 0)})
    one.watch(1)
    assert one.state() is RulesState.IN_PLACE


def test_jumps_that_are_gone_before_the_first_look_end_the_daemon_too(make: Make) -> None:
    one = make(reinstall=True, keeps=True)
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.rules.jumps = frozenset({(2, 0), (2, 3)})
    one.monitor.begin()
    one.rules.jumps = frozenset()
    one.check()
    assert one.failure is None
    one.watch(1)
    assert "the rules are gone" in str(one.failure)


def test_jumps_that_root_removes_when_asked_end_nothing(make: Make) -> None:
    """As those of kernel-drop for a dry-run, unless root never says that it is done."""
    one = make(reinstall=True, keeps=True)
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.rules.jumps = frozenset({(2, 0), (2, 3)})
    one.monitor.begin()
    one.check()
    one.monitor.hand_over()
    one.rules.jumps = frozenset({(2, 0)})
    one.watch(1)
    one.monitor.begin()
    one.watch(1)
    assert one.failure is None
    one.monitor.hand_over()
    one.rules.jumps = frozenset()
    one.watch(14)
    assert one.failure is None
    one.watch(1)
    assert "the rules are gone" in str(one.failure)


def test_jumps_that_were_never_there_or_are_not_known_end_nothing(make: Make) -> None:
    one = make(reinstall=True, keeps=True)
    one.rules.error = PrivilegeError("CAP_NET_RAW is missing")
    one.monitor.begin()
    one.check()
    for jumps in (frozenset(), frozenset({(2, 0)}), None):
        one.rules.jumps = jumps
        one.watch(1)
    assert one.failure is None
