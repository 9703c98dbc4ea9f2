# SPDX-License-Identifier: MIT
"""Finds the other direction of a translated flow where it has another tuple.

A capture of incoming packets only, or of outgoing ones, shows one direction of a translated flow
before translation and the other after it. Only the sequence numbers connect the two: a SYN+ACK
acknowledges the number of its SYN, and so does the RST that refuses it. In a flow that began before
the capture, a segment begins at the number that the one before it acknowledged, and acknowledges
its end.

An ICMP request and its reply have the same sequence number and data.

A packet with a damaged address looks like a translated one. The next segments tell: the ends of a
translated flow go on with its two tuples, those of any other flow with the tuple of one of them.
"""

from collections import OrderedDict
from typing import Final, final

from nfq_guard.conntrack.entry import Key, reverse
from nfq_guard.flow import icmp_counterpart
from nfq_guard.seqno import add
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, IcmpMessage, Packet, Segment

_MOST: Final = 65_536
# Small sequence numbers are not random, and other connections may have the same.
_LEAST_NUMBER: Final = 0xFFFF
# Octets of the data of an ICMP request that are compared.
_DATA: Final = 24


@final
class _Join:
    """A SYN and a SYN+ACK with another tuple, until each of their ends went on with its tuple."""

    def __init__(self, opening: Key, answer: Key) -> None:
        self.opening = opening
        self.answer = answer
        self.opener_went_on = False
        self.answerer_went_on = False


@final
class Halves:
    """The last SYNs of a capture, and the last segments of flows that are seen one way only.

    Attributes:
        likely: The direction that the last segment given to `half_of` answers by both of its
            numbers; None if there is none.
    """

    def __init__(self, most: int = _MOST) -> None:
        """Remember `most` SYNs, and as many segments."""
        self._most = most
        self.likely: Key | None = None
        # By the numbers that answer the segment: sequence and acknowledgement number. None if
        # segments of two directions await the same answer.
        self._awaiting: OrderedDict[int, Key | None] = OrderedDict()
        # By both directions: the numbers that made them likely to be one flow.
        self._likely: dict[tuple[Key, Key], int] = {}
        # By the number that acknowledges the SYN; None if SYNs of two flows have that number.
        self._opening: OrderedDict[int, Key | None] = OrderedDict()
        # By the directions of both tuples.
        self._joins: dict[Key, _Join] = {}

    def opening_of(self, segment: Segment, key: Key) -> Key | None:
        """The direction of the only SYN that a SYN+ACK or RST answers; None if there is none.

        A SYN is remembered; the result is None.

        Args:
            segment: With the flag SYN or RST.
            key: Its direction.
        """
        flags = segment.flags & (SYN | ACK | FIN | RST)
        # A host without a socket for the SYN sends the number 0 (RFC 9293 3.10.7.1).
        if flags == SYN | ACK or (flags == RST | ACK and segment.seq == 0):
            return self._opening.get(segment.ack)
        if flags == SYN and segment.seq > _LEAST_NUMBER:
            self._remember(self._opening, add(segment.seq, 1), key)
        return None

    @property
    def watches(self) -> bool:
        """Whether the joins of some flows are not certain yet."""
        return bool(self._joins)

    def join(self, opening: Key, answer: Key) -> None:
        """Watch a flow that was joined by its SYN and a SYN+ACK, given their directions."""
        joins = self._joins
        if len(joins) >= self._most:
            joins.clear()
        watched = _Join(opening, answer)
        for key in (opening, answer, reverse(opening), reverse(answer)):
            joins[key] = watched

    def refuted_by(self, segment: Segment, key: Key, known: Key | None) -> Key | None:
        """The direction of the SYN of a joined flow that a segment shows to be none.

        Two flows may have the same tuple, each on its side of the host.

        Args:
            segment: Any segment.
            key: Its direction.
            known: The direction of the SYN of the flow that has this tuple so far; None without
                one.
        """
        joins = self._joins
        found = joins.get(key)
        if found is None or segment.flags & RST:
            return None  # a host answers a packet that left untranslated with an RST
        refuted = None
        if key in (found.opening, found.answer):
            if segment.flags & SYN:
                return None
            found.opener_went_on = found.opener_went_on or key == found.opening
            found.answerer_went_on = found.answerer_went_on or key == found.answer
            if not (found.opener_went_on and found.answerer_went_on):
                return None
        elif (known is not None and known != found.opening) or self._is_another(
            segment, found.opening
        ):
            return None
        else:
            refuted = found.opening
        for one in (found.opening, found.answer):
            joins.pop(one, None)
            joins.pop(reverse(one), None)
        return refuted

    def _is_another(self, segment: Segment, opening: Key) -> bool:
        """Whether a segment opens a connection, or answers the SYN of one, other than `opening`."""
        kind = segment.flags & (SYN | ACK)
        if kind == SYN | ACK:
            answered = self._opening.get(segment.ack)
            return answered is not None and answered != opening
        return kind == SYN

    def half_of(self, segment: Segment, key: Key) -> Key | None:
        """The direction of the flow that a segment answers by both of its numbers.

        It takes two such answers: a damaged address makes one. The segment is remembered.

        Args:
            segment: With the flag ACK, neither SYN nor RST, of a flow seen one way only so far.
            key: Its direction.
        """
        seq, ack = segment.seq, segment.ack
        self.likely = None
        if seq <= _LEAST_NUMBER or ack <= _LEAST_NUMBER:
            return None
        self._remember(self._awaiting, ack << 32 | segment.end, key)
        numbers = seq << 32 | ack
        other = self._awaiting.get(numbers)
        if other is None or other == key:
            return None
        self.likely = other
        if self._likely.setdefault((other, key), numbers) != numbers:
            return other
        if len(self._likely) > self._most:
            self._likely.clear()
        return None

    def _remember(self, sought: OrderedDict[int, Key | None], numbers: int, key: Key) -> None:
        """Have `numbers` lead to `key`, or to None if they lead to another direction already."""
        sought[numbers] = key if sought.get(numbers, key) == key else None
        if len(sought) > self._most:
            sought.popitem(last=False)


@final
class Requests:
    """The last ICMP requests that no reply to their own tuple has answered."""

    def __init__(self, timeout_s: float, most: int = _MOST) -> None:
        """Remember `most` requests; conntrack awaits a reply for `timeout_s`."""
        self._timeout_s = timeout_s
        self._most = most
        # By type of the reply, sequence number and data: the addresses and the time.
        self._sent: OrderedDict[bytes, tuple[bytes, bytes, float]] = OrderedDict()

    def take(
        self,
        packet: Packet,
        message: IcmpMessage,
        octets: bytes,
        now: float,
        direction: int | None,
    ) -> bool:
        """Take a message into account.

        Args:
            packet: The packet.
            message: Its ICMP message.
            octets: The octets of the packet, IP header first.
            now: Seconds on any clock.
            direction: Its direction in its entry; None without one.

        Returns:
            Whether it is a reply without an entry to a request from or to one of its addresses.
        """
        reply = icmp_counterpart(packet.proto, message.type)
        if message.is_error or reply is None:
            return False
        start = packet.l4_offset + 6
        content = octets[start : start + 2 + _DATA]
        name = bytes([packet.proto, message.type]) + content
        sent = self._sent.get(name)
        if sent is None:
            if direction == 0:
                self._sent[bytes([packet.proto, reply]) + content] = packet.src, packet.dst, now
                if len(self._sent) > self._most:
                    self._sent.popitem(last=False)
            return False
        if direction is not None:
            del self._sent[name]
            return False
        src, dst, since = sent
        return (src == packet.dst or dst == packet.src) and now - since < self._timeout_s
