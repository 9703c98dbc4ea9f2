# SPDX-License-Identifier: MIT
"""The file of the events of packets: JSON lines, apart from the daemon's other events.

The file has a bound of its own, because a flood from forged addresses makes events as fast as the
limit of events a second allows, day and night. A rotation needs no signal: the name of the file is
looked up every second. Several processes may write into one file, whose size tells each of them
what the others have written.
"""

from pathlib import Path
from typing import Final, final

from nfq_guard.telemetry.sink import LineSink

_FOLLOW_S: Final = 1.0


@final
class Recording:
    """Writes lines into the file until it has its full size.

    Attributes:
        sink: Writes the lines.
        suppressed: Packets without an event because the file had its full size.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Append to a file, which is created where it does not exist.

        Raises:
            OSError: The file cannot be opened.
        """
        self.sink = LineSink(path)
        self.suppressed = 0
        self._max_bytes = max_bytes
        self._size = self.sink.follow()
        self._follow_at = float("-inf")

    def write_packets(self, line: bytes, packets: int) -> None:
        """Queue the event of a number of packets, or count them if the file has no room for it."""
        if self._size + len(line) >= self._max_bytes:
            self.suppressed += packets
        else:
            self.write_gap(line)

    def write_gap(self, line: bytes) -> None:
        """Queue a line that says what is missing, whatever the size; the caller limits the rate."""
        self._size += self.sink.write(line + b"\n")

    def push(self, now: float) -> None:
        """Write what is queued; once a second, look for a rotation and at the size."""
        self.sink.push(now)
        if now >= self._follow_at:
            self._follow_at = now + _FOLLOW_S
            self._size = self.sink.follow()
