# SPDX-License-Identifier: MIT
"""The memory shared with the kernel half: requests packed, answers read.

The layout is that of `struct exchange` in `bpf/ct_lookup.bpf.c`. Nothing here calls the kernel.
Answers are read by index: `struct` would make a tuple of 33 and box every number in it, which
compiled costs an eighth of all that a packet costs us.
"""

import sys
from collections.abc import Sequence
from struct import Struct
from typing import Final

from nfq_guard.flow import PROTO_TCP, Evidence, FlowSnapshot, FlowTuple, Peer
from nfq_guard.seqno import Seq

# Tuples that one run of the program can look up.
BATCH: Final = 64

# count, ticks a second, size of the kernel's lookup options, how many were found.
HEADER: Final = Struct("=IIII")
_COUNT: Final = Struct("=I")
_FOUND_AT: Final = 12
# Size of the tuple that follows, protocol, zone; then both addresses and both ports.
_REQUEST_IPV4: Final = Struct(">BBH4s4sHH24x")
_REQUEST_IPV6: Final = Struct(">BBH16s16sHH")
_TUPLE_IPV4: Final = 12
_TUPLE_IPV6: Final = 36
_ANSWER_SIZE: Final = 112
# In an answer, in host order. Octets: whether found, direction, state; then of the last packet that
# conntrack recorded its direction, class, window shift and flags, and retransmissions of it.
_ZONE: Final = 8
_LAST_WIN: Final = 10
_STATUS: Final = 12
_MARK: Final = 16
_TIMEOUT: Final = 20
_LAST_SEQ: Final = 24
_LAST_ACK: Final = 28
_LAST_END: Final = 32
# td_end, td_maxend, td_maxwin, td_maxack, once for each peer; then both td_scale, both flags.
_PEERS_AT: Final = 36
_PEER_SIZE: Final = 16
_SCALES: Final = 68
_FLAGS: Final = 70
_SPORT: Final = 72
_DPORT: Final = 74
_SRC: Final = 76
_DST: Final = 92
_ERROR_IN_ANSWER: Final = 108
_ERROR: Final = Struct("=i")

# Octets of a number in this machine's order, the lowest first: of 16 bits and of 32.
_LITTLE: Final = sys.byteorder == "little"
_H0: Final = 0 if _LITTLE else 1
_H1: Final = 1 - _H0
_W0: Final = 0 if _LITTLE else 3
_W1: Final = 1 if _LITTLE else 2
_W2: Final = 3 - _W1
_W3: Final = 3 - _W0

_REQUESTS_AT: Final = HEADER.size
_REQUEST_SIZE: Final = _REQUEST_IPV6.size
_ANSWERS_AT: Final = _REQUESTS_AT + BATCH * _REQUEST_SIZE
# Octets of the whole of it.
EXCHANGE_SIZE: Final = _ANSWERS_AT + BATCH * _ANSWER_SIZE


def put_requests(memory: memoryview, tuples: Sequence[FlowTuple], zone: int) -> None:
    """Write at most `BATCH` tuples, to be looked up in `zone`, and their count."""
    at = _REQUESTS_AT
    pack_ipv4 = _REQUEST_IPV4.pack_into
    pack_ipv6 = _REQUEST_IPV6.pack_into
    for wanted in tuples:
        src = wanted.src
        if len(src) == 4:
            pack_ipv4(
                memory, at, _TUPLE_IPV4, wanted.proto, zone, src, wanted.dst, wanted.sport,
                wanted.dport,
            )  # fmt: skip
        else:
            pack_ipv6(
                memory, at, _TUPLE_IPV6, wanted.proto, zone, src, wanted.dst, wanted.sport,
                wanted.dport,
            )  # fmt: skip
        at += _REQUEST_SIZE
    _COUNT.pack_into(memory, 0, len(tuples))


def found_count(memory: memoryview) -> int:
    """How many of the last requests were found."""
    (count,) = _COUNT.unpack_from(memory, _FOUND_AT)
    return int(count)


def take_answers(memory: memoryview, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
    """Read the answers to `tuples`, as `put_requests` wrote them; None where nothing was found.

    The tuple that was asked for stands in its snapshot as it is; the kernel sends the other one.
    """
    found: list[FlowSnapshot | None] = []
    answers = bytes(memory[_ANSWERS_AT : _ANSWERS_AT + len(tuples) * _ANSWER_SIZE])
    at = 0
    for wanted in tuples:
        found.append(_answer(answers, at, wanted) if answers[at] else None)
        at += _ANSWER_SIZE
    return found


def _answer(answers: bytes, at: int, wanted: FlowTuple) -> FlowSnapshot:
    """The answer at `at`, which is about `wanted`."""
    direction = answers[at + 1]
    size = len(wanted.src)
    src = answers[at + _SRC : at + _SRC + size]
    dst = answers[at + _DST : at + _DST + size]
    other = FlowTuple(
        wanted.proto, src, dst, _half(answers, at + _SPORT), _half(answers, at + _DPORT)
    )
    original, reply = (other, wanted) if direction else (wanted, other)
    status = _word(answers, at + _STATUS)
    mark = _word(answers, at + _MARK)
    zone = _half(answers, at + _ZONE)
    timeout_s = _word(answers, at + _TIMEOUT)
    if wanted.proto != PROTO_TCP:
        return FlowSnapshot(
            Evidence.BPF, direction, original, reply, status, mark, zone, timeout_s, 0, None
        )
    return FlowSnapshot(
        Evidence.BPF,
        direction,
        original,
        reply,
        status,
        mark,
        zone,
        timeout_s,
        answers[at + 2],
        (_peer(answers, at, 0), _peer(answers, at, 1)),
        answers[at + 3],
        answers[at + 4],
        Seq(_word(answers, at + _LAST_SEQ)),
        Seq(_word(answers, at + _LAST_ACK)),
        Seq(_word(answers, at + _LAST_END)),
        _half(answers, at + _LAST_WIN),
        answers[at + 5],
        answers[at + 6],
        answers[at + 7],
    )


def _peer(answers: bytes, at: int, which: int) -> Peer:
    first = at + _PEERS_AT + which * _PEER_SIZE
    return Peer(
        Seq(_word(answers, first)),
        Seq(_word(answers, first + 4)),
        _word(answers, first + 8),
        Seq(_word(answers, first + 12)),
        answers[at + _SCALES + which],
        answers[at + _FLAGS + which],
    )


def _word(octets: bytes, at: int) -> int:
    """32 bits in this machine's order."""
    return (
        octets[at + _W0] | octets[at + _W1] << 8 | octets[at + _W2] << 16 | octets[at + _W3] << 24
    )


def _half(octets: bytes, at: int) -> int:
    """16 bits in this machine's order."""
    return octets[at + _H0] | octets[at + _H1] << 8


def error_of(memory: memoryview, index: int) -> int:
    """The kernel's error number for the request at `index`, negative; 0 when it was found."""
    (code,) = _ERROR.unpack_from(memory, _ANSWERS_AT + index * _ANSWER_SIZE + _ERROR_IN_ANSWER)
    return int(code)
