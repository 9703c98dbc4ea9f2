# SPDX-License-Identifier: MIT
"""Random packets of SCTP and GRE, drawn by what conntrack knows about their flow."""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nfq_guard.flow import PROTO_GRE, PROTO_SCTP, Association, SctpState
from tests.support.sctp import chunk, init, sctp_body

SCTP_PORTS: Final = (5000, 2905)
_TAGS: Final = (0, 1, 2, 0x11111111, 0x80000000, 0xFFFFFFFF)
_TYPES: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 64, 130, 192, 193)
# What a well-behaved association sends next, by its state: direction and chunk types.
_NEXT: Final[dict[SctpState, tuple[tuple[int, tuple[int, ...]], ...]]] = {
    SctpState.NONE: (((0, (1,)),) * 3 + ((0, (4,)),)),
    SctpState.CLOSED: ((1, (2,)), (0, (1,)), (1, (1,)), (0, (2,))),
    SctpState.COOKIE_WAIT: ((0, (10,)), (0, (10, 0)), (1, (10,))),
    SctpState.COOKIE_ECHOED: ((1, (11,)), (1, (11, 3)), (1, (9,)), (0, (11,))),
    SctpState.ESTABLISHED: (
        (0, (0,)), (1, (3,)), (0, (4,)), (1, (5,)), (1, (4,)), (0, (5,)), (0, (7,)), (1, (7,)),
        (0, (1,)), (1, (1,)), (1, (2,)), (0, (2,)),
    ),
    SctpState.SHUTDOWN_SENT: ((1, (8,)), (1, (0,)), (0, (1,))),
    SctpState.SHUTDOWN_RECD: ((0, (8,)), (0, (0,)), (0, (1,))),
    SctpState.SHUTDOWN_ACK_SENT: ((0, (14,)), (1, (14,))),
    SctpState.HEARTBEAT_SENT: ((1, (5,)), (0, (4,)), (1, (4,)), (0, (1,)), (0, (8,))),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BodyStep:
    """One packet of a flow.

    Attributes:
        direction: 0 original, 1 reply.
        body: What follows the IP header.
    """

    direction: int
    body: bytes

    def __str__(self) -> str:
        return f"{'<' if self.direction else '>'} {self.body.hex()}"


Draw = Callable[[random.Random, Association | None, float], BodyStep]


def sctp_step(rng: random.Random, known: Association | None, chaos: float) -> BodyStep:
    """The next SCTP packet of a flow; `known` is what conntrack knows about it."""
    association = known or Association()
    direction, kinds = rng.choice(_NEXT[SctpState(association.state)])
    if rng.random() < chaos:
        direction = rng.getrandbits(1)
        kinds = tuple(rng.choice(_TYPES) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 0))))
    right = 0 if 1 in kinds else association.tag(direction)
    tag = right
    if known is None and 1 not in kinds and rng.random() < 0.5:
        tag = rng.choice(_TAGS)
    if rng.random() < 0.6 * chaos:
        tag = rng.choice((association.tag(1 - direction), association.tag(direction), *_TAGS))
    chunks = []
    for kind in kinds:
        flags = rng.choice((0, 0, 1, 3)) if rng.random() < 0.7 else rng.getrandbits(8)
        if kind in {1, 2}:
            initiate = rng.choice(_TAGS)
            if kind == 2 and rng.random() < 0.5:
                initiate = association.tag(1 - direction)
            one = init(kind, initiate, flags, rng.choice((b"", b"\0\6\0\x08abcd")))
            if rng.random() < 0.1 * chaos:
                one = one[: rng.randrange(4, len(one))]
        else:
            one = chunk(kind, rng.randbytes(rng.choice((0, 1, 4, 12, 16))), flags)
        if rng.random() < 0.05 * chaos:
            one = one[:2] + rng.choice((0, 1, 3, 4, 5, 0xFFFF)).to_bytes(2) + one[4:]
        chunks.append(one)
    if rng.random() < 0.05 * chaos:
        chunks.append(rng.randbytes(rng.randrange(1, 8)))
    damage = rng.getrandbits(32) if rng.random() < 0.03 else 0
    body = sctp_body(*(SCTP_PORTS if direction == 0 else SCTP_PORTS[::-1]), tag, *chunks)
    body = body[:8] + (int.from_bytes(body[8:12]) ^ damage).to_bytes(4) + body[12:]
    if rng.random() < 0.02 * chaos:
        body = body[: rng.randrange(0, 13)]
    return BodyStep(direction, body)


def gre_step(rng: random.Random, _: Association | None, chaos: float) -> BodyStep:
    """The next GRE packet between two hosts."""
    version = 1 if rng.random() < 0.7 else rng.choice((0, 0, 2, 7))
    protocol = rng.choice((0x880B,) * 6 + (0x0800, 0x6558, 0))
    flags = rng.choice((0x30, 0x20, 0x00, 0xB0, rng.getrandbits(8)))
    call = rng.choice((0, 1, 2, 0x8000, 0xFFFF))
    body = struct.pack("!BBHHH", flags, version | rng.choice((0, 0x80)), protocol, 8, call)
    body += rng.randbytes(rng.choice((0, 4, 8, 30)))
    if rng.random() < 0.3 * chaos:
        body = body[: rng.randrange(0, 12)]
    return BodyStep(rng.getrandbits(1), body)


@dataclass(frozen=True, slots=True)
class Subject:
    """A protocol to fuzz.

    Attributes:
        proto: Its IP protocol number.
        draw: Makes the next packet of a flow.
    """

    proto: int
    draw: Draw


SUBJECTS: Final = {
    "sctp": Subject(PROTO_SCTP, sctp_step),
    "gre": Subject(PROTO_GRE, gre_step),
}
