# SPDX-License-Identifier: MIT
"""Whether a finding may be due to the capture rather than to conntrack.

The kernel saw all packets in their order; a file contains those that the capture kept, in the order
of the capture's queues. `replay.streams` records evidence of such differences. A finding is in
doubt if a difference can explain it; a stray far outside its stream is not in doubt.
"""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.conntrack.sysctls import TCP_TIMEOUTS_S
from nfq_guard.finding import BOUNDS, Finding, Reason
from nfq_guard.flow import TcpState
from nfq_guard.replay.stream import Beyond, Doubt, Jump, Proof, Stream, Watched
from nfq_guard.replay.streams import REORDER_FRAMES, Streams
from nfq_guard.seqno import distance
from nfq_guard.wire.packet import FIN, Segment

# Proven by the packet alone, whatever the file lacks.
_BY_ITSELF = frozenset(
    {Reason.BAD_FLAGS, Reason.BAD_CHECKSUM, Reason.MALFORMED, Reason.UNSUPPORTED}
)
# Segments of one end, none of which is answered by a segment in the file.
_ALONE_FROM: Final = 3
_CLOSE_S: Final = TCP_TIMEOUTS_S[TcpState.CLOSE]


@final
@dataclass(slots=True)
class Place:
    """The position of an INVALID segment in its stream, kept until later frames decide.

    Attributes:
        stream: Its stream.
        sender: 0 or 1, as in `Stream.sides`.
        index: Its position in the stream.
        now: When it was captured, seconds since the first frame.
        jump: Set if it is far ahead of its stream.
        beyond: Set if it acknowledges bytes that were not in the file so far.
        watched: Whether it was acknowledged or repeated; set if it continues its stream and takes
            up sequence space.
        heard: Number of segments that its receiver had sent.
        ahead: Whether it is an RST ahead of the stream of either end.
        untracked: Whether conntrack had no entry for its stream up to it.
        unseen: Whether the beginning of its stream is not in the file, and a host that saw it may
            have an entry.
        reordered: Whether frames of its receiver just before it are out of order.
        closing: Whether it has the flag FIN.
        ended: Whether an RST just before it ended its entry, for want of an answer.
    """

    stream: Stream
    sender: int
    index: int
    now: float
    jump: Jump | None
    beyond: Beyond | None
    watched: Watched | None
    heard: int
    ahead: bool
    untracked: bool
    unseen: bool
    reordered: bool
    closing: bool
    ended: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Doubted:
    """Why a finding is in doubt.

    Attributes:
        kind: The kind of difference between the file and what the kernel saw.
        proof: The nearest evidence of it; None if no single frame shows it.
    """

    kind: Doubt
    proof: Proof | None = None


def place_of(streams: Streams, segment: Segment, now: float) -> Place | None:
    """The place of the last segment that `streams` followed, at `now`, seconds as in `Outcome`."""
    stream = streams.stream
    if stream is None:
        return None
    watched = streams.watch(segment) if streams.contiguous else None
    return Place(
        stream,
        streams.sender,
        streams.index,
        now,
        streams.jump,
        streams.beyond,
        watched,
        stream.sides[1 - streams.sender].packets,
        streams.ahead,
        not stream.tracked,
        _is_unseen(streams, stream, now),
        _is_reordered(streams, stream),
        segment.flags & FIN != 0,
        now - stream.killed_at < _CLOSE_S and streams.index - stream.killed_index <= REORDER_FRAMES,
    )


def _is_unseen(streams: Streams, stream: Stream, now: float) -> bool:
    """Whether a stream may have an entry on a host that saw its beginning.

    An entry made in the middle of the stream, whose answers are not in the file, ends sooner: at
    the first RST, and when it is silent for minutes instead of days.
    """
    if stream.strayed or not stream.began_before:
        return False
    answered = stream.sides[1 - streams.sender].packets > 0
    return not (stream.tracked and answered) or now - stream.killed_at < _CLOSE_S


def _is_reordered(streams: Streams, stream: Stream) -> bool:
    pending = stream.sides[1 - streams.sender].pending
    return (
        pending is not None
        and pending.refilled > 0
        and streams.index - pending.refilled <= REORDER_FRAMES
    )


def doubt_of(
    finding: Finding,
    place: Place | None,
    *,
    began: bool,
    orphan: bool,
    incomplete: bool,
    drops: bool,
) -> Doubted | None:
    """Why `finding` is in doubt; None if it is not.

    Args:
        finding: The finding by conntrack's rules from the packets in the file.
        place: The segment's place; None for a packet other than a TCP segment.
        began: Whether the file holds the handshake of the packet's SCTP association, as far as the
            finding depends on it; True for a packet of another protocol.
        orphan: Whether it has no entry because of a packet that the file may lack.
        incomplete: Whether any stream of the file proves that frames are missing.
        drops: Whether the capture reports frames that it dropped.
    """
    if finding.reason in _BY_ITSELF:
        return None
    if not began or (place is not None and place.unseen and finding.reason is Reason.NO_ENTRY):
        # The host that saw the beginning may have had an entry.
        return Doubted(kind=Doubt.UNSEEN_HANDSHAKE)
    if place is None:
        if orphan:
            return Doubted(kind=Doubt.UNSEEN_REQUEST)
        # A missing frame may be the one that opened the entry or that the ICMP error quotes.
        return _elsewhere(incomplete=incomplete, drops=drops)
    overtaken = place.stream.overtaken
    if overtaken is not None and overtaken.now < place.now:
        return Doubted(kind=overtaken.kind, proof=overtaken)
    if _is_stray(place):
        filtered = _is_end_after_filter(finding, place)
        return Doubted(kind=Doubt.UNSEEN_HANDSHAKE) if filtered else None
    proof = _proof_near(place)
    if proof is not None:
        return Doubted(kind=proof.kind, proof=proof)
    if _lacks_scale(finding, place):
        return Doubted(kind=Doubt.UNSEEN_HANDSHAKE)
    beyond = place.beyond
    if beyond is not None and finding.reason is Reason.ACK_OVER:
        # The stream ends here, or its sender fell silent: nothing disproves the number.
        sender = 1 - place.sender
        missing = distance(beyond.ack, beyond.start)
        own = Proof(Doubt.UNSEEN_DATA, place.index, beyond.frame, sender, beyond.start, missing)
        return Doubted(kind=Doubt.UNSEEN_DATA, proof=own)
    kind = _kind_without_proof(finding, place, orphan=orphan)
    if kind is not None:
        return Doubted(kind=kind)
    if drops:
        return Doubted(kind=Doubt.CAPTURE_DROPS)
    if place.index == 1 or place.untracked or _lacks_one_answer(place):
        return _elsewhere(incomplete=incomplete, drops=drops)
    return None


def _is_end_after_filter(finding: Finding, place: Place) -> bool:
    """Whether any number of bytes may be missing before the end of a stream."""
    return place.closing and place.stream.is_filtered and finding.reason in BOUNDS


def _is_stray(place: Place) -> bool:
    """Whether a segment is far outside its stream, and nothing shows that it belongs there."""
    jump = place.jump
    if jump is not None and not jump.confirmed:
        return True
    beyond = place.beyond
    return beyond is not None and (
        beyond.refuted or not (beyond.near or beyond.genuine or beyond.forgotten)
    )


def _kind_without_proof(finding: Finding, place: Place, *, orphan: bool) -> Doubt | None:
    """What may explain a finding although no frame proves it."""
    reason = finding.reason
    if reason is Reason.ACK_OVER and place.beyond is None and place.reordered:
        # The acknowledged data is in the file. Conntrack rejects it because of the order alone.
        return Doubt.OUT_OF_ORDER
    if reason is Reason.NO_ENTRY and place.ended:
        # An RST ends an entry whose answer, which the RST answers, is listed behind it.
        return Doubt.OUT_OF_ORDER
    if place.ahead and place.stream.sides[place.sender].alive < place.index:
        # No later segment of its sender shows it to be forged. Its peer's may have been in flight.
        return Doubt.UNSEEN_DATA
    if reason is Reason.SEQ_OVER and _may_have_room(place):
        return Doubt.UNSEEN_WINDOW
    if _is_end_after_filter(finding, place):
        return Doubt.UNSEEN_HANDSHAKE
    strayed = place.stream.strayed
    if orphan and place.untracked and not (strayed or _goes_on_alone(place)):
        return Doubt.UNSEEN_REQUEST
    return None


def _may_have_room(place: Place) -> bool:
    """Whether a segment beyond the window may have been within one that the file does not show.

    A healthy sender does not go on beyond the window. Only the receiver's next segments show which
    of the two it is.
    """
    watched = place.watched
    if watched is None or watched.repeated:
        return False
    silent = place.stream.sides[1 - place.sender].packets == place.heard
    return watched.acknowledged or watched.forgotten or silent


def _lacks_one_answer(place: Place) -> bool:
    """Whether the stream may lack just one segment of its other end, such as the SYN+ACK.

    An end that the host never sees lacks more than one.
    """
    peer = place.stream.sides[1 - place.sender]
    return not peer.packets and peer.asked_index > 0 and not peer.went_on


def _lacks_scale(finding: Finding, place: Place) -> bool:
    """Whether an earlier RST ended the flow unless the window is as small as without its scale."""
    one, other = place.stream.sides
    aborted = place.stream.sides[place.sender].abort_index
    unknown = one.scale < 0 or other.scale < 0
    return finding.reason is Reason.RST_OUTSIDE and unknown and 0 < aborted < place.index


def _goes_on_alone(place: Place) -> bool:
    """Whether the segment's sender goes on without a segment of the other end.

    The host does not see that end: more than one of its segments would be missing.
    """
    sides = place.stream.sides
    return not sides[1 - place.sender].packets and sides[place.sender].packets >= _ALONE_FROM


def _elsewhere(*, incomplete: bool, drops: bool) -> Doubted | None:
    if drops:
        return Doubted(kind=Doubt.CAPTURE_DROPS)
    return Doubted(kind=Doubt.FRAMES_MISSING) if incomplete else None


def _proof_near(place: Place) -> Proof | None:
    """The last proof that concerns the stream up to the segment, or just after it.

    A frame that is listed anywhere behind the segment concerns it too if it is older.
    """
    reach = place.index + REORDER_FRAMES
    found: Proof | None = None
    for proof in place.stream.proofs:
        concerns = proof.index <= reach or proof.now < place.now
        if concerns and (found is None or proof.index > found.index):
            found = proof
    return found
