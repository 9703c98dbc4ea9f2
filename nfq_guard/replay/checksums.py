# SPDX-License-Identifier: MIT
"""Judges transport checksums in captures, where most wrong ones were never computed.

A packet is captured on its sender before the NIC computes the checksum or segments the packet, and
on its receiver possibly after several packets were merged. A wrong checksum of such a form is
ignored. Any other is uncertain until later frames decide: a receiver acknowledges intact data, and
a sender retransmits damaged data.

If a sender's checksums are never completed on the way, its SYNs are all that the receiver sees. An
unanswered SYN of such a form, from a sender without other packets, is therefore undecided.

The same holds for the header of an IPv4 packet, which the IP layer drops if its checksum is wrong:
a segment that is acknowledged was not dropped.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Final, final

from nfq_guard.capture.links import LINKS, NO_PACKET
from nfq_guard.capture.tunnels import UNREAD, inner_of
from nfq_guard.replay.stream import Side, Watched
from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
    header_checksum_ok,
    right_once_finished,
    sum_is_right,
    sum_is_unfinished,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import FIN, RST, SYN, URG, Datagram, Packet, Segment

# Bounds the sources whose checksums are counted: a scan from forged addresses would fill any table.
# The source that appeared first is evicted.
_MOST_SOURCES: Final = 65_536
# Longest packet of an ordinary link, octets. A longer one was merged or is yet to be segmented,
# unless its source also sends such packets with correct checksums.
_LONGEST_ORDINARY: Final = 1500
# Checksums of a source count as computed while, of those that offload does not explain, at least
# three are correct for each wrong one.
_RIGHT_PER_WRONG: Final = 3
# Maximum number of watched packets of a source whose IPv4 header has a wrong checksum.
_MOST_HEADERS: Final = 16
# Above this number, a source with mostly wrong checksums is not examined packet by packet.
_MOST_WRONG: Final = 64


class ChecksumMode(StrEnum):
    """What a wrong checksum means."""

    AUTO = "auto"
    VERIFY = "verify"
    IGNORE = "ignore"


@final
class Source:
    """Checksum statistics of one source address.

    Attributes:
        right: Number of correct checksums.
        wrong: Number of wrong checksums that offload does not explain.
        finishes_long: Whether a packet longer than an ordinary link carries had a correct checksum.
        offloads: Whether a packet other than a SYN had a checksum as offload leaves it.
        headers: The first packets with a wrong checksum of the IPv4 header, watched.
        gone: Whether the source was evicted.
    """

    def __init__(self) -> None:
        """Start without any packet."""
        self.right = 0
        self.wrong = 0
        self.finishes_long = False
        self.offloads = False
        self.headers: tuple[Watched, ...] = ()
        self.gone = False

    def take_right(self, length: int) -> None:
        """Count a correct checksum of a packet of `length` octets."""
        self.right += 1
        if length > _LONGEST_ORDINARY:
            self.finishes_long = True


@final
class Suspect:
    """A packet that may have been damaged, by its wrong checksum.

    Attributes:
        source: Statistics of its sender, which later packets update.
        header: Whether it is the checksum of the IPv4 header.
        watched: Whether it was acknowledged or repeated; None if it carries nothing to acknowledge.
    """

    def __init__(self, source: Source, *, header: bool) -> None:
        """Create it for a packet of `source`."""
        self.source = source
        self.header = header
        self.watched: Watched | None = None

    def watch(self, watched: Watched) -> None:
        """Use `watched` to decide about the packet."""
        self.watched = watched
        if self.header and len(self.source.headers) < _MOST_HEADERS:
            self.source.headers += (watched,)


@final
class Opening:
    """A SYN with a checksum as offload leaves it, from a source without another such packet.

    Attributes:
        source: The checksums of its sender.
        peer: The end that receives it.
    """

    def __init__(self, source: Source, peer: Side) -> None:
        """Take every attribute as given."""
        self.source = source
        self.peer = peer


@final
class ChecksumJudge:
    """Distinguishes damaged packets from packets whose checksum was not computed yet.

    Attributes:
        suspect: The last packet, if its checksum is uncertain.
        opener: Sender of the last packet, if that packet is the SYN of an `Opening`.
        forgiven: Wrong checksums that offload explains, and those of packets that their receiver
            acknowledged.
        broken: Wrong checksums of packets that count as damaged.
        unknown: Wrong checksums for which the capture proves neither.
        unanswered: Unanswered SYNs among `unknown` whose checksum offload explains.
        headers_right: IPv4 headers with a correct checksum.
        header_wrong: Whether that of the last packet is wrong; reset by the caller.
    """

    def __init__(self, mode: ChecksumMode) -> None:
        """Judge by `mode`."""
        self._ignores = mode is ChecksumMode.IGNORE
        self._auto = mode is ChecksumMode.AUTO
        self._sources: OrderedDict[bytes, Source] = OrderedDict()
        self.headers_right = 0
        self.header_wrong = False
        self._headers_wrong = 0
        self.suspect: Suspect | None = None
        self.opener: Source | None = None
        self.forgiven = 0
        self.broken = 0
        self.unknown = 0
        self.unanswered = 0

    def ok(self, packet: Packet, octets: bytes) -> bool | None:
        """Whether the transport checksum is correct; None if it is not to be judged.

        For an uncertain checksum, returns None and sets `suspect` or `opener`.
        """
        self.suspect = None
        self.opener = None
        if self._ignores:
            return None
        right = checksum_ok(packet, octets)
        if right is None:
            return None
        if not self._auto:
            if not right:
                self.broken += 1
            return right
        source = self.source_of(packet.src)
        if right:
            source.take_right(packet.length)
            return True
        segment = packet.l4
        if _is_offload(packet, octets, source):
            if (
                isinstance(segment, Segment)
                and segment.flags & (SYN | FIN | RST | URG) == SYN
                and not source.offloads
            ):
                self.opener = source
                return None
            source.offloads = True
            self.forgiven += 1
            return None
        source.wrong += 1
        if source.wrong > _MOST_WRONG and source.right < source.wrong:
            self.unknown += 1
            return None
        if isinstance(segment, Segment) and segment.flags & RST:
            # An RST is never acknowledged, and following a damaged one would end its flow.
            if _finishes(source):
                self.broken += 1
                return False
            self.unknown += 1
            return None
        self.suspect = Suspect(source, header=False)
        return None

    def doubt_header(self, packet: Packet) -> Suspect | None:
        """A packet with a wrong checksum of its IPv4 header, if it may have arrived."""
        self.opener = None
        if not self._auto or not isinstance(packet.l4, Segment):
            return None
        return Suspect(self.source_of(packet.src), header=True)

    def is_thrown_away(self, suspect: Suspect) -> bool:
        """Decide about the checksum of an IPv4 header; ignore it if a similar packet arrived."""
        if any(watched.acknowledged for watched in suspect.source.headers):
            self.forgiven += 1
            return False
        return True

    def source_of(self, address: bytes) -> Source:
        """The statistics of `address`, created if necessary."""
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = Source()
            if len(self._sources) > _MOST_SOURCES:
                self._sources.popitem(last=False)[1].gone = True
        return source

    def takes(
        self,
        source: Source,
        octets: bytes,
        packet: int,
        addresses: int,
        start: int,
        end: int,
        proto: int,
    ) -> bool:
        """Count the transport checksum of a whole packet if it is correct, unfinished or ignored.

        Args:
            source: Statistics of its sender.
            octets: Octets that contain the packet.
            packet: Offset of its IP header.
            addresses: Offset of its addresses.
            start: Offset of its transport header.
            end: Offset of its end.
            proto: Its protocol, TCP or UDP.

        Returns:
            False for any other wrong checksum, which it does not count.
        """
        if self._ignores:
            return True
        if sum_is_right(octets, addresses, start, end, proto):
            source.take_right(end - packet)
            return True
        if self._auto and sum_is_unfinished(octets, addresses, start, end, proto):
            source.offloads = True
            self.forgiven += 1
            return True
        return False

    def settle(self, opening: Opening) -> None:
        """Count the checksum of a SYN by what later frames showed."""
        peer = opening.peer
        if peer.packets or peer.asked_index or opening.source.offloads:
            self.forgiven += 1
        else:
            self.unknown += 1
            self.unanswered += 1

    def header_ok(self, octets: bytes) -> bool:
        """Whether the checksum of an IPv4 header is correct or to be ignored.

        Tools that rewrite addresses leave wrong checksums in most packets of a file; if most are
        correct, a wrong one means damage. A packet of length 0 is yet to be segmented, and each
        segment gets a header of its own.
        """
        if octets[2] == 0 and octets[3] == 0:
            return True
        if header_checksum_ok(octets):
            self.headers_right += 1
            return True
        self.header_wrong = True
        self._headers_wrong += 1
        if self._ignores:
            return True
        return self._auto and self.headers_right < _RIGHT_PER_WRONG * self._headers_wrong

    def is_damaged(self, suspect: Suspect | None) -> bool:
        """Whether the last packet's addresses or numbers may be damaged.

        A wrong checksum means so unless most are wrong: a tool that changed addresses leaves them.

        Args:
            suspect: Its checksum, if that is uncertain.
        """
        if self.header_wrong and self.headers_right > self._headers_wrong:
            return True
        return suspect is not None and suspect.source.right > suspect.source.wrong

    def is_broken(self, suspect: Suspect) -> bool:
        """Decide and count an uncertain checksum by what later frames showed."""
        watched = suspect.watched
        if watched is not None and watched.acknowledged:
            self.forgiven += 1
            return False
        if _finishes(suspect.source) and not (watched is not None and watched.forgotten):
            self.broken += 1
            return True
        self.unknown += 1
        return False


def _finishes(source: Source) -> bool:
    """Whether the capture has packets of `source` with computed checksums."""
    return source.right >= _RIGHT_PER_WRONG * source.wrong


def _is_offload(packet: Packet, octets: bytes, source: Source) -> bool:
    """Whether segmentation or checksum offload explains a wrong checksum."""
    if packet.length > _LONGEST_ORDINARY and not source.finishes_long:
        return True
    if octets[0] >> 4 == 4 and octets[2] == 0 and octets[3] == 0:
        return True
    segment = packet.l4
    if isinstance(segment, Segment) and segment.checksum == 0:
        return True
    return checksum_unfinished(packet) or _is_outer_of_offload(packet, octets)


def _is_outer_of_offload(packet: Packet, octets: bytes) -> bool:
    """Whether a tunnel's checksum fits the segment inside as the NIC will finish it."""
    inner = inner_of(packet, octets)
    if inner is None or inner.linktype == UNREAD:
        return False
    offset = LINKS[inner.linktype](octets[inner.start :])
    if offset == NO_PACKET:
        return False
    start = inner.start + offset
    inside = decode(octets[start:])
    if not isinstance(inside, Packet) or not isinstance(inside.l4, Segment | Datagram):
        return False
    at = start + inside.l4_offset
    return checksum_unfinished(inside) and right_once_finished(
        packet, octets, at, inside.l4.checksum
    )
