# SPDX-License-Identifier: MIT
"""Follows each TCP stream of a capture independently of conntrack's rules.

A capture may lack frames that the kernel saw, or have them out of order. The file then contains
proof of that, provided that both peers follow TCP. A receiver acknowledges only data that it has
received, so an acknowledgement of bytes that are not in the file proves that frames are missing. A
sender continues where it stopped, so acknowledged data after a gap proves the same. A segment that
fits neither stream, such as a stray of a former connection, leaves no such proof.

`Streams.follow` takes every segment and records the proof; `replay.doubt` reads it.
"""

from typing import Final, final

from nfq_guard.conntrack.entry import Entry, Key, reverse
from nfq_guard.replay.escapes import Escapes
from nfq_guard.replay.listing import Listing
from nfq_guard.replay.stream import (
    Beyond,
    Doubt,
    Gap,
    Jump,
    Pending,
    Proof,
    Side,
    Stream,
    Watched,
)
from nfq_guard.seqno import HALF, MASK, Seq, after, before, distance, later
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Segment
from nfq_guard.wire.tcp import highest_acknowledged, parse_options

# Distance within which the queues of a capture may reorder the frames of one stream.
REORDER_FRAMES: Final = 8
_MOST_OPEN: Final = 16
# Segments in flight whose fate is awaited: those of a window of a megabyte.
_MOST_WATCHED: Final = 1024
# Acknowledgements that wait for the bytes.
_MOST_BEYOND: Final = 256
_ENDS: Final = FIN | RST
# A clock that goes back farther was set, or another capture begins; each is counted once.
_DISORDER_S: Final = 10.0
# TCP repeats a segment that is not acknowledged at least every two minutes.
_SILENCE_S: Final = 180.0


@final
class Streams:
    """All streams of a replay.

    Attributes:
        stream: Stream of the last segment; None before the first.
        sender: Sender of the last segment: 0 or 1, as in `Stream.sides`.
        index: Position of the last segment in its stream.
        contiguous: Whether it continues or repeats its stream.
        jump: Set if the last segment is far ahead of its stream.
        beyond: Set if the last segment acknowledges bytes that are not in the file so far.
        ahead: Whether it is an RST ahead of its own stream or of its peer's.
        proofs: Number of `Proof`s in all streams.
        escapes: Packets that escaped the translation of their flow.
        cut_openings: Number of SYNs whose options were not captured completely.
        began_before: Streams whose beginning is not in the file; bounded by `capacity`.
        listing: The streams to be listed; None if none are.
    """

    def __init__(self, capacity: int, assumed_wscale: int) -> None:
        """Hold at most `capacity` streams; the ones that began first are evicted.

        Args:
            capacity: Maximum number of streams.
            assumed_wscale: Window scale that is assumed without a SYN.
        """
        # By the first direction only: both directions would take a tenth more memory.
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
        # Time of the last segment, and since the one before it in its stream, in seconds.
        self._now = 0.0
        self._silence = 0.0
        # Whether the last segment was acknowledged in a frame before it.
        self._answered = False
        self.proofs = 0
        self.cut_openings = 0
        self.escapes = Escapes(capacity)
        self._gone_one_way = 0
        self.began_before: list[Stream] = []
        self.listing: Listing | None = None

    def follow(
        self,
        entry: Entry | None,
        direction: int,
        key: Key,
        segment: Segment,
        frame: int,
        cut: bool,  # noqa: FBT001 - positional on the packet path
        now: float,
        harmed: bool,  # noqa: FBT001 - as above
    ) -> None:
        """Take one segment into account.

        Args:
            entry: Its conntrack entry, which keeps the stream; None without one.
            direction: Its direction there.
            key: The same direction (`conntrack.entry.key_of`).
            segment: The segment.
            frame: Number of its frame.
            cut: Whether its options were not captured completely.
            now: Time of the frame, seconds since the first.
            harmed: Whether its checksum is in doubt; then it does not prove a repetition.
        """
        self._now = now
        side = self._side_of(entry, direction, key, segment, frame)
        stream = self._last
        if entry is not None:
            stream.tracked = True
            stream.ended |= segment.flags & _ENDS
        self._take(stream, side, segment, frame, cut, harmed)

    def follow_known(
        self,
        stream: Stream,
        direction: int,
        segment: Segment,
        frame: int,
        now: float,
    ) -> None:
        """`follow` for a whole segment that is not a SYN.

        Args:
            stream: The stream of its conntrack entry.
            direction: Its direction there.
            segment: The segment.
            frame: Number of its frame.
            now: Time of the frame, seconds since the first.
        """
        ends = segment.flags & _ENDS
        if ends:
            stream.ended |= ends
        side = stream.other if stream.reversed ^ direction else stream.one
        self._now = now
        self._take(stream, side, segment, frame, False, False)  # noqa: FBT003 - as above

    def _take(
        self,
        stream: Stream,
        side: Side,
        segment: Segment,
        frame: int,
        cut: bool,  # noqa: FBT001 - positional on the packet path
        harmed: bool,  # noqa: FBT001 - as above
    ) -> None:
        """Take a segment of a known sender into account."""
        flags = segment.flags
        peer = stream.one if side.number else stream.other
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
        self._answered = False
        now = self._now
        self._silence = now - stream.latest
        if now < stream.latest:
            self._prove_disorder(stream, side, segment, index, frame)
        else:
            stream.latest = now
        if flags & (SYN | FIN | RST):
            stream.marked += 1
        if flags & RST:
            self._reset(stream, side, peer, segment, index, frame)
            return
        side.alive = index
        if not side.known:
            self._first(stream, side, peer, segment, index, frame)
            if cut and side.opened:
                side.scale = -1
                self.cut_openings += 1
        else:
            self._continue(stream, side, peer, segment, index, frame)
            pending = side.pending
            if pending is not None:
                if pending.watched and not harmed and before(segment.seq, pending.watched_to):
                    _repeat(pending.watched, segment.seq, segment.end)
                self._advance(stream, side, pending, segment.seq, index)
        if flags & ACK:
            self._acknowledge(stream, side, peer, segment, index, frame)
        window = segment.window
        if side.scale > 0 and not flags & SYN:
            window <<= side.scale
        side.window = max(side.window, window)

    def _prove_disorder(
        self, stream: Stream, side: Side, segment: Segment, index: int, frame: int
    ) -> None:
        """Record that a segment is listed behind later ones of its stream."""
        self.proofs += 1
        kind = Doubt.OUT_OF_ORDER
        now = self._now
        stream.prove(Proof(kind, index, frame, side.number, segment.seq, 0, now))
        if stream.latest - now > _DISORDER_S:
            stream.latest = now

    def _reset(
        self, stream: Stream, side: Side, peer: Side, segment: Segment, index: int, frame: int
    ) -> None:
        if peer.pending is not None:
            _answer_by_reset(peer.pending.outside, segment)
        acknowledges = segment.flags & ACK != 0
        if acknowledges and peer.known and not after(segment.ack, peer.end):
            self._end_silence(stream, peer, segment.ack, index, frame)
        if acknowledges and not peer.known and not peer.asked_index:
            peer.asked_ack, peer.asked_index, peer.asked_frame = segment.ack, index, frame
        if side.known and after(segment.seq, side.acked):
            self._abort(stream, side, segment, index, frame)
        self.ahead = (side.known and after(segment.seq, side.end)) or (
            acknowledges and peer.known and after(segment.ack, peer.end)
        )

    def _abort(self, stream: Stream, side: Side, segment: Segment, index: int, frame: int) -> None:
        """Take an RST ahead of what its peer acknowledged in the file.

        Conntrack ends a flow with such an RST only if it saw the acknowledgement. An RST without
        one has the number that the segment which it answers acknowledges (RFC 9293 3.10.7.1): if it
        repeats an earlier RST, the file lacks that segment.
        """
        if not side.abort_index:
            side.abort = segment.seq
            side.abort_index = index
        elif segment.seq == side.abort and not segment.flags & ACK:
            at = side.abort_index
            self._prove(stream, side, Doubt.UNSEEN_REQUEST, at, frame, segment.seq, 0)

    def _side_of(
        self, entry: Entry | None, direction: int, key: Key, segment: Segment, frame: int
    ) -> Side:
        """The sender of a segment; sets `_last` to its stream."""
        known = None if entry is None else entry.stream
        if isinstance(known, Stream) and not segment.flags & SYN:
            # Nearly all segments.
            self._last = known
            return known.other if known.reversed ^ direction else known.one
        stream = known if isinstance(known, Stream) else self._find(key, segment, frame)
        earlier = stream.entry
        if stream is not known and entry is not None:
            entry.stream = stream
            stream.reversed = int(stream.original != entry.original)
            if stream.listed:
                if earlier is not None and not (stream.renewed or segment.flags & SYN):
                    stream.renewed = frame
                stream.entry = entry
        reversed_ = stream.reversed ^ direction if entry is not None else stream.original != key
        side = stream.other if reversed_ else stream.one
        if segment.flags & (SYN | ACK) == SYN and side.known and segment.seq != side.start:
            # A new connection has an entry of its own.
            stream.entry = earlier
            if 0 < stream.latest - self._now <= _DISORDER_S:
                kind = Doubt.OUT_OF_ORDER
                index = stream.frames + 1
                stream.overtaken = Proof(kind, index, frame, side.number, segment.seq, 0, self._now)
            picked_up = stream is known and (stream.began_before or stream.inherits)
            stream = self._begin(key, segment, frame)
            side = stream.one
            if picked_up:
                # Of the direction and state of the entry the file does not tell.
                stream.inherits = True
                self._prove(stream, side, Doubt.UNSEEN_HANDSHAKE, 1, frame, segment.seq, 0)
            if entry is not None:
                entry.stream = stream
                stream.reversed = direction
                if stream.listed:
                    stream.entry = entry
        self._last = stream
        return side

    def watch(self, segment: Segment) -> Watched | None:
        """Watch the last segment; None if it carries nothing to acknowledge."""
        stream = self.stream
        if stream is None or segment.flags & RST or segment.end == segment.seq:
            return None
        pending = stream.sides[self.sender].awaits()
        watching = pending.watched
        watched = Watched(segment.seq, segment.end)
        if self._answered:
            watched.acknowledged = True
            return watched
        if not watching or after(watched.end, pending.watched_to):
            pending.watched_to = watched.end
        if len(watching) >= _MOST_WATCHED:
            watching[0].forgotten = True
            del watching[0]
        watching.append(watched)
        return watched

    def drop(self, entry: Entry) -> None:
        """Remove the stream of an entry that turned out to be half of another flow."""
        stream = entry.stream
        if isinstance(stream, Stream):
            self.began_before = [one for one in self.began_before if one is not stream]
            if stream.listed and self.listing is not None:
                self.listing.drop(stream)
            if self._streams.get(stream.original) is stream:
                del self._streams[stream.original]

    def lack(self, key: Key, segment: Segment, frame: int) -> None:
        """Record that conntrack's model lacks what the host knew about a stream.

        Args:
            key: A direction of it.
            segment: A segment of that direction, judged without that knowledge.
            frame: The frame that shows it.
        """
        stream = self._known(key)
        if stream is not None:
            side = stream.one if stream.original == key else stream.other
            kind = Doubt.UNSEEN_HANDSHAKE
            self._prove(stream, side, kind, max(1, stream.frames), frame, segment.seq, 0)

    def lack_answer(self, half: Key, other: Key, frame: int) -> None:
        """Record that one direction answers another, although each was seen alone so far.

        If the file has the SYN of one of them, it lacks the handshake that would have joined them.

        Args:
            half: A direction.
            other: The other one.
            frame: The frame that shows it.
        """
        halves = [stream for key in (half, other) if (stream := self._known(key)) is not None]
        if any(not stream.began_before for stream in halves):
            for stream in halves:
                side = stream.other
                self._prove(stream, side, Doubt.UNSEEN_HANDSHAKE, 1, frame, side.start, 0)

    def one_way(self) -> int:
        """Number of streams of which only one direction was seen."""
        return self._gone_one_way + sum(stream.one_way for stream in self._streams.values())

    def _find(self, key: Key, segment: Segment, frame: int) -> Stream:
        stream = self._known(key)
        return self._begin(key, segment, frame) if stream is None else stream

    def is_half(self, key: Key) -> bool:
        """Whether the direction is seen alone, and the other one may have another tuple."""
        stream = self._streams.get(key)
        return stream is not None and stream.is_half(0)

    def _known(self, key: Key) -> Stream | None:
        stream = self._streams.get(key)
        return self._streams.get(reverse(key)) if stream is None else stream

    def _begin(self, key: Key, segment: Segment, frame: int) -> Stream:
        """A stream that begins with `segment`."""
        stream = Stream(key, frame)
        streams = self._streams
        if len(streams) >= self._capacity:
            for old in list(streams)[: max(1, self._capacity >> 4)]:
                if streams.pop(old).one_way:
                    self._gone_one_way += 1
        streams.pop(reverse(key), None)
        streams[key] = stream
        if self.listing is not None:
            self.listing.take(stream)
        if segment.flags & SYN:
            self.escapes.opened(stream, key, segment.flags)
        else:
            stream.strayed = self.escapes.look(key, segment, frame)
        return stream

    def _first(
        self, stream: Stream, side: Side, peer: Side, segment: Segment, index: int, frame: int
    ) -> None:
        """Initialise an end from its first segment."""
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
            # The peer answered this end before the end's first frame.
            ack = side.asked_ack
            kind = Doubt.UNSEEN_HANDSHAKE
            if not before(end, ack) and before(seq, ack):
                kind = Doubt.OUT_OF_ORDER
            self._prove(stream, side, kind, asked, side.asked_frame, seq, 0)
        elif peer.opened and not side.opened and segment.flags & ACK:
            ack = segment.ack
            room = 2 * (segment.window << self._assumed)
            if after(ack, peer.start) and distance(ack, peer.end) <= room:
                # It answers a SYN or what followed it, but its own SYN is not in the file.
                self._prove(stream, side, Doubt.UNSEEN_HANDSHAKE, index, frame, seq, 0)

    def _continue(
        self, stream: Stream, side: Side, peer: Side, segment: Segment, index: int, frame: int
    ) -> None:
        """Add a segment to the stream of its sender."""
        seq = segment.seq
        end = segment.end
        ahead = (seq - side.end) & MASK
        if ahead == 0:
            side.end = end
            self.contiguous = True
            if peer.scale < 0:
                flight = (end - side.acked) & MASK
                if side.flight < flight < HALF:
                    side.flight = flight
        elif ahead >= HALF:
            self.contiguous = True
            pending = side.pending
            if pending is not None and _fill(pending.gaps, seq, end, index - REORDER_FRAMES):
                pending.refilled = index
            side.end = later(end, side.end)
        elif ahead <= self._reach(side, peer):
            pending = side.awaits()
            gaps = pending.gaps
            if pending.refuted:
                self._restore(stream, side, pending, seq)
            if len(gaps) < _MOST_OPEN:
                gaps.append(Gap(side.end, seq, index, frame))
            side.end = end
        else:
            self._leap(stream, side, segment, index, frame)

    def _reach(self, side: Side, peer: Side) -> int:
        """Bytes by which a segment of `side` may be ahead of its stream, by its peer's windows.

        That is twice the largest window in the file: a missing frame may have offered a larger one.
        """
        window = peer.window
        if not window:
            return HALF  # the file shows no offer so far
        if peer.scale < 0:
            window = max(window << self._assumed, side.flight)
        return 2 * window

    def _restore(self, stream: Stream, side: Side, pending: Pending, seq: Seq) -> None:
        """Believe acknowledgements up to where the stream goes on, behind bytes that are missing.

        Late acknowledgements of less, behind which their sender seems to go back, are listed there.
        """
        for beyond in pending.refuted:
            if beyond.ack == seq:
                beyond.refuted = False
                beyond.genuine = True
                missing = max(0, distance(beyond.ack, beyond.start))
                kind = Doubt.UNSEEN_DATA
                self._prove(stream, side, kind, beyond.index, beyond.frame, beyond.start, missing)

    def _leap(self, stream: Stream, side: Side, segment: Segment, index: int, frame: int) -> None:
        seq = segment.seq
        end = segment.end
        pending = side.awaits()
        jumps = pending.jumps
        for known in jumps:
            if not (before(seq, known.seq) or after(seq, known.end)):
                # It continues or repeats a known jump, and is treated like it.
                known.end = later(end, known.end)
                self.jump = known
                return
        answered = stream.sides[1 - side.number].end
        jump = Jump(seq, end, segment.ack, side.end, answered, index, frame)
        self.jump = jump
        if len(jumps) >= _MOST_OPEN:
            del jumps[0]
        jumps.append(jump)
        if stream.began_before and len(pending.outside) < _MOST_OPEN:
            pending.outside.append(jump)
        for beyond in pending.beyond:
            if not (before(beyond.ack, seq) or after(beyond.ack, end)):
                beyond.genuine = True
                self._confirm(stream, side, pending, jump)
                return

    def _confirm(self, stream: Stream, side: Side, pending: Pending, jump: Jump) -> None:
        """The receiver acknowledged the jump: all bytes before it are missing in the file."""
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
        pending.jumps = [other for other in pending.jumps if other is not jump]

    def _advance(self, stream: Stream, side: Side, pending: Pending, seq: Seq, index: int) -> None:
        """Decide what waited for this stream to advance."""
        if not (pending.beyond or pending.jumps):
            return
        end = side.end
        open_beyond: list[Beyond] = []
        for beyond in pending.beyond:
            if beyond.genuine:
                continue
            if before(end, beyond.ack):
                open_beyond.append(beyond)
                continue
            beyond.genuine = True
            if beyond.ack == end:
                self._answered = True
            late = before(seq, beyond.ack) and index - beyond.index <= REORDER_FRAMES
            missing = 0 if late else max(0, distance(beyond.ack, beyond.start))
            kind = Doubt.OUT_OF_ORDER if late else Doubt.UNSEEN_DATA
            self._prove(stream, side, kind, beyond.index, beyond.frame, beyond.start, missing)
        pending.beyond = open_beyond
        jumps: list[Jump] = []
        for jump in pending.jumps:
            if jump.index != index and not before(end, jump.seq):
                jump.reached = True
                jump.passed = not before(end, jump.end)
            if not jump.passed:
                jumps.append(jump)
        pending.jumps = jumps

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
            elif after(ack, peer.asked_ack):
                peer.went_on = True
            return
        highest = highest_acknowledged(segment.options, ack)
        ahead = (highest - peer.end) & MASK
        if ahead != 0 and ahead < HALF:
            reach = self._reach(peer, side)
            near = ahead <= reach
            beyond = Beyond(highest, peer.end, index, frame, near, highest != ack, self._now)
            self.beyond = beyond
            pending = peer.awaits()
            for jump in pending.jumps:
                # Further by less than a window, what follows the jump is missing as well.
                if not before(highest, jump.seq) and distance(highest, jump.end) <= reach:
                    beyond.genuine = True
                    self._confirm(stream, peer, pending, jump)
                    break
            if not beyond.genuine:
                _await_bytes(pending.beyond, beyond, reach)
        waiting = peer.pending
        if not after(ack, peer.end) and after(ack, peer.acked):
            self._end_silence(stream, peer, ack, index, frame)
            peer.acked = ack
            if waiting is not None:
                self._acknowledge_gaps(stream, peer, waiting, ack)
                _settle(waiting.watched, ack)
        # An acknowledgement of less than an earlier one is late, and takes nothing back.
        late = before(ack, peer.acked)
        if waiting is not None and waiting.beyond and self.beyond is None and not late:
            _refute(waiting, ack, self._now)

    def _acknowledge_gaps(self, stream: Stream, peer: Side, pending: Pending, ack: Seq) -> None:
        """Gaps below `ack` were received: only the file lacks the frames."""
        rest: list[Gap] = []
        for gap in pending.gaps:
            if not before(gap.start, ack):
                rest.append(gap)
                continue
            reached = gap.end if before(gap.end, ack) else ack
            missing = distance(reached, gap.start)
            self._prove(stream, peer, Doubt.UNSEEN_DATA, gap.index, gap.frame, gap.start, missing)
            if before(reached, gap.end):
                gap.start = reached
                rest.append(gap)
        pending.gaps = rest

    def _end_silence(self, stream: Stream, peer: Side, ack: Seq, index: int, frame: int) -> None:
        """Record an acknowledgement that comes after a longer silence than TCP keeps.

        Its entry may have expired only by the capture's clock, which was set forward meanwhile.
        """
        if self._silence > _SILENCE_S and after(ack, peer.acked):
            self._prove(stream, peer, Doubt.SILENCE, index, frame, peer.acked, 0)

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


def _answer_by_reset(jumps: list[Jump], segment: Segment) -> None:
    """Mark the jumps that an RST answers, by its numbers (RFC 9293 3.10.7.1)."""
    for jump in jumps:
        if segment.seq == jump.ack or (segment.flags & ACK and segment.ack == jump.end):
            jump.reset = True


def _await_bytes(waiting: list[Beyond], beyond: Beyond, reach: int) -> None:
    """Add an acknowledgement to those that wait for the bytes.

    Receivers go on step by step: one that continues the last within a window supports both.
    """
    if waiting:
        last = waiting[-1]
        step = distance(beyond.ack, last.ack)
        if 0 < step <= reach and not (last.selective or beyond.selective):
            last.near = beyond.near = True
    if len(waiting) >= _MOST_BEYOND:
        waiting[0].forgotten = True
        del waiting[0]
    waiting.append(beyond)


def _refute(pending: Pending, ack: Seq, now: float) -> None:
    """Drop acknowledgements that their sender took back at `now`, later than it sent them."""
    rest: list[Beyond] = []
    for beyond in pending.beyond:
        if not beyond.selective and before(ack, beyond.ack) and beyond.now <= now:
            beyond.refuted = True
            pending.refuted.append(beyond)
        else:
            rest.append(beyond)
    pending.beyond = rest
    del pending.refuted[:-_MOST_OPEN]


def _fill(gaps: list[Gap], seq: Seq, end: Seq, since: int) -> bool:
    """Remove the bytes from `seq` to `end` from the gaps.

    Returns:
        Whether that closed a gap that opened at the position `since` or later.
    """
    soon = False
    for place in range(len(gaps) - 1, -1, -1):
        gap = gaps[place]
        if not before(gap.start, seq) and not after(gap.end, end):
            soon = soon or gap.index >= since
            del gaps[place]
        elif not after(seq, gap.start) and after(end, gap.start):
            gap.start = end
        elif before(seq, gap.end) and not before(end, gap.end):
            gap.end = seq
    return soon


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
