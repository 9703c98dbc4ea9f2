# SPDX-License-Identifier: MIT
"""Counts the packets that passed unjudged because the queue was full, in the fail mode open.

The kernel counts none of them. Each one was counted by the rule that leads to the queue, and then
the queue neither numbered nor dropped it: what the rules have counted, less what the queues have
numbered and dropped, grows by one with each such packet.

The counts are read one after the other while packets come. What the queues have counted is read
before and after what the rules have: packets in between can only make the result smaller, and it is
exact when none came in between.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, final

from nfq_guard.nfqueue.counters import CounterFile

# How often the first reading is repeated until no packet came in between.
_ATTEMPTS: Final = 10


class Numbered(NamedTuple):
    """What the kernel has counted at our queues.

    Attributes:
        owners: The sockets that they are bound to.
        packets: Packets that they have numbered or dropped.
    """

    owners: tuple[int, ...]
    packets: int


def numbered_in(file: CounterFile, queues: Sequence[int]) -> Numbered | None:
    """What the kernel has counted at `queues`; None while not all of them are bound."""
    try:
        lines = file.read_all()
    except OSError:
        return None
    found = [lines[number] for number in queues if number in lines]
    if len(found) < len(queues):
        return None
    return Numbered(
        tuple(line.port_id for line in found),
        sum(line.last_id + line.queue_dropped for line in found),
    )


class _Reading(NamedTuple):
    """What the rules have counted, and what the queues had before and after it was read."""

    before: Numbered
    queued: int
    after: Numbered


@final
class PassedPackets:
    """The count; never decreases, and never exceeds what has passed.

    Attributes:
        count: Packets that passed because a queue was full.
    """

    def __init__(
        self, queued: Callable[[], int | None], numbered: Callable[[], Numbered | None]
    ) -> None:
        """Count from the first `look` on.

        Args:
            queued: What the rules have counted since they were made; None if that is not known.
            numbered: What the queues have; None while one of them is not bound.
        """
        self.count = 0
        self._queued = queued
        self._numbered = numbered
        self._owners: tuple[int, ...] = ()
        self._seen = 0
        self._numbers = 0
        self._none = 0
        self._earlier = 0

    def look(self) -> None:
        """Read the counts of the kernel."""
        read = self._read()
        if read is not None and self._anew(read):
            for _ in range(_ATTEMPTS):
                if read is None or read.before == read.after:
                    break
                read = self._read()
        if read is None:
            return
        least = read.queued - read.after.packets
        most = read.queued - read.before.packets
        if self._anew(read):
            self._owners = read.before.owners
            self._earlier = self.count
            self._none = most
        self._seen = read.queued
        self._numbers = read.after.packets
        self._none = min(self._none, most)
        self.count = max(self.count, self._earlier + least - self._none)

    def _read(self) -> _Reading | None:
        before = self._numbered()
        queued = self._queued()
        after = self._numbered()
        if before is None or after is None or queued is None:
            return None
        if before.owners != after.owners or after.packets < before.packets:
            return None  # a queue was bound meanwhile, or a number of 32 bits began anew
        return _Reading(before, queued, after)

    def _anew(self, read: _Reading) -> bool:
        """Whether a queue was bound anew, the rules were made anew, or a number began anew."""
        return (
            read.before.owners != self._owners
            or read.queued < self._seen
            or read.before.packets < self._numbers
        )

    def forget(self) -> None:
        """Begin anew at the next look: the rules were made anew, or the fail mode was another."""
        self._owners = ()
