# SPDX-License-Identifier: MIT
"""Segments outside any window of streams that began before the capture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from nfq_guard.conntrack.entry import reverse
from nfq_guard.replay.stream import Stream
from nfq_guard.replay.words import direction_text
from nfq_guard.seqno import distance


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

    Each is farther ahead than the assumed scale allows, and its stream went on without it: the
    receiver acknowledged less afterwards, or answered with an RST.

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
                if not jump.confirmed and stream.frames > jump.index
            )
    found.sort(key=_frame_of)
    return found


def _frame_of(segment: Outside) -> int:
    return segment.frame
