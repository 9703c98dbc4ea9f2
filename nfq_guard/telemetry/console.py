# SPDX-License-Identifier: MIT
"""Events for people: one aligned line each, coloured on a terminal that takes colours."""

import os
from typing import Final, final

from structlog.typing import EventDict, WrappedLogger

from nfq_guard.names import endpoint

_RESET: Final = "\x1b[0m"
_COLOURS: Final = {
    "drop": "\x1b[31m",
    "log": "\x1b[33m",
    "allow": "\x1b[32m",
    "error": "\x1b[31m",
    "warning": "\x1b[33m",
    "info": "\x1b[36m",
}


@final
class Console:
    """Aligned lines for people."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> bytes:
        """Render one event."""
        line = self._packet(event) if event["event"] == "packet_judged" else self._note(event)
        return line.encode("utf-8", "replace")

    def _packet(self, event: EventDict) -> str:
        action = str(event["action"])
        would = "" if event["would"] == event["verdict"] else "would "
        breach = event["breach"]
        proof = ""
        if breach is not None:
            proof = f"  {breach['actual']} is {breach['distance']} beyond {breach['limit']}"
        flags = f" {event['tcp_flags']}" if event["tcp_flags"] is not None else ""
        state = f" {event['state']}" if event["state"] else ""
        count = f"  x{event['count']}" if "count" in event else ""
        source = endpoint(event["src"], event["sport"])
        destination = endpoint(event["dst"], event["dport"])
        way = f"{event['in'] or '-'}>{event['out'] or '-'}"
        return (
            f"{event['timestamp'][11:23]} {self._paint(f'{would + action:<10}', action)} "
            f"{event['reason']:<14} {source:>21} > {destination:<21} "
            f"{event['proto']}{flags:<4} nat={event['nat']}{state} "
            f"{event['hook']} {way} rule={event['rule']}{proof}{count}"
        )

    def _note(self, event: EventDict) -> str:
        rest = " ".join(
            f"{key}={value}"
            for key, value in event.items()
            if key not in {"event", "timestamp", "level"}
        )
        level = str(event["level"])
        return (
            f"{event['timestamp'][11:23]} {self._paint(f'{level:<10}', level)} "
            f"{event['event']:<14} {rest}"
        )

    def _paint(self, text: str, kind: str) -> str:
        colour = _COLOURS.get(kind, "") if self._colour else ""
        return f"{colour}{text}{_RESET}" if colour else text


def wants_console(log_format: str, descriptor: int) -> bool:
    """Whether lines for people are wanted: asked for, or by itself on a terminal."""
    return log_format == "console" or (log_format == "auto" and os.isatty(descriptor))


def wants_colour(descriptor: int) -> bool:
    """Whether that terminal takes colours and nobody said NO_COLOR (no-color.org)."""
    return (
        os.isatty(descriptor)
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
