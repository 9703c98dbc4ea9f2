# SPDX-License-Identifier: MIT
"""Recognises frames that show one packet again: copies, and the same packet after translation.

A capture on `any`, on a bridge, of several interfaces or of a mirror port shows a packet several
times, and on a host that translates once with each of its tuples. The kernel judges it once, where
it first arrives.

Address translation and routing change addresses, ports, the hop limit and checksums. They leave
the identification of an IPv4 packet, and the sequence numbers, flags and window of its segment;
these are what a packet is recognised by.
"""

from typing import Final, final

from nfq_guard.conntrack.entry import Key
from nfq_guard.flow import IPV4
from nfq_guard.wire.packet import Packet

# A host forwards a packet within this time, nanoseconds.
_WITHIN_NS: Final = 50_000_000
# Frames between those that drop what is older than `_WITHIN_NS` at least.
_GENERATION: Final = 2048
# An ordinary capture of one interface without a single copy so far is not searched further.
_SEARCHED: Final = 4096
# Of a mirror or a bridge, at least one in so many packets is a repetition in the same place.
_REPEATED_SHARE: Final = 3
_NO_ID: Final = b"\0\0"

# What `Copies.look` answers.
FIRST: Final = 0
COPY: Final = 1
TRANSLATED: Final = 2


@final
class Sighting:
    """Where a packet was first seen.

    Attributes:
        time_ns: When.
        frame: In which frame.
        key: With which direction of a flow.
        hop_limit: With which hop limit.
        link: Behind which link header, and on which interface.
    """

    def __init__(self, time_ns: int, frame: int, key: Key, hop_limit: int, link: bytes) -> None:
        """State all of it."""
        self.time_ns = time_ns
        self.frame = frame
        self.key = key
        self.hop_limit = hop_limit
        self.link = link


@final
class Copies:
    """Looks for copies of TCP segments.

    Attributes:
        first: The first sighting of the last packet, where it was seen before.
        copies: How many copies there were, translated ones among them.
    """

    def __init__(self) -> None:
        """A search that has seen nothing."""
        self.first: Sighting | None = None
        self.copies = 0
        self._recent: dict[bytes, Sighting] = {}
        self._older: dict[bytes, Sighting] = {}
        self._looked = 0
        self._repeated = 0
        self._several = False

    def expect(self) -> None:
        """Search the whole capture: its kind shows packets several times."""
        self._several = True

    @property
    def searches(self) -> bool:
        """Whether copies are still looked for."""
        return self._several or self.copies > 0 or self._looked < _SEARCHED

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
            `FIRST`, `COPY`, or `TRANSLATED` if it was seen with another tuple that shares an end;
            `first` is set for the latter two.
        """
        self.first = None
        self._looked += 1
        if len(self._recent) >= _GENERATION:
            self._older = self._recent
            self._recent = {}
        start = packet.l4_offset
        name = octets[4:6] if packet.family == IPV4 else _NO_ID
        digest = name + octets[start + 4 : start + 16]
        seen = self._recent.get(digest)
        if seen is None:
            seen = self._older.get(digest)
        if seen is not None and abs(time_ns - seen.time_ns) <= _WITHIN_NS:
            elsewhere = packet.hop_limit != seen.hop_limit or link != seen.link
            if seen.key == key:
                if elsewhere or (name != _NO_ID and self._is_mirrored()):
                    self.first = seen
                    self.copies += 1
                    return COPY
            elif elsewhere and _shares_end(key, seen.key):
                self.first = seen
                self.copies += 1
                return TRANSLATED
        self._recent[digest] = Sighting(time_ns, frame, key, packet.hop_limit, link)
        return FIRST

    def _is_mirrored(self) -> bool:
        """Whether packets come again in the same place as a rule.

        A bridge or a mirror port shows them so; a single repetition is the network's.
        """
        self._repeated += 1
        return _REPEATED_SHARE * self._repeated >= self._looked


def _shares_end(one: Key, other: Key) -> bool:
    """Whether two directions have an end in common, or the same ports.

    Translation changes one end of a packet, or both addresses and no port, as for a host that
    reaches itself by its public address.
    """
    ports, others = one[2], other[2]
    source = one[0] == other[0] and ports >> 16 == others >> 16
    destination = one[1] == other[1] and ports & 0xFFFF == others & 0xFFFF
    return source or destination or ports == others
