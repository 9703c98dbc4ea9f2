# SPDX-License-Identifier: MIT
"""The rates of `top`, from the counters of several responses."""

from collections import deque
from collections.abc import Container
from typing import Final, final

# Rates are averages over this time.
_WINDOW_S: Final = 3.0
_SAMPLES_MAX: Final = 64


@final
class Meter:
    """The rates at which counters grow, over the last `_WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._samples: dict[object, deque[tuple[float, int]]] = {}
        self._last: float | None = None

    def note(self, numbers: dict[object, int], now: float, new: Container[object] = ()) -> None:
        """Add a sample of all counters; those that are absent are forgotten.

        Args:
            numbers: The counters by name.
            now: Monotonic seconds.
            new: Names of counters that were 0 at the sample before.
        """
        kept: dict[object, deque[tuple[float, int]]] = {}
        for name, number in numbers.items():
            samples = self._samples.get(name)
            if samples is None:
                samples = deque(maxlen=_SAMPLES_MAX)
                if self._last is not None and name in new:
                    samples.append((self._last, 0))
            elif number < samples[-1][1]:
                samples = deque(maxlen=_SAMPLES_MAX)
            samples.append((now, number))
            while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
                samples.popleft()
            kept[name] = samples
        self._samples = kept
        self._last = now

    def rate(self, name: object) -> float | None:
        """Growth per second; None before there are two samples."""
        samples = self._samples.get(name)
        if samples is None or len(samples) < 2:
            return None
        (began, before), (ended, after) = samples[0], samples[-1]
        return (after - before) / (ended - began) if ended > began else None
