# SPDX-License-Identifier: MIT
"""Looks now and then whether our rules are still there: others flush tables.

Looking takes tens of milliseconds in other programs, so a thread waits for them; what it found is
told from the loop's thread, which owns the log.

Where the rules are not the daemon's to install, an operator may have made others than ours. They
are only missed after they were seen once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, final

from nfq_guard.errors import NfqGuardError, PrivilegeError
from nfq_guard.firewall import RuleCounters
from nfq_guard.telemetry.events import RulesChanged, RulesCheckFailed, RulesRestored
from nfq_guard.telemetry.log import EventLog


class VerifiableRules(Protocol):
    """The part of `firewall.Firewall` that is needed here."""

    def verify(self) -> Sequence[object]:
        """Every difference between what is live and what should be, in words."""

    def install(self) -> object:
        """Make them as they should be."""


@final
class RuleMonitor:
    """Checks when told to, never twice at the same time.

    Attributes:
        missing: How many checks found a difference.
        differences: What the last check found, one sentence each.
        packets: What the kernel counted at the rules by the last check; only ever grows.
    """

    def __init__(
        self,
        rules: VerifiableRules,
        events: EventLog,
        *,
        ours: bool = True,
        reinstall: bool,
        count: Callable[[], None],
        counted: Callable[[], RuleCounters] | None = None,
    ) -> None:
        """Watch `rules`.

        Args:
            rules: Ours.
            events: Where to tell what was found.
            ours: Whether they have to be there.
            reinstall: Whether to put them back.
            count: Called once for each check that found a difference.
            counted: What the kernel counted at them since they were made.
        """
        self.missing = 0
        self.differences: tuple[str, ...] = ()
        self.packets = RuleCounters()
        self._rules = rules
        self._events = events
        self._reinstall = reinstall
        self._count = count
        self._counted = counted
        self._seen = RuleCounters()
        self._thread: threading.Thread | None = None
        self._found: tuple[str, ...] = ()
        self._problem = ""
        self._closed = False
        self._expected = ours
        self._looked_at: float | None = None
        self._blind = ""

    @property
    def busy(self) -> bool:
        """Whether a check is under way; the rules must not be removed meanwhile."""
        return self._thread is not None and self._thread.is_alive()

    def check(self, _now: float) -> None:
        """Start a check unless one is under way."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._look, name="rules", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Start no further check; one that is under way goes on (`busy`)."""
        self._closed = True

    def status(self) -> dict[str, object]:
        """What is known of the rules, for `status`."""
        if self._blind:
            state = "not looked at"
        elif self._looked_at is None:
            state = "not looked at yet"
        elif not self._expected:
            state = "not ours"
        else:
            state = "differ" if self.differences else "as they should be"
        looked_at = self._looked_at
        return {
            "state": state,
            "problem": self._blind or self._problem,
            "differences": self.differences,
            "age_s": None if looked_at is None else round(time.monotonic() - looked_at, 1),
        }

    def collect(self, _now: float) -> None:
        """Tell what a check found that is over."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        self._looked_at = time.monotonic()
        if self._problem:
            self._events.emit(RulesCheckFailed(problem=self._problem))
        self._expected = self._expected or not (self._found or self._blind or self._problem)
        if not self._expected:
            return
        if self._found:
            self.missing += 1
            self._count()
            if self._found != self.differences or self._reinstall:
                self._events.emit(
                    RulesChanged(
                        differences=self._found,
                        reinstalled=self._reinstall and not self._problem,
                    )
                )
        elif self.differences and not self._reinstall:
            self._events.emit(RulesRestored())
        self.differences = self._found

    def _look(self) -> None:
        self._problem = ""
        self._found = ()
        try:
            if self._counted is not None:
                self._add(self._counted())
            self._found = tuple(str(difference) for difference in self._rules.verify())
            if self._found and self._reinstall:
                self._rules.install()
        except PrivilegeError as error:
            # It will not be given to us later: say it in the status, and look no more.
            self._blind = str(error)
            self._closed = True
        except NfqGuardError as error:
            self._problem = str(error)

    def _add(self, now: RuleCounters) -> None:
        """Rules that were made anew count from 0."""
        before = self._seen
        anew = now.shed < before.shed or now.unjudged < before.unjudged
        if anew:
            before = RuleCounters()
        self._seen = now
        self.packets += RuleCounters(
            shed=now.shed - before.shed, unjudged=now.unjudged - before.unjudged
        )
