# SPDX-License-Identifier: MIT
"""Logs an event of level error at a bounded rate, however often a fault triggers it."""

import math
import time
from collections.abc import Callable
from typing import Final, final

from nfq_guard.telemetry.events import Event
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
