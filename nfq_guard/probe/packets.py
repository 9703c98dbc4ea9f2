# SPDX-License-Identifier: MIT
"""The segments of a probe as IPv4 packets; each question has its own flow."""

import struct
from typing import Final

from nfq_guard.flow import PROTO_TCP, PROTO_UDP, FlowTuple
from nfq_guard.probe.questions import ProbeSegment
from nfq_guard.wire.packet import ACK

IP_HEADER_LEN: Final = 20

_CLIENT: Final = bytes((192, 0, 2, 1))
_SERVER: Final = bytes((198, 51, 100, 1))
_FIRST_PORT: Final = 40_000
_SERVER_PORT: Final = 80
_TTL: Final = 64
_ONES: Final = 0xFFFF
_MASK: Final = 0xFFFFFFFF
# Offsets of the checksum in its header.
_IP_SUM: Final = 10
_TCP_SUM: Final = 16


def flow_of(index: int) -> FlowTuple:
    """The flow of question `index`, in its original direction."""
    return FlowTuple(PROTO_TCP, _CLIENT, _SERVER, _FIRST_PORT + index, _SERVER_PORT)


def packet_of(index: int, segment: ProbeSegment, first: tuple[int, int]) -> bytes:
    """One segment of question `index` as an IPv4 packet with correct checksums.

    Args:
        index: The place of the question.
        segment: The segment.
        first: The first sequence numbers, of the client and of the server.
    """
    mine, theirs = reversed(first) if segment.reply else first
    ends = (_CLIENT, _SERVER, _FIRST_PORT + index, _SERVER_PORT)
    src, dst, sport, dport = (ends[1], ends[0], ends[3], ends[2]) if segment.reply else ends
    ack = 0 if segment.ack is None else (theirs + segment.ack) & _MASK
    flags = segment.flags | (0 if segment.ack is None else ACK)
    header = struct.pack(
        "!HHIIBBHHH", sport, dport, (mine + segment.seq) & _MASK, ack,
        (5 + len(segment.options) // 4) << 4, flags, segment.window, 0, 0,
    )  # fmt: skip
    body = header + segment.options + bytes(segment.length)
    pseudo = src + dst + struct.pack("!HH", PROTO_TCP, len(body))
    return _ip(src, dst, PROTO_TCP, _with_sum(body, _TCP_SUM, pseudo))


def fence(number: int) -> bytes:
    """A datagram that every rule accepts: earlier packets have come out before it."""
    body = struct.pack("!HHHHI", _FIRST_PORT, _FIRST_PORT, 12, 0, number)
    return _ip(_CLIENT, _SERVER, PROTO_UDP, body)


def _ip(src: bytes, dst: bytes, proto: int, body: bytes) -> bytes:
    length = IP_HEADER_LEN + len(body)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, _TTL, proto, 0, src, dst)
    return _with_sum(head, _IP_SUM, b"") + body


def _with_sum(octets: bytes, at: int, pseudo: bytes) -> bytes:
    padded = pseudo + octets + bytes(len(octets) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > _ONES:
        total = (total & _ONES) + (total >> 16)
    return octets[:at] + struct.pack("!H", _ONES - total) + octets[at + 2 :]
