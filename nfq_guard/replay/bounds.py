# SPDX-License-Identifier: MIT
"""The bounds of the window check, each with the numbers of one segment (kernel.md 1.6 and 1.7)."""

from dataclasses import dataclass
from typing import final

from nfq_guard.conntrack import window
from nfq_guard.finding import Bound
from nfq_guard.flow import IP_CT_TCP_FLAG_SACK_PERM, FlowSnapshot, Peer, TcpState
from nfq_guard.seqno import Seq, distance
from nfq_guard.wire.packet import ACK, RST, Segment
from nfq_guard.wire.tcp import highest_acknowledged


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number of the sequence space with its name.

    Attributes:
        name: As kernel.md calls it, or the field of the segment.
        seq: The number.
        side: Whose sequence space it counts in: the direction of that sender.
    """

    name: str
    seq: Seq
    side: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCheck:
    """One bound and one segment.

    Attributes:
        bound: Which.
        actual: The segment's number.
        limit: The last number that passes.
        upper: Whether numbers beyond the limit are outside, else those before it.
        other: A third number that helps to see where the two are.
        span: Where the segment begins and ends, for the bounds on what it carries.
        room: Octets from `actual` to the limit; negative outside.
    """

    bound: Bound
    actual: Point
    limit: Point
    upper: bool
    other: Point | None
    span: tuple[Seq, Seq] | None
    room: int

    @property
    def holds(self) -> bool:
        """Whether the segment is inside."""
        return self.room >= 0


def _check(
    bound: Bound,
    actual: Point,
    limit: Point,
    other: Point | None,
    span: tuple[Seq, Seq] | None = None,
) -> BoundCheck:
    upper = bound in {Bound.SEQ_OVER, Bound.ACK_OVER}
    ahead = distance(actual.seq, limit.seq)
    return BoundCheck(
        bound=bound,
        actual=actual,
        limit=limit,
        upper=upper,
        other=other,
        span=span,
        room=-ahead if upper else ahead,
    )


def acknowledged(segment: Segment, receiver: Peer) -> tuple[str, Seq]:
    """What counts as acknowledged, and the name of where that stands."""
    flags = segment.flags
    if not flags & ACK or (flags & RST and segment.ack == 0):
        return "td_end, for want of an ack", receiver.td_end
    if receiver.flags & IP_CT_TCP_FLAG_SACK_PERM:
        sack = highest_acknowledged(segment.options, segment.ack)
        if sack != segment.ack:
            return "sack", sack
    return "ack", segment.ack


def window_checks(segment: Segment, before: FlowSnapshot) -> list[BoundCheck]:
    """The four bounds in the kernel's order I to IV; none where the window is not known yet."""
    if before.peers is None:
        return []
    side = before.direction
    sender, receiver = before.peers[side], before.peers[1 - side]
    if sender.td_maxwin == 0:
        return []
    seq, end = segment.seq, segment.end
    if segment.flags & RST and seq == 0 and before.state == TcpState.SYN_SENT:
        seq = end = sender.td_end
    name, sack = acknowledged(segment, receiver)
    sent = Point(name="td_end", seq=sender.td_end, side=side)
    theirs = Point(name="td_end", seq=receiver.td_end, side=1 - side)
    lag = window.max_ack_window(sender.td_maxwin)
    lowest_end = window.lowest_end(sender.td_end, receiver.td_maxwin)
    lowest_ack = window.lowest_ack(receiver.td_end, sender.td_maxwin)
    acked = Point(name=name, seq=sack, side=1 - side)
    checks = [
        _check(
            Bound.SEQ_OVER,
            Point(name="seq", seq=seq, side=side),
            Point(name="td_maxend", seq=sender.td_maxend, side=side),
            sent,
            (seq, end),
        ),
        _check(
            Bound.SEQ_UNDER,
            Point(name="end", seq=end, side=side),
            Point(name=f"td_end - {receiver.td_maxwin}", seq=lowest_end, side=side),
            sent,
            (seq, end),
        ),
        _check(Bound.ACK_OVER, acked, theirs, None),
        _check(
            Bound.ACK_UNDER,
            acked,
            Point(name=f"td_end - {lag}", seq=lowest_ack, side=1 - side),
            theirs,
        ),
    ]
    if receiver.td_maxwin == 0:
        # Nothing is known of what this receiver offers, so bound II always holds.
        del checks[1]
    return checks


def rst_check(segment: Segment, before: FlowSnapshot) -> BoundCheck | None:
    """The bound on a RST; None without a window."""
    if before.peers is None:
        return None
    side = before.direction
    sender, receiver = before.peers[side], before.peers[1 - side]
    return _check(
        Bound.RST_OUTSIDE,
        Point(name="seq", seq=segment.seq, side=side),
        Point(name="td_maxack", seq=receiver.td_maxack, side=side),
        Point(name="td_end", seq=sender.td_end, side=side),
    )
