# SPDX-License-Identifier: MIT
"""An event of level error that a fault may trigger at any rate, and that is logged now and then."""

import math
import time
from collections.abc import Callable
from typing import Final, final

from nfq_guard.telemetry.events import Event
from nfq_guard.telemetry.log import EventLog

_INTERVAL_S: Final = 10.0


@final
class LimitedEvent:
    """Logs the first, and then at most one each ten seconds.

    Attributes:
        count: How often it happened, logged or not.
    """

    def __init__(self, events: EventLog) -> None:
        """Log to `events`."""
        self.count = 0
        self._events = events
        self._logged = 0
        self._next_at = -math.inf

    def happened(self, event: Callable[[int], Event]) -> None:
        """Count it and log it if it is time; `event` takes how many there were since the last."""
        self.count += 1
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _INTERVAL_S
        since_last, self._logged = self.count - self._logged, self.count
        self._events.emit(event(since_last))
