# SPDX-License-Identifier: MIT
"""The shortcut for most packets of a capture, which belong to a known flow.

A frame takes it if it is Ethernet with at most one VLAN tag, and holds a whole packet of TCP or UDP
without IP options or extension headers, with right or unfinished checksums, no SYN and no RST, and
no tunnel, in an untranslated flow that the table has. Its flow is found by the octets of its
addresses and ports, without decoding them. The result is that of `Replayer.follow`, which handles
all other frames.
"""

from typing import TYPE_CHECKING, Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import ETHERNET
from nfq_guard.capture.tunnels import PORTS
from nfq_guard.conntrack.entry import Entry
from nfq_guard.conntrack.states import FLAGS_PASS
from nfq_guard.conntrack.table import FlowTable
from nfq_guard.flow import PROTO_TCP, PROTO_UDP
from nfq_guard.replay.checksums import ChecksumJudge, Source
from nfq_guard.seqno import Seq
from nfq_guard.wire.checksum import header_checksum_ok
from nfq_guard.wire.packet import RST, SYN, UDP_HEADER, Segment
from nfq_guard.wire.tcp import decode_into

if TYPE_CHECKING:
    from mypy_extensions import i64

# Ethernet header, VLAN tag, IPv4 header and UDP header.
_SHORTEST: Final = 46
_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
# Version 4, and a header of 20 octets.
_IPV4_FIRST: Final = 0x45
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
# Directions remembered in one generation, by protocol; the two last generations are kept.
_GENERATION: Final = 16_384


@final
class Way:
    """One direction of a flow.

    Attributes:
        entry: The flow.
        direction: The direction; 0 original, 1 reply.
        source: Checksum statistics of its sender; None before the first packet that counts.
    """

    def __init__(self, entry: Entry, direction: int) -> None:
        """Create it for the packets of `direction`."""
        self.entry = entry
        self.direction = direction
        self.source: Source | None = None


@final
class Shortcut:
    """Finds the flows of packets that may take the shortcut.

    Attributes:
        segment: The segment of the last frame that took the shortcut, with the options that
            conntrack reads; None for a datagram. The next frame overwrites it.
        start: Offset of its IP packet in the frame.
    """

    def __init__(self, table: FlowTable, checksums: ChecksumJudge) -> None:
        """Start without any flow."""
        self.segment: Segment | None = None
        self.start = 0
        self._table = table
        self._checksums = checksums
        self._segment = Segment(0, 0, Seq(0), Seq(0), 0, 0, 0, b"", 0)
        # Addresses, ports and protocol of the last frame; empty where it cannot take the shortcut.
        self._ends = b""
        self._proto = 0
        self._addresses = 0
        self._l4 = 0
        self._end = 0
        self._recent: dict[bytes, Way] = {}
        self._older: dict[bytes, Way] = {}

    def find(self, frame: Frame, now: float) -> Way | None:
        """The flow and direction of a frame, whose checksum is then counted.

        Args:
            frame: The frame.
            now: Seconds since the first frame.

        Returns:
            None if the frame cannot take the shortcut; then nothing is counted.
        """
        octets = frame.octets
        if not self._locate(frame, octets) or not self._decode(octets):
            self._ends = b""
            return None
        way = self._known(self._ends)
        if way is None or not self._table.has(way.entry, now):
            return None
        segment = self.segment
        if segment is not None and (segment.flags & (SYN | RST) or not FLAGS_PASS[segment.flags]):
            return None
        start = self.start
        v4 = octets[start] == _IPV4_FIRST
        if v4 and not header_checksum_ok(octets, start):
            return None
        checksums = self._checksums
        source = way.source
        if source is None or source.gone:
            sent = way.entry.reply if way.direction else way.entry.original
            source = way.source = checksums.source_of(sent[0])
        if not checksums.takes(
            source, octets, start, self._addresses, self._l4, self._end, self._proto
        ):
            return None
        if v4:
            checksums.headers_right += 1
        return way

    def _locate(self, frame: Frame, octets: bytes) -> bool:
        """Find the transport header; False if the frame cannot take the shortcut."""
        size = len(octets)
        if size < _SHORTEST or frame.linktype != ETHERNET or frame.interface or frame.source:
            return False
        start: i64 = 18 if octets[12] == 0x81 and octets[13] == 0 else 14
        l4: i64
        end: i64
        kind: i64 = octets[start - 2] << 8 | octets[start - 1]
        if kind == _IPV4 and octets[start] == _IPV4_FIRST:
            if octets[start + 6] & 0x3F or octets[start + 7]:
                return False
            self._proto = octets[start + 9]
            l4 = start + _IPV4_HEADER
            self._addresses = l4 - 8
            end = start + (octets[start + 2] << 8 | octets[start + 3])
        elif kind == _IPV6 and octets[start] >> 4 == 6:
            self._proto = octets[start + 6]
            l4 = start + _IPV6_HEADER
            self._addresses = l4 - 32
            end = l4 + (octets[start + 4] << 8 | octets[start + 5])
        else:
            return False
        self.start = start
        self._l4 = l4
        self._end = end
        return l4 + UDP_HEADER <= end <= size

    def _decode(self, octets: bytes) -> bool:
        """Decode the transport header; False if the packet cannot take the shortcut."""
        l4 = self._l4
        self._ends = octets[self._addresses : l4 + 4]
        room = self._end - l4
        if self._proto == PROTO_TCP:
            self.segment = self._segment
            return decode_into(self._segment, octets, l4, room)
        if self._proto != PROTO_UDP or (octets[l4 + 2] << 8 | octets[l4 + 3]) in PORTS:
            return False
        self.segment = None
        self._ends += b"u"
        length = octets[l4 + 4] << 8 | octets[l4 + 5]
        return UDP_HEADER <= length <= room and (octets[l4 + 6] or octets[l4 + 7]) != 0

    def learn(self, entry: Entry, direction: int) -> None:
        """Remember the flow of the last frame if frames like it may take the shortcut."""
        if self._ends:
            self._remember(self._ends, Way(entry, direction))

    def _known(self, ends: bytes) -> Way | None:
        way = self._recent.get(ends)
        if way is None:
            way = self._older.get(ends)
            if way is not None:
                self._remember(ends, way)
        return way

    def _remember(self, ends: bytes, way: Way) -> None:
        if len(self._recent) >= _GENERATION:
            self._older = self._recent
            self._recent = {}
        self._recent[ends] = way
