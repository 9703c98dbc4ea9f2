# SPDX-License-Identifier: MIT
"""Finds the SYN that a SYN+ACK with another tuple answers.

A capture of incoming packets only, or of outgoing ones, shows one direction of a translated flow
before translation and the other after it. Only the sequence numbers connect the two: a SYN+ACK
acknowledges the number of its SYN.
"""

from typing import Final, final

from nfq_guard.conntrack.entry import Key
from nfq_guard.seqno import Seq, add
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Segment

_MOST: Final = 65_536
# Small sequence numbers are not random, and other connections may have the same.
_LEAST_NUMBER: Final = 0xFFFF


@final
class Halves:
    """The last SYNs of a capture."""

    def __init__(self, most: int = _MOST) -> None:
        """Remember `most` SYNs."""
        self._most = most
        # By the number that acknowledges the SYN; None if SYNs of two flows have that number.
        self._opening: dict[Seq, Key | None] = {}

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
            number = add(segment.seq, 1)
            if self._opening.get(number, key) != key:
                self._opening[number] = None
            else:
                self._opening[number] = key
            if len(self._opening) > self._most:
                del self._opening[next(iter(self._opening))]
        return None
