# SPDX-License-Identifier: MIT
"""Transport checksums in captures, where a wrong one is most often an unfinished one.

A packet captured on the host that sends it goes by before the NIC computes its checksum or cuts it
into segments; one captured on the host that receives it may have been merged from several. A wrong
sum is forgiven where its form shows that. Any other is uncertain until the capture has shown more:
a receiver acknowledges what arrived whole, and a sender repeats what did not.

A SYN in such a form is all that a receiver sees of a sender whose checksums nothing finishes on the
way. Where nothing answers it and its sender shows nothing else, the file fits both.

The same holds for the header of an IPv4 packet, which the IP layer throws away if its checksum is
wrong: a segment that is acknowledged was not thrown away.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Final, final

from nfq_guard.replay.stream import Side, Watched
from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
    header_checksum_ok,
    sum_is_right,
    sum_is_unfinished,
)
from nfq_guard.wire.packet import FIN, RST, SYN, URG, Packet, Segment

# Sources whose checksums are counted. A scan from forged addresses would fill any table; the one
# that was seen longest ago goes first.
_MOST_SOURCES: Final = 65_536
# Longest packet of an ordinary link; a longer one has been merged or is yet to be cut, unless its
# source is known to send such packets with right sums.
_LONGEST_ORDINARY: Final = 1500
# A source is believed to finish its checksums while three of four that offload does not explain are
# right.
_RIGHT_PER_WRONG: Final = 3
# Packets whose IPv4 header has a wrong checksum, of which the fate is awaited.
_MOST_HEADERS: Final = 16
# From here on, a source with mostly wrong sums is not examined packet by packet.
_MOST_WRONG: Final = 64


class ChecksumMode(StrEnum):
    """What a wrong checksum means."""

    AUTO = "auto"
    VERIFY = "verify"
    IGNORE = "ignore"


@final
class Source:
    """The checksums that one address sent.

    Attributes:
        right: How many were right.
        wrong: How many were wrong in no form that offload explains.
        finishes_long: Whether one was right in a packet longer than an ordinary link carries.
        offloads: Whether one was in a form that offload leaves, in another packet than a SYN.
        headers: The fates of its packets with a wrong checksum of the IPv4 header; the first ones.
        gone: Whether it gave way to a source that was seen later.
    """

    def __init__(self) -> None:
        """A source that sent nothing so far."""
        self.right = 0
        self.wrong = 0
        self.finishes_long = False
        self.offloads = False
        self.headers: list[Watched] = []
        self.gone = False

    def take_right(self, length: int) -> None:
        """Count a right one, of a packet of `length` octets."""
        self.right += 1
        if length > _LONGEST_ORDINARY:
            self.finishes_long = True


@final
class Suspect:
    """A packet whose wrong checksum may be a broken one.

    Attributes:
        source: The checksums of its sender, which go on counting.
        header: Whether it is the checksum of the IPv4 header.
        watched: Its fate, where it carries something to acknowledge.
    """

    def __init__(self, source: Source, *, header: bool) -> None:
        """A packet of `source`."""
        self.source = source
        self.header = header
        self.watched: Watched | None = None

    def watch(self, watched: Watched) -> None:
        """Await the fate of the packet."""
        self.watched = watched
        if self.header and len(self.source.headers) < _MOST_HEADERS:
            self.source.headers.append(watched)


@final
class Opening:
    """A SYN whose checksum is as offload leaves it, of a source that showed no other such packet.

    Attributes:
        source: The checksums of its sender.
        peer: The end that it goes to.
    """

    def __init__(self, source: Source, peer: Side) -> None:
        """Take every attribute as given."""
        self.source = source
        self.peer = peer


@final
class ChecksumJudge:
    """Tells broken checksums from unfinished ones.

    Attributes:
        suspect: Set where the last packet's checksum is uncertain.
        opener: Sender of the last packet, where that is the SYN of an `Opening`.
        forgiven: Wrong sums in a form that offload leaves, and those of packets that their
            receiver acknowledged.
        broken: Wrong sums that count as broken.
        unknown: Wrong sums of which the capture shows neither.
        unanswered: SYNs among these, in a form that offload leaves, which nothing answered.
        headers_right: IPv4 headers whose checksum was right.
    """

    def __init__(self, mode: ChecksumMode) -> None:
        """Judge by `mode`."""
        self._ignores = mode is ChecksumMode.IGNORE
        self._auto = mode is ChecksumMode.AUTO
        self._sources: OrderedDict[bytes, Source] = OrderedDict()
        self.headers_right = 0
        self._headers_wrong = 0
        self.suspect: Suspect | None = None
        self.opener: Source | None = None
        self.forgiven = 0
        self.broken = 0
        self.unknown = 0
        self.unanswered = 0

    def ok(self, packet: Packet, octets: bytes) -> bool | None:
        """Whether the transport checksum is right; None where it is not to be judged.

        An uncertain one gives None and sets `suspect`, or `opener`.
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
            # Nothing acknowledges an RST, and following a broken one would end its flow.
            if _finishes(source):
                self.broken += 1
                return False
            self.unknown += 1
            return None
        self.suspect = Suspect(source, header=False)
        return None

    def doubt_header(self, packet: Packet) -> Suspect | None:
        """A packet whose IPv4 header has a wrong checksum, if it may have arrived all the same."""
        self.opener = None
        if not self._auto or not isinstance(packet.l4, Segment):
            return None
        return Suspect(self.source_of(packet.src), header=True)

    def is_thrown_away(self, suspect: Suspect) -> bool:
        """Settle the checksum of an IPv4 header; it is forgiven where one like it arrived."""
        if any(watched.acknowledged for watched in suspect.source.headers):
            self.forgiven += 1
            return False
        return True

    def source_of(self, address: bytes) -> Source:
        """The checksums that `address` sent."""
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
        """Count the transport checksum of a whole packet, if it is right, unfinished or ignored.

        Args:
            source: The checksums of its sender.
            octets: What holds the packet.
            packet: Where it starts.
            addresses: Where its addresses start, which directly precede the transport header.
            start: Where that starts.
            end: Where the packet ends.
            proto: Its protocol, TCP or UDP.

        Returns:
            False for any other wrong checksum, which is not counted.
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
        """Count the checksum of a SYN, by what the capture has shown since."""
        peer = opening.peer
        if peer.packets or peer.asked_index or opening.source.offloads:
            self.forgiven += 1
        else:
            self.unknown += 1
            self.unanswered += 1

    def header_ok(self, octets: bytes) -> bool:
        """Whether the checksum of an IPv4 header is right, or not to be held against the packet.

        Tools that rewrite addresses leave wrong ones behind, in most packets of a file; where most
        are right, a wrong one was damaged on the way. A packet of length 0 is yet to be cut into
        segments, each with a header of its own.
        """
        if octets[2] == 0 and octets[3] == 0:
            return True
        if header_checksum_ok(octets):
            self.headers_right += 1
            return True
        self._headers_wrong += 1
        if self._ignores:
            return True
        return self._auto and self.headers_right < _RIGHT_PER_WRONG * self._headers_wrong

    def is_broken(self, suspect: Suspect) -> bool:
        """Settle and count an uncertain checksum, by what the capture has shown since."""
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
    """Whether the capture shows packets of `source` with finished checksums."""
    return source.right >= _RIGHT_PER_WRONG * source.wrong


def _is_offload(packet: Packet, octets: bytes, source: Source) -> bool:
    """Whether a wrong checksum has a form that segmentation or checksum offload leaves."""
    if packet.length > _LONGEST_ORDINARY and not source.finishes_long:
        return True
    if octets[0] >> 4 == 4 and octets[2] == 0 and octets[3] == 0:
        return True
    segment = packet.l4
    if isinstance(segment, Segment) and segment.checksum == 0:
        return True
    return checksum_unfinished(packet)
