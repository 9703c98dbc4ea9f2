# SPDX-License-Identifier: MIT
"""Healthy traffic besides TCP transfers: SCTP, GRE, ICMP and its errors, scans, probes, datagrams.

Conntrack calls none of it INVALID. Altered as a capture may by `healthy.without` and `.swapped`.
"""

import functools
import random
import struct
from collections.abc import Callable
from typing import Final

from nfq_guard.capture.frame import Frame
from nfq_guard.flow import PROTO_GRE, PROTO_TCP
from tests.support.conversation import RAW
from tests.support.healthy import renumbered
from tests.support.packets import error, icmp, ip, summed, udp
from tests.support.sctp import chunk, init, sctp

_ACK, _RST, _SYN = 0x10, 4, 2
# By family: types of echo request, echo reply, unreachable with its code "port", and too big.
_ICMP: Final = {4: (8, 0, 3, 3, (3, 4)), 16: (128, 129, 1, 4, (2, 0))}
_PREFIX: Final = b"\xfd" + bytes(12)
_DATA, _SACK, _HEARTBEAT, _HEARTBEAT_ACK, _ABORT = 0, 3, 4, 5, 6
_SHUTDOWN, _SHUTDOWN_ACK, _COOKIE_ECHO, _COOKIE_ACK, _SHUTDOWN_COMPLETE = 7, 8, 10, 11, 14

Maker = Callable[[random.Random, bytes, bytes, int], list[bytes]]


def _tcp(ends: tuple[bytes, bytes, int, int], flags: int, seq: int, ack: int = 0) -> bytes:
    src, dst, sport, dport = ends
    body = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1024, 0, 0)
    return ip(src, dst, PROTO_TCP, summed(src, dst, PROTO_TCP, body, 16))


def association(rng: random.Random, a: bytes, b: bytes, port: int) -> list[bytes]:
    """One association with data both ways, heartbeats and an end; some begin anew."""
    packets: list[bytes] = []
    for _ in range(rng.choice((1, 1, 2))):
        near, far = rng.randrange(1, 2**32), rng.randrange(1, 2**32)

        def out(*chunks: bytes, tag: int = far) -> None:
            packets.append(sctp(a, b, port, 2905, tag, *chunks))

        def back(*chunks: bytes, tag: int = near) -> None:
            packets.append(sctp(b, a, 2905, port, tag, *chunks))

        out(init(1, near), tag=0)
        back(init(2, far))
        cookie = chunk(_COOKIE_ECHO, bytes(40))
        out(*(cookie, chunk(_DATA, bytes(40))) if rng.random() < 0.3 else (cookie,))
        back(chunk(_COOKIE_ACK))
        for _ in range(rng.randrange(2, 12)):
            one, other = rng.choice(((out, back), (back, out)))
            if rng.random() < 0.2:
                one(chunk(_HEARTBEAT, bytes(16)))
                other(chunk(_HEARTBEAT_ACK, bytes(16)))
            else:
                for _ in range(rng.randrange(1, 4)):
                    one(chunk(_DATA, bytes(rng.randrange(13, 400))))
                other(chunk(_SACK, bytes(12)))
        one, other = rng.choice(((out, back), (back, out)))
        if rng.random() < 0.3:
            one(chunk(_ABORT))
        else:
            one(chunk(_SHUTDOWN, bytes(4)))
            other(chunk(_SHUTDOWN_ACK))
            one(chunk(_SHUTDOWN_COMPLETE))
    return packets


def scan(rng: random.Random, a: bytes, b: bytes, port: int) -> list[bytes]:
    """Probes of closed, open and unreachable ports."""
    packets: list[bytes] = []
    for target in rng.sample(range(1, 60_000), 8):
        seq, theirs = rng.randrange(1, 2**31), rng.randrange(1, 2**31)
        out, back = (a, b, port, target), (b, a, target, port)
        packets.append(_tcp(out, _SYN, seq))
        kind = rng.randrange(4)
        if kind == 0:
            packets.append(_tcp(back, _SYN | _ACK, theirs, seq + 1))
            packets.append(_tcp(out, _RST, seq + 1))
        elif kind == 1:
            _, _, unreachable, closed, _ = _ICMP[len(a)]
            packets.append(error(b, a, unreachable, packets[-1][:60], closed))
        else:
            packets.append(_tcp(back, _RST | _ACK, 0, seq + 1))
    return packets


def errors(rng: random.Random, a: bytes, b: bytes, port: int) -> list[bytes]:
    """Datagrams, some of them to closed ports or too big for the path."""
    _, _, unreachable, closed, (too_big, code) = _ICMP[len(a)]
    packets: list[bytes] = []
    for number in range(6):
        asked = udp(a, b, port + number, 53, bytes(rng.randrange(20, 200)))
        packets.append(asked)
        kind = rng.randrange(3)
        if kind == 0:
            packets.append(udp(b, a, 53, port + number, bytes(100)))
        elif kind == 1:
            packets.append(error(b, a, unreachable, asked[:68], closed))
        else:
            packets.append(error(b, a, too_big, asked[:68], code))
            packets += [asked, udp(b, a, 53, port + number, bytes(100))]
    return packets


def pings(rng: random.Random, a: bytes, b: bytes, port: int) -> list[bytes]:
    """Echo requests, each with its reply or none."""
    request, reply, *_ = _ICMP[len(a)]
    packets: list[bytes] = []
    for number in range(rng.randrange(1, 5)):
        rest = struct.pack("!HH", port, number) + bytes(16)
        packets.append(icmp(a, b, request, rest))
        if rng.random() < 0.9:
            packets.append(icmp(b, a, reply, rest))
    return packets


def calls(rng: random.Random, a: bytes, b: bytes, port: int) -> list[bytes]:
    """Packets of GRE version 1, each direction with a key of its own."""
    packets: list[bytes] = []
    for number in range(rng.randrange(1, 6)):
        near, far = ((a, b), (b, a))[number & 1]
        head = struct.pack("!BBHHHI", 0x30, 1, 0x880B, 4, port + (number & 1), number)
        packets.append(ip(near, far, PROTO_GRE, head + b"\xff\x03\xc0\x21"))
    return packets


MAKERS: Final[dict[str, Maker]] = {
    "sctp": association,
    "scan": scan,
    "errors": errors,
    "pings": pings,
    "gre": calls,
}


@functools.cache
def _others(seed: int, kinds: tuple[str, ...], flows: int) -> list[Frame]:
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    frames: list[Frame] = []
    for number in range(flows):
        host = 1 + number % 4
        a, b = bytes((10, 1, 0, host)), bytes((10, 2, 0, host))
        if number % 3 == 0:
            a, b = (_PREFIX + end[1:] for end in (a, b))
        packets = MAKERS[kinds[number % len(kinds)]](rng, a, b, 20_000 + 16 * number)
        time_ns = 1_700_000_000_000_000_000 + number * 2_000_000
        for octets in packets:
            time_ns += rng.randrange(100_000, 2_000_000)
            frames.append(Frame(0, time_ns, RAW, len(octets), octets, 0))
    frames.sort(key=lambda frame: frame.time_ns)
    return frames


def others(seed: int, *kinds: str, flows: int = 20) -> list[Frame]:
    """Flows of these kinds, merged by time; of all kinds without any."""
    return renumbered(_others(seed, kinds or tuple(MAKERS), flows))
