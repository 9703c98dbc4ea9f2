# SPDX-License-Identifier: MIT
"""Segments outside any window of streams that began before the capture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from nfq_guard.conntrack.entry import reverse
from nfq_guard.replay.stream import Jump, Side, Stream
from nfq_guard.replay.words import direction_text
from nfq_guard.seqno import after, distance
from nfq_guard.wire.packet import FIN


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


def outside(streams: Iterable[Stream]) -> list[Outside]:
    """Segments that a host may have called INVALID if it saw the beginning of their flow.

    Each is farther ahead than the assumed window scale allows and was not accepted. Evidence of the
    latter: the receiver answered with an RST, or acknowledged later data of the stream and sent
    data itself; or the sender repeated the bytes or ended its stream.

    Args:
        streams: Streams that began before the capture.
    """
    found: list[Outside] = []
    for stream in streams:
        for side in stream.sides:
            if side.pending is None:
                continue
            key = stream.original if side.number == 0 else reverse(stream.original)
            flow = direction_text(key)
            found.extend(
                Outside(frame=jump.frame, flow=flow, distance=distance(jump.seq, jump.start))
                for jump in side.pending.outside
                if _is_refused(stream, side, jump)
            )
    found.sort(key=_frame_of)
    return found


def _is_refused(stream: Stream, side: Side, jump: Jump) -> bool:
    if jump.confirmed:
        return False
    if jump.reset or jump.passed:
        return True
    # A sender that still has to fill a gap before the segment does not close, and most receivers
    # wait.
    turned = after(stream.sides[1 - side.number].end, jump.answered) or stream.ended & FIN != 0
    return turned and not jump.reached and after(side.acked, jump.start)


def _frame_of(segment: Outside) -> int:
    return segment.frame
