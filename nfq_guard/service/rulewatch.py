# SPDX-License-Identifier: MIT
"""Looks now and then whether our rules are still there: others flush tables.

Looking takes tens of milliseconds in other programs, so a thread waits for them; what it found is
told from the loop's thread, which owns the log.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, final

from nfq_guard.errors import NfqGuardError
from nfq_guard.telemetry.events import EventLog


class VerifiableRules(Protocol):
    """The part of `firewall.Firewall` that is needed here."""

    def verify(self) -> Sequence[object]:
        """Every difference between what is live and what should be, in words."""

    def install(self) -> object:
        """Make them as they should be."""


@final
class RulesWatch:
    """Checks when told to, never twice at the same time.

    Attributes:
        missing: How many checks found a difference.
        differences: What the last check found, one sentence each.
    """

    def __init__(
        self,
        rules: VerifiableRules,
        events: EventLog,
        *,
        reinstall: bool,
        count: Callable[[], None],
    ) -> None:
        """Watch `rules`.

        Args:
            rules: Ours.
            events: Where to tell what was found.
            reinstall: Whether to put them back.
            count: Called once for each check that found a difference.
        """
        self.missing = 0
        self.differences: tuple[str, ...] = ()
        self._rules = rules
        self._events = events
        self._reinstall = reinstall
        self._count = count
        self._thread: threading.Thread | None = None
        self._found: tuple[str, ...] = ()
        self._problem = ""
        self._closed = False

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

    def collect(self, _now: float) -> None:
        """Tell what a check found that is over."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        if self._problem:
            self._events.error("rules_check_failed", problem=self._problem)
        if self._found:
            self.missing += 1
            self._count()
            if self._found != self.differences or self._reinstall:
                self._events.error(
                    "rules_changed",
                    differences=self._found,
                    reinstalled=self._reinstall and not self._problem,
                )
        elif self.differences and not self._reinstall:
            self._events.info("rules_restored")
        self.differences = self._found

    def _look(self) -> None:
        self._problem = ""
        self._found = ()
        try:
            self._found = tuple(str(difference) for difference in self._rules.verify())
            if self._found and self._reinstall:
                self._rules.install()
        except NfqGuardError as error:
            self._problem = str(error)
