# SPDX-License-Identifier: MIT
"""A scripted ctnetlink: the connection, and its response messages."""

import struct
import sys
from collections.abc import Callable

from nfq_guard.flow import FlowTuple
from nfq_guard.netlink.messages import NLMSG_ERROR, attribute, message, messages, nested

WANTED = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 1000, 80)
ENTRY = 0x100


def tuple_part(kind: int, wanted: FlowTuple) -> bytes:
    return nested(
        kind,
        nested(1, attribute(1, wanted.src), attribute(2, wanted.dst)),
        nested(
            2,
            attribute(1, bytes((wanted.proto,))),
            attribute(2, wanted.sport.to_bytes(2, "big")),
            attribute(3, wanted.dport.to_bytes(2, "big")),
        ),
    )


def entry(sequence: int, more: bytes = b"") -> bytes:
    back = FlowTuple(6, WANTED.dst, WANTED.src, 80, 1000)
    return message(ENTRY, 0, sequence, 2, 0, tuple_part(1, WANTED) + tuple_part(2, back) + more)


def error(sequence: int, code: int) -> bytes:
    # An error has no family header: the errno is in its place.
    whole = bytearray(message(NLMSG_ERROR, 0, sequence, 0, 0, b""))
    whole[16:20] = struct.pack("=i", -code)
    return bytes(whole)


Answer = Callable[[int], bytes] | OSError


class FakeConnection:
    """Responds to each request from a script of datagrams and errors."""

    def __init__(self, *turns: list[Answer]) -> None:
        self._turns = iter(turns)
        self._ready: list[bytes | OSError] = []
        self.sent = b""
        self.closed = False

    def send(self, octets: bytes) -> None:
        self.sent = octets
        sequence = int.from_bytes(octets[8:12], sys.byteorder)
        turn = next(self._turns)
        self._ready = [one if isinstance(one, OSError) else one(sequence) for one in turn]

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        if not self._ready:
            return None
        answer = self._ready.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return list(messages(answer))

    def close(self) -> None:
        self.closed = True
