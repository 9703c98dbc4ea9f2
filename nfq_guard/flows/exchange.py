# SPDX-License-Identifier: MIT
"""The memory shared with the BPF program: writes requests, reads responses.

The layout is that of `struct exchange` in bpf/ct_lookup.bpf.c. The caller supplies the function
that runs the program. Responses are read by index: `struct` would create a tuple of 33 and box
every number, which in compiled code costs an eighth of the time of a packet.
"""

import errno
import mmap
import sys
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, final

from nfq_guard.flow import (
    IPS_SEQ_ADJUST,
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

# The layout of `struct exchange` and its parts, in bytes: STRUCT_MEMBER is the offset of a member.
# A test compares it with the type information of the object file.
EXCHANGE_REQUESTS: Final = 12
EXCHANGE_ANSWERS: Final = EXCHANGE_REQUESTS + BATCH * 40
EXCHANGE_SIZE: Final = EXCHANGE_ANSWERS + BATCH * 112
REQUEST_SIZE: Final = 40
ANSWER_SIZE: Final = 112
ANSWER_FOUND: Final = 0
ANSWER_DIR: Final = 1
ANSWER_STATE: Final = 2
ANSWER_LAST_DIR: Final = 3
ANSWER_LAST_INDEX: Final = 4
ANSWER_LAST_WSCALE: Final = 5
ANSWER_LAST_FLAGS: Final = 6
ANSWER_RETRANS: Final = 7
ANSWER_ZONE: Final = 8
ANSWER_LAST_WIN: Final = 10
ANSWER_STATUS: Final = 12
ANSWER_MARK: Final = 16
ANSWER_TIMEOUT: Final = 20
ANSWER_LAST_SEQ: Final = 24
ANSWER_LAST_ACK: Final = 28
ANSWER_LAST_END: Final = 32
ANSWER_WINDOW: Final = 36
ANSWER_TD_SCALE: Final = 68
ANSWER_FLAGS: Final = 70
ANSWER_SPORT: Final = 72
ANSWER_DPORT: Final = 74
ANSWER_SRC: Final = 76
ANSWER_DST: Final = 92
ANSWER_ERROR: Final = 108
WINDOW_SIZE: Final = 16
WINDOW_TD_END: Final = 0
WINDOW_TD_MAXEND: Final = 4
WINDOW_TD_MAXWIN: Final = 8
WINDOW_TD_MAXACK: Final = 12

# The members of `struct exchange` before the requests: count, hz, options_size.
HEADER: Final = Struct("=III")
_COUNT: Final = Struct("=I")
# `struct request`: tuple_size, proto, zone; then both addresses and both ports.
REQUEST_IPV4: Final = Struct(">BBH4s4sHH24x")
REQUEST_IPV6: Final = Struct(">BBH16s16sHH")
_PACK_IPV4: Final = REQUEST_IPV4.pack
_PACK_IPV6: Final = REQUEST_IPV6.pack
_TUPLE_IPV4: Final = 12
_TUPLE_IPV6: Final = 36

# Offsets of the bytes of 16-bit and 32-bit numbers in this machine's byte order, lowest first.
_LITTLE: Final = sys.byteorder == "little"
_H0: Final = 0 if _LITTLE else 1
_H1: Final = 1 - _H0
_W0: Final = 0 if _LITTLE else 3
_W1: Final = 1 if _LITTLE else 2
_W2: Final = 3 - _W1
_W3: Final = 3 - _W0
# An error is a negative errno, read as an unsigned word.
_WORDS: Final = 1 << 32
_NO_ENTRY: Final = _WORDS - errno.ENOENT


@final
class Exchange:
    """Looks up tuples, one batch for each run of the program.

    Attributes:
        missing: Number of tuples of the last call that were not found or could not be looked up.
        shifted: Number of flows of the last call whose sequence numbers conntrack shifts.
    """

    def __init__(self, memory: mmap.mmap, run: Callable[[], int]) -> None:
        """Use `memory`, which the program shares.

        Args:
            memory: `EXCHANGE_SIZE` bytes.
            run: Runs the program; returns 0, or a negative errno.
        """
        self.missing = 0
        self.shifted = 0
        self._memory = memory
        self._run = run
        self._count = -1

    def ask(self, tuples: Sequence[FlowTuple], zone: int) -> list[LookupResult]:
        """Look up at most `BATCH` tuples in a zone; one result each, in order.

        A snapshot contains the requested tuple itself; the program returns the other one. If the
        kernel does not run the program, for example for lack of memory, every lookup has failed.
        """
        self._put(tuples, zone)
        code = self._run()
        if code < 0:
            self.missing = len(tuples)
            self.shifted = 0
            return [LookupFailed(-code)] * len(tuples)
        return self._take(tuples)

    def _put(self, tuples: Sequence[FlowTuple], zone: int) -> None:
        requests: list[bytes] = []
        for wanted in tuples:
            src = wanted.src
            if len(src) == 4:
                pack, size = _PACK_IPV4, _TUPLE_IPV4
            else:
                pack, size = _PACK_IPV6, _TUPLE_IPV6
            requests.append(
                pack(size, wanted.proto, zone, src, wanted.dst, wanted.sport, wanted.dport)
            )
        count = len(requests)
        self._memory[EXCHANGE_REQUESTS : EXCHANGE_REQUESTS + count * REQUEST_SIZE] = b"".join(
            requests
        )
        if count != self._count:
            self._memory[: _COUNT.size] = _COUNT.pack(count)
            self._count = count

    def _take(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        results: list[LookupResult] = []
        answers: bytes = self._memory[
            EXCHANGE_ANSWERS : EXCHANGE_ANSWERS + len(tuples) * ANSWER_SIZE
        ]
        missing = shifted = 0
        at = 0
        for wanted in tuples:
            if answers[at + ANSWER_FOUND]:
                snapshot = _answer(answers, at, wanted)
                if snapshot.status & IPS_SEQ_ADJUST:
                    shifted += 1
                results.append(snapshot)
            else:
                code = _word(answers, at + ANSWER_ERROR)
                results.append(None if code == _NO_ENTRY else LookupFailed(_WORDS - code))
                missing += 1
            at += ANSWER_SIZE
        self.missing = missing
        self.shifted = shifted
        return results


def _answer(answers: bytes, at: int, wanted: FlowTuple) -> FlowSnapshot:
    """The result at `at`, found for `wanted`."""
    direction = answers[at + ANSWER_DIR]
    size = len(wanted.src)
    src = answers[at + ANSWER_SRC : at + ANSWER_SRC + size]
    dst = answers[at + ANSWER_DST : at + ANSWER_DST + size]
    other = FlowTuple(
        wanted.proto, src, dst, _half(answers, at + ANSWER_SPORT), _half(answers, at + ANSWER_DPORT)
    )
    original, reply = (other, wanted) if direction else (wanted, other)
    status = _word(answers, at + ANSWER_STATUS)
    mark = _word(answers, at + ANSWER_MARK)
    zone = _half(answers, at + ANSWER_ZONE)
    timeout_s = _word(answers, at + ANSWER_TIMEOUT)
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
        answers[at + ANSWER_STATE],
        (_peer(answers, at, 0), _peer(answers, at, 1)),
        answers[at + ANSWER_LAST_DIR],
        answers[at + ANSWER_LAST_INDEX],
        Seq(_word(answers, at + ANSWER_LAST_SEQ)),
        Seq(_word(answers, at + ANSWER_LAST_ACK)),
        Seq(_word(answers, at + ANSWER_LAST_END)),
        _half(answers, at + ANSWER_LAST_WIN),
        answers[at + ANSWER_LAST_WSCALE],
        answers[at + ANSWER_LAST_FLAGS],
        answers[at + ANSWER_RETRANS],
    )


def _peer(answers: bytes, at: int, which: int) -> Peer:
    first = at + ANSWER_WINDOW + which * WINDOW_SIZE
    return Peer(
        Seq(_word(answers, first + WINDOW_TD_END)),
        Seq(_word(answers, first + WINDOW_TD_MAXEND)),
        _word(answers, first + WINDOW_TD_MAXWIN),
        Seq(_word(answers, first + WINDOW_TD_MAXACK)),
        answers[at + ANSWER_TD_SCALE + which],
        answers[at + ANSWER_FLAGS + which],
    )


def _word(octets: bytes, at: int) -> int:
    """32 bits in this machine's order."""
    return (
        octets[at + _W0] | octets[at + _W1] << 8 | octets[at + _W2] << 16 | octets[at + _W3] << 24
    )


def _half(octets: bytes, at: int) -> int:
    """16 bits in this machine's order."""
    return octets[at + _H0] | octets[at + _H1] << 8
