# SPDX-License-Identifier: MIT
"""An event of level error that a fault may trigger at any rate, and that is logged now and then."""

import math
import time
import traceback
from typing import Final, final

from nfq_guard.telemetry.events import EventLog

_INTERVAL_S: Final = 10.0


@final
class LimitedEvent:
    """Logs the first, and then at most one each ten seconds.

    Attributes:
        count: How often it happened, logged or not.
    """

    def __init__(self, events: EventLog, name: str) -> None:
        """Log as the event `name`."""
        self.count = 0
        self._events = events
        self._name = name
        self._logged = 0
        self._next_at = -math.inf

    def happened(self, **fields: object) -> None:
        """Count it and log it if it is time; `since_last` counts those since the last event."""
        self.count += 1
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _INTERVAL_S
        since_last, self._logged = self.count - self._logged, self.count
        self._events.error(self._name, **fields, since_last=since_last)

    def raised(self, error: Exception, **fields: object) -> None:
        """As `happened`, with an exception and its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.happened(**fields, problem=f"{type(error).__name__}: {error}", traceback=trace)
