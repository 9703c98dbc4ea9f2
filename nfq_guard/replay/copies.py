# SPDX-License-Identifier: MIT
"""Recognises frames that show one packet again: copies, and the same packet after translation.

A capture on `any`, on a bridge, of several interfaces or of a mirror port shows a packet several
times, and on a host that translates once with each of its tuples. The kernel judges it once, where
it first arrives.

Address translation and routing change addresses, ports, the hop limit, checksums, and of a SYN the
MSS. They leave the identification of an IPv4 packet, and the sequence numbers, flags and window of
its segment; these are what a packet is recognised by. A packet without an identification, or with
one that was rewritten, is recognised by its options and its payload besides.
"""

from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import LINUX_SLL, LINUX_SLL2
from nfq_guard.conntrack.entry import Key, reverse
from nfq_guard.flow import IPV4
from nfq_guard.wire.packet import ACK, SYN, Packet, Segment

# A host forwards a packet within this time, nanoseconds.
_WITHIN_NS: Final = 50_000_000
# And shows one without an identification again within this; a retransmission takes longer.
_AT_ONCE_NS: Final = 2_000_000
# Frames between those that drop what is older than `_WITHIN_NS` at least.
_GENERATION: Final = 2048
# An ordinary capture of one interface without a single copy so far is not searched further.
_SEARCHED: Final = 4096
# Of a mirror or a bridge, at least one in so many packets is a repetition in the same place.
_REPEATED_SHARE: Final = 3
_NO_ID: Final = b"\0\0"
# Octets of payload that recognise a packet.
_PAYLOAD: Final = 24
# Both ends of a packet are taken as translated only where its numbers are no small ones.
_LEAST_NUMBER: Final = 0xFFFF
_MOST_TRANSLATED: Final = 65_536
_MOST_LINKS: Final = 8

# What `Copies.look` answers.
FIRST: Final = 0
COPY: Final = 1
TRANSLATED: Final = 2
# Not seen before, though it is already translated: its arrival is not in the capture.
DEPARTED: Final = 3


@final
class Sighting:
    """The first sighting of a packet.

    Attributes:
        time_ns: When it was captured, nanoseconds since the epoch.
        frame: Number of the frame.
        key: Direction of its flow.
        hop_limit: Its hop limit (TTL).
        link: Its link header and interface (`link_place`).
        strayed: Whether it was judged INVALID for want of an entry; set by the replayer.
    """

    def __init__(self, time_ns: int, frame: int, key: Key, hop_limit: int, link: bytes) -> None:
        """Take every attribute as given."""
        self.time_ns = time_ns
        self.frame = frame
        self.key = key
        self.hop_limit = hop_limit
        self.link = link
        self.strayed = False


@final
class _Departure:
    """How the packets of a direction arrive that leave with another tuple.

    Attributes:
        arriving: The tuple with which they arrive.
        links: Where they leave: link headers and interfaces, the first ones; empty before one.
    """

    def __init__(self, arriving: Key) -> None:
        self.arriving = arriving
        self.links: list[bytes] = []


@final
class Copies:
    """Looks for copies of TCP segments.

    Attributes:
        first: The first sighting of the last packet, where it was seen before.
        last: The sighting of the last packet that was `FIRST` or `DEPARTED`; None before one.
        arriving: The tuple with which the last packet arrived, where it is `DEPARTED`.
        copies: How many copies there were, translated ones among them.
    """

    def __init__(self, searched: int = _SEARCHED) -> None:
        """A search that ends after `searched` segments, if nothing shows that it must go on."""
        self._searched = searched
        self.first: Sighting | None = None
        self.last: Sighting | None = None
        self.arriving: Key | None = None
        self.copies = 0
        self._recent: dict[bytes, Sighting] = {}
        self._older: dict[bytes, Sighting] = {}
        self._departures: dict[Key, _Departure] = {}
        self._looked = 0
        self._repeated = 0
        self._several = False

    def expect(self) -> None:
        """Search the whole capture, as captures of its kind show packets several times."""
        self._several = True

    @property
    def searches(self) -> bool:
        """Whether copies are still looked for."""
        return self._several or self.copies > 0 or self._looked < self._searched

    def look(
        self, packet: Packet, octets: bytes, key: Key, time_ns: int, frame: int, link: bytes
    ) -> int:
        """Whether a TCP segment was seen before.

        Args:
            packet: The packet.
            octets: The same, from the IP header on.
            key: Its direction (`conntrack.entry.key_of`).
            time_ns: When it was captured.
            frame: Its frame.
            link: Its link header and interface, in whatever form.

        Returns:
            `FIRST`; `COPY`, or `TRANSLATED` if it was seen with another tuple, with `first` set;
            or `DEPARTED`, with `arriving` set.
        """
        segment = packet.l4
        assert isinstance(segment, Segment)  # noqa: S101 - the caller's promise
        self.first = None
        self._looked += 1
        if len(self._recent) >= _GENERATION:
            self._older = self._recent
            self._recent = {}
        start = packet.l4_offset
        numbers = octets[start + 4 : start + 16]
        name = octets[4:6] if packet.family == IPV4 else _NO_ID
        if name == _NO_ID and not segment.flags & SYN:
            numbers += segment.options
        digest = name + numbers
        seen = self._seen(digest, time_ns)
        if seen is not None:
            elsewhere = packet.hop_limit != seen.hop_limit or link != seen.link
            if seen.key == key:
                at_once = name != _NO_ID or abs(time_ns - seen.time_ns) <= _AT_ONCE_NS
                if elsewhere or (at_once and self._is_mirrored()):
                    self.first = seen
                    self.copies += 1
                    return COPY
            elif elsewhere and (
                _shares_end(key, seen.key) or _is_telling(segment) or self._is_known(seen.key, key)
            ):
                return self._translated(seen, key, link)
        sighting = self.last = Sighting(time_ns, frame, key, packet.hop_limit, link)
        if self._several and name != _NO_ID:
            at = start + 20 + len(segment.options)
            content = numbers + octets[at : at + _PAYLOAD]
            other = self._seen(content, time_ns)
            if (
                other is not None
                and other.key != key
                and (packet.hop_limit != other.hop_limit or link != other.link)
                and (_is_telling(segment) or self._is_known(other.key, key))
            ):
                return self._translated(other, key, link)
            self._recent[content] = sighting
        self._recent[digest] = sighting
        departure = self._departures.get(key)
        if departure is not None and (link in departure.links or not departure.links):
            self.arriving = departure.arriving
            return DEPARTED
        return FIRST

    def _seen(self, digest: bytes, time_ns: int) -> Sighting | None:
        seen = self._recent.get(digest)
        if seen is None:
            seen = self._older.get(digest)
        if seen is None or abs(time_ns - seen.time_ns) > _WITHIN_NS:
            return None
        return seen

    def _is_known(self, arriving: Key, leaving: Key) -> bool:
        departure = self._departures.get(leaving)
        return departure is not None and departure.arriving == arriving

    def _translated(self, seen: Sighting, key: Key, link: bytes) -> int:
        self.first = seen
        self.copies += 1
        if self._is_known(key, seen.key):
            return TRANSLATED  # its arrival, listed after it had left
        departure = self._departures.get(key)
        if departure is None:
            if len(self._departures) >= _MOST_TRANSLATED:
                self._departures.clear()
            departure = self._departures[key] = _Departure(seen.key)
            # Packets the other way are translated between the same tuples; where they leave, none
            # of them has shown.
            self._departures.setdefault(reverse(seen.key), _Departure(reverse(key)))
        if link not in departure.links and len(departure.links) < _MOST_LINKS:
            departure.links.append(link)
        return TRANSLATED

    def _is_mirrored(self) -> bool:
        """Whether packets come again in the same place as a rule.

        A bridge or a mirror port shows them so; a single repetition is the network's.
        """
        self._repeated += 1
        return _REPEATED_SHARE * self._repeated >= self._looked


def link_place(frame: Frame, header_len: int) -> bytes:
    """What tells the places apart where a capture shows packets: link header and interface.

    Args:
        frame: The frame.
        header_len: Octets before its IP packet.
    """
    octets = frame.octets
    place = octets[:header_len]
    # Behind a short address, cooked headers have octets that nobody wrote.
    if frame.linktype == LINUX_SLL2:
        place = octets[: 12 + octets[11]]
    elif frame.linktype == LINUX_SLL:
        place = octets[: 6 + octets[5]]
    if frame.interface or frame.source:
        place += b"%d/%d" % (frame.interface, frame.source)
    return place


def _is_telling(segment: Segment) -> bool:
    """Whether no other connection has the numbers of a segment by chance."""
    if segment.seq <= _LEAST_NUMBER:
        return False
    if segment.flags & ACK:
        return segment.ack > _LEAST_NUMBER
    return segment.flags & SYN != 0


def _shares_end(one: Key, other: Key) -> bool:
    """Whether two directions have an end in common, or the same ports.

    Translation changes one end of a packet, or both addresses and no port, as for a host that
    reaches itself by its public address.
    """
    ports, others = one[2], other[2]
    source = one[0] == other[0] and ports >> 16 == others >> 16
    destination = one[1] == other[1] and ports & 0xFFFF == others & 0xFFFF
    return source or destination or ports == others
