# SPDX-License-Identifier: MIT
"""The SCTP state table of conntrack, as data (kernel.md 1.14)."""

from typing import Final

from nfq_guard.flow import SctpState
from nfq_guard.wire.sctp import (
    ABORT,
    COOKIE_ACK,
    COOKIE_ECHO,
    ERROR,
    HEARTBEAT,
    HEARTBEAT_ACK,
    INIT,
    INIT_ACK,
    SHUTDOWN,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
)

# Results of the table besides a `SctpState`.
MOVE_INVALID: Final = 10

_SYMBOLS: Final = {
    "NO": int(SctpState.NONE),
    "CL": int(SctpState.CLOSED),
    "CW": int(SctpState.COOKIE_WAIT),
    "CE": int(SctpState.COOKIE_ECHOED),
    "ES": int(SctpState.ESTABLISHED),
    "SS": int(SctpState.SHUTDOWN_SENT),
    "SR": int(SctpState.SHUTDOWN_RECD),
    "SA": int(SctpState.SHUTDOWN_ACK_SENT),
    "HS": int(SctpState.HEARTBEAT_SENT),
    "IV": MOVE_INVALID,
}

# Columns: NONE CLOSED COOKIE_WAIT COOKIE_ECHOED ESTABLISHED SHUTDOWN_SENT SHUTDOWN_RECD
# SHUTDOWN_ACK_SENT HEARTBEAT_SENT. Chunks of other types keep the state.
_ORIGINAL: Final = {
    INIT: "CL CL CW CE ES CL CL SA CW",
    INIT_ACK: "CL CL CW CE ES SS SR SA CL",
    HEARTBEAT: "HS CL CW CE ES SS SR SA HS",
    HEARTBEAT_ACK: "CL CL CW CE ES SS SR SA HS",
    ABORT: "CL CL CL CL CL CL CL CL CL",
    SHUTDOWN: "CL CL CW CE SS SS SR SA CL",
    SHUTDOWN_ACK: "SA CL CW CE ES SA SA SA SA",
    ERROR: "CL CL CW CE ES SS SR SA CL",
    COOKIE_ECHO: "CL CL CE CE ES SS SR SA CL",
    COOKIE_ACK: "CL CL CW ES ES SS SR SA CL",
    SHUTDOWN_COMPLETE: "CL CL CW CE ES SS SR CL CL",
}
_REPLY: Final = {
    INIT: "IV CL CW CE ES SS SR SA IV",
    INIT_ACK: "IV CW CW CE ES SS SR SA IV",
    HEARTBEAT: "IV CL CW CE ES SS SR SA HS",
    HEARTBEAT_ACK: "IV CL CW CE ES SS SR SA ES",
    ABORT: "IV CL CL CL CL CL CL CL IV",
    SHUTDOWN: "IV CL CW CE SR SS SR SA IV",
    SHUTDOWN_ACK: "IV CL CW CE ES SA SA SA IV",
    ERROR: "IV CL CW CL ES SS SR SA IV",
    COOKIE_ECHO: "IV CL CE CE ES SS SR SA IV",
    COOKIE_ACK: "IV CL CW ES ES SS SR SA IV",
    SHUTDOWN_COMPLETE: "IV CL CW CE ES SS SR CL IV",
}
_KEEPS: Final = "NO CL CW CE ES SS SR SA HS"

_NAMES: Final = {
    INIT: "init",
    INIT_ACK: "init-ack",
    HEARTBEAT: "heartbeat",
    HEARTBEAT_ACK: "heartbeat-ack",
    ABORT: "abort",
    SHUTDOWN: "shutdown",
    SHUTDOWN_ACK: "shutdown-ack",
    ERROR: "error",
    COOKIE_ECHO: "cookie-echo",
    COOKIE_ACK: "cookie-ack",
    SHUTDOWN_COMPLETE: "shutdown-complete",
    0: "data",
    3: "sack",
}


def _rows(table: dict[int, str]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(_SYMBOLS[symbol] for symbol in table.get(kind, _KEEPS).split()) for kind in range(256)
    )


# SCTP_MOVES[direction][type of chunk][state]: the next state, or MOVE_INVALID.
SCTP_MOVES: Final = (_rows(_ORIGINAL), _rows(_REPLY))
# By type of chunk: its name in texts.
CHUNK_NAMES: Final = tuple(_NAMES.get(kind, f"chunk {kind}") for kind in range(256))
