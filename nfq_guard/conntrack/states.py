# SPDX-License-Identifier: MIT
"""The TCP state table of conntrack, as data (kernel.md 1.10)."""

from typing import Final

from nfq_guard.flow import TcpState
from nfq_guard.wire.packet import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG

# Classes of segment, by the kernel's numbers in `last_index`.
CLASS_SYN: Final = 0
CLASS_SYNACK: Final = 1
CLASS_FIN: Final = 2
CLASS_ACK: Final = 3
CLASS_RST: Final = 4
CLASS_NONE: Final = 5
CLASS_NAMES: Final = ("syn", "syn+ack", "fin", "ack", "rst", "none")

# Results of the table besides a `TcpState`.
MOVE_INVALID: Final = 10
MOVE_IGNORE: Final = 11

_SYMBOLS: Final = {
    "SS": int(TcpState.SYN_SENT),
    "SR": int(TcpState.SYN_RECV),
    "ES": int(TcpState.ESTABLISHED),
    "FW": int(TcpState.FIN_WAIT),
    "CW": int(TcpState.CLOSE_WAIT),
    "LA": int(TcpState.LAST_ACK),
    "TW": int(TcpState.TIME_WAIT),
    "CL": int(TcpState.CLOSE),
    "S2": int(TcpState.SYN_SENT2),
    "IV": MOVE_INVALID,
    "IG": MOVE_IGNORE,
}

# Columns: NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSE
# SYN_SENT2. Rows: the classes above, in their order.
_ORIGINAL: Final = (
    "SS SS IG IG IG IG IG SS SS S2",
    "IV IV SR IV IV IV IV IV IV SR",
    "IV IV FW FW LA LA LA TW CL IV",
    "ES IV ES ES CW CW TW TW CL IV",
    "IV CL CL CL CL CL CL CL CL CL",
    "IV IV IV IV IV IV IV IV IV IV",
)
_REPLY: Final = (
    "IV S2 IV IV IV IV IV SS IV S2",
    "IV SR IG IG IG IG IG IG IG SR",
    "IV IV FW FW LA LA LA TW CL IV",
    "IV IG SR ES CW CW TW TW CL IG",
    "IV CL CL CL CL CL CL CL CL CL",
    "IV IV IV IV IV IV IV IV IV IV",
)


def _rows(table: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_SYMBOLS[symbol] for symbol in row.split()) for row in table)


# MOVES[direction][class][state]: the next state, MOVE_INVALID or MOVE_IGNORE.
MOVES: Final = (_rows(_ORIGINAL), _rows(_REPLY))

_CONTROL: Final = 0xFF & ~(PSH | ECE | CWR)
# The combinations that pass, PSH, ECE and CWR aside (kernel.md 1.3).
_PASSING: Final = frozenset(
    {
        SYN,
        SYN | URG,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        FIN | ACK | URG,
        ACK,
        ACK | URG,
    }
)


def _class_of(flags: int) -> int:
    if flags & RST:
        return CLASS_RST
    if flags & SYN:
        return CLASS_SYNACK if flags & ACK else CLASS_SYN
    if flags & FIN:
        return CLASS_FIN
    return CLASS_ACK if flags & ACK else CLASS_NONE


# By the eight flag bits: the class of a segment, and whether conntrack accepts the combination.
SEGMENT_CLASS: Final = tuple(_class_of(flags) for flags in range(256))
FLAGS_PASS: Final = tuple(flags & _CONTROL in _PASSING for flags in range(256))
