# SPDX-License-Identifier: MIT
"""The memory shared with the kernel half: requests put, answers taken.

The layout is that of `struct exchange` in `bpf/ct_lookup.bpf.c`. The call itself is handed in.
Answers are read by index: `struct` would make a tuple of 33 and box every number in it, which
compiled costs an eighth of all that a packet costs us.
"""

import errno
import mmap
import sys
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, final

from nfq_guard.flow import (
    PROTO_TCP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupFailed,
    LookupResult,
    Peer,
)
from nfq_guard.seqno import Seq

# Tuples that one run of the program can look up.
BATCH: Final = 64

# count, ticks a second, size of the kernel's lookup options.
HEADER: Final = Struct("=III")
_COUNT: Final = Struct("=I")
# Size of the tuple that follows, protocol, zone; then both addresses and both ports.
_REQUEST_IPV4: Final = Struct(">BBH4s4sHH24x").pack
_REQUEST_IPV6: Final = Struct(">BBH16s16sHH").pack
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
# A negative errno, 0 when the entry was found.
_ERROR: Final = 108

# Octets of a number in this machine's order, the lowest first: of 16 bits and of 32.
_LITTLE: Final = sys.byteorder == "little"
_H0: Final = 0 if _LITTLE else 1
_H1: Final = 1 - _H0
_W0: Final = 0 if _LITTLE else 3
_W1: Final = 1 if _LITTLE else 2
_W2: Final = 3 - _W1
_W3: Final = 3 - _W0
# Error numbers are read as the unsigned words that they are in two's complement.
_WORDS: Final = 1 << 32
_NO_ENTRY: Final = _WORDS - errno.ENOENT

_REQUESTS_AT: Final = HEADER.size
_REQUEST_SIZE: Final = 40
_ANSWERS_AT: Final = _REQUESTS_AT + BATCH * _REQUEST_SIZE
# Octets of the whole of it.
EXCHANGE_SIZE: Final = _ANSWERS_AT + BATCH * _ANSWER_SIZE


@final
class Exchange:
    """The memory, and the call that has the kernel answer what stands in it.

    Attributes:
        missing: How many of the last tuples were not found, or could not be looked up.
    """

    def __init__(self, memory: mmap.mmap, run: Callable[[], int]) -> None:
        """Ask through `memory`, `EXCHANGE_SIZE` octets.

        Args:
            memory: Shared with the program; a slice of it is bytes.
            run: Has the program answer; gives 0, or an error number, negative.
        """
        self.missing = 0
        self._memory = memory
        self._run = run
        self._count = -1

    def ask(self, tuples: Sequence[FlowTuple], zone: int) -> list[LookupResult]:
        """Look up at most `BATCH` tuples in a zone; one result each, in order.

        A snapshot holds the tuple that was asked for as it is; the kernel sends the other one.
        When the kernel does not run the program, for example for want of memory, every lookup
        has failed.
        """
        self._put(tuples, zone)
        code = self._run()
        if code < 0:
            self.missing = len(tuples)
            return [LookupFailed(-code)] * len(tuples)
        return self._take(tuples)

    def _put(self, tuples: Sequence[FlowTuple], zone: int) -> None:
        requests: list[bytes] = []
        for wanted in tuples:
            src = wanted.src
            if len(src) == 4:
                pack, size = _REQUEST_IPV4, _TUPLE_IPV4
            else:
                pack, size = _REQUEST_IPV6, _TUPLE_IPV6
            requests.append(
                pack(size, wanted.proto, zone, src, wanted.dst, wanted.sport, wanted.dport)
            )
        count = len(requests)
        self._memory[_REQUESTS_AT : _REQUESTS_AT + count * _REQUEST_SIZE] = b"".join(requests)
        if count != self._count:
            self._memory[: _COUNT.size] = _COUNT.pack(count)
            self._count = count

    def _take(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        results: list[LookupResult] = []
        answers: bytes = self._memory[_ANSWERS_AT : _ANSWERS_AT + len(tuples) * _ANSWER_SIZE]
        missing = 0
        at = 0
        for wanted in tuples:
            if answers[at]:
                results.append(_answer(answers, at, wanted))
            else:
                code = _word(answers, at + _ERROR)
                results.append(None if code == _NO_ENTRY else LookupFailed(_WORDS - code))
                missing += 1
            at += _ANSWER_SIZE
        self.missing = missing
        return results


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
