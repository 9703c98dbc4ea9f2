# SPDX-License-Identifier: MIT
"""Finds the other direction of a translated flow where it has another tuple.

A capture of incoming packets only, or of outgoing ones, shows one direction of a translated flow
before translation and the other after it. Only the sequence numbers connect the two: a SYN+ACK
acknowledges the number of its SYN. In a flow that began before the capture, a segment begins at the
number that the one before it acknowledged, and acknowledges its end.
"""

from typing import Final, final

from nfq_guard.conntrack.entry import Key, reverse
from nfq_guard.replay.copies import shares_end
from nfq_guard.seqno import add
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Segment

_MOST: Final = 65_536
# Small sequence numbers are not random, and other connections may have the same.
_LEAST_NUMBER: Final = 0xFFFF


@final
class Halves:
    """The last SYNs of a capture, and the last segments of flows that are seen one way only."""

    def __init__(self, most: int = _MOST) -> None:
        """Remember `most` SYNs, and as many segments."""
        self._most = most
        # By the numbers that answer the segment: sequence and acknowledgement number. None if
        # segments of two directions await the same answer.
        self._awaiting: dict[int, Key | None] = {}
        # By both directions: the numbers that made them likely to be one flow.
        self._likely: dict[tuple[Key, Key], int] = {}
        # By the number that acknowledges the SYN; None if SYNs of two flows have that number.
        self._opening: dict[int, Key | None] = {}

    def opening_of(self, segment: Segment, key: Key) -> Key | None:
        """The direction of the only SYN that a SYN+ACK answers; None if there is none.

        A SYN is remembered; the result is None.

        Args:
            segment: With the flag SYN.
            key: Its direction.
        """
        flags = segment.flags & (SYN | ACK | FIN | RST)
        if flags == SYN | ACK:
            return self._opening.get(segment.ack)
        if flags == SYN and segment.seq > _LEAST_NUMBER:
            self._remember(self._opening, add(segment.seq, 1), key)
        return None

    def half_of(self, segment: Segment, key: Key) -> Key | None:
        """The direction of the flow that a segment answers by both of its numbers.

        One answer is proof if the two directions share an end; otherwise it takes two. The segment
        is remembered.

        Args:
            segment: With the flag ACK, neither SYN nor RST, of a flow seen one way only so far.
            key: Its direction.
        """
        seq, ack = segment.seq, segment.ack
        if seq <= _LEAST_NUMBER or ack <= _LEAST_NUMBER:
            return None
        self._remember(self._awaiting, ack << 32 | segment.end, key)
        numbers = seq << 32 | ack
        other = self._awaiting.get(numbers)
        if other is None or other == key:
            return None
        if shares_end(key, reverse(other)):
            return other
        if self._likely.setdefault((other, key), numbers) != numbers:
            return other
        if len(self._likely) > self._most:
            self._likely.clear()
        return None

    def _remember(self, sought: dict[int, Key | None], numbers: int, key: Key) -> None:
        """Have `numbers` lead to `key`, or to None if they lead to another direction already."""
        sought[numbers] = key if sought.get(numbers, key) == key else None
        if len(sought) > self._most:
            del sought[next(iter(sought))]
