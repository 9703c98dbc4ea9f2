# SPDX-License-Identifier: MIT
"""The bounds of the window check, each with the numbers of one segment (kernel.md 1.6 and 1.7)."""

from dataclasses import dataclass
from typing import final

from nfq_guard.conntrack import window
from nfq_guard.finding import Breach, Reason
from nfq_guard.flow import FlowSnapshot
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import Segment


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number of the sequence space with its name.

    Attributes:
        name: As kernel.md calls it, or the field of the segment.
        seq: The number.
        side: The sequence space that it counts in, by the direction of the sender.
    """

    name: str
    seq: Seq
    side: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCheck:
    """One bound, and the position of a segment relative to it.

    Attributes:
        bound: The bound, one of `finding.BOUNDS`.
        actual: The segment's number.
        limit: The last number that passes.
        upper: Whether numbers beyond the limit are outside, else those before it.
        other: A third number of the same space, to orient the reader.
        span: Beginning and end of the segment, for the bounds on its data.
        room: Bytes from `actual` to the limit; negative outside.
    """

    bound: Reason
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
    breach: Breach,
    actual: tuple[str, int],
    limit: tuple[str, int],
    *,
    other: Point | None = None,
    span: tuple[Seq, Seq] | None = None,
) -> BoundCheck:
    """A check from its numbers, each with its name and side."""
    return BoundCheck(
        bound=breach.bound,
        actual=Point(name=actual[0], seq=breach.actual, side=actual[1]),
        limit=Point(name=limit[0], seq=breach.limit, side=limit[1]),
        upper=breach.bound in {Reason.SEQ_OVER, Reason.ACK_OVER},
        other=other,
        span=span,
        room=-breach.distance,
    )


def _name_of_acknowledged(segment: Segment, sack: Seq) -> str:
    if not window.has_ack(segment):
        return "td_end, in place of an ACK"
    return "ack" if sack == segment.ack else "sack"


def window_checks(
    segment: Segment, before: FlowSnapshot, sack: Seq | None = None
) -> list[BoundCheck]:
    """The four bounds in the kernel's order I to IV; none while the window is unknown.

    Args:
        segment: The segment.
        before: Its flow, before it.
        sack: The number that it acknowledges; None to take it from the segment and its options.
    """
    if before.peers is None:
        return []
    side = before.direction
    sender, receiver = before.peers[side], before.peers[1 - side]
    if sender.td_maxwin == 0:
        return []
    seq, end = segment.seq, segment.end
    if window.stands_at_td_end(segment, before.state):
        seq = end = sender.td_end
    if sack is None:
        sack = window.acknowledged(segment, receiver)
    acked = _name_of_acknowledged(segment, sack), 1 - side
    sent = Point(name="td_end", seq=sender.td_end, side=side)
    received = Point(name="td_end", seq=receiver.td_end, side=1 - side)
    lag = window.max_ack_window(sender.td_maxwin)

    def breach(bound: Reason) -> Breach:
        return window.against(bound, seq, end, sack, sender, receiver)

    checks = [
        _check(
            breach(Reason.SEQ_OVER),
            ("seq", side),
            ("td_maxend", side),
            other=sent,
            span=(seq, end),
        ),
        _check(
            breach(Reason.SEQ_UNDER),
            ("end", side),
            (f"td_end - {receiver.td_maxwin}", side),
            other=sent,
            span=(seq, end),
        ),
        _check(breach(Reason.ACK_OVER), acked, ("td_end", 1 - side)),
        _check(breach(Reason.ACK_UNDER), acked, (f"td_end - {lag}", 1 - side), other=received),
    ]
    if receiver.td_maxwin == 0:
        # No window of this receiver was seen, so bound II always holds.
        del checks[1]
    return checks


def rst_check(segment: Segment, before: FlowSnapshot) -> BoundCheck | None:
    """The bound on an RST; None without a window."""
    if before.peers is None:
        return None
    side = before.direction
    sender, receiver = before.peers[side], before.peers[1 - side]
    return _check(
        window.rst_against(segment.seq, receiver),
        ("seq", side),
        ("td_maxack", side),
        other=Point(name="td_end", seq=sender.td_end, side=side),
    )
