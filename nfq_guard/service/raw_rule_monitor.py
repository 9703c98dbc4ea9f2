# SPDX-License-Identifier: MIT
"""Follows the host's rules before conntrack: packets that they make INVALID are not dropped.

The rules are read in a thread of the loop: at the start, each `verify_rules_s`, and as soon as the
generation number of the nftables ruleset has changed. Reading takes a bounded share of CPU time.
"""

import math
import time
from collections.abc import Callable
from typing import Final, final

from nfq_guard.errors import NfqGuardError
from nfq_guard.raw_rules import RawReading, RawRule
from nfq_guard.service.loop import Loop
from nfq_guard.service.ruleset_pace import cpu_time, pause_s
from nfq_guard.service.status import RawRulesStatus
from nfq_guard.telemetry.events import HalfHidden, HalfHiddenOver, Note, exception_texts
from nfq_guard.telemetry.log import EventLog

_UNREAD: Final = RawReading(problems=("the rules before conntrack have not been read yet",))


@final
class RawRuleMonitor:
    """Reads the rules, one reading at a time."""

    def __init__(
        self,
        read: Callable[[], RawReading],
        generation: Callable[[], int | None],
        adopt: Callable[[tuple[RawRule, ...]], None],
        events: EventLog,
        loop: Loop,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = cpu_time,
    ) -> None:
        """Read nothing before `check`.

        Args:
            read: Reads the rules, in a thread.
            generation: A number that changes with the rules, as `Rules.generation`.
            adopt: Called with the rules whenever they have changed.
            events: Logs when the guard starts and stops sparing such packets.
            loop: Runs the readings in its threads.
            clock: Monotonic seconds.
            cpu_clock: CPU seconds so far; called in the thread of a reading.
        """
        self._read = read
        self._generation_now = generation
        self._adopt = adopt
        self._events = events
        self._loop = loop
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._cpu_s = 0.0
        self._reading = _UNREAD
        self._generation: int | None = None
        self._busy = self._closed = False
        self._begun_at = 0.0
        self._pause_until = -math.inf

    def status(self) -> RawRulesStatus:
        """The result of the last reading."""
        return RawRulesStatus(one_sided=self._reading.one_sided, problems=self._reading.problems)

    def watch(self, now: float) -> None:
        """Start a reading if nftables' ruleset has changed; costs a system call."""
        if now >= self._pause_until and self._generation_now() != self._generation:
            self.check(now)

    def check(self, _now: float) -> None:
        """Start a reading unless one is under way."""
        if self._busy or self._closed:
            return
        self._busy = True
        self._begun_at = self._clock()
        self._generation = self._generation_now()
        self._loop.background(self._timed, self._taken, self._failed)

    def close(self) -> None:
        """Start no further reading; one that is under way continues in its thread."""
        self._closed = True

    def _timed(self) -> RawReading:
        """Read the rules, in a thread."""
        begun = self._cpu_clock()
        try:
            return self._read()
        finally:
            self._cpu_s = self._cpu_clock() - begun

    def _taken(self, reading: RawReading) -> None:
        self._over()
        before, self._reading = self._reading, reading
        if reading.rules != before.rules:
            self._adopt(reading.rules)
        if reading.one_sided and reading.one_sided != before.one_sided:
            self._events.emit(HalfHidden(rules=reading.one_sided))
        elif before.one_sided and not reading.one_sided:
            self._events.emit(HalfHiddenOver())
        for problem in reading.problems:
            if problem not in before.problems:
                self._events.emit(Note(text=f"rules before conntrack are not known: {problem}"))

    def _failed(self, error: Exception) -> None:
        """Keep the rules of the last reading."""
        self._over()
        problem = str(error) if isinstance(error, NfqGuardError) else exception_texts(error)[0]
        text = f"the rules before conntrack could not be read: {problem}"
        if (text,) != self._reading.problems:
            self._reading = self._reading._replace(problems=(text,))
            self._events.emit(Note(text=text))

    def _over(self) -> None:
        self._busy = False
        now = self._clock()
        self._pause_until = now + pause_s(self._cpu_s, now - self._begun_at)
