# SPDX-License-Identifier: MIT
"""Compares our ctstate with the live one: other protocols, ICMP errors and broken headers."""

import random
import re
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import CTSTATES, FlowTable
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    PROTO_GRE,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_TCP,
    PROTO_UDP,
    FlowTuple,
)
from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet
from tests.support.live import LiveConntrack
from tests.support.packets import A4, A6, B4, B6, C4, C6, error, icmp, ip, summed, tcp, udp
from tests.support.sctp import chunk, init, sctp

LINK_LOCAL = bytes.fromhex("fe80") + bytes(13) + b"\1"

Judge = Callable[[bytes], tuple[str, str]]


ECHO = struct.pack("!HH", 77, 1) + b"data"
PPTP = b"\x30\1\x88\x0b\0\0"


def options(count: int) -> bytes:
    """Headers with destination options in front of a datagram."""
    kinds = [60] * (count - 1) + [PROTO_UDP]
    return b"".join(bytes((kind, 0, 1, 4, 0, 0, 0, 0)) for kind in kinds)


def redirected(
    *,
    src: bytes = LINK_LOCAL,
    dst: bytes = A6,
    code: int = 0,
    option: bytes = b"\4\x08" + bytes(6),
    size: int = 48,
) -> bytes:
    """A redirect whose first option is followed by the beginning of a quoted datagram."""
    rest = bytes(4) + C6 + B6 + option + udp(A6, B6, 1, 2)[:size]
    return icmp(src, dst, 137, rest, code, hop_limit=255)


CASES: dict[str, list[bytes]] = {
    "datagrams both ways": [
        udp(A4, B4, 1, 2), udp(A4, B4, 1, 2), udp(B4, A4, 2, 1), udp(A4, B4, 1, 2),
    ],
    "datagrams both ways, IPv6": [udp(A6, B6, 1, 2), udp(B6, A6, 2, 1), udp(A6, B6, 1, 2)],
    "a datagram without checksum": [
        ip(A4, B4, PROTO_UDP, struct.pack("!HHHH", 5, 6, 9, 0) + b"x"),
        ip(A6, B6, PROTO_UDP, struct.pack("!HHHH", 5, 6, 9, 0) + b"x"),
    ],
    "a datagram with a wrong checksum": [
        ip(A4, B4, PROTO_UDP, struct.pack("!HHHH", 5, 6, 9, 77) + b"x"),
    ],
    "datagrams with wrong lengths": [
        ip(A4, B4, PROTO_UDP, struct.pack("!HHHH", 5, 6, length, 0) + b"x") for length in (7, 10)
    ],
    "ports 0": [udp(A4, B4, 0, 0), udp(B4, A4, 0, 0)],
    "an echo and its answer": [
        icmp(A4, B4, 8, ECHO), icmp(A4, B4, 8, ECHO), icmp(B4, A4, 0, ECHO), icmp(A4, B4, 8, ECHO),
    ],
    "an echo and its answer, IPv6": [
        icmp(A6, B6, 128, ECHO), icmp(B6, A6, 129, ECHO), icmp(A6, B6, 128, ECHO),
    ],
    "timestamps": [icmp(A4, B4, 13, ECHO + bytes(8)), icmp(B4, A4, 14, ECHO + bytes(8))],
    "information and address masks": [
        icmp(A4, B4, 15, ECHO), icmp(B4, A4, 16, ECHO), icmp(A4, B4, 17, ECHO),
        icmp(B4, A4, 18, ECHO),
    ],
    "node information": [icmp(A6, B6, 139, ECHO), icmp(B6, A6, 140, ECHO)],
    "answers nobody asked for": [
        *(icmp(A4, B4, kind, ECHO) for kind in (0, 14, 16, 18)),
        *(icmp(A6, B6, kind, ECHO) for kind in (129, 140)),
    ],
    "an answer with another identifier": [
        icmp(A4, B4, 8, ECHO), icmp(B4, A4, 0, b"\0\1" + ECHO[2:]),
    ],
    "router discovery and types without a meaning": [
        icmp(A4, B4, kind, ECHO) for kind in (1, 2, 6, 7, 9, 10, 19, 40, 255)
    ],
    "types without a meaning, IPv6": [
        icmp(A6, B6, kind, ECHO) for kind in (138, 141, 144, 200, 255)
    ],
    "multicast listeners and neighbours": [
        icmp(A6, B6, kind, bytes(20), hop_limit=255)
        for kind in (130, 131, 132, 133, 134, 135, 136, 143)
    ],
    "multicast routers": [icmp(A6, B6, kind, bytes(8)) for kind in (151, 152, 153)],
    "redirects, IPv6": [
        icmp(A6, B6, 137, bytes(36)),
        icmp(A6, B6, 137, bytes(36), hop_limit=255),
    ],
    "errors about a flow": [
        udp(A4, B4, 1, 2),
        *(error(B4, A4, kind, udp(A4, B4, 1, 2)) for kind in (3, 4, 5, 11, 12)),
        error(C4, A4, 11, udp(A4, B4, 1, 2)),
        udp(B4, A4, 2, 1),
        error(A4, B4, 3, udp(B4, A4, 2, 1), code=3),
        error(B4, A4, 3, udp(A4, B4, 1, 2), code=4),
    ],
    "errors about a flow, IPv6": [
        udp(A6, B6, 1, 2),
        *(error(B6, A6, kind, udp(A6, B6, 1, 2)) for kind in (1, 2, 3, 4, 100)),
        error(C6, A6, 3, udp(A6, B6, 1, 2)),
    ],
    "errors about a segment, whatever its numbers": [
        tcp(A4, B4, 1, 2, 0x02),
        error(B4, A4, 3, tcp(A4, B4, 1, 2, 0x10, seq=99999)),
        error(B4, A4, 3, tcp(A4, B4, 1, 2, 0x10)[:28]),
    ],
    "errors about an echo": [
        icmp(A4, B4, 8, ECHO),
        error(B4, A4, 3, icmp(A4, B4, 8, ECHO)),
        error(A4, B4, 3, icmp(B4, A4, 0, ECHO)),
        icmp(A6, B6, 128, ECHO),
        error(B6, A6, 1, icmp(A6, B6, 128, ECHO)),
    ],
    "errors about nothing known": [
        error(B4, A4, 3, udp(A4, B4, 1, 2)), error(B6, A6, 1, udp(A6, B6, 1, 2)),
    ],
    "errors sent to somebody else": [
        udp(A4, B4, 1, 2), error(B4, C4, 3, udp(A4, B4, 1, 2)),
        udp(A6, B6, 1, 2), error(B6, C6, 1, udp(A6, B6, 1, 2)),
    ],
    "errors that quote too little": [
        udp(A4, B4, 1, 2),
        *(error(B4, A4, 3, udp(A4, B4, 1, 2)[:length]) for length in (0, 10, 20, 22, 23, 24)),
        udp(A6, B6, 1, 2),
        *(error(B6, A6, 1, udp(A6, B6, 1, 2)[:length]) for length in (0, 39, 40, 42, 43, 44)),
    ],
    "an error about an error": [
        udp(A4, B4, 1, 2), error(A4, B4, 3, error(B4, A4, 3, udp(A4, B4, 1, 2))),
    ],
    "a short message": [ip(A4, B4, PROTO_ICMP, b"\x08\0\0\0"), ip(A6, B6, PROTO_ICMPV6, b"\x80")],
    "a message with a wrong checksum": [
        ip(A4, B4, PROTO_ICMP, b"\x08\0\1\2" + ECHO),
        ip(A6, B6, PROTO_ICMPV6, b"\x80\0\1\2" + ECHO),
        ip(A6, B6, PROTO_ICMPV6, b"\x87\0\1\2" + bytes(20), 255),
    ],
    "protocols nobody knows": [
        ip(A4, B4, 253, b"hello"), ip(B4, A4, 253, b"hello"), ip(A4, B4, 253, b""),
        ip(A6, B6, 253, b"hello"), ip(B6, A6, 253, b"hello"), ip(A4, B4, 50, bytes(30)),
    ],
    "ICMP of the other family": [
        ip(A4, B4, 58, b"\x80\0\0\0\0\1\0\1"),
        ip(A4, B4, 58, b""),
        ip(A4, B4, 58, summed(A4, B4, 58, b"\x01\0\0\0" + bytes(4) + udp(A4, B4, 1, 2), 2)),
        ip(A6, B6, 1, b"\x08\0\xf7\xff\0\0\0\0"),
        ip(A6, B6, 1, b"\x08"),
    ],
    "no next header": [ip(A6, B6, 59, b""), ip(A6, B6, 59, b"rest")],
    "extension headers": [
        ip(A6, B6, 0, bytes((PROTO_UDP, 0, 1, 4, 0, 0, 0, 0)) + udp(A6, B6, 1, 2)[40:]),
        ip(A6, B6, 60, bytes((PROTO_UDP, 0, 1, 4, 0, 0, 0, 0)) + udp(A6, B6, 1, 2)[40:]),
        ip(A6, B6, 60, b"\x11"),
    ],
    "broken segments": [
        ip(A4, B4, PROTO_TCP, b""),
        ip(A4, B4, PROTO_TCP, b"\0\1\0"),
        ip(A4, B4, PROTO_TCP, tcp(A4, B4, 1, 2, 0x02)[20:39]),
        ip(A4, B4, PROTO_TCP, tcp(A4, B4, 1, 2, 0x02)[20:32] + b"\x40" + bytes(7)),
        ip(A4, B4, PROTO_TCP, tcp(A4, B4, 1, 2, 0x02)[20:32] + b"\x60" + bytes(7)),
        ip(A4, B4, PROTO_TCP, tcp(A4, B4, 1, 2, 0x02)[20:36] + b"\1\2\0\0"),
        tcp(A4, B4, 1, 2, 0x02),
        tcp(A4, B4, 1, 2, 0x03),
    ],
    "SCTP from beginning to end": [
        sctp(A4, B4, 1, 2, 0, init(1, 7)), sctp(B4, A4, 2, 1, 7, init(2, 9)),
        sctp(A4, B4, 1, 2, 9, chunk(10, b"cookie"), chunk(0, bytes(13))),
        sctp(B4, A4, 2, 1, 7, chunk(11), chunk(3, bytes(12))),
        sctp(A4, B4, 1, 2, 9, chunk(7, bytes(4))), sctp(B4, A4, 2, 1, 7, chunk(8)),
        sctp(A4, B4, 1, 2, 9, chunk(14)), sctp(A4, B4, 1, 2, 9, chunk(0)),
    ],
    "errors about SCTP": [
        sctp(A6, B6, 1, 2, 0, init(1, 7)),
        error(B6, A6, 1, sctp(A6, B6, 1, 2, 0, init(1, 7))),
        error(B6, A6, 1, sctp(A6, B6, 1, 3, 0, init(1, 7))),
        sctp(A4, B4, 1, 2, 0, init(1, 7)),
        *(error(B4, A4, 3, sctp(A4, B4, 1, 2, 0, init(1, 7))[:length]) for length in (23, 24, 28)),
    ],
    "a first packet with a heartbeat": [
        *(sctp(A4, B4, kind, 2, 5, chunk(kind, b"cookie")) for kind in (7, 9, 10)),
        *(sctp(A4, B4, kind, 2, 5, chunk(kind, b"cookie"), chunk(5)) for kind in (7, 9, 10)),
        *(sctp(A4, B4, kind, 2, 5, chunk(kind, b"cookie"), chunk(4)) for kind in (7, 9, 10)),
        *(sctp(A4, B4, kind, 2, tag, chunk(0)) for kind in (7, 9, 10) for tag in (5, 6)),
    ],
    "broken SCTP": [
        ip(A4, B4, PROTO_SCTP, b""), ip(A6, B6, PROTO_SCTP, bytes(11)),
        sctp(A4, B4, 1, 2, 0), sctp(A4, B4, 1, 2, 0, init(1, 7))[:-1] + b"\1",
        sctp(A6, B6, 1, 2, 0, init(1, 7), chunk(0)), sctp(A6, B6, 1, 2, 0, chunk(0)),
    ],
    "GRE without keys": [
        ip(A4, B4, PROTO_GRE, b"\0\0\x08\0" + bytes(20)),
        ip(B4, A4, PROTO_GRE, b"\x20\0\x08\0\0\0\0\7" + bytes(20)),
        ip(A4, B4, PROTO_GRE, b""), ip(A4, B4, PROTO_GRE, b"\0\1\x88\x0b\0\0\0"),
    ],
    "GRE of PPTP": [
        ip(A6, B6, PROTO_GRE, PPTP + b"\0\7"), ip(B6, A6, PROTO_GRE, PPTP + b"\0\7"),
        ip(A6, B6, PROTO_GRE, PPTP + b"\0\7"), ip(A4, B4, PROTO_GRE, PPTP + b"\0\0"),
        ip(B4, A4, PROTO_GRE, PPTP + b"\0\0"), ip(A4, B4, PROTO_GRE, b"\0\1\x08\0" + bytes(4)),
    ],
    "errors about GRE": [
        ip(A4, B4, PROTO_GRE, PPTP + b"\0\7"),
        error(B4, A4, 3, ip(A4, B4, PROTO_GRE, PPTP + b"\0\7")),
        error(B4, A4, 3, ip(A4, B4, PROTO_GRE, PPTP + b"\0\7")[:27]),
        error(B4, A4, 3, ip(A4, B4, PROTO_GRE, PPTP + b"\0\x08")),
        error(B4, A4, 3, ip(A4, B4, PROTO_GRE, b"\0\1\x08\0" + bytes(4))),
    ],
    "many extension headers": [
        ip(A6, B6, 60, options(count) + udp(A6, B6, count, 2)[40:]) for count in (31, 32, 33, 200)
    ],
    "a datagram shorter than its packet": [
        ip(src, dst, PROTO_UDP, octets)
        for src, dst in ((A4, B4), (A6, B6))
        for length in (8, 9, 12)
        for octets in (
            summed(src, dst, PROTO_UDP, struct.pack("!HHHH", 1, 2, length, 0) + b"abcd", 6),
            summed(src, dst, PROTO_UDP, struct.pack("!HHHH", 1, 2, length, 0), 6) + b"abcd",
        )
    ],
    "both ends the same": [
        udp(A4, A4, 9, 9), udp(A4, A4, 9, 9), icmp(A4, A4, 8, ECHO), icmp(A4, A4, 0, ECHO),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Iterator[LiveConntrack]:
    with LiveConntrack(DEFAULT_SYSCTLS) as one:
        yield one


@pytest.fixture
def judge(live: LiveConntrack) -> Judge:
    """Both answers to a packet; every test starts without flows."""
    live.forget()
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    now = 0.0

    def both(octets: bytes) -> tuple[str, str]:
        packet = decode(octets)
        right = checksum_ok(packet, octets) if isinstance(packet, Packet) else None
        ours = table.track(packet, now, right)
        theirs = live.send(octets)
        return ("lost" if theirs is None else CTSTATES[theirs]), CTSTATES[ours]

    return both


@pytest.mark.kernel
@pytest.mark.parametrize("name", CASES)
def test_ctstate(judge: Judge, name: str) -> None:
    answers = [judge(octets) for octets in CASES[name]]
    assert [ours for _, ours in answers] == [theirs for theirs, _ in answers]


REDIRECTS = [
    redirected(),
    udp(A6, B6, 1, 2),
    redirected(),
    redirected(size=40),
    redirected(size=44),
    redirected(dst=C6),
    redirected(code=1),
    redirected(src=B6),
    redirected(option=b"\2\1" + bytes(6)),
    redirected(option=b"\4\1" + bytes(6)),
    redirected(option=b"\4\0" + bytes(6)),
    redirected(option=b"\4", size=0),
    redirected(option=b"", size=0),
    *(icmp(LINK_LOCAL, A6, 137, bytes(size), hop_limit=255) for size in (4, 20, 35)),
]


@pytest.mark.kernel
def test_redirects(live: LiveConntrack, judge: Judge) -> None:
    """They come from the link, so they do not leave the host: the counters of rules tell."""
    answers = []
    for octets in REDIRECTS:
        before = counters(live)
        _, ours = judge(octets)
        after = counters(live)
        answers.append((ours, [state for state in after if after[state] > before[state]]))
    assert [[ours] for ours, _ in answers] == [theirs for _, theirs in answers]
    assert CTSTATES[2] in [ours for ours, _ in answers]


def counters(live: LiveConntrack) -> dict[str, int]:
    """How many packets each rule of IPv6 that names a ctstate has matched."""
    saved = live.space.run("ip6tables-save", "-c", "-t", "mangle").stdout
    found = re.findall(r"^\[(\d+):.* --ctstate (\w+) ", saved, re.MULTILINE)
    return {state: int(packets) for packets, state in found}


@pytest.mark.kernel
def test_any_octets(judge: Judge) -> None:
    """Random octets after a valid IP header, mostly with a correct checksum."""
    rng = random.Random(1)  # noqa: S311 - reproducible, no secret
    for _ in range(4000):
        six = rng.random() < 0.4
        src, dst = rng.sample([A6, B6] if six else [A4, B4], 2)
        icmp_proto = PROTO_ICMPV6 if six else PROTO_ICMP
        proto, at = rng.choice([(PROTO_TCP, 16), (PROTO_UDP, 6), (icmp_proto, 2)])
        body = bytearray(rng.randbytes(rng.choice((0, 3, 7, 8, 12, 20, 28, 40, 60, 80))))
        if proto == PROTO_UDP and len(body) >= 8 and rng.random() < 0.8:
            body[:4] = b"\0\1\0\2"
            body[4:6] = len(body).to_bytes(2)
        if proto == PROTO_TCP and len(body) >= 20:
            body[:4] = b"\0\1\0\2"
            body[12] = 0x50
        if proto == icmp_proto and len(body) >= 8 and rng.random() < 0.5:
            quoted = udp(src, dst, 1, 2) if rng.random() < 0.7 else tcp(src, dst, 1, 2, 0x10)
            body[8:] = quoted[: rng.choice((len(quoted), 28, 48, 20))]
        if len(body) >= at + 2 and rng.random() < 0.9:
            body = bytearray(summed(src, dst, proto, bytes(body), at))
        octets = ip(src, dst, proto, bytes(body), rng.choice((64, 255)))
        theirs, ours = judge(octets)
        assert ours == theirs, octets.hex()


@pytest.mark.kernel
def test_timeouts_of_datagrams(live: LiveConntrack) -> None:
    """A flow that goes both ways for more than two seconds is a stream, and kept longer."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    there, back = FlowTuple(PROTO_UDP, A4, B4, 7, 8), FlowTuple(PROTO_UDP, B4, A4, 8, 7)
    for wait_s, flow in (
        (0, there), (0, there), (0, back), (0, there), (2.2, there), (0, back), (0, there),
    ):  # fmt: skip
        time.sleep(wait_s)
        octets = udp(flow.src, flow.dst, flow.sport, flow.dport)
        table.track(decode(octets), time.monotonic())
        live.send(octets)
        ours, theirs = table.lookup([there])[0], live.snapshot(there)
        assert ours
        assert theirs
        assert abs(ours.timeout_s - theirs.timeout_s) <= 1
        assert ours.status == theirs.status & (ours.status | IPS_ASSURED | IPS_SEEN_REPLY)
