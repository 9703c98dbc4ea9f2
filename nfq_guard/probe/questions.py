# SPDX-License-Identifier: MIT
"""Flows that distinguish the generations of conntrack, and the result under each generation.

An answer is one character a segment, `x` for INVALID and `.` for any other ctstate, and after a
blank the timeout of the flow in seconds where the generations differ in that.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from nfq_guard.conntrack.kernel_rules import KERNELS
from nfq_guard.wire.packet import ACK, FIN, PSH, RST, SYN

_WINDOW: Final = 1000


class ProbeSegment(NamedTuple):
    """One segment of a probe.

    Attributes:
        reply: Whether it is sent by the answering side.
        flags: TCP flags.
        seq: Sequence number, counted from the sender's first one.
        ack: Acknowledgement, counted from the other side's first one; None without.
        length: Bytes of data.
        window: Window field.
        options: TCP options, a multiple of four bytes.
    """

    reply: bool
    flags: int
    seq: int
    ack: int | None = None
    length: int = 0
    window: int = _WINDOW
    options: bytes = b""


class Question(NamedTuple):
    """A flow, and the answer of each generation.

    Attributes:
        field: The field of `KernelRules` that it determines; empty for a check of the probe itself.
        differs: The behaviour as text, for a kernel that follows no known generation.
        segments: The segments to send.
        answers: By the name of the generation.
        without: The answer of rules without `field`, if every generation gives another answer.
        first: The first sequence numbers of both sides.
        timed: Whether the timeout is part of the answer.
    """

    field: str
    differs: str
    segments: tuple[ProbeSegment, ...]
    answers: Mapping[str, str]
    first: tuple[int, int] = (1_000_000, 5_000_000)
    timed: bool = False
    without: str = ""


def _from_client(flags: int, seq: int, ack: int | None = None, length: int = 0) -> ProbeSegment:
    return ProbeSegment(False, flags, seq, ack, length)  # noqa: FBT003 - a field of the tuple


def _from_server(flags: int, seq: int, ack: int | None = None, length: int = 0) -> ProbeSegment:
    return ProbeSegment(True, flags, seq, ack, length)  # noqa: FBT003 - a field of the tuple


_MSS: Final = bytes((2, 4, 5, 180))
_SCALED: Final = _MSS + bytes((1, 3, 3, 7))
_SYN: Final = _from_client(SYN, 0)
_HALF_OPEN: Final = (_SYN, _from_server(SYN | ACK, 0, 1))
_OPEN: Final = (*_HALF_OPEN, _from_client(ACK, 1, 1), _from_server(ACK, 1, 1))

QUESTIONS: Final = (
    Question(
        field="",
        differs="an acknowledgement of data that was never sent",
        segments=(*_OPEN, _from_server(ACK, 1, 2)),
        answers=dict.fromkeys(KERNELS, "....x"),
    ),
    Question(
        field="old_segments_pass",
        differs="a late retransmission",
        segments=(
            *_OPEN,
            _from_client(PSH | ACK, 1, 1, 1000),
            _from_server(ACK, 1, 1001),
            _from_client(PSH | ACK, 1001, 1, 1000),
            _from_server(ACK, 1, 2001),
            _from_client(PSH | ACK, 2001, 1, 1000),
            _from_server(ACK, 1, 3001),
            _from_client(PSH | ACK, 1, 1, 500),
        ),
        answers={
            "5.10": "..........x",
            "5.14": "..........x",
            "5.15": "..........x",
            "5.18": "..........x",
            "6.1": "...........",
            "6.12": "...........",
        },
    ),
    Question(
        field="overshoot_moves_end",
        differs="an acknowledgement of data just above the window",
        segments=(*_OPEN, _from_client(PSH | ACK, 1002, 1, 498), _from_server(ACK, 1, 1500)),
        answers={
            "5.10": "....xx",
            "5.14": "....xx",
            "5.15": "....x.",
            "5.18": "....x.",
            "6.1": "......",
            "6.12": "......",
        },
    ),
    Question(
        field="overshoot_moves_liberal",
        differs="the timeout after data just above the window of a flow picked up in the middle",
        timed=True,
        segments=(
            _from_client(ACK, 1, 1),
            _from_server(ACK, 1, 1),
            _from_client(ACK, 1, 1),
            _from_client(PSH | ACK, 1002, 1, 498),
        ),
        answers={
            "5.10": ".... 432000",
            "5.14": ".... 432000",
            "5.15": ".... 432000",
            "5.18": ".... 432000",
            "6.1": ".... 300",
            "6.12": ".... 300",
        },
    ),
    Question(
        field="closing_takes_any_rst",
        differs="an RST outside the window of a flow that is closing",
        segments=(*_OPEN, _from_client(FIN | ACK, 1, 1), _from_server(RST, 500_000)),
        answers={
            "5.10": ".....x",
            "5.14": "......",
            "5.15": "......",
            "5.18": "......",
            "6.1": "......",
            "6.12": "......",
        },
    ),
    Question(
        field="ignores_invalid_rst",
        differs="an RST with sequence number 0 in a half-open flow",
        # The answering side's numbers pass 0 at its byte 16.
        first=(1_000_000, 0xFFFFFFF0),
        segments=(
            *_HALF_OPEN,
            _from_server(PSH | ACK, 1, 1, 100),
            _from_client(SYN | ACK, 0, 101),
            _from_server(RST | ACK, 16, 1),
        ),
        answers={
            "5.10": "....x",
            "5.14": ".....",
            "5.15": ".....",
            "5.18": ".....",
            "6.1": ".....",
            "6.12": ".....",
        },
    ),
    Question(
        field="rst_after_syn_checked",
        differs="an RST that answers a second SYN",
        segments=(*_OPEN, _from_client(SYN, 90_000), _from_server(RST | ACK, 0, 90_001)),
        answers={
            "5.10": ".....x",
            "5.14": "......",
            "5.15": "......",
            "5.18": "......",
            "6.1": "......",
            "6.12": "......",
        },
    ),
    Question(
        field="rst_answers_own_syn",
        differs="an RST that follows a SYN of its own side",
        segments=(_SYN, _from_server(SYN, 0), _from_server(RST, 500_000)),
        answers={
            "5.10": "..x",
            "5.14": "...",
            "5.15": "..x",
            "5.18": "...",
            "6.1": "..x",
            "6.12": "..x",
        },
    ),
    Question(
        field="reinit_by_any_segment",
        differs="data far above the window of a half-open flow",
        segments=(*_HALF_OPEN, _from_server(PSH | ACK, 5000, 1, 100)),
        answers={
            "5.10": "...",
            "5.14": "...",
            "5.15": "...",
            "5.18": "..x",
            "6.1": "..x",
            "6.12": "..x",
        },
    ),
    Question(
        field="any_syn_unscales",
        differs="data far above the window after a second SYN without window scaling",
        segments=(
            _SYN._replace(options=_SCALED),
            _from_server(SYN | ACK, 0, 1)._replace(options=_SCALED),
            _from_client(SYN | ACK, 1, 1)._replace(options=_MSS),
            _from_server(ACK, 1, 2),
            _from_client(PSH | ACK, 50_000, 1, 100),
        ),
        # If any segment re-initialises, the second SYN does not.
        answers={
            "5.10": ".....",
            "5.14": ".....",
            "5.15": ".....",
            "5.18": "....x",
            "6.1": ".....",
            "6.12": ".....",
        },
    ),
    Question(
        field="rst_after_challenge_ack",
        differs="an RST that answers a challenge ACK",
        segments=(_SYN, _from_server(ACK, 700, 9000), _from_client(RST, 9000)),
        answers={
            "5.10": "...",
            "5.14": "...",
            "5.15": "...",
            "5.18": "...",
            "6.1": "...",
            "6.12": "...",
        },
        without="..x",
    ),
    Question(
        field="invalid_close_shortens",
        differs="the timeout after INVALID segments of both sides that close",
        timed=True,
        segments=(*_OPEN, _from_client(FIN | ACK, 900_000, 1), _from_server(RST | ACK, 900_000, 1)),
        answers={
            "5.10": "....xx 432000",
            "5.14": "....xx 432000",
            "5.15": "....xx 432000",
            "5.18": "....xx 432000",
            "6.1": "....xx 300",
            "6.12": "....xx 300",
        },
    ),
    Question(
        field="inexact_rst_spares_timeout",
        differs="the timeout after an inexact RST in the window",
        timed=True,
        segments=(
            *_OPEN,
            _from_client(PSH | ACK, 1, 1, 100),
            _from_server(ACK, 1, 101),
            _from_client(RST | ACK, 150, 1),
        ),
        answers={
            "5.10": "....... 10",
            "5.14": "....... 10",
            "5.15": "....... 10",
            "5.18": "....... 10",
            "6.1": "....... 10",
            "6.12": "....... 300",
        },
    ),
)
