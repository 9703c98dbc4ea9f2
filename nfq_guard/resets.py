# SPDX-License-Identifier: MIT
"""Links an RST to the INVALID packet that it answers.

A host that gets a segment of no connection of its own must answer with an RST whose numbers follow
from that segment: its sequence number is the segment's acknowledgement, and where the segment has
none, the RST is 0 and acknowledges the segment's end (RFC 9293, 3.5.2). An RST with the same ends,
the other way round, and just that number, a short while after an INVALID packet that got through,
is therefore the reset which that packet caused.

A capture shows every RST. The guard sees an RST only if conntrack calls it INVALID too: that of the
host itself, or of a client, in answer to an untranslated packet of a translated flow, whose tuple
conntrack does not know. The guard does not see an RST that conntrack considers valid, or that takes
another path.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from nfq_guard.finding import Reason
from nfq_guard.wire.packet import ACK, RST, Packet, Segment

# The RST that answers a stray packet arrives within a round trip.
RESET_WITHIN_S: Final = 5.0
_MOST: Final = 4096
# Distinct from every sequence number.
_BY_ACK: Final = 1 << 32

_Key: TypeAlias = tuple[bytes, bytes, int, int]


@final
@dataclass(init=False, slots=True)
class Passed:
    """An INVALID packet that was accepted.

    Attributes:
        at: When it was judged, on the clock of the caller, in seconds.
        reason: Why it is INVALID.
        rule: The rule that decided.
        frame: Its frame in a capture, else 0.
    """

    at: float
    reason: Reason
    rule: str
    frame: int

    def __init__(self, at: float, reason: Reason, rule: str, frame: int = 0) -> None:
        self.at = at
        self.reason = reason
        self.rule = rule
        self.frame = frame


@final
class Resets:
    """The recently accepted INVALID packets: a bounded number, the latest of each kind."""

    def __init__(self, most: int = _MOST) -> None:
        """Keep at most `most` packets."""
        self._most = most
        self._passed: OrderedDict[_Key, Passed] = OrderedDict()

    def add(self, packet: Packet, segment: Segment, passed: Passed) -> None:
        """Add an accepted packet; an RST is ignored, because it is never answered."""
        if segment.flags & RST:
            return
        number = segment.ack if segment.flags & ACK else _BY_ACK | segment.end
        key = (packet.dst, packet.src, segment.dport << 16 | segment.sport, int(number))
        known = self._passed
        if key not in known and len(known) >= self._most:
            known.popitem(last=False)
        known[key] = passed

    def cause_of(self, packet: Packet, segment: Segment, now: float) -> Passed | None:
        """The packet that an RST answers; None for any other segment."""
        if not segment.flags & RST:
            return None
        number = int(segment.seq)
        if segment.seq == 0 and segment.flags & ACK:
            number = _BY_ACK | segment.ack
        passed = self._passed.get(
            (packet.src, packet.dst, segment.sport << 16 | segment.dport, number)
        )
        if passed is None or now - passed.at > RESET_WITHIN_S:
            return None
        return passed
