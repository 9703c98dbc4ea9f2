# SPDX-License-Identifier: MIT
"""Periodically verifies that our rules are still installed; other tools may flush them.

Verifying runs other programs for tens of milliseconds, so it happens in a thread of the loop.

Where the daemon does not install the rules, the operator may have made others than ours. Rules
that were never seen are then not reported as missing.
"""

import time
from typing import NamedTuple, final

from nfq_guard.errors import NfqGuardError, PrivilegeError
from nfq_guard.firewall import RuleCounters
from nfq_guard.service.firewall_spec import Rules
from nfq_guard.service.loop import Loop
from nfq_guard.service.status import RulesState, RulesStatus
from nfq_guard.telemetry.events import RulesChanged, RulesCheckFailed, RulesRestored
from nfq_guard.telemetry.log import EventLog


class _Check(NamedTuple):
    """The outcome of one check.

    Attributes:
        counted: What the kernel counted at the rules; None where that could not be read.
        differences: Every difference between the installed rules and those that should be.
        problem: Why the check or the reinstallation failed; empty where it did not.
        forbidden: Whether the problem is a missing privilege.
    """

    counted: RuleCounters | None = None
    differences: tuple[str, ...] = ()
    problem: str = ""
    forbidden: bool = False


@final
class RuleMonitor:
    """Checks our rules, one check at a time.

    Attributes:
        changes: Checks that found a difference.
        differences: What the last check found, one sentence each.
        packets: What the kernel counted at the rules by the last check; never decreases.
    """

    def __init__(
        self, rules: Rules, events: EventLog, loop: Loop, *, ours: bool, reinstall: bool
    ) -> None:
        """Nothing is checked before `check`.

        Args:
            rules: Our rules.
            events: Where differences are logged.
            loop: Whose threads run the checks.
            ours: Whether the daemon installed the rules.
            reinstall: Whether a check that finds a difference installs them again.
        """
        self.changes = 0
        self.differences: tuple[str, ...] = ()
        self.packets = RuleCounters()
        self._rules = rules
        self._events = events
        self._loop = loop
        self._reinstall = reinstall
        self._expected = ours
        self._checking = False
        self._closed = False
        self._counted = RuleCounters()
        self._problem = ""
        self._forbidden = False
        self._checked_at: float | None = None

    def check(self, _now: float) -> None:
        """Start a check unless one is under way."""
        if self._checking or self._closed:
            return
        self._checking = True
        self._loop.background(self._check, self._checked, self._crashed)

    def close(self) -> None:
        """Start no further check; one that is under way goes on in its thread."""
        self._closed = True

    def status(self) -> RulesStatus:
        """What is known of the rules."""
        if self._forbidden:
            state = RulesState.FORBIDDEN
        elif self._checked_at is None:
            state = RulesState.PENDING
        elif not self._expected:
            state = RulesState.FOREIGN
        else:
            state = RulesState.DIFFER if self.differences else RulesState.CORRECT
        age = None if self._checked_at is None else time.monotonic() - self._checked_at
        return RulesStatus(
            state=state,
            problem=self._problem,
            differences=self.differences,
            age_s=None if age is None else round(age, 1),
        )

    def _check(self) -> _Check:
        """In a thread."""
        check = _Check()
        try:
            check = check._replace(counted=self._rules.rule_counters())
            differences = tuple(str(difference) for difference in self._rules.verify())
            check = check._replace(differences=differences)
            if differences and self._reinstall:
                self._rules.install()
        except NfqGuardError as error:
            forbidden = isinstance(error, PrivilegeError)
            check = check._replace(problem=str(error), forbidden=forbidden)
        return check

    def _checked(self, check: _Check) -> None:
        self._checking = False
        self._checked_at = time.monotonic()
        self._problem = check.problem
        if check.counted is not None:
            self._add(check.counted)
        if check.forbidden:
            # The daemon never regains a privilege: `status` says so, and no check follows.
            self._forbidden = True
            self._closed = True
        elif check.problem:
            self._events.emit(RulesCheckFailed(problem=check.problem))
        self._expected = self._expected or not (check.differences or check.problem)
        if self._expected and (check.differences or not check.problem):
            self._compare(check)

    def _crashed(self, error: Exception) -> None:
        """A bug of ours, or no thread to be had."""
        self._checked(_Check(problem=f"{type(error).__name__}: {error}"))

    def _compare(self, check: _Check) -> None:
        if check.differences:
            self.changes += 1
            if check.differences != self.differences or self._reinstall:
                self._events.emit(
                    RulesChanged(
                        differences=check.differences,
                        reinstalled=self._reinstall and not check.problem,
                    )
                )
        elif self.differences and not self._reinstall:
            self._events.emit(RulesRestored())
        self.differences = check.differences

    def _add(self, counted: RuleCounters) -> None:
        """Add what was counted since the last check; rules that were made anew count from 0."""
        before = self._counted
        if counted.shed < before.shed or counted.unjudged < before.unjudged:
            before = RuleCounters()
        self._counted = counted
        self.packets += RuleCounters(
            shed=counted.shed - before.shed, unjudged=counted.unjudged - before.unjudged
        )
