# SPDX-License-Identifier: MIT
"""Keeps Python's search for reference cycles out of the packets' way.

Judging makes no cycles, so its values go the moment that nobody holds them. The search would
start after every few hundred new values all the same, twice a batch, and took a seventh of a
packet's CPU time. So it does not start by itself while a queue is served: what came up by then is
left alone for good, and what is new is looked through once a second.
"""

import gc
from typing import Final, final

_YOUNG: Final = 1
# Looks through everything that was made since the start, not only through what is new; for the
# cycles of an old policy, or of a control connection, that had grown old before they were dropped.
_FULL_EVERY: Final = 60


@final
class Garbage:
    """When cycles are looked for; call `tick` once a second from `begin` to `end`."""

    def __init__(self) -> None:
        self._seconds = 0

    def begin(self) -> None:
        """Leave alone what is there, and search no more by itself."""
        gc.freeze()
        gc.disable()

    def tick(self, _now: float) -> None:
        """Look through what is new; once a minute through the rest too."""
        self._seconds += 1
        if self._seconds % _FULL_EVERY:
            gc.collect(_YOUNG)
        else:
            gc.collect()

    def end(self) -> None:
        """Back to how Python does it."""
        gc.enable()
        gc.unfreeze()
