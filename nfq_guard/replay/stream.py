# SPDX-License-Identifier: MIT
"""One TCP stream as a capture shows it, and what proves that the capture differs from the peers.

`replay.streams` follows the segments and fills these in; `replay.doubt` reads them.
"""

from enum import StrEnum
from typing import Final, final

from nfq_guard.conntrack.entry import Companion, Entry, Key
from nfq_guard.finding import Reason
from nfq_guard.seqno import Seq

_MOST_PROOFS: Final = 16
_NEVER: Final = -1e12


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
        """Take every attribute as given."""
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
        ack: What it acknowledges.
        start: Where the stream stood.
        answered: Where the stream of its receiver stood.
        index: Its position in the stream.
        frame: Its frame.
        confirmed: Whether the receiver acknowledged it, so that it belongs to the stream.
        reached: Whether the stream went on up to it.
        passed: Whether the stream went on past it without its confirmation: its bytes were sent
            again.
        reset: Whether its receiver answered it by an RST.
    """

    def __init__(
        self, seq: Seq, end: Seq, ack: Seq, start: Seq, answered: Seq, index: int, frame: int
    ) -> None:
        """A jump that nothing confirms yet."""
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
        forgotten: Whether it was given up for others, so that neither is known.
    """

    def __init__(self, seq: Seq, end: Seq) -> None:
        """A segment that nothing is known of yet."""
        self.seq = seq
        self.end = end
        self.acknowledged = False
        self.repeated = False
        self.forgotten = False


@final
class Gap:
    """Bytes that were skipped: lost on the way, late, or missing in the file."""

    def __init__(self, start: Seq, end: Seq, index: int, frame: int) -> None:
        self.start = start
        self.end = end
        self.index = index
        self.frame = frame


@final
class Pending:
    """What one end sent that waits for what comes next. Few ends ever have any.

    Attributes:
        gaps: Bytes that it skipped.
        jumps: Its segments far ahead of its stream.
        outside: Those under an assumed scale, of a stream that began before the capture; the
            first ones.
        beyond: Acknowledgements of more than it has sent in the file.
        watched: Segments whose fate is awaited.
        refilled: Position in the stream of the last segment that ended a gap soon after the gap
            began; 0 without one.
    """

    def __init__(self) -> None:
        """Nothing so far."""
        self.gaps: list[Gap] = []
        self.jumps: list[Jump] = []
        self.outside: list[Jump] = []
        self.beyond: list[Beyond] = []
        self.watched: list[Watched] = []
        self.refilled = 0


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
        pending: What waits for what comes next; None before the first.
        went_on: Whether its peer acknowledged more than one segment of it before the file shows
            anything of it.
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
        self.pending: Pending | None = None
        self.went_on = False
        # An acknowledgement that came before this end's first frame: number, index and frame.
        self.asked_ack: Seq = Seq(0)
        self.asked_index = 0
        self.asked_frame = 0

    def awaits(self) -> Pending:
        """What waits for what comes next, to be added to."""
        pending = self.pending
        if pending is None:
            pending = self.pending = Pending()
        return pending


@final
class Stream(Companion):
    """One connection as the capture shows it.

    Attributes:
        original: Key of the end that sent its first frame.
        first_frame: That frame.
        frames: How many segments it has.
        alive: Position of the last segment that is no RST.
        one: The end that sent the first frame.
        other: The other one.
        proofs: What shows that the file is incomplete or out of order; the first ones.
        reversed: 1 where the original direction of the conntrack entry is that of the second end.
        tainted_from: Smallest `Proof.index`; 0 while there is no proof.
        tracked: Whether conntrack had an entry for it so far.
        strayed: Whether it began with a packet of another stream, which escaped translation, or
            with the RST that answers such a packet.
        listed: Whether it is one of `Listing.streams`.
        entry: Its conntrack entry, the last one; None where conntrack had none. Only a listed
            stream has it: the two refer to each other, and would outlive their place in the table.
        killed_at: When an RST ended its entry before any answer was seen, in seconds since the
            first frame; far in the past without one.
        renewed: Frame of the first segment that got an entry of its own although the stream had
            one before, without a SYN: the earlier entry was gone. 0 without one.
        ended: The flags FIN and RST, where conntrack took them from the stream.
        invalid: Its INVALID packets that are not in doubt, by reason; None before the first.
        in_doubt: How many more are in doubt.
    """

    def __init__(self, original: Key, first_frame: int) -> None:
        """A stream without any segment."""
        self.original = original
        self.first_frame = first_frame
        self.frames = 0
        self.alive = 0
        self.one = Side(0)
        self.other = Side(1)
        self.proofs: tuple[Proof, ...] = ()
        self.tainted_from = 0
        self.reversed = 0
        self.tracked = False
        self.strayed = False
        self.listed = False
        self.entry: Entry | None = None
        self.killed_at = _NEVER
        self.renewed = 0
        self.ended = 0
        self.invalid: dict[Reason, int] | None = None
        self.in_doubt = 0

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both ends, that of the first frame first."""
        return self.one, self.other

    @property
    def began_before(self) -> bool:
        """Whether no SYN of either end is in the file."""
        return not (self.one.opened or self.other.opened)

    @property
    def one_way(self) -> bool:
        """Whether one end answers another that the file does not show."""
        one = self.one
        other = self.other
        return (one.known and not other.packets and other.asked_index > 0) or (
            other.known and not one.packets and one.asked_index > 0
        )

    def count_invalid(self, reason: Reason) -> None:
        """Count an INVALID packet that is not in doubt."""
        if self.invalid is None:
            self.invalid = {}
        self.invalid[reason] = self.invalid.get(reason, 0) + 1

    def prove(self, proof: Proof) -> None:
        """Record that the file is incomplete or out of order."""
        if self.tainted_from == 0 or proof.index < self.tainted_from:
            self.tainted_from = proof.index
        if len(self.proofs) < _MOST_PROOFS:
            self.proofs += (proof,)
