# SPDX-License-Identifier: MIT
"""Recognises frames that repeat a packet: copies, and the packet after address translation.

A capture on `any`, on a bridge, on a mirror port or of several interfaces contains a packet several
times; on a host that translates, once with each of its tuples. The kernel judges the packet once,
where it first arrives.

Address translation and routing change addresses, ports, the hop limit, checksums, and the MSS of a
SYN. They do not change the identification of an IPv4 packet, or the sequence numbers, flags and
window of its segment; these fields identify the packet. If the identification is absent or was
rewritten, options and payload are compared as well.

A cooked capture of version 1 does not name interfaces: a bridge and its port are one place there,
also where the bridge translates (bridge-nf-call-iptables, as nodes of Kubernetes have it).

A packet waits in the queue of its interface, and captures of two hosts have two clocks. By its
identification or its timestamp it is recognised seconds later, in another place.
"""

from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import LINUX_SLL, LINUX_SLL2, steady
from nfq_guard.conntrack.entry import Key, reverse
from nfq_guard.flow import IPV4
from nfq_guard.wire.packet import ACK, SYN, Packet, Segment

# Within this time a host forwards a packet, nanoseconds.
_WITHIN_NS: Final = 50_000_000
# Within this time a packet that no other resembles may be seen in another place: it waited in a
# queue, or the clock there differs.
_LONGEST_NS: Final = 5_000_000_000
# Within this time a packet without an identification appears again; a retransmission takes longer.
_AT_ONCE_NS: Final = 2_000_000
# Packets remembered in one generation. The two last generations are searched.
_GENERATION: Final = 2048
# After this many segments without a copy, an ordinary capture of one interface is not searched.
_SEARCHED: Final = 4096
# On a mirror port or a bridge, at least one packet in so many is a repetition in the same place.
_REPEATED_SHARE: Final = 3
# With so many repetitions, that share of one place suffices: other traffic passes no bridge.
_REPEATED_THERE: Final = 4
# Bounds the places, by forged link addresses; then all are counted anew.
_MOST_PLACES: Final = 4096
# Routers between two places of one host, each in a network namespace.
_MOST_HOPS: Final = 4
_NO_ID: Final = b"\0\0"
# Kind and length of the option.
_TIMESTAMP: Final = b"\x08\x0a"
# Octets of payload that are compared.
_PAYLOAD: Final = 24
# Small sequence numbers are not random, and other connections may have the same.
_LEAST_NUMBER: Final = 0xFFFF
_MOST_TRANSLATED: Final = 65_536
_MOST_LINKS: Final = 8

# Results of `Copies.look`.
FIRST: Final = 0
COPY: Final = 1
TRANSLATED: Final = 2
# Not seen before, but already translated: its arrival is not in the capture.
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
        damaged: Whether its addresses or numbers may be damaged.
        strayed: Whether it was judged INVALID because it had no entry; set by the replayer.
    """

    def __init__(
        self,
        time_ns: int,
        frame: int,
        key: Key,
        hop_limit: int,
        link: bytes,
        damaged: bool,  # noqa: FBT001 - positional on the packet path
    ) -> None:
        """Take every attribute as given."""
        self.time_ns = time_ns
        self.frame = frame
        self.key = key
        self.hop_limit = hop_limit
        self.link = link
        self.damaged = damaged
        self.strayed = False


@final
class _Departure:
    """The arrival of packets that leave with another tuple.

    Attributes:
        arriving: The tuple with which they arrive.
        links: The first few places where they leave, by link header and interface; empty if
            unknown.
        hop_limit: The hop limit with which the last one left; unknown while `links` is empty.
        bridged: The place where they arrive, and again translated, on a bridge and its port;
            empty if there is none. What arrives there translated and has no copy was not.
    """

    def __init__(self, arriving: Key) -> None:
        self.arriving = arriving
        self.links: list[bytes] = []
        self.hop_limit = 0
        self.bridged = b""

    def takes(self, hop_limit: int, link: bytes, *, arrives: bool) -> bool:
        """Whether a packet with this hop limit, at this place, is one that the host forwards.

        A packet of the host itself, such as its RST, has a fresh hop limit.

        Args:
            hop_limit: Its hop limit.
            link: Its link header and interface.
            arrives: Whether packets of another translated flow arrive with its tuple.
        """
        if link == self.bridged:
            return False
        if not self.links:
            return not arrives
        return link in self.links and hop_limit <= self.hop_limit


@final
class _Place:
    """What was seen in one place.

    Attributes:
        looked: Number of packets.
        repeated: Number of those that had just been seen there.
    """

    def __init__(self) -> None:
        self.looked = 0
        self.repeated = 0


@final
class Copies:
    """Looks for copies of TCP segments.

    Attributes:
        first: The first sighting of the last packet; None if it was not seen before.
        last: The sighting of the last packet with the result `FIRST` or `DEPARTED`.
        arriving: The tuple with which the last packet arrived, if its result is `DEPARTED`.
        copies: Number of copies, including translated ones.
    """

    def __init__(self, searched: int = _SEARCHED) -> None:
        """Stop after `searched` segments unless the capture turns out to contain copies."""
        self._searched = searched
        self.first: Sighting | None = None
        self.last: Sighting | None = None
        self.arriving: Key | None = None
        self.copies = 0
        self._recent: dict[bytes, Sighting] = {}
        self._older: dict[bytes, Sighting] = {}
        self._departures: dict[Key, _Departure] = {}
        # Hop limit of the last packet.
        self._hop_limit = 0
        self._looked = 0
        self._repeated = 0
        self._places: dict[bytes, _Place] = {}
        self._place = _Place()
        self._several = False
        self._unnamed = False

    def expect(self, *, unnamed: bool = False) -> None:
        """Search the whole capture, because captures of its kind contain copies.

        Args:
            unnamed: Whether it has several interfaces and does not name them.
        """
        self._several = True
        self._unnamed = unnamed

    @property
    def searches(self) -> bool:
        """Whether the search continues."""
        return self._several or self.copies > 0 or self._looked < self._searched

    def look(
        self,
        packet: Packet,
        octets: bytes,
        key: Key,
        time_ns: int,
        frame: int,
        link: bytes,
        damaged: bool,  # noqa: FBT001 - positional on the packet path
    ) -> int:
        """Whether a TCP segment was seen before.

        Args:
            packet: The packet.
            octets: The octets of the packet, IP header first.
            key: Its direction (`conntrack.entry.key_of`).
            time_ns: When it was captured.
            frame: Its frame.
            link: Its link header and interface, from `link_place`.
            damaged: Whether its addresses or numbers may be damaged; then it shows no translation.

        Returns:
            `FIRST`; `COPY`, or `TRANSLATED` if it was seen with another tuple, with `first` set;
            or `DEPARTED`, with `arriving` set.
        """
        segment = packet.l4
        assert isinstance(segment, Segment)  # noqa: S101 - required of the caller
        self.first = None
        self._hop_limit = packet.hop_limit
        self._looked += 1
        self._enter(link)
        if len(self._recent) >= _GENERATION:
            self._older = self._recent
            self._recent = {}
        start = packet.l4_offset
        numbers = octets[start + 4 : start + 16]
        name = octets[4:6] if packet.family == IPV4 else _NO_ID
        if name == _NO_ID and not segment.flags & SYN:
            numbers += segment.options
        digest = name + numbers
        unique = name != _NO_ID or segment.flags & SYN != 0 or _has_timestamp(segment.options)
        seen = self._seen(digest, time_ns, _LONGEST_NS if unique else _WITHIN_NS)
        sighting = Sighting(time_ns, frame, key, packet.hop_limit, link, damaged)
        if seen is not None:
            if seen.key == key:
                elsewhere = packet.hop_limit != seen.hop_limit or link != seen.link
                soon_ns = _AT_ONCE_NS if name == _NO_ID else _WITHIN_NS
                at_once = abs(time_ns - seen.time_ns) <= soon_ns
                if elsewhere or (at_once and self._is_mirrored()):
                    self.first = seen
                    self.copies += 1
                    return COPY
            elif self._is_bridged(seen, sighting, segment, named=name != _NO_ID):
                self._place.looked += _REPEATED_THERE
                self._place.repeated += _REPEATED_THERE
                return self._translated(seen, key, b"", bridged=link)
            elif self._is_left(
                seen, sighting, tells=shares_end(key, seen.key) or _is_telling(segment)
            ):
                return self._translated(seen, key, link)
        self.last = sighting
        if self._several and name != _NO_ID:
            at = start + 20 + len(segment.options)
            content = numbers + octets[at : at + _PAYLOAD]
            other = self._seen(content, time_ns, _WITHIN_NS)
            if (
                other is not None
                and other.key != key
                and self._is_left(other, sighting, tells=_is_telling(segment))
            ):
                return self._translated(other, key, link)
            self._recent[content] = sighting
        self._recent[digest] = sighting
        departure = self._departures.get(key)
        if departure is not None and departure.takes(
            packet.hop_limit, link, arrives=reverse(key) in self._departures
        ):
            self.arriving = departure.arriving
            return DEPARTED
        return FIRST

    def _seen(self, digest: bytes, time_ns: int, within_ns: int) -> Sighting | None:
        seen = self._recent.get(digest)
        if seen is None:
            seen = self._older.get(digest)
        if seen is None or abs(time_ns - seen.time_ns) > within_ns:
            return None
        return seen

    def _is_left(self, seen: Sighting, sighting: Sighting, *, tells: bool) -> bool:
        """Whether a packet with another tuple is the one in `seen`; `tells`: by its numbers."""
        hops = abs(seen.hop_limit - sighting.hop_limit)
        if hops == 0 and seen.link == sighting.link:
            return False
        if self._is_known(seen.key, sighting.key):
            return True
        return tells and hops <= _MOST_HOPS and not (seen.damaged or sighting.damaged)

    def _is_bridged(
        self, seen: Sighting, sighting: Sighting, segment: Segment, *, named: bool
    ) -> bool:
        """Whether a bridge translated the packet in `seen` between its port and itself.

        Both are one place if the capture does not name interfaces. In PREROUTING, which runs
        between them, translation changes the destination. A scan may have the same numbers and
        options in all of its SYNs, unless they have an identification or a timestamp.
        """
        if (
            not self._unnamed
            or seen.link != sighting.link
            or seen.hop_limit != sighting.hop_limit
            or abs(seen.time_ns - sighting.time_ns) > _AT_ONCE_NS
        ):
            return False
        if self._is_known(seen.key, sighting.key):
            return True
        return (
            (named or _TIMESTAMP in segment.options)
            and _is_telling(segment)
            and _has_other_destination(sighting.key, seen.key)
            and not (seen.damaged or sighting.damaged)
        )

    def _is_known(self, arriving: Key, leaving: Key) -> bool:
        departure = self._departures.get(leaving)
        return departure is not None and departure.arriving == arriving

    def _translated(self, seen: Sighting, key: Key, link: bytes, *, bridged: bytes = b"") -> int:
        self.first = seen
        self.copies += 1
        if self._is_known(key, seen.key):
            return TRANSLATED  # the arrival, listed after the departure
        if not self._is_known(seen.key, key):
            if len(self._departures) >= _MOST_TRANSLATED:
                self._departures.clear()
            self._expect_departure(seen.key, key)
            # Packets of the other direction are translated between the same tuples. Their place of
            # departure is not known yet.
            self._expect_departure(reverse(key), reverse(seen.key))
        departure = self._departures[key]
        if bridged:
            departure.bridged = bridged
            return TRANSLATED
        if link not in departure.links and len(departure.links) < _MOST_LINKS:
            departure.links.append(link)
        departure.hop_limit = self._hop_limit
        return TRANSLATED

    def _expect_departure(self, arriving: Key, leaving: Key) -> None:
        """Record a translation; an earlier one to the same tuple was of a flow that has ended."""
        departure = self._departures.get(leaving)
        if departure is None:
            self._departures[leaving] = _Departure(arriving)
        else:
            departure.arriving = arriving

    def _enter(self, link: bytes) -> None:
        """Count a packet in its place."""
        place = self._places.get(link)
        if place is None:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            place = self._places[link] = _Place()
        place.looked += 1
        self._place = place

    def _is_mirrored(self) -> bool:
        """Whether packets are commonly repeated in the same place.

        That is so on a bridge or a mirror port. A single repetition comes from the network.
        """
        self._repeated += 1
        place = self._place
        place.repeated += 1
        return _REPEATED_SHARE * self._repeated >= self._looked or (
            place.repeated >= _REPEATED_THERE and _REPEATED_SHARE * place.repeated >= place.looked
        )


def link_place(frame: Frame, header_len: int) -> bytes:
    """The place where a frame was captured: its link header and interface.

    Args:
        frame: The frame.
        header_len: Octets before its IP packet.
    """
    octets = frame.octets
    place = octets[:header_len]
    # After a short address, a cooked header has uninitialised octets.
    if frame.linktype == LINUX_SLL2:
        place = octets[: 12 + octets[11]]
    elif frame.linktype == LINUX_SLL:
        place = octets[: 6 + octets[5]]
    else:
        place = steady(frame.linktype, place)
    if frame.interface or frame.source:
        place += b"%d/%d" % (frame.interface, frame.source)
    return place


def _has_timestamp(options: bytes) -> bool:
    """Whether a segment has a timestamp, with which it is not sent again (RFC 7323 3.2).

    It comes first, or behind two octets of padding, in every segment but a SYN.
    """
    return options.startswith((_TIMESTAMP, b"\x01\x01" + _TIMESTAMP))


def _is_telling(segment: Segment) -> bool:
    """Whether another connection is unlikely to have the same sequence numbers by chance."""
    if segment.seq <= _LEAST_NUMBER:
        return False
    if segment.flags & ACK:
        return segment.ack > _LEAST_NUMBER
    return segment.flags & SYN != 0


def shares_end(one: Key, other: Key) -> bool:
    """Whether two directions share an end or have the same ports.

    Translation changes one end of a packet, or both addresses and no port, as for a host that
    reaches itself by its public address.
    """
    ports, others = one[2], other[2]
    source = one[0] == other[0] and ports >> 16 == others >> 16
    destination = one[1] == other[1] and ports & 0xFFFF == others & 0xFFFF
    return source or destination or ports == others


def _has_other_destination(one: Key, other: Key) -> bool:
    """Whether two directions have one source, and different addresses as destination."""
    return one[0] == other[0] and one[2] >> 16 == other[2] >> 16 and one[1] != other[1]
