# SPDX-License-Identifier: MIT
"""The last INVALID packets of one queue, always at hand, for `dump --pcap` and files of evidence.

A batch costs one entry: the ring keeps the judgments that exist anyway, and everything else is
done when somebody asks for them. Packets are kept up to a rate, because a flood would replace what
came before it within seconds, and because freeing a judgment that has left the CPU's caches costs
as much as judging it.
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
        packets_max: How many are kept.
        added: Packets that were kept, since the start.
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
        """What is kept, the oldest first: when each batch was read, and its judgments."""
        return list(self._batches)
