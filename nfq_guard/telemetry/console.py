# SPDX-License-Identifier: MIT
"""Renders events as aligned lines for people, coloured on a terminal."""

import os
from typing import TYPE_CHECKING, final

from nfq_guard.names import endpoint, visible
from nfq_guard.telemetry.events import (
    Event,
    PacketJudged,
    Totals,
    name_of,
    own_fields,
)
from nfq_guard.telemetry.palette import ACTION_STYLES, LEVEL_STYLES, Style, styled, takes_colour

if TYPE_CHECKING:  # commands that read events need no structlog, a quarter of their start
    from structlog.typing import EventDict, WrappedLogger


@final
class Console:
    """Renders one event as one line."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, _logger: "WrappedLogger", _name: str, event_dict: "EventDict") -> bytes:
        """Render one event (a structlog processor)."""
        event = event_dict["event"]
        packet = isinstance(event, PacketJudged)
        line = self._packet(event) if packet else self._note(event, event_dict["at"])
        return line.encode("utf-8", "replace")

    def _packet(self, event: PacketJudged) -> str:
        would = "" if event.would == event.verdict else "would "
        action = self._styled(f"{would + event.action:<10}", ACTION_STYLES[event.action])
        breach = event.breach
        proof = ""
        if breach is not None:
            proof = f"  {breach.actual} is {breach.distance} beyond {breach.limit}"
        flags = f" {event.tcp_flags}" if event.tcp_flags is not None else ""
        state = f" {event.state}" if event.state else ""
        count = f"  x{event.count}" if event.count > 1 else ""
        source = endpoint(event.src, event.sport)
        destination = endpoint(event.dst, event.dport)
        interfaces = f"{event.indev or '-'}>{event.outdev or '-'}"
        return f"{_moment(event.timestamp)} {action} " + visible(
            f"{event.reason:<14} {source:>21} > {destination:<21} "
            f"{event.proto}{flags:<4} nat={event.nat}{state} "
            f"{event.hook} {interfaces} rule={event.rule}{proof}{count}"
        )

    def _note(self, event: Event, at: str) -> str:
        totals = isinstance(event, Totals)
        fields = " ".join(
            f"{name}={_words(value)}"
            for name, value in own_fields(event).items()
            if value not in ([], {}) and not (totals and value == 0)
        )
        level = self._styled(f"{event.level:<10}", LEVEL_STYLES[event.level])
        return f"{_moment(at)} {level} {name_of(type(event)):<14} {fields}"

    def _styled(self, text: str, style: Style) -> str:
        return styled(text, style) if self._colour else text


def _moment(text: str) -> str:
    """Date and time of a timestamp, to the millisecond, in UTC."""
    return f"{text[:10]} {text[11:23]}"


def _words(value: object) -> str:
    """The text of a field's value: a list by its items, a table by its nonzero entries."""
    if isinstance(value, list):
        return visible("; ".join(map(str, value)))
    if isinstance(value, dict):
        counts = ", ".join(f"{name} {count}" for name, count in value.items() if count)
        return visible(counts) or "none"
    # A traceback keeps its lines.
    return "\n".join(map(visible, str(value).split("\n")))


def wants_console(log_format: str, descriptor: int) -> bool:
    """Whether the format `console` is set, or is `auto` and the output is a terminal."""
    return log_format == "console" or (log_format == "auto" and os.isatty(descriptor))


def wants_colour(descriptor: int) -> bool:
    """Whether lines written to that descriptor may be coloured."""
    return takes_colour(terminal=os.isatty(descriptor))
