# SPDX-License-Identifier: MIT
"""The window of a flow, and the bounds on its number lines, for the detail pane of `top`."""

from collections.abc import Iterator
from typing import Any, Final

from nfq_guard.conntrack.bounds import BoundCheck
from nfq_guard.glossary import BOUND_WORDS
from nfq_guard.names import endpoint
from nfq_guard.replay.number_line import ACTUAL, LIMIT, OTHER, Mark, draw
from nfq_guard.seqno import distance
from nfq_guard.telemetry.events import FlowWindow, PacketJudged
from nfq_guard.telemetry.reader import event_of
from nfq_guard.whatif.events import bounds_of

# A number line is not narrower, so that its labels stand apart.
_LEAST: Final = 40
_MOST: Final = 100


def window_lines(fields: dict[str, Any], width: int) -> Iterator[tuple[str, bool]]:
    """Both windows, and the packet at each bound: lines, and whether a bound is broken there.

    Args:
        fields: The event of a packet, with its window, as `dump` has it.
        width: Columns.
    """
    read = event_of(fields)
    if read is None:
        return
    event = read.event
    checks = bounds_of(event)
    if event.window is not None:
        yield from ((line, False) for line in _windows(event, event.window, width))
    room = max(_LEAST, min(width - 2, _MOST))
    for check in checks:
        yield from ((line, not check.holds) for line in _bound(check, room))


def _windows(event: PacketJudged, window: FlowWindow, width: int) -> Iterator[str]:
    ends = (
        ("sender", endpoint(event.src, event.sport), window.sender_td_end,
         window.sender_td_maxend, window.sender_td_maxwin),
        ("receiver", endpoint(event.dst, event.dport), window.receiver_td_end,
         window.receiver_td_maxend, window.receiver_td_maxwin),
    )  # fmt: skip
    for role, name, sent, most, largest in ends:
        text = f"{role:<8} sent up to {sent}, may send up to {most}, offered {largest}"
        yield f"{text}  {name}" if len(text) + len(name) + 2 <= width else text


def _bound(check: BoundCheck, width: int) -> Iterator[str]:
    words = BOUND_WORDS[check.bound]
    said = f"{check.room} bytes of room" if check.holds else f"broken by {-check.room} bytes"
    yield f"{words.numeral:<3} {words.question} {said}"
    marks = [] if check.other is None else [_mark(check, OTHER)]
    marks += [_mark(check, LIMIT), _mark(check, ACTUAL)]
    span = None
    if check.span is not None:
        begin, end = (distance(number, check.limit.seq) for number in check.span)
        span = (begin, max(begin, end))
    yield from draw(marks, upper=check.upper, width=width, span=span)


def _mark(check: BoundCheck, sign: str) -> Mark:
    point = {LIMIT: check.limit, ACTUAL: check.actual}.get(sign, check.other)
    assert point is not None  # noqa: S101 - the caller asks for a point that there is
    label = f"{point.name} = {point.seq}"
    return Mark(at=distance(point.seq, check.limit.seq), sign=sign, label=label)
