# SPDX-License-Identifier: MIT
"""The flows and their events as the data that the page's script reads.

Rows are lists, and texts that repeat are numbers into one list of words, so that 100,000 events
open within a moment. `page.js` names the columns.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, final

from nfq_guard.conntrack.bounds import BoundCheck, Point
from nfq_guard.glossary import BOUND_WORDS
from nfq_guard.names import endpoint, visible
from nfq_guard.report.summary import FlowName, FlowSummary, KeptEvent, fate_of, furthest_of
from nfq_guard.seqno import distance
from nfq_guard.telemetry.reader import time_of


@final
class _Words:
    """Numbers for texts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int:
        """The number of a text; None counts as empty."""
        return self._numbers.setdefault(visible(text or ""), len(self._numbers))

    def all(self) -> list[str]:
        """The texts, by their numbers."""
        return list(self._numbers)


def flow_data(flows: Sequence[tuple[FlowName, FlowSummary]], *, days: bool) -> dict[str, Any]:
    """The data of the page's script.

    Args:
        flows: The flows.
        days: Whether times need their date.
    """
    words = _Words()
    rows = [_flow(words, name, flow) for name, flow in flows]
    return {
        "days": days,
        "bounds": {
            str(bound): [word.numeral, word.question] for bound, word in BOUND_WORDS.items()
        },
        "flows": rows,
        "words": words.all(),
    }


def _flow(words: _Words, name: FlowName, flow: FlowSummary) -> list[Any]:
    proto, one, other = name
    counts = flow.counts
    return [
        words.number(proto),
        one,
        other,
        flow.service,
        counts.packets,
        counts.fates,
        counts.resets,
        [[words.number(reason), packets] for reason, packets in counts.reasons.most_common()],
        words.number(flow.nat),
        words.number(flow.state),
        flow.furthest,
        _ms(counts.first),
        _ms(counts.last),
        flow.left_out,
        [_event(words, one, kept) for kept in flow.events],
    ]


def _ms(when: datetime | None) -> int:
    return 0 if when is None else round(when.timestamp() * 1000)


def _event(words: _Words, one: str, kept: KeptEvent) -> list[Any]:
    read = kept.read
    event = read.event
    when = _ms(read.when)
    cause = event.caused_by
    return [
        when,
        when - _ms(read.first),
        event.count,
        fate_of(event),
        0 if endpoint(event.src, event.sport) == one else 1,
        words.number(event.tcp_flags),
        event.seq,
        event.ack,
        event.payload,
        words.number(event.reason),
        words.number(event.rule),
        words.number(event.state),
        furthest_of(event),
        [_bound(words, check) for check in kept.bounds] or 0,
        0 if cause is None else [_ms(time_of(cause.timestamp)), words.number(cause.reason)],
    ]


def _bound(words: _Words, check: BoundCheck) -> list[Any]:
    """A bound with the places of its numbers, in bytes from the limit."""
    limit = check.limit.seq
    other = check.other
    span = check.span
    return [
        words.number(check.bound),
        check.room,
        _point(check.actual),
        _point(check.limit),
        check.upper,
        distance(check.actual.seq, limit),
        "" if other is None else _point(other),
        None if other is None else distance(other.seq, limit),
        None if span is None else [distance(at, limit) for at in span],
    ]


def _point(point: Point) -> str:
    return f"{point.name} = {point.seq}"
