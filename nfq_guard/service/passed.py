# SPDX-License-Identifier: MIT
"""Counts packets that the rules lead to a queue that takes none: it is full or not served.

In the fail mode open they pass. In the others the queue counts those that it drops because it is
full, so that the others are those that were dropped because it was not served.

A queue is not served while a worker that ended is replaced, nor from the end of one daemon to the
start of the next where the rules stay. The kernel does not count these
packets. The rule that leads to the queue counts each of them, but the queue neither numbers nor
drops it. The rules' count, less the packets that the queues have numbered or dropped, therefore
grows by one with each such packet.

The counters cannot be read at one moment while packets arrive. The queues' counters are read before
and after the rules' counters: packets in between can only make the result smaller, and it is exact
if there were none.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple, final

from nfq_guard.nfqueue.counters import CounterFile

# Maximum number of first readings, repeated until no packet came in between.
_ATTEMPTS: Final = 10
# More packets do not come between two daemons: the number of a queue wrapped around.
_PLAUSIBLE: Final = 1 << 31


class Numbered(NamedTuple):
    """The kernel's counters of our queues.

    Attributes:
        owners: The sockets to which they are bound, in the order of the queues; 0 for none.
        packets: Packets that they have numbered or dropped.
    """

    owners: tuple[int, ...]
    packets: int


def numbered_in(file: CounterFile, queues: Sequence[int]) -> Numbered | None:
    """The kernel's counters of `queues`; None if they cannot be read."""
    try:
        lines = file.read_all()
    except OSError:
        return None
    found = [lines.get(number) for number in queues]
    return Numbered(
        tuple(0 if line is None else line.port_id for line in found),
        sum(line.last_id + line.queue_dropped for line in found if line is not None),
    )


class _Reading(NamedTuple):
    """The rules' count, and the queues' counts before and after it."""

    before: Numbered
    queued: int
    after: Numbered


@final
class PassedPackets:
    """Counts these packets; the count never decreases, and never exceeds the true number.

    Attributes:
        count: Packets that a queue did not take, because it was full or not served.
        unnumbered: Packets that no queue had numbered or dropped at the last `look`, of all that
            the rules have queued; at least so many. None if that `look` could not read them.
        goes_on: Whether the first `look` after `resume` found the rules of that time.
    """

    def __init__(
        self, queued: Callable[[], int | None], numbered: Callable[[], Numbered | None]
    ) -> None:
        """Count from the first `look` on.

        Args:
            queued: Reads the rules' count since they were created; None if that is unknown.
            numbered: Reads the queues' counts; None if they cannot be read.
        """
        self.count = 0
        self.unnumbered: int | None = None
        self.goes_on = False
        self._accounted: int | None = None
        self._queued = queued
        self._numbered = numbered
        self._owners: tuple[int, ...] = ()
        self._seen = 0
        self._numbers = 0
        self._none = 0
        self._earlier = 0

    def resume(self, accounted: int) -> None:
        """Count from the end of the daemon before, if the rules are those of that time.

        Args:
            accounted: Packets of the rules of which that daemon knew what became of them, without
                those in queues that are still bound.
        """
        self._accounted = accounted
        self.goes_on = False

    def add(self, packets: int) -> None:
        """Count packets that the counters do not show."""
        self.count += packets
        self._earlier += packets

    def look(self, *, exact: bool = False) -> None:
        """Read the kernel's counters.

        Args:
            exact: Whether `unnumbered` should be exact.
        """
        read = self._read()
        self.unnumbered = None
        if read is not None and (exact or self._anew(read)):
            for _ in range(_ATTEMPTS):
                if read is None or read.before == read.after:
                    break
                read = self._read()
        accounted, self._accounted = self._accounted, None
        if read is None:
            return
        least = read.queued - read.after.packets
        most = read.queued - read.before.packets
        if self._anew(read):
            self._earlier = self.count
            self._none = most
            if accounted is not None and 0 <= most - accounted < _PLAUSIBLE:
                self._none = accounted
                self.goes_on = True
        self.unnumbered = most
        self._owners = read.before.owners
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
            return None  # a queue was bound meanwhile, or a 32-bit counter wrapped
        return _Reading(before, queued, after)

    def _anew(self, read: _Reading) -> bool:
        """Whether a queue was unbound, the rules were recreated, or a counter wrapped.

        The numbers of a queue that was not bound at the reading before begin at 0, and count.
        """
        pairs = zip_longest(self._owners, read.before.owners)
        return (
            any(owner not in {0, found} for owner, found in pairs)
            or read.queued < self._seen
            or read.before.packets < self._numbers
        )

    def forget(self) -> None:
        """Restart at the next `look`: the rules were recreated, or the fail mode changed."""
        self.unnumbered = None
        self._owners = ()
