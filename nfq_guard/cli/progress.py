# SPDX-License-Identifier: MIT
"""The progress of a long run: one line on standard error, if that is a terminal."""

import sys
import time
from typing import Final, TextIO, final

from nfq_guard.cli.escaping import control

_EVERY_S: Final = 0.2
_WIDTH: Final = 24
_CLEAR: Final = "\r\x1b[K"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@final
class Progress:
    """A progress bar with the packet rate and the time left; silent unless on a terminal."""

    def __init__(self, total: int | None, stream: TextIO | None = None) -> None:
        """Start the clock; `total` is the number of bytes to read, None if unknown."""
        self._stream = sys.stderr if stream is None else stream
        self._visible = self._stream.isatty()
        self._total = total
        self._began = time.monotonic()
        self._next = self._began + _EVERY_S
        self._shown = False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def update(self, packets: int, consumed: int) -> None:
        """Report that `packets` have been processed, in `consumed` bytes of the files."""
        if not self._visible:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        self._stream.write(
            control(_CLEAR, self._stream) + self._line(packets, consumed, now - self._began)
        )
        self._stream.flush()
        self._shown = True

    def _line(self, packets: int, consumed: int, seconds: float) -> str:
        rate = f"{packets:,} packets, {packets / seconds:,.0f}/s"
        if not self._total or not consumed:
            return rate
        done = min(1.0, consumed / self._total)
        filled = int(done * _WIDTH)
        left = _clock(seconds / done - seconds)
        return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:4.0%}  {rate}, {left} left"

    def clear(self) -> None:
        """Erase the line, before other output and at the end."""
        if self._shown:
            self._stream.write(control(_CLEAR, self._stream))
            self._stream.flush()
            self._shown = False
