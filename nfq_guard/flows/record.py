# SPDX-License-Identifier: MIT
"""The memory shared with the kernel half: requests packed, answers read.

The layout is that of `struct exchange` in `bpf/ct_lookup.bpf.c`. Nothing here calls the kernel.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

from nfq_guard.flow import PROTO_TCP, Evidence, FlowSnapshot, FlowTuple, Peer

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
# found dir state last_dir last_index last_wscale last_flags retrans | zone last_win | status mark
# timeout last_seq last_ack last_end | td_end td_maxend td_maxwin td_maxack, twice | td_scale twice,
# flags twice | sport dport src dst | error
_ANSWER_IPV4: Final = Struct("=8B2H6I8I4B2H4s12x4s12xi")
_ANSWER_IPV6: Final = Struct("=8B2H6I8I4B2H16s16si")
_ERROR: Final = Struct("=i")

_REQUESTS_AT: Final = HEADER.size
_REQUEST_SIZE: Final = _REQUEST_IPV6.size
_ANSWERS_AT: Final = _REQUESTS_AT + BATCH * _REQUEST_SIZE
_ANSWER_SIZE: Final = _ANSWER_IPV6.size
_ERROR_IN_ANSWER: Final = _ANSWER_SIZE - _ERROR.size
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
    at = _ANSWERS_AT
    read_ipv4 = _ANSWER_IPV4.unpack_from
    read_ipv6 = _ANSWER_IPV6.unpack_from
    for wanted in tuples:
        if not memory[at]:
            found.append(None)
            at += _ANSWER_SIZE
            continue
        (
            _, direction, state, last_dir, last_index, last_wscale, last_flags, retrans,
            zone, last_win, status, mark, timeout_s, last_seq, last_ack, last_end,
            end0, maxend0, maxwin0, maxack0, end1, maxend1, maxwin1, maxack1,
            scale0, scale1, flags0, flags1, sport, dport, src, dst, _,
        ) = read_ipv4(memory, at) if len(wanted.src) == 4 else read_ipv6(memory, at)  # fmt: skip
        at += _ANSWER_SIZE
        other = FlowTuple(wanted.proto, src, dst, sport, dport)
        original, reply = (other, wanted) if direction else (wanted, other)
        if wanted.proto == PROTO_TCP:
            found.append(
                FlowSnapshot(
                    Evidence.BPF, direction, original, reply, status, mark, zone, timeout_s, state,
                    (
                        Peer(end0, maxend0, maxwin0, maxack0, scale0, flags0),
                        Peer(end1, maxend1, maxwin1, maxack1, scale1, flags1),
                    ),
                    last_dir, last_index, last_seq, last_ack, last_end, last_win, last_wscale,
                    last_flags, retrans,
                )
            )  # fmt: skip
        else:
            found.append(
                FlowSnapshot(
                    Evidence.BPF, direction, original, reply, status, mark, zone, timeout_s, 0, None
                )
            )
    return found


def error_of(memory: memoryview, index: int) -> int:
    """The kernel's error number for the request at `index`, negative; 0 when it was found."""
    (code,) = _ERROR.unpack_from(memory, _ANSWERS_AT + index * _ANSWER_SIZE + _ERROR_IN_ANSWER)
    return int(code)
