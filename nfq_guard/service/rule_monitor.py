# SPDX-License-Identifier: MIT
"""Verifies that our rules are still installed, and restores them; other tools may change them.

A check runs other programs for tens of milliseconds, so it runs in a thread of the loop: each
`verify_rules_s`, and as soon as the generation number of the nftables ruleset has changed. The
checks take a bounded share of CPU time, however often the ruleset changes.

Missing rules are installed again at once. Queued packets skip the rules after our jumps; if another
tool has appended such rules, our jumps are moved behind them. Both repairs are limited in rate,
because the other tool may in turn restore its own order.

A daemon that is not allowed to list the rules of legacy iptables reads in the kernel whether they
lead to its chains. If they no longer do, it ends, and its restart installs them.

Where the daemon does not install the rules, the operator may have chosen other rules than ours.
Rules that were never seen are then not reported as missing.
"""

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple, final

from nfq_guard.errors import NfqGuardError, PrivilegeError
from nfq_guard.firewall import Difference, Kind, RuleCounters, RulesSpec
from nfq_guard.service.firewall_spec import Rules, RulesChange
from nfq_guard.service.loop import Loop
from nfq_guard.service.ruleset_pace import cpu_time, pause_s
from nfq_guard.service.status import RulesState, RulesStatus
from nfq_guard.telemetry.events import (
    PacketsShed,
    RulesChanged,
    RulesCheckFailed,
    RulesContested,
    RulesInstalled,
    RulesRestored,
)
from nfq_guard.telemetry.log import EventLog

# Rate limit of restorations: a burst, then one in each interval.
_REPAIRS: Final = (10, 10.0)
_MOVES: Final = (5, 600.0)
# Moves are logged no more often than this.
_SAID_S: Final = 60.0
_ENDING: Final = "the daemon is ending"
# Consecutive checks that find missing rules and cannot restore them, after which a daemon that
# keeps the rules ends.
_FAILURES: Final = 3
# Root's change of the rules takes tens of milliseconds, unless others hold its locks.
_HANDED_S: Final = 15.0
_NO_PACKETS: Final = RuleCounters()


def _unknown() -> frozenset[object] | None:
    """The place of the jumps is unknown: for a daemon that can list its rules."""
    return None


def _keep_nothing(_counted: RuleCounters) -> None:
    """Does nothing: for a monitor without a successor."""


def _nothing() -> None:
    """Does nothing: for a daemon that keeps no count of its rules."""


class _Check(NamedTuple):
    """The outcome of one check.

    Attributes:
        counted: The kernel's counters of the rules, also as reinstalled; empty if they could not be
            read.
        differences: Every difference between the installed and the required rules.
        reinstalled: Whether the rules were installed again.
        problem: Why the check or the reinstallation failed; empty if it did not.
        forbidden: Whether the problem is a missing privilege.
        cpu_s: CPU seconds that it took.
    """

    counted: tuple[RuleCounters, ...] = ()
    differences: tuple[Difference, ...] = ()
    reinstalled: bool = False
    problem: str = ""
    forbidden: bool = False
    cpu_s: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether the place of our jumps is the only difference."""
        kinds = {difference.kind for difference in self.differences}
        return kinds == {Kind.JUMP_NOT_LAST}

    def sentences(self) -> tuple[str, ...]:
        """The differences, one sentence each."""
        return tuple(str(difference) for difference in self.differences)


@final
class Budget:
    """A rate limit: a burst, then once in each interval."""

    def __init__(self, burst: int, interval_s: float) -> None:
        """Begin with the whole burst available."""
        self._burst = burst
        self._interval_s = interval_s
        self._left = float(burst)
        self._since = -math.inf

    def take(self, now: float) -> bool:
        """Whether the action is allowed at `now`, monotonic seconds; counts it."""
        earned = (now - self._since) / self._interval_s
        self._left = min(float(self._burst), self._left + earned)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@final
class RuleMonitor:
    """Checks our rules, one check at a time.

    Attributes:
        changes: Checks that found a difference.
        differences: The result of the last check, one sentence a difference.
        packets: The kernel's count of packets at the rules, as of the last check; never decreases.
    """

    def __init__(
        self,
        rules: Rules,
        events: EventLog,
        loop: Loop,
        *,
        ours: bool,
        reinstall: bool,
        fail: Callable[[Exception], None] | None = None,
        jumps: Callable[[], frozenset[object] | None] = _unknown,
        made_anew: Callable[[], None] = _nothing,
        counted: RuleCounters = _NO_PACKETS,
        keep: Callable[[RuleCounters], None] = _keep_nothing,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = cpu_time,
    ) -> None:
        """Check nothing before `check`.

        Args:
            rules: Our rules.
            events: Logs differences.
            loop: Runs the checks in its threads.
            ours: Whether the rules must be installed from the start on.
            reinstall: Whether a check that finds a difference installs the rules again.
            fail: Called when missing rules cannot be installed again; None to report that and to
                continue without them.
            jumps: Returns where rules lead to our chain, as `LegacyTables.jumps`; for a daemon that
                is not allowed to list them.
            made_anew: Called after an installation, which may reset the rules' counters.
            counted: The rules' counters as far as an earlier daemon counted them.
            keep: Called with the counters as far as this one has.
            clock: Monotonic seconds.
            cpu_clock: CPU seconds so far; called in the thread of a check.
        """
        self.changes = 0
        self.differences: tuple[str, ...] = ()
        self.packets = RuleCounters()
        self._rules = rules
        self._events = events
        self._loop = loop
        self._reinstall = reinstall
        self._fail = fail
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._jumps = jumps
        self._made_anew = made_anew
        self._in_place: frozenset[object] = frozenset()
        self._look_after = -math.inf
        self._over = False
        self._expected = ours
        self._checking = False
        self._closed = False
        self._counted = counted
        self._keep = keep
        self._problem = ""
        self._forbidden = False
        self._checked_at: float | None = None
        self._begun_at = 0.0
        self._pause_until = -math.inf
        self._generation: int | None = None
        self._repairs = Budget(*_REPAIRS)
        self._moves = Budget(*_MOVES)
        self._said_at = -math.inf
        self._failures = 0
        self._seen = False
        self._wanted: list[tuple[RulesSpec, Callable[[str], None]]] = []

    @property
    def forbidden(self) -> bool:
        """Whether the daemon lacks a privilege to read and change its rules."""
        return self._forbidden

    def begin(self) -> None:
        """Note where rules lead to our chain, so that the first `watch` finds them missing.

        Call it before the service manager has root verify the rules: what is flushed earlier, root
        notices, and what is flushed later, this does. Call it also when root has changed the rules.
        """
        self._look_after = -math.inf
        self._in_place = self._jumps() or frozenset()

    def hand_over(self) -> None:
        """Root is about to change the rules: miss none until `begin`, which must follow soon."""
        self._look_after = self._clock() + _HANDED_S

    def watch(self, now: float) -> None:
        """Start a check if nftables' ruleset has changed; costs a system call."""
        if self._forbidden and not self._over:
            self._look()
        if self._closed or self._checking or now < self._pause_until:
            return
        if self._rules.generation() != self._generation:
            self.check(now)

    def check(self, _now: float) -> None:
        """Start a check unless one is under way."""
        if self._checking or self._closed:
            return
        self._checking = True
        self._begun_at = self._clock()
        self._generation = self._rules.generation()
        self._loop.background(self._check, self._checked, self._crashed)

    def install(self) -> tuple[list[RuleCounters], RulesChange]:
        """Install the rules, in a thread of the loop; returns what to `count`, and the change.

        The counters of the rules before, and at once of the new ones, whose counts begin at 0.
        """
        counted = self._read_counters()
        change = self._rules.install()
        return counted + self._read_counters(), change

    def close(self) -> None:
        """Start no further check; one that is under way continues in its thread."""
        self._closed = self._over = True
        waiting, self._wanted = self._wanted, []
        for _, done in waiting:
            done(_ENDING)

    def change(self, spec: RulesSpec, done: Callable[[str], None]) -> None:
        """Install other rules, after the check or change under way.

        `done` is called with an empty string, or with the reason why the rules did not change.
        """
        if self._closed:
            done(self._problem or _ENDING)
            return
        self._wanted.append((spec, done))
        self._change_next()

    def _change_next(self) -> None:
        if self._checking or not self._wanted:
            return
        spec, done = self._wanted.pop(0)
        before = self._rules.spec
        self._rules.spec = spec
        self._checking = True

        def installed(result: tuple[list[RuleCounters], RulesChange]) -> None:
            counted, change = result
            for one in counted:
                self.count(one)
            self._made_anew()
            self._events.emit(RulesInstalled(done=list(change.done), notes=list(change.notes)))
            end("")

        def failed(error: Exception) -> None:
            self._rules.spec = before
            if isinstance(error, PrivilegeError):
                self._forbid(str(error))
            end(str(error) or type(error).__name__)

        def end(problem: str) -> None:
            self._checking = False
            try:
                done(problem)
            finally:
                self._change_next()

        self._loop.background(self.install, installed, failed)

    def _read_counters(self) -> list[RuleCounters]:
        try:
            return [self._rules.rule_counters()]
        except NfqGuardError:
            return []

    def status(self) -> RulesStatus:
        """The known state of the rules."""
        if self._forbidden:
            state = RulesState.IN_PLACE if self._in_place else RulesState.FORBIDDEN
        elif self._checked_at is None:
            state = RulesState.PENDING
        elif not self._expected:
            state = RulesState.FOREIGN
        else:
            state = RulesState.DIFFER if self.differences else RulesState.CORRECT
        age = None if self._checked_at is None else self._clock() - self._checked_at
        return RulesStatus(
            state=state,
            problem=self._problem,
            differences=self.differences,
            age_s=None if age is None else round(age, 1),
        )

    def _look(self) -> None:
        """End the daemon if its rules have vanished: its restart installs them, or report it."""
        jumps = None if self._clock() < self._look_after else self._jumps()
        if jumps is None:
            return
        gone, self._in_place = self._in_place - jumps, jumps
        if not gone:
            return
        problem = "the rules are gone, and this daemon is not allowed to restore them"
        if self._fail is None:
            self._events.emit(RulesCheckFailed(problem=problem))
        else:
            self._over = True
            self._fail(NfqGuardError(problem))

    def _check(self) -> _Check:
        """In a thread."""
        begun = self._cpu_clock()
        check = _Check()
        try:
            check = check._replace(counted=(self._rules.rule_counters(),))
            check = check._replace(differences=tuple(self._rules.verify()))
            if check.differences and self._reinstall:
                budget = self._moves if check.moves else self._repairs
                if budget.take(self._clock()):
                    counted, _ = self.install()
                    check = check._replace(counted=(*check.counted, *counted), reinstalled=True)
        except NfqGuardError as error:
            forbidden = isinstance(error, PrivilegeError)
            check = check._replace(problem=str(error), forbidden=forbidden)
        return check._replace(cpu_s=self._cpu_clock() - begun)

    def _checked(self, check: _Check) -> None:
        self._checking = False
        now = self._clock()
        self._checked_at = now
        self._pause_until = now + pause_s(check.cpu_s, now - self._begun_at)
        self._problem = check.problem
        if check.reinstalled:
            self._made_anew()
        for one in check.counted:
            self.count(one)
        if check.forbidden:
            self._forbid(check.problem)
        elif check.problem:
            self._events.emit(RulesCheckFailed(problem=check.problem))
        self._expected = self._expected or not (check.differences or check.problem)
        if self._expected and (check.differences or not check.problem):
            self._compare(check)
        self._give_up(check)
        self._change_next()

    def _forbid(self, problem: str) -> None:
        """Stop checking: the daemon never regains a privilege. `status` reports it."""
        self._problem = problem
        self._forbidden = True
        self._closed = True

    def _crashed(self, error: Exception) -> None:
        """Handle a bug of ours, or the lack of a thread."""
        self._checked(_Check(problem=f"{type(error).__name__}: {error}"))

    def _compare(self, check: _Check) -> None:
        differences = check.sentences()
        if differences:
            self.changes += 1
            if check.moves and self._reinstall:
                self._say_moved(check)
            elif differences != self.differences or check.reinstalled:
                self._events.emit(
                    RulesChanged(differences=differences, reinstalled=check.reinstalled)
                )
        elif self.differences and not self._reinstall:
            self._events.emit(RulesRestored())
        self.differences = differences

    def _say_moved(self, check: _Check) -> None:
        now = self._clock()
        if now < self._said_at + _SAID_S:
            return
        self._said_at = now
        if check.reinstalled or check.problem:
            event = RulesChanged(differences=check.sentences(), reinstalled=check.reinstalled)
            self._events.emit(event)
        else:
            self._events.emit(RulesContested(differences=check.sentences()))

    def _give_up(self, check: _Check) -> None:
        """End the daemon if missing rules cannot be restored: its restart may succeed."""
        missing = {Kind.MISSING_CHAIN, Kind.MISSING_JUMP, Kind.MISSING_RULE}
        gone = bool(missing & {difference.kind for difference in check.differences})
        if not check.problem:
            self._seen = True
        # A daemon that could read the rules before cannot see them any more.
        gone = gone or (check.forbidden and self._seen)
        if self._fail is None or not gone or not check.problem:
            self._failures = 0
            return
        self._failures += 1
        self._generation = None  # `watch` does not wait for a change
        if check.forbidden or self._failures >= _FAILURES:
            self._closed = True
            problem = f"the rules are gone and cannot be restored: {check.problem}"
            self._fail(NfqGuardError(problem))

    def count(self, counted: RuleCounters) -> None:
        """Add the packets counted since the last reading; recreated rules count from 0."""
        before = self._counted
        if counted.shed < before.shed or counted.unjudged < before.unjudged:
            before = RuleCounters()
        self._counted = counted
        shed = counted.shed - before.shed
        if shed:
            self._events.emit(PacketsShed(packets=shed))
        self._keep(counted)
        self.packets += RuleCounters(shed=shed, unjudged=counted.unjudged - before.unjudged)
