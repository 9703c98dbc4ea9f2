# SPDX-License-Identifier: MIT
"""Finds packets that carry the untranslated address of an end of a live flow.

A capture on the outer side of a translation shows the flow with its public address. A packet with
the inner address that matches the exact state of such a flow belongs to it and escaped translation.
Where the file has one direction of the flow alone, the packet is of the other one.
"""

from typing import Final, final

from nfq_guard.conntrack.entry import Key
from nfq_guard.replay.stream import Stream
from nfq_guard.wire.packet import ACK, Segment

_MOST_UNTRANSLATED: Final = 10_000


@final
class Untranslated:
    """A packet with the untranslated address of an end of a live flow.

    Attributes:
        frame: Its frame.
        key: Its direction.
        of: The stream that it belongs to, by its acknowledgement number.
    """

    def __init__(self, frame: int, key: Key, of: Stream) -> None:
        """Take every attribute as given."""
        self.frame = frame
        self.key = key
        self.of = of


@final
class Escapes:
    """Looks for packets that escaped the translation of a live flow.

    Attributes:
        found: The first packets that escaped.
    """

    def __init__(self, capacity: int) -> None:
        """Remember at most `capacity` ends that opened a stream; the oldest are evicted."""
        self.found: list[Untranslated] = []
        self._capacity = capacity
        # The last stream that each end opened, by address and port.
        self._opened: dict[tuple[bytes, int], Stream] = {}

    def opened(self, stream: Stream, key: Key, flags: int) -> None:
        """Remember which end opened a stream; `key` and `flags` are of its SYN or SYN+ACK."""
        opened = self._opened
        if len(opened) >= self._capacity:
            for old in list(opened)[: max(1, self._capacity >> 3)]:
                del opened[old]
        src, dst, ports, _ = key
        if flags & ACK:
            opened[dst, ports & 0xFFFF] = stream
        else:
            opened[src, ports >> 16] = stream

    def look(self, key: Key, segment: Segment, frame: int) -> bool:
        """Whether a packet without a stream matches the exact state of one with another tuple."""
        _, dst, ports, _ = key
        stream = self._opened.get((dst, ports & 0xFFFF))
        if stream is None or not (stream.one.packets and stream.other.packets):
            return False
        # An RST without ACK carries the sequence number that its peer expects.
        number = segment.ack if segment.flags & ACK else segment.seq
        for side in stream.sides:
            if side.known and side.opened and number in (side.end, side.acked):
                if len(self.found) < _MOST_UNTRANSLATED:
                    self.found.append(Untranslated(frame, key, stream))
                return True
        return False
