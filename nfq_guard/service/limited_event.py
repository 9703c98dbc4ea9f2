# SPDX-License-Identifier: MIT
"""Logs an event of level error at a bounded rate, however often a fault triggers it."""

import math
import time
from collections.abc import Callable
from typing import Final, final

from nfq_guard.telemetry.events import Event, HousekeepingFailed, exception_texts
from nfq_guard.telemetry.log import EventLog

_INTERVAL_S: Final = 10.0


@final
class LimitedEvent:
    """Logs the first event, and then at most one each ten seconds.

    Attributes:
        count: Number of faults, logged or not.
    """

    def __init__(self, events: EventLog) -> None:
        """Log to `events`."""
        self.count = 0
        self._events = events
        self._logged = 0
        self._next_at = -math.inf

    def happened(self, event: Callable[[int], Event]) -> None:
        """Count a fault and log it if it is time; `event` takes the number since the last one."""
        self.count += 1
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _INTERVAL_S
        since_last, self._logged = self.count - self._logged, self.count
        self._events.emit(event(since_last))


def log_failed_housekeeping(events: EventLog) -> Callable[[Exception], None]:
    """A function for `Loop` that logs an exception, so that packets are served despite it."""
    failures = LimitedEvent(events)

    def log(error: Exception) -> None:
        problem, trace = exception_texts(error)
        failures.happened(
            lambda since_last: HousekeepingFailed(
                problem=problem, traceback=trace, since_last=since_last
            )
        )

    return log
