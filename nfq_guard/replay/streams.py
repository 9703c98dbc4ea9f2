# SPDX-License-Identifier: MIT
"""What a capture itself shows of each TCP stream, apart from conntrack's rules.

A capture is not what the kernel saw: frames are lost, filtered or listed out of order. Two honest
peers leave proof of that in the file. A receiver acknowledges only data that it has, so an
acknowledgement of bytes that are not in the file says that frames are missing; and a sender
continues where it stopped, so data behind a gap that is acknowledged says the same. A segment that
fits neither stream, such as a stray from a connection long gone, leaves no such proof.

`Streams.follow` takes every segment and records the proof; `replay.doubt` reads it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from nfq_guard.conntrack.entry import Companion, Entry, Key, reverse
from nfq_guard.finding import Reason
from nfq_guard.flow import FlowTuple
from nfq_guard.names import tuple_ends
from nfq_guard.seqno import Seq, after, before, distance, later
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Segment
from nfq_guard.wire.tcp import highest_acknowledged, parse_options

# Frames of one stream within which a capture's own queues may change their order.
REORDER_FRAMES: Final = 8
# Window scale that is assumed where no SYN was seen: what Linux offers by default.
DEFAULT_WSCALE: Final = 7
# Streams that are listed at most.
MOST_LISTED: Final = 10_000
_MOST_PROOFS: Final = 16
_MOST_OPEN: Final = 16
_MOST_UNTRANSLATED: Final = 10_000
_ENDS: Final = FIN | RST
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


class Doubt(StrEnum):
    """Why the capture, not conntrack, may be the cause of a finding."""

    UNSEEN_DATA = "unseen-data"
    UNSEEN_WINDOW = "unseen-window"
    UNSEEN_HANDSHAKE = "unseen-handshake"
    OUT_OF_ORDER = "out-of-order"
    FRAMES_MISSING = "frames-missing"
    CAPTURE_DROPS = "capture-drops"


@final
class Proof:
    """One place where the file differs from what the peers did.

    Attributes:
        kind: What the file shows.
        index: Position in the stream, from 1: findings from here on may be due to it.
        frame: Number of the frame that shows it.
        sender: 0 or 1: whose frames are missing or late, as in `Stream.sides`.
        start: First sequence number that is missing; with `missing` 0, the place of disorder.
        missing: Missing bytes; 0 where none or an unknown number of them is.
    """

    def __init__(
        self, kind: Doubt, index: int, frame: int, sender: int, start: Seq, missing: int
    ) -> None:
        """State all of it."""
        self.kind = kind
        self.index = index
        self.frame = frame
        self.sender = sender
        self.start = start
        self.missing = missing


@final
class Jump:
    """A segment farther ahead of its stream than its receiver's window allows.

    Attributes:
        seq: Its first sequence number.
        end: The one after its last.
        start: Where the stream stood.
        index: Its position in the stream.
        frame: Its frame.
        confirmed: Whether the receiver acknowledged it, so that it belongs to the stream.
        passed: Whether the stream went on without it.
    """

    def __init__(self, seq: Seq, end: Seq, start: Seq, index: int, frame: int) -> None:
        """A jump that nothing confirms yet."""
        self.seq = seq
        self.end = end
        self.start = start
        self.index = index
        self.frame = frame
        self.confirmed = False
        self.passed = False


@final
class Beyond:
    """An acknowledgement of bytes that the file does not hold so far.

    Attributes:
        ack: The number acknowledged.
        start: Where the acknowledged stream stood.
        index: Its position in the stream.
        frame: Its frame.
        near: Whether a window of the peer reaches so far.
        selective: Whether the number is from a SACK block, not from the acknowledgement field.
        genuine: Whether the acknowledged stream proved it right.
        refuted: Whether its sender later acknowledged less, which no receiver does.
    """

    def __init__(
        self,
        ack: Seq,
        start: Seq,
        index: int,
        frame: int,
        near: bool,  # noqa: FBT001 - positional on the packet path
        selective: bool,  # noqa: FBT001 - as above
    ) -> None:
        """An acknowledgement that nothing proves yet."""
        self.ack = ack
        self.start = start
        self.index = index
        self.frame = frame
        self.near = near
        self.selective = selective
        self.genuine = False
        self.refuted = False


@final
class Watched:
    """A segment whose fate is awaited: acknowledged as it is, or sent once more.

    Attributes:
        seq: Its first sequence number.
        end: The one after its last.
        acknowledged: Whether its receiver took it: acknowledged before it was sent again.
        repeated: Whether it was sent again, unharmed, before it was acknowledged.
    """

    def __init__(self, seq: Seq, end: Seq) -> None:
        """A segment that nothing is known of yet."""
        self.seq = seq
        self.end = end
        self.acknowledged = False
        self.repeated = False


@final
class _Gap:
    """Bytes that were skipped: lost on the way, late, or missing in the file."""

    def __init__(self, start: Seq, end: Seq, index: int, frame: int) -> None:
        self.start = start
        self.end = end
        self.index = index
        self.frame = frame


@final
class Side:
    """One end of a stream, as a sender.

    Attributes:
        number: 0 for the end that sent the first frame, else 1.
        packets: How many segments it sent.
        known: Whether it sent anything else than an RST.
        opened: Whether its SYN is in the file.
        start: Its first sequence number in the file.
        end: The one after the last that belongs to its stream.
        acked: The highest that its peer acknowledged of what is in the file.
        window: The largest window that it offered, in bytes; unscaled with `scale` -1.
        scale: Its window scale; -1 where its SYN was not seen.
        flight: Most bytes that it had sent and its peer had not acknowledged; kept only where
            the peer's scale is unknown, which it bounds from below.
    """

    def __init__(self, number: int) -> None:
        """An end that nothing is known of."""
        self.number = number
        self.packets = 0
        self.known = False
        self.opened = False
        self.start: Seq = Seq(0)
        self.end: Seq = Seq(0)
        self.acked: Seq = Seq(0)
        self.window = 0
        self.scale = -1
        self.flight = 0
        self.gaps: list[_Gap] = []
        self.jumps: list[Jump] = []
        # Jumps under an assumed scale, of a stream that began before the capture; the first ones.
        self.outside: list[Jump] = []
        self.beyond: list[Beyond] = []
        self.watched: list[Watched] = []
        # An acknowledgement that came before this end's first frame: number, index and frame.
        self.asked_ack: Seq = Seq(0)
        self.asked_index = 0
        self.asked_frame = 0


@final
class Stream(Companion):
    """One connection as the capture shows it.

    Attributes:
        original: Key of the end that sent its first frame.
        first_frame: That frame.
        frames: How many segments it has.
        alive: Position of the last segment that is no RST.
        sides: Both ends, that of the first frame first.
        proofs: What shows that the file is incomplete or out of order; the first ones.
        reversed: 1 where the original direction of the conntrack entry is that of the second end.
        tainted_from: Smallest `Proof.index`; 0 while there is no proof.
        listed: Whether it is one of `Streams.listed`.
        entry: Its conntrack entry, the last one; None where conntrack had none. Only a listed
            stream has it: the two refer to each other, and would outlive their place in the table.
        renewed: Frame of the first segment that got an entry of its own although the stream had
            one before, without a SYN: the earlier entry was gone. 0 without one.
        ended: The flags FIN and RST, where conntrack took them from the stream.
        invalid: Its INVALID packets that are not in doubt, by reason.
        in_doubt: How many more are in doubt.
    """

    def __init__(self, original: Key, first_frame: int) -> None:
        """A stream without any segment."""
        self.original = original
        self.first_frame = first_frame
        self.frames = 0
        self.alive = 0
        self.sides = (Side(0), Side(1))
        self.proofs: list[Proof] = []
        self.tainted_from = 0
        self.reversed = 0
        self.listed = False
        self.entry: Entry | None = None
        self.renewed = 0
        self.ended = 0
        self.invalid: dict[Reason, int] = {}
        self.in_doubt = 0

    @property
    def began_before(self) -> bool:
        """Whether no SYN of either end is in the file."""
        return not (self.sides[0].opened or self.sides[1].opened)

    @property
    def one_way(self) -> bool:
        """Whether one end answers another that the file does not show."""
        one, other = self.sides
        return (one.known and not other.known and other.asked_index > 0) or (
            other.known and not one.known and one.asked_index > 0
        )

    def prove(self, proof: Proof) -> None:
        """Record that the file is incomplete or out of order."""
        if self.tainted_from == 0 or proof.index < self.tainted_from:
            self.tainted_from = proof.index
        if len(self.proofs) < _MOST_PROOFS:
            self.proofs.append(proof)


@final
class Untranslated:
    """A packet with the untranslated address of an end of a live flow.

    Attributes:
        frame: Its frame.
        key: Its direction.
        of: The stream that it belongs to, by its acknowledgement.
    """

    def __init__(self, frame: int, key: Key, of: Stream) -> None:
        """State all of it."""
        self.frame = frame
        self.key = key
        self.of = of


@final
class Streams:
    """All streams of a replay.

    Attributes:
        stream: Stream of the last segment; None before the first.
        sender: Who sent it: 0 or 1, as in `Stream.sides`.
        index: Position of the last segment in its stream.
        contiguous: Whether it continues or repeats its stream.
        jump: Set when the last segment is far ahead of its stream.
        beyond: Set when the last segment acknowledges bytes that are not in the file so far.
        ahead: Whether it is an RST ahead of what the file shows of its stream or of its peer's.
        proofs: How many `Proof`s there were, of all streams.
        untranslated: Packets that escaped the translation of their flow; the first ones.
        cut_openings: SYNs whose options are not whole in the capture.
        began_before: Streams whose beginning the file lacks; bounded by `capacity`.
        listed: Streams in the order of their beginning, where they are to be listed; the first
            ones.
        unlisted: How many more there were.
    """

    def __init__(self, capacity: int, assumed_wscale: int = DEFAULT_WSCALE) -> None:
        """Hold at most `capacity` streams; the ones that began first go first."""
        self._streams: dict[Key, Stream] = {}
        self._capacity = capacity
        self._assumed = assumed_wscale
        self.stream: Stream | None = None
        self._last = Stream((b"", b"", 0, 0), 0)
        self.sender = 0
        self.index = 0
        self.contiguous = False
        self.jump: Jump | None = None
        self.beyond: Beyond | None = None
        self.ahead = False
        self.proofs = 0
        self.cut_openings = 0
        self.untranslated: list[Untranslated] = []
        self._gone_one_way = 0
        # The stream that an end opened last, by its address and port.
        self._opened: dict[tuple[bytes, int], Stream] = {}
        self.began_before: list[Stream] = []
        self.listed: list[Stream] | None = None
        self.unlisted = 0

    def follow(
        self,
        entry: Entry | None,
        direction: int,
        key: Key,
        segment: Segment,
        frame: int,
        cut: bool,  # noqa: FBT001 - positional on the packet path
        late: bool,  # noqa: FBT001 - as above
        harmed: bool,  # noqa: FBT001 - as above
    ) -> None:
        """Take one segment into account.

        Args:
            entry: Its conntrack entry, which keeps the stream; None without one.
            direction: Its direction there.
            key: The same direction (`conntrack.entry.key_of`).
            segment: The segment.
            frame: Number of its frame.
            cut: Whether its options are not whole in the capture.
            late: Whether its time is before that of the frame before it.
            harmed: Whether its checksum is in doubt, so that it is no proof of a repetition.
        """
        flags = segment.flags
        side = self._side_of(entry, direction, key, segment, frame)
        stream = self._last
        peer = stream.sides[1 - side.number]
        stream.frames += 1
        side.packets += 1
        index = stream.frames
        self.stream = stream
        self.sender = side.number
        self.index = index
        self.contiguous = False
        self.jump = None
        self.beyond = None
        self.ahead = False
        if flags & _ENDS and entry is not None:
            stream.ended |= flags & _ENDS
        if late:
            self._prove(stream, side, Doubt.OUT_OF_ORDER, index, frame, segment.seq, 0)
        if flags & RST:
            if flags & ACK and not peer.known and not peer.asked_index:
                peer.asked_ack, peer.asked_index, peer.asked_frame = segment.ack, index, frame
            self.ahead = (side.known and after(segment.seq, side.end)) or (
                flags & ACK != 0 and peer.known and after(segment.ack, peer.end)
            )
            return
        stream.alive = index
        if not side.known:
            self._first(stream, side, peer, segment, index)
            if cut and side.opened:
                side.scale = -1
                self.cut_openings += 1
        else:
            self._continue(stream, side, peer, segment.seq, segment.end, index, frame)
            if side.watched and not harmed:
                _repeat(side.watched, segment.seq, segment.end)
            if side.beyond or side.jumps:
                self._advance(stream, side, segment.seq, index)
        if flags & ACK:
            self._acknowledge(stream, side, peer, segment, index, frame)
        window = segment.window
        if side.scale > 0 and not flags & SYN:
            window <<= side.scale
        side.window = max(side.window, window)

    def _side_of(
        self, entry: Entry | None, direction: int, key: Key, segment: Segment, frame: int
    ) -> Side:
        """The sender of a segment; its stream is `_last` then."""
        known = None if entry is None else entry.stream
        stream = known if isinstance(known, Stream) else self._find(key, segment, frame)
        earlier = stream.entry
        if stream is not known and entry is not None:
            entry.stream = stream
            stream.reversed = int(stream.original != entry.original)
            if stream.listed:
                if earlier is not None and not (stream.renewed or segment.flags & SYN):
                    stream.renewed = frame
                stream.entry = entry
        one, other = stream.sides
        reversed_ = stream.reversed ^ direction if entry is not None else stream.original != key
        side = other if reversed_ else one
        if segment.flags & (SYN | ACK) == SYN and side.known and segment.seq != side.start:
            # The new connection's entry is not that of the one before it.
            stream.entry = earlier
            stream = self._begin(key, segment, frame)
            side = stream.sides[0]
            if entry is not None:
                entry.stream = stream
                stream.reversed = direction
                if stream.listed:
                    stream.entry = entry
        self._last = stream
        return side

    def watch(self, segment: Segment) -> Watched | None:
        """Await the fate of the last segment; None if it carries nothing to acknowledge."""
        stream = self.stream
        if stream is None or segment.flags & RST or segment.end == segment.seq:
            return None
        side = stream.sides[self.sender]
        watched = Watched(segment.seq, segment.end)
        if len(side.watched) >= _MOST_OPEN:
            del side.watched[0]
        side.watched.append(watched)
        return watched

    def one_way(self) -> int:
        """How many streams are seen one way only."""
        return self._gone_one_way + sum(
            stream.original == key and stream.one_way for key, stream in self._streams.items()
        )

    def _open(self, stream: Stream, key: Key, flags: int) -> None:
        """Remember which end opened a stream."""
        opened = self._opened
        if len(opened) >= self._capacity:
            for old in list(opened)[: max(1, self._capacity >> 3)]:
                del opened[old]
        src, dst, ports, _ = key
        if flags & ACK:
            opened[dst, ports & 0xFFFF] = stream
        else:
            opened[src, ports >> 16] = stream

    def _find_twin(self, key: Key, segment: Segment, frame: int) -> None:
        """Whether a packet without a stream answers the exact state of one with another tuple."""
        _, dst, ports, _ = key
        stream = self._opened.get((dst, ports & 0xFFFF))
        if stream is None or len(self.untranslated) >= _MOST_UNTRANSLATED:
            return
        # An RST without ACK has the number that its peer expects.
        number = segment.ack if segment.flags & ACK else segment.seq
        for side in stream.sides:
            if side.known and side.opened and number in (side.end, side.acked):
                self.untranslated.append(Untranslated(frame, key, stream))
                return

    def _find(self, key: Key, segment: Segment, frame: int) -> Stream:
        stream = self._streams.get(key)
        return self._begin(key, segment, frame) if stream is None else stream

    def _begin(self, key: Key, segment: Segment, frame: int) -> Stream:
        """A stream that begins with `segment`."""
        stream = Stream(key, frame)
        streams = self._streams
        if len(streams) >= 2 * self._capacity:
            for old in list(streams)[: max(2, self._capacity >> 3)]:
                gone = streams.pop(old)
                if gone.original == old and gone.one_way:
                    self._gone_one_way += 1
        streams[key] = stream
        streams[reverse(key)] = stream
        if self.listed is not None:
            if len(self.listed) < MOST_LISTED:
                self.listed.append(stream)
                stream.listed = True
            else:
                self.unlisted += 1
        flags = segment.flags
        if flags & SYN:
            self._open(stream, key, flags)
        else:
            self._find_twin(key, segment, frame)
        return stream

    def _first(self, stream: Stream, side: Side, peer: Side, segment: Segment, index: int) -> None:
        """Start an end at its first segment."""
        seq = segment.seq
        end = segment.end
        side.known = True
        side.start = side.acked = seq
        side.end = end
        if segment.flags & SYN:
            side.opened = True
            scale = parse_options(segment.options).window_scale
            side.scale = 0 if scale is None else scale
        elif index == 1 and len(self.began_before) < self._capacity:
            self.began_before.append(stream)
        asked = side.asked_index
        if asked and (side.opened or peer.opened):
            # The peer answered this end before the file shows anything of it.
            ack = side.asked_ack
            kind = Doubt.UNSEEN_HANDSHAKE
            if not before(end, ack) and before(seq, ack):
                kind = Doubt.OUT_OF_ORDER
            self._prove(stream, side, kind, asked, side.asked_frame, seq, 0)

    def _continue(
        self, stream: Stream, side: Side, peer: Side, seq: Seq, end: Seq, index: int, frame: int
    ) -> None:
        """Put a segment where it belongs in the stream of its sender."""
        ahead = (seq - side.end) & _MASK
        if ahead == 0:
            side.end = end
            self.contiguous = True
            if peer.scale < 0:
                flight = (end - side.acked) & _MASK
                if side.flight < flight < _HALF:
                    side.flight = flight
        elif ahead >= _HALF:
            self.contiguous = True
            if side.gaps:
                _fill(side.gaps, seq, end)
            side.end = later(end, side.end)
        elif ahead <= self._reach(side, peer):
            if len(side.gaps) < _MOST_OPEN:
                side.gaps.append(_Gap(side.end, seq, index, frame))
            side.end = end
        else:
            self._leap(stream, side, seq, end, index, frame)

    def _reach(self, side: Side, peer: Side) -> int:
        """How far ahead of its stream a segment of `side` may be, by its peer's windows.

        Twice the largest window that the file shows: a larger one may have been offered in a
        frame that is missing.
        """
        window = peer.window
        if not window:
            return _HALF  # it has offered none so far that the file shows
        if peer.scale < 0:
            window = max(window << self._assumed, side.flight)
        return 2 * window

    def _leap(self, stream: Stream, side: Side, seq: Seq, end: Seq, index: int, frame: int) -> None:
        for known in side.jumps:
            if not (before(seq, known.seq) or after(seq, known.end)):
                # It continues or repeats that one, and shares its fate.
                known.end = later(end, known.end)
                self.jump = known
                return
        jump = Jump(seq, end, side.end, index, frame)
        self.jump = jump
        if len(side.jumps) >= _MOST_OPEN:
            del side.jumps[0]
        side.jumps.append(jump)
        if stream.began_before and len(side.outside) < _MOST_OPEN:
            side.outside.append(jump)
        for beyond in side.beyond:
            if not (before(beyond.ack, seq) or after(beyond.ack, end)):
                beyond.genuine = True
                self._confirm(stream, side, jump)
                return

    def _confirm(self, stream: Stream, side: Side, jump: Jump) -> None:
        """The receiver has what the jump carries: all bytes before it are missing in the file."""
        jump.confirmed = True
        self._prove(
            stream,
            side,
            Doubt.UNSEEN_DATA,
            jump.index,
            jump.frame,
            jump.start,
            max(0, distance(jump.seq, jump.start)),
        )
        side.end = later(jump.end, side.end)
        side.jumps = [other for other in side.jumps if other is not jump]

    def _advance(self, stream: Stream, side: Side, seq: Seq, index: int) -> None:
        """Settle what waited for this stream to move on."""
        end = side.end
        open_beyond: list[Beyond] = []
        for beyond in side.beyond:
            if beyond.genuine:
                continue
            if before(end, beyond.ack):
                open_beyond.append(beyond)
                continue
            beyond.genuine = True
            late = before(seq, beyond.ack) and index - beyond.index <= REORDER_FRAMES
            missing = 0 if late else max(0, distance(beyond.ack, beyond.start))
            kind = Doubt.OUT_OF_ORDER if late else Doubt.UNSEEN_DATA
            self._prove(stream, side, kind, beyond.index, beyond.frame, beyond.start, missing)
        side.beyond = open_beyond
        jumps: list[Jump] = []
        for jump in side.jumps:
            if jump.index != index and not before(end, jump.seq):
                jump.passed = True
            else:
                jumps.append(jump)
        side.jumps = jumps

    def _acknowledge(
        self,
        stream: Stream,
        side: Side,
        peer: Side,
        segment: Segment,
        index: int,
        frame: int,
    ) -> None:
        ack = segment.ack
        if not peer.known:
            if not peer.asked_index:
                peer.asked_ack, peer.asked_index, peer.asked_frame = ack, index, frame
            return
        highest = highest_acknowledged(segment.options, ack)
        ahead = (highest - peer.end) & _MASK
        if ahead != 0 and ahead < _HALF:
            near = ahead <= self._reach(peer, side)
            beyond = Beyond(highest, peer.end, index, frame, near, highest != ack)
            self.beyond = beyond
            for jump in peer.jumps:
                if after(highest, jump.seq) and not after(highest, jump.end):
                    beyond.genuine = True
                    self._confirm(stream, peer, jump)
                    break
            if not beyond.genuine:
                if len(peer.beyond) >= _MOST_OPEN:
                    del peer.beyond[0]
                peer.beyond.append(beyond)
        if not after(ack, peer.end) and after(ack, peer.acked):
            peer.acked = ack
            if peer.gaps:
                self._acknowledge_gaps(stream, peer, ack)
            if peer.watched:
                _settle(peer.watched, ack)
        if peer.beyond and self.beyond is None:
            self._refute(peer, ack)

    def _acknowledge_gaps(self, stream: Stream, peer: Side, ack: Seq) -> None:
        """Gaps below `ack` were received: the frames are missing in the file alone."""
        rest: list[_Gap] = []
        for gap in peer.gaps:
            if not before(gap.start, ack):
                rest.append(gap)
                continue
            reached = gap.end if before(gap.end, ack) else ack
            missing = distance(reached, gap.start)
            self._prove(stream, peer, Doubt.UNSEEN_DATA, gap.index, gap.frame, gap.start, missing)
            if before(reached, gap.end):
                gap.start = reached
                rest.append(gap)
        peer.gaps = rest

    def _refute(self, peer: Side, ack: Seq) -> None:
        """Drop acknowledgements behind which their sender went back."""
        rest: list[Beyond] = []
        for beyond in peer.beyond:
            if not beyond.selective and before(ack, beyond.ack):
                beyond.refuted = True
            else:
                rest.append(beyond)
        peer.beyond = rest

    def _prove(
        self,
        stream: Stream,
        side: Side,
        kind: Doubt,
        index: int,
        frame: int,
        start: Seq,
        missing: int,
    ) -> None:
        self.proofs += 1
        stream.prove(Proof(kind, index, frame, side.number, start, missing))


def _fill(gaps: list[_Gap], seq: Seq, end: Seq) -> None:
    """Take the bytes from `seq` to `end` out of the gaps."""
    for place in range(len(gaps) - 1, -1, -1):
        gap = gaps[place]
        if not before(gap.start, seq) and not after(gap.end, end):
            del gaps[place]
        elif not after(seq, gap.start) and after(end, gap.start):
            gap.start = end
        elif before(seq, gap.end) and not before(end, gap.end):
            gap.end = seq


def _repeat(watched: list[Watched], seq: Seq, end: Seq) -> None:
    for place in range(len(watched) - 1, -1, -1):
        one = watched[place]
        if not after(seq, one.seq) and not before(end, one.end):
            one.repeated = True
            del watched[place]


def _settle(watched: list[Watched], ack: Seq) -> None:
    for place in range(len(watched) - 1, -1, -1):
        one = watched[place]
        if not before(ack, one.end):
            one.acknowledged = True
            del watched[place]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """A segment of a stream that began before the capture, outside any window of its receiver.

    Attributes:
        frame: Its frame.
        flow: Its direction, as `source > destination`.
        distance: Bytes between the end of its stream and its first one.
    """

    frame: int
    flow: str
    distance: int


def outside(streams: Streams) -> list[Outside]:
    """Segments that the host which saw the beginning of their flow may have called INVALID.

    Each is farther ahead than the assumed scale allows, and its stream went on without it: the
    receiver acknowledged less afterwards, or answered with an RST.
    """
    found: list[Outside] = []
    for stream in streams.began_before:
        for side in stream.sides:
            key = stream.original if side.number == 0 else reverse(stream.original)
            flow = direction_text(key)
            found.extend(
                Outside(frame=jump.frame, flow=flow, distance=distance(jump.seq, jump.start))
                for jump in side.outside
                if not jump.confirmed and stream.frames > jump.index
            )
    found.sort(key=_frame_of)
    return found


def direction_text(key: Key) -> str:
    """A direction as `source > destination`."""
    src, dst, ports, proto = key
    return tuple_ends(FlowTuple(proto, src, dst, ports >> 16, ports & 0xFFFF))


def _frame_of(segment: Outside) -> int:
    return segment.frame
