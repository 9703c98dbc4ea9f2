# SPDX-License-Identifier: MIT
"""One TCP stream as a capture shows it, and evidence that the capture is incomplete.

`replay.streams` fills these types in; `replay.doubt` reads them.
"""

from enum import StrEnum
from typing import Final, final

from nfq_guard.conntrack.entry import Companion, Entry, Key
from nfq_guard.finding import Reason
from nfq_guard.seqno import Seq

_MOST_PROOFS: Final = 16
_NEVER: Final = -1e12
# Segments of one direction among which the other direction is looked for.
_MOST_OF_HALF: Final = 64


class Doubt(StrEnum):
    """Why the capture, not conntrack, may be the cause of a finding."""

    UNSEEN_DATA = "unseen-data"
    UNSEEN_WINDOW = "unseen-window"
    UNSEEN_HANDSHAKE = "unseen-handshake"
    UNSEEN_REQUEST = "unseen-request"
    OUT_OF_ORDER = "out-of-order"
    SILENCE = "silence"
    FRAMES_MISSING = "frames-missing"
    CAPTURE_DROPS = "capture-drops"


@final
class Proof:
    """One place where the file differs from what the peers exchanged.

    Attributes:
        kind: The kind of difference.
        index: Position in the stream, from 1: findings from here on may be due to it.
        frame: Number of the frame that shows it.
        sender: The end whose frames are missing or late: 0 or 1, as in `Stream.sides`.
        start: First sequence number that is missing; with `missing` 0, the place of disorder.
        missing: Missing bytes; 0 if none or an unknown number.
        now: When the frame was captured, if it is listed behind later ones: findings in these may
            be due to it too. In seconds since the first frame; else far in the future.
    """

    def __init__(
        self,
        kind: Doubt,
        index: int,
        frame: int,
        sender: int,
        start: Seq,
        missing: int,
        now: float = -_NEVER,
    ) -> None:
        """Take every attribute as given."""
        self.kind = kind
        self.index = index
        self.frame = frame
        self.sender = sender
        self.start = start
        self.missing = missing
        self.now = now


@final
class Jump:
    """A segment farther ahead of its stream than its receiver's window allows.

    Attributes:
        seq: Its first sequence number.
        end: Sequence number after its last byte.
        ack: Its acknowledgement number.
        start: End of the stream before it.
        answered: End of its receiver's stream before it.
        index: Its position in the stream.
        frame: Its frame.
        confirmed: Whether the receiver acknowledged it; then it belongs to the stream.
        reached: Whether the stream has reached it.
        passed: Whether the stream went past it although it was not confirmed: its bytes were
            repeated.
        reset: Whether its receiver answered it with an RST.
    """

    def __init__(
        self, seq: Seq, end: Seq, ack: Seq, start: Seq, answered: Seq, index: int, frame: int
    ) -> None:
        """Create it unconfirmed."""
        self.seq = seq
        self.end = end
        self.ack = ack
        self.start = start
        self.answered = answered
        self.index = index
        self.frame = frame
        self.confirmed = False
        self.reached = False
        self.passed = False
        self.reset = False


@final
class Beyond:
    """An acknowledgement of bytes that are not in the file so far.

    Attributes:
        ack: The number acknowledged.
        start: End of the acknowledged stream before it.
        index: Its position in the stream.
        frame: Its frame.
        near: Whether it is within a window of the peer, or of another acknowledgement that it
            continues or that continues it.
        selective: Whether the number is from a SACK block, not from the acknowledgement field.
        now: When it was captured, seconds since the first frame.
        genuine: Whether the acknowledged stream confirmed it.
        refuted: Whether its sender later acknowledged less, which a receiver never does.
        forgotten: Whether it was given up for others, so that neither is known.
    """

    def __init__(
        self,
        ack: Seq,
        start: Seq,
        index: int,
        frame: int,
        near: bool,  # noqa: FBT001 - positional on the packet path
        selective: bool,  # noqa: FBT001 - as above
        now: float,
    ) -> None:
        """Create it unconfirmed."""
        self.ack = ack
        self.start = start
        self.index = index
        self.frame = frame
        self.near = near
        self.selective = selective
        self.now = now
        self.genuine = False
        self.refuted = False
        self.forgotten = False


@final
class Watched:
    """A segment that is watched until it is acknowledged or repeated.

    Attributes:
        seq: Its first sequence number.
        end: The one after its last.
        acknowledged: Whether its receiver acknowledged it before it was repeated.
        repeated: Whether it was repeated, undamaged, before it was acknowledged.
        forgotten: Whether it was evicted, so that neither is known.
    """

    def __init__(self, seq: Seq, end: Seq) -> None:
        """Create it undecided."""
        self.seq = seq
        self.end = end
        self.acknowledged = False
        self.repeated = False
        self.forgotten = False


@final
class Gap:
    """Bytes that were skipped: lost on the way, late, or missing from the file."""

    def __init__(self, start: Seq, end: Seq, index: int, frame: int) -> None:
        self.start = start
        self.end = end
        self.index = index
        self.frame = frame


@final
class Pending:
    """Undecided segments of one end. Few ends ever have any.

    Attributes:
        gaps: Bytes that the end skipped.
        jumps: Its segments far ahead of its stream.
        outside: The first such segments under an assumed scale, if the stream began before the
            capture.
        beyond: Acknowledgements of more than it sent in the file.
        refuted: The last of these that their sender went back from.
        watched: Segments that are neither acknowledged nor repeated yet.
        watched_to: The end of the farthest of them.
        refilled: Position in the stream of the last segment that closed a gap soon after it opened;
            0 without one.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.gaps: list[Gap] = []
        self.jumps: list[Jump] = []
        self.outside: list[Jump] = []
        self.beyond: list[Beyond] = []
        self.refuted: list[Beyond] = []
        self.watched: list[Watched] = []
        self.watched_to: Seq = Seq(0)
        self.refilled = 0


@final
class Side:
    """One end of a stream, as a sender.

    Attributes:
        number: 0 for the end that sent the first frame, else 1.
        packets: Number of segments that it sent.
        alive: Position of the last of them other than an RST.
        known: Whether it sent anything other than an RST.
        opened: Whether its SYN is in the file.
        start: Its first sequence number in the file.
        end: Sequence number after the last byte of its stream.
        acked: Highest acknowledgement number of its peer, up to the bytes that are in the file.
        window: The largest window that it offered, in bytes; unscaled with `scale` -1.
        scale: Its window scale; -1 if its SYN was not seen.
        flight: Most unacknowledged bytes that it had sent; kept only if the peer's scale is
            unknown, which it bounds from below.
        pending: Its undecided segments; None before the first.
        went_on: Whether its peer acknowledged more than one segment of it before its first frame.
        abort: Number of its first RST ahead of what its peer acknowledged in the file.
        abort_index: Position of that RST; 0 without one.
    """

    def __init__(self, number: int) -> None:
        """Start without any segment."""
        self.number = number
        self.packets = 0
        self.alive = 0
        self.known = False
        self.opened = False
        self.start: Seq = Seq(0)
        self.end: Seq = Seq(0)
        self.acked: Seq = Seq(0)
        self.window = 0
        self.scale = -1
        self.flight = 0
        self.pending: Pending | None = None
        self.went_on = False
        self.abort: Seq = Seq(0)
        self.abort_index = 0
        # An acknowledgement that came before this end's first frame: number, index and frame.
        self.asked_ack: Seq = Seq(0)
        self.asked_index = 0
        self.asked_frame = 0

    def awaits(self) -> Pending:
        """Its undecided segments, created if necessary."""
        pending = self.pending
        if pending is None:
            pending = self.pending = Pending()
        return pending


@final
class Stream(Companion):
    """One connection as the capture shows it.

    Attributes:
        original: Direction of its first frame.
        first_frame: Number of its first frame.
        frames: Number of its segments.
        marked: Number of these with SYN, FIN or RST.
        latest: The latest time of its segments, seconds since the first frame.
        one: The end that sent the first frame.
        other: The other end.
        proofs: The first proofs that the file is incomplete or out of order.
        reversed: 1 if the original direction of the conntrack entry is that of the second end, else
            0.
        tracked: Whether conntrack had an entry for it so far.
        inherits: Whether it began in an entry of a connection that began before the capture.
        strayed: Whether it began with a packet of another stream that escaped translation, or with
            the RST that answers such a packet.
        listed: Whether it is one of `Listing.streams`.
        entry: Its last conntrack entry; None without one. Set only for a listed stream: the two
            refer to each other, and would outlive their place in the table.
        killed_at: When an RST ended its entry before any answer was seen, in seconds since the
            first frame; far in the past without one.
        killed_index: Position of that RST; 0 without one.
        renewed: Frame of the first segment other than a SYN that created an entry although the
            stream had one before: the earlier entry had gone. 0 without one.
        ended: The flags FIN and RST that conntrack accepted from the stream.
        invalid: Number of its INVALID packets that are not in doubt, by reason; None before the
            first.
        in_doubt: Number of its INVALID packets that are in doubt.
        overtaken: The SYN of the next connection with its tuple, if that is older than a segment
            listed before it, which may be of the next connection as well; else None.
    """

    def __init__(self, original: Key, first_frame: int) -> None:
        """Start without any segment."""
        self.original = original
        self.first_frame = first_frame
        self.frames = 0
        self.marked = 0
        self.latest = _NEVER
        self.one = Side(0)
        self.other = Side(1)
        self.proofs: tuple[Proof, ...] = ()
        self.reversed = 0
        self.tracked = False
        self.inherits = False
        self.strayed = False
        self.listed = False
        self.entry: Entry | None = None
        self.killed_at = _NEVER
        self.killed_index = 0
        self.renewed = 0
        self.ended = 0
        self.invalid: dict[Reason, int] | None = None
        self.in_doubt = 0
        self.overtaken: Proof | None = None

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both ends, the sender of the first frame first."""
        return self.one, self.other

    @property
    def began_before(self) -> bool:
        """Whether the file has no SYN of either end."""
        return not (self.one.opened or self.other.opened)

    @property
    def is_filtered(self) -> bool:
        """Whether the file has its handshake without the acknowledgement that ends it.

        All of its segments have SYN, FIN or RST, the flags by which many captures are filtered.
        """
        return self.one.opened and self.other.opened and self.marked == self.frames

    @property
    def one_way(self) -> bool:
        """Whether one end answers an end that the file does not show."""
        one = self.one
        other = self.other
        return (one.known and not other.packets and other.asked_index > 0) or (
            other.known and not one.packets and one.asked_index > 0
        )

    def is_half(self, sender: int) -> bool:
        """Whether only `sender` is seen, and the other direction may have another tuple."""
        alone = not (self.strayed or self.sides[1 - sender].packets)
        return alone and self.frames <= _MOST_OF_HALF

    def count_invalid(self, reason: Reason) -> None:
        """Count an INVALID packet that is not in doubt."""
        if self.invalid is None:
            self.invalid = {}
        self.invalid[reason] = self.invalid.get(reason, 0) + 1

    def prove(self, proof: Proof) -> None:
        """Record that the file is incomplete or out of order."""
        if len(self.proofs) < _MOST_PROOFS:
            self.proofs += (proof,)
