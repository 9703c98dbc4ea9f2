# SPDX-License-Identifier: MIT
"""The file of packet events: JSON lines, separate from the daemon's other events.

The size of the file is limited, because a flood from forged addresses can cause events permanently
at the maximum rate. A rotation needs no signal: the name of the file is looked up every second.
Several processes may write to one file; its size shows each of them what the others have written.
"""

from pathlib import Path
from typing import Final, final

from nfq_guard.telemetry.sink import LineSink

_FOLLOW_S: Final = 1.0


@final
class Recording:
    """Writes lines to the file up to its maximum size.

    Attributes:
        sink: Writes the lines.
        suppressed: Packets without an event because the file had its maximum size.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Append to a file, which is created if it does not exist.

        Raises:
            OSError: The file cannot be opened.
        """
        self.sink = LineSink(path)
        self.suppressed = 0
        self._max_bytes = max_bytes
        self._size = self.sink.follow()
        self._follow_at = float("-inf")

    def write_packets(self, line: bytes, packets: int) -> None:
        """Queue the event of a number of packets, or count these if the file has no room."""
        if self._size + len(line) >= self._max_bytes:
            self.suppressed += packets
        else:
            self.write_gap(line)

    def write_gap(self, line: bytes) -> None:
        """Queue a line about missing events, whatever the size; the caller limits the rate."""
        self._size += self.sink.write(line + b"\n")

    def push(self, now: float) -> None:
        """Write queued lines; once a second, check for a rotation and the size."""
        self.sink.push(now)
        if now >= self._follow_at:
            self._follow_at = now + _FOLLOW_S
            self._size = self.sink.follow()
