# SPDX-License-Identifier: MIT
"""Segments outside any window of streams that began before the capture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from nfq_guard.conntrack.entry import reverse
from nfq_guard.replay.stream import Jump, Side, Stream
from nfq_guard.replay.words import direction_text
from nfq_guard.seqno import after, distance


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
    """Segments that the host which saw the beginning of their flow may have called INVALID.

    Each is farther ahead than the assumed scale allows, and its receiver did not take it: it
    answered by an RST, or acknowledged what came afterwards in the place of the stream; or the
    sender sent the same bytes again.

    Args:
        streams: Those that began before the capture.
    """
    found: list[Outside] = []
    for stream in streams:
        for side in stream.sides:
            key = stream.original if side.number == 0 else reverse(stream.original)
            flow = direction_text(key)
            found.extend(
                Outside(frame=jump.frame, flow=flow, distance=distance(jump.seq, jump.start))
                for jump in side.outside
                if _is_refused(side, jump)
            )
    found.sort(key=_frame_of)
    return found


def _is_refused(side: Side, jump: Jump) -> bool:
    if jump.confirmed:
        return False
    if jump.reset or jump.passed:
        return True
    return not jump.reached and after(side.acked, jump.start)


def _frame_of(segment: Outside) -> int:
    return segment.frame
