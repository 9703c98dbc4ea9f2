# SPDX-License-Identifier: MIT
"""The detail pane of `top`: one flow, its window, and the bounds on its number lines."""

from collections.abc import Iterator
from typing import Any, Final

from nfq_guard.cli.dump import cause_text, event_line, hint_texts
from nfq_guard.cli.top_flow import Fields, ends_of, last_event, reasons_text
from nfq_guard.cli.top_layout import Line, Piece, wrap
from nfq_guard.conntrack.bounds import BoundCheck
from nfq_guard.glossary import BOUND_WORDS
from nfq_guard.names import bytes_of, endpoint
from nfq_guard.replay.number_line import ACTUAL, LIMIT, OTHER, Mark, draw
from nfq_guard.seqno import distance
from nfq_guard.telemetry.events import FlowWindow, PacketJudged
from nfq_guard.telemetry.palette import Style
from nfq_guard.telemetry.reader import event_of
from nfq_guard.whatif.events import bounds_of

# Minimum width of a number line, so that its labels do not collide.
_LEAST: Final = 40
_MOST: Final = 100


def detail(flow: Fields, width: int) -> list[Line]:
    """One flow in detail: its packets, its windows, the number lines, and its events."""
    event = last_event(flow)
    shown: list[Line] = [[Piece(text, (Style.BOLD,))] for text in wrap(ends_of(flow), width)]
    facts = (
        f"{flow['packets']} packets since {flow['first'][:19]}, state {event['state'] or '-'}, "
        f"nat {event['nat']}, {event['direction'] or 'unknown'} direction, "
        f"evidence {event['evidence']}; {reasons_text(flow)}"
    )
    shown += [[Piece(text)] for text in wrap(facts, width)]
    for told in (cause_text(event), *hint_texts(flow["events"])):
        shown += [[Piece(text)] for text in wrap(told, width)]
    if flow["resets"]:
        text = f"{flow['resets']} RST answered a packet of this flow that had got through"
        shown += [[Piece(part, (Style.RED,))] for part in wrap(text, width)]
    judged = next((one for one in reversed(flow["events"]) if one.get("window")), None)
    if judged is not None:
        shown.append([])
        for text, broken in window_lines(judged, width):
            shown.append([Piece(text, (Style.YELLOW,) if broken else ())])
    shown.append([])
    for one in reversed(flow["events"]):
        style = (Style.RED,) if "caused_by" in one else ()
        shown += [[Piece(text, style)] for text in wrap(event_line(one), width)]
    return shown


def window_lines(fields: dict[str, Any], width: int) -> Iterator[tuple[str, bool]]:
    """Both windows, and the packet at each bound: lines, and whether a bound is broken there.

    Args:
        fields: The event of a packet, with its window, as in `dump`.
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
    said = (
        f"{bytes_of(check.room)} of room" if check.holds else f"broken by {bytes_of(-check.room)}"
    )
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
    assert point is not None  # noqa: S101 - the caller requests an existing point
    label = f"{point.name} = {point.seq}"
    return Mark(at=distance(point.seq, check.limit.seq), sign=sign, label=label)
