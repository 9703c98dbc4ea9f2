# SPDX-License-Identifier: MIT
"""How far a long run has come: one line on the terminal, on standard error."""

import sys
import time
from typing import Final, TextIO, final

_EVERY_S: Final = 0.2
_WIDTH: Final = 24
_CLEAR: Final = "\r\x1b[K"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@final
class Progress:
    """A bar with packets a second and the time left; nothing where nobody watches."""

    def __init__(self, total: int | None, stream: TextIO | None = None) -> None:
        """Begin; `total` octets to read, None if that is not known."""
        self._stream = sys.stderr if stream is None else stream
        self._watched = self._stream.isatty()
        self._total = total
        self._began = time.monotonic()
        self._next = self._began + _EVERY_S
        self._shown = False

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def update(self, packets: int, octets: int) -> None:
        """Say that so many packets, in so many octets of the files, are done."""
        if not self._watched:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        self._stream.write(_CLEAR + self._line(packets, octets, now - self._began))
        self._stream.flush()
        self._shown = True

    def _line(self, packets: int, octets: int, seconds: float) -> str:
        rate = f"{packets:,} packets, {packets / seconds:,.0f}/s"
        if not self._total or not octets:
            return rate
        done = min(1.0, octets / self._total)
        filled = int(done * _WIDTH)
        left = _clock(seconds / done - seconds)
        return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:4.0%}  {rate}, {left} left"

    def clear(self) -> None:
        """Take the line away, before other output and at the end."""
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False
