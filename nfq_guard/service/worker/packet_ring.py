# SPDX-License-Identifier: MIT
"""The last INVALID packets of one queue, for `dump --pcap` and capture files.

A batch costs one entry: the ring keeps the existing judgments, and all other work is deferred until
they are requested. The rate of kept packets is limited, because a flood would replace all earlier
packets within seconds, and because freeing a judgment that has left the CPU's caches costs as much
as judging the packet.
"""

from collections import deque
from typing import Final, final

from nfq_guard.engine import Judgment

# Packets that are kept within a second.
PER_S: Final = 500


@final
class PacketRing:
    """Keeps batches of judgments, a bounded number of packets in all.

    Attributes:
        packets_max: Maximum number of kept packets.
        added: Packets kept since the start.
        skipped: Packets that were not kept because of the rate.
    """

    def __init__(self, packets_max: int) -> None:
        """Keep at most `packets_max` packets, 0 for none."""
        self.added = 0
        self.skipped = 0
        self.packets_max = packets_max
        self._held = 0
        self._left = 0
        self._second = float("-inf")
        self._batches: deque[tuple[float, list[Judgment]]] = deque()

    def add(self, judgments: list[Judgment], now: float) -> None:
        """Keep a batch that was read at `now`, monotonic seconds; the list must not change."""
        if now - self._second >= 1:
            self._second = now
            self._left = min(PER_S, self.packets_max)
        count = len(judgments)
        if count > self._left:
            self.skipped += count - self._left
            count = self._left
            judgments = judgments[:count]
        if not count:
            return
        self._left -= count
        self._batches.append((now, judgments))
        self.added += count
        self._held += count
        while self._held > self.packets_max:
            _, oldest = self._batches.popleft()
            self._held -= len(oldest)

    def batches(self) -> list[tuple[float, list[Judgment]]]:
        """The kept batches, oldest first: when each was read, and its judgments."""
        return list(self._batches)
