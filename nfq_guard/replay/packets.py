# SPDX-License-Identifier: MIT
"""Extracts the packet of each frame of a capture, as conntrack would see it.

Strips the link layer, reassembles fragments, judges the checksum, and omits packets that the IP
layer discards.
"""

from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import ETHERNET, LINKS, LINUX_SLL, LINUX_SLL2, NO_PACKET
from nfq_guard.capture.tunnels import UNREAD, inner_of
from nfq_guard.conntrack.sysctls import TCP_TIMEOUTS_S
from nfq_guard.flow import IPV4, IPV6, TcpState
from nfq_guard.replay.checksums import ChecksumJudge, ChecksumMode, Suspect
from nfq_guard.replay.copies import Copies
from nfq_guard.wire.fragments import Reassembler, is_fragment
from nfq_guard.wire.ip import BAD_HEADER, decode
from nfq_guard.wire.ipv6 import HOP_BY_HOP, is_discarded
from nfq_guard.wire.packet import Malformed, Packet, Segment

# Why a frame holds no packet for conntrack; fixed phrases.
NOT_IP: Final = "no IP packet"
UNKNOWN_LINK: Final = "unknown link type"
FRAGMENT_WAITS: Final = "a fragment whose datagram is not whole"
DROPPED_BEFORE: Final = "an IP header that the kernel throws away"
COPIED: Final = "a copy of an earlier frame"
SNAPPED: Final = "the capture ends inside the headers"

_IPV6_HEADER: Final = 40
# A longer time without a frame is noted: that of conntrack's longest timeout, nanoseconds.
_GAP_NS: Final = TCP_TIMEOUTS_S[TcpState.ESTABLISHED] * 1_000_000_000
# Length of a frame above which an IPv6 packet with a length field of 0 is a super-packet: ordinary
# links carry no longer one, and those of Windows have this field at any length.
_LONGEST_PADDED: Final = 1514
# Captures on `any` contain a packet once for each interface that it passes.
_COOKED: Final = frozenset({LINUX_SLL, LINUX_SLL2})


@final
class PacketReader:
    """Reads the frames of one replay.

    Attributes:
        frames: Number of frames read; packets inside tunnels do not count.
        without_packet: Number of frames without a packet for conntrack, by phrase.
        unknown_links: Link types that are not supported, each with the number of its first frame.
        gap_ns: The longest time between two frames, if it exceeds conntrack's longest timeout; else
            that timeout.
        gap_frame: Number of the frame behind it; 0 without one.
        disordered: Number of frames that are older than the frame before them.
        tunnels: Number of packets that carry another packet, by the name of the tunnel.
        unread: The names of these tunnels whose packets are never read.
        checksums: Judges transport checksums, and counts the wrong ones.
        packet: The packet of the last frame; None without one.
        octets: The octets of that packet, IP header first.
        absent: Why the last frame has no packet; a fixed phrase, or empty.
        checksum_ok: Whether its transport checksum is correct; None if that is not judged.
        suspect: Its checksum, if that is uncertain.
        inner: The packet that it carries, as a frame; None if it carries none.
        now: Seconds since the first frame.
    """

    def __init__(self, checksums: ChecksumMode, copies: Copies) -> None:
        """Start before the first frame.

        Args:
            checksums: What a wrong checksum means.
            copies: Searches for copies; told to search the whole capture if captures of its kind
                have them.
        """
        self.checksums = ChecksumJudge(checksums)
        self.frames = 0
        self.without_packet: dict[str, int] = {}
        self.unknown_links: dict[int, int] = {}
        self.gap_ns = _GAP_NS
        self.gap_frame = 0
        self.disordered = 0
        self.tunnels: dict[str, int] = {}
        self.unread: set[str] = set()
        self.packet: Packet | Malformed | None = None
        self.octets = b""
        self.absent = ""
        self.checksum_ok: bool | None = None
        self.suspect: Suspect | None = None
        self.inner: Frame | None = None
        self.now = 0.0
        self._copies = copies
        self._fragments = Reassembler()
        self._joined = False
        # Length of the last packet on the wire; 0 if its octets are all of it.
        self._wire_len = 0
        self._start_ns = -1
        self._last_ns = 0
        # Of the disordered frames, and of those before them.
        self._earliest_ns = 0
        self._latest_ns = 0

    @property
    def span_s(self) -> float:
        """Time from the earliest frame to the latest, whatever their order, in seconds."""
        if self._start_ns < 0:
            return 0.0
        earliest = min(self._start_ns, self._earliest_ns) if self.disordered else self._start_ns
        return (max(self._last_ns, self._latest_ns) - earliest) / 1_000_000_000

    def time_of(self, frame: Frame) -> float:
        """Seconds from the first frame to `frame`."""
        if self._start_ns < 0:
            self._start_ns = self._last_ns = frame.time_ns
        return (frame.time_ns - self._start_ns) / 1_000_000_000

    def pass_by(self, frame: Frame, now: float) -> None:
        """Count a frame at `now` whose packet the caller decodes."""
        self.frames += 1
        self.suspect = None
        self.inner = None
        self.now = now
        # Several files are merged by time, so an earlier time means disorder there too.
        if frame.time_ns < self._last_ns:
            if self.disordered == 0 or frame.time_ns < self._earliest_ns:
                self._earliest_ns = frame.time_ns
            self._latest_ns = max(self._latest_ns, self._last_ns)
            self.disordered += 1
        elif frame.time_ns - self._last_ns > self.gap_ns:
            self.gap_ns = frame.time_ns - self._last_ns
            self.gap_frame = frame.number
        self._last_ns = frame.time_ns

    def take_whole(self, octets: bytes) -> None:
        """Decode the packet of the last frame, which is whole and has correct checksums."""
        self.octets = octets
        self.packet = decode(octets)
        self.absent = ""
        self.checksum_ok = True

    def read(self, frame: Frame) -> Packet | Malformed | None:
        """The packet in a frame, reassembled if necessary. Does not follow it in conntrack."""
        self.pass_by(frame, self.time_of(frame))
        self.checksums.header_wrong = False
        if frame.interface or frame.source:
            self._copies.expect()
        octets = self._packet_octets(frame, self.now)
        if not octets:
            self.no_packet(self.absent)
            return None
        packet = decode(octets, self._wire_len)
        self.octets = octets
        self.checksum_ok = None
        if self._is_dropped_before(packet, octets):
            self.no_packet(DROPPED_BEFORE)
            return None
        if self.suspect is not None:
            self.packet = packet
            return packet
        if isinstance(packet, Packet):
            self.checksum_ok = self.checksums.ok(packet, octets)
            self.suspect = self.checksums.suspect
        elif packet.snapped:
            self.no_packet(SNAPPED)
            return None
        self.packet = packet
        if isinstance(packet, Packet) and not isinstance(packet.l4, Segment):
            self._look_inside(frame, packet, octets)
        return packet

    def _is_dropped_before(self, packet: Packet | Malformed, octets: bytes) -> bool:
        """Whether the IP layer drops a packet before conntrack; `suspect` if it may do so."""
        if isinstance(packet, Malformed):
            if packet.problem in BAD_HEADER:
                return True
            whole = packet.family == IPV6 and len(octets) >= _IPV6_HEADER
            return whole and is_discarded(octets)
        if packet.family == IPV4:
            if self._joined or self.checksums.header_ok(octets):
                return False
            self.suspect = self.checksums.doubt_header(packet)
            return self.suspect is None
        return is_discarded(octets)

    def _look_inside(self, frame: Frame, packet: Packet, octets: bytes) -> None:
        """Count a tunnel; the packet that it carries becomes `inner`."""
        inner = inner_of(packet, octets)
        if inner is None:
            return
        self.tunnels[inner.tunnel] = self.tunnels.get(inner.tunnel, 0) + 1
        if inner.linktype == UNREAD:
            self.unread.add(inner.tunnel)
            return
        inside = octets[inner.start :]
        wire_len = max(len(inside), packet.length - inner.start)
        self.inner = Frame(
            frame.number, frame.time_ns, inner.linktype, wire_len, inside, frame.source
        )

    def _packet_octets(self, frame: Frame, now: float) -> bytes:
        """The IP packet; empty with `absent` set when there is none."""
        octets = frame.octets
        if (
            frame.linktype == ETHERNET
            and len(octets) > 34
            and octets[12] == 0x08
            and octets[13] == 0
            and octets[14] == 0x45
        ):
            # Nearly all frames are of this kind, and need no search for VLAN tags.
            octets = octets[14:]
            self._wire_len = frame.wire_len - 14
        else:
            if frame.linktype in _COOKED:
                self._copies.expect(unnamed=frame.linktype == LINUX_SLL)
            link = LINKS.get(frame.linktype)
            start = NO_PACKET if link is None else link(octets)
            if start == NO_PACKET:
                self.absent = NOT_IP
                if link is None:
                    self.absent = UNKNOWN_LINK
                    self.unknown_links.setdefault(frame.linktype, frame.number)
                return b""
            octets = octets[start:]
            self._wire_len = frame.wire_len - start
            if _states_no_payload(octets) and frame.wire_len <= _LONGEST_PADDED:
                octets = octets[:_IPV6_HEADER]
                self._wire_len = 0
        self.absent = ""
        self._joined = False
        if is_fragment(octets):
            # The checksum of a header that was not captured whole cannot be verified.
            v4 = octets[0] >> 4 == 4
            if v4 and len(octets) >= (octets[0] & 15) << 2 and not self.checksums.header_ok(octets):
                self.absent = DROPPED_BEFORE
                return b""
            # The header of a reassembled datagram has no checksum of its own.
            self._joined = True
            octets = self._fragments.offer(octets, now)
            self._wire_len = 0
            if not octets:
                self.absent = FRAGMENT_WAITS
        return octets

    def no_packet(self, why: str) -> None:
        """Count the last frame as one without a packet for conntrack, for the reason `why`."""
        self.absent = why
        self.packet = None
        self.count_absent(why)

    def count_absent(self, why: str) -> None:
        """Count a frame as one without a packet for conntrack."""
        self.without_packet[why] = self.without_packet.get(why, 0) + 1


def _states_no_payload(octets: bytes) -> bool:
    """Whether an IPv6 header states an empty payload, and has no jumbo option."""
    return (
        len(octets) >= _IPV6_HEADER
        and octets[0] >> 4 == IPV6
        and octets[4] == 0
        and octets[5] == 0
        and octets[6] != HOP_BY_HOP
    )
