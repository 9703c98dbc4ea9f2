# SPDX-License-Identifier: MIT
"""Checksums of transport and IPv4 headers."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
    header_checksum_ok,
    may_be_right_for_receiver,
    right_once_finished,
)
from tests.support.octets import V4, V6, octets_of, read


@pytest.mark.parametrize("octets", [octets_of(V4 / UDP() / b"abc"), octets_of(V6 / UDP() / b"abc")])
def test_udp_checksum(octets: bytes) -> None:
    assert checksum_ok(read(octets), octets)
    broken = octets[:-1] + b"!"
    assert checksum_ok(read(broken), broken) is False


FINAL = bytes.fromhex("fd920000000000000000000000000003")
ELSEWHERE = bytes(15) + b"\x09"


def routing(kind: int, left: int, *addresses: bytes, tail: bytes = b"") -> bytes:
    length = (16 * len(addresses) + len(tail)) // 8
    return bytes((6, length, kind, left, 0, 0, 0, 0)) + b"".join(addresses) + tail


def home(address: bytes, *, before: bytes = b"\1\2\0\0") -> bytes:
    """A header of destination options, with four bytes of others before the home address."""
    options = before + b"\xc9\x10" + address
    return bytes((6, (len(options) + 2) // 8 - 1)) + options


def extended(
    first: int, header: bytes, *, src: bytes | None = None, dst: bytes | None = None
) -> bytes:
    """A TCP segment behind an extension header, its checksum taken with `src` and `dst`."""
    plain = octets_of(V6 / TCP(flags="S") / b"abc")
    src, dst = src or plain[8:24], dst or plain[24:40]
    end_to_end = octets_of(
        IPv6(src=socket.inet_ntop(socket.AF_INET6, src), dst=socket.inet_ntop(socket.AF_INET6, dst))
        / TCP(flags="S")
        / b"abc"
    )
    body = header + end_to_end[40:]
    return plain[:4] + struct.pack("!HB", len(body), first) + plain[7:40] + body


@pytest.mark.parametrize(
    "octets",
    [
        extended(43, routing(0, 2, ELSEWHERE, FINAL), dst=FINAL),
        extended(43, routing(2, 1, FINAL), dst=FINAL),
        extended(43, routing(4, 1, FINAL, ELSEWHERE, tail=bytes(8)), dst=FINAL),
        extended(43, routing(3, 1, FINAL), dst=ELSEWHERE),  # compressed; not read
        extended(43, routing(0, 1, tail=bytes(8)), dst=ELSEWHERE),  # too short
        extended(60, home(FINAL), src=FINAL),
        extended(60, home(FINAL, before=b"\0\0\1\0"), src=FINAL),
    ],
)
def test_a_checksum_over_other_addresses(octets: bytes) -> None:
    """Conntrack takes those of the IPv6 header (kernel.md 2)."""
    packet = read(octets)
    assert checksum_ok(packet, octets) is False
    assert may_be_right_for_receiver(packet, octets)
    assert may_be_right_for_receiver(packet, octets[:-1])


@pytest.mark.parametrize(
    "octets",
    [
        extended(43, routing(2, 1, FINAL), dst=ELSEWHERE),
        extended(43, routing(2, 0, FINAL), dst=FINAL),
        extended(60, home(FINAL), src=ELSEWHERE),
        extended(60, b"\6\0\1\4\0\0\0\0", src=ELSEWHERE),
        extended(60, b"\6\0\xc9\x10\0\0\0\0", src=ELSEWHERE),
        extended(44, b"\6\0\0\0\0\0\0\1", src=ELSEWHERE),
        extended(51, b"\6\4" + bytes(22), src=ELSEWHERE),
        octets_of(V6 / TCP(chksum=1)),
        octets_of(V4 / TCP(chksum=1)),
    ],
)
def test_a_checksum_that_is_wrong_for_everyone(octets: bytes) -> None:
    packet = read(octets)
    assert checksum_ok(packet, octets) is False
    assert not may_be_right_for_receiver(packet, octets)


def test_udp_without_checksum() -> None:
    """RFC 768 allows it; RFC 8200 does not, but conntrack accepts it."""
    octets = octets_of(V4 / UDP(chksum=0) / b"abc")
    assert checksum_ok(read(octets), octets)
    octets = (
        octets_of(V6)[:4]
        + b"\x00\x08\x11\x09"
        + octets_of(V6)[8:]
        + b"\x00\x01\x00\x02\x00\x08\x00\x00"
    )
    assert checksum_ok(read(octets), octets)


def test_icmp_checksum() -> None:
    octets = octets_of(V4 / ICMP() / b"abc")
    assert checksum_ok(read(octets), octets)
    octets = octets_of(V6 / ICMPv6ND_NS())
    assert checksum_ok(read(octets), octets)


def test_icmp_message_of_zeros() -> None:
    """Zeros add up to 0, so the right checksum is all ones."""
    octets = octets_of(IP(src="10.0.0.1", dst="10.0.0.2", proto=1) / Raw(bytes(8)))
    assert checksum_ok(read(octets), octets) is False


# Around those from which the sum is taken otherwise, header included.
LENGTHS = (0, 1, 60, 99, 100, 101, 127, 128, 129, 499, 500, 511, 512, 513, 1023, 1024, 1459)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\0", b"\0\xff", b"\x5a\xa5\x13"])
@pytest.mark.parametrize("family", [4, 6])
def test_checksum_at_the_edges_of_lengths(family: int, filling: bytes) -> None:
    """Odd ones too, and ones only."""
    for length in LENGTHS:
        header = (
            IP(src="10.0.0.1", dst="10.0.0.2") if family == 4 else IPv6(src="fd00::1", dst="::1")
        )
        octets = bytes(header / TCP(sport=1, dport=2, flags="A") / (filling * 2000)[:length])
        assert checksum_ok(read(octets), octets), length
        place = len(octets) - 1
        broken = octets[:place] + bytes([octets[place] ^ 0x10])
        assert checksum_ok(read(broken), broken) is False, length


def test_checksum_of_headers() -> None:
    for header in (IP(src="10.0.0.1"), IP(src="10.0.0.1", options=[IPOption_NOP()] * 4)):
        octets = bytes(header / TCP())
        assert header_checksum_ok(octets)
        assert header_checksum_ok(octets[:10] + b"\0\0" + octets[12:])
        assert not header_checksum_ok(octets[:8] + bytes([octets[8] ^ 1]) + octets[9:])


def test_no_checksum_where_there_is_no_transport_header() -> None:
    octets = octets_of(IP(proto=47))
    assert checksum_ok(read(octets), octets) is None
    assert not checksum_unfinished(read(octets))


def test_unfinished_checksum() -> None:
    """The sum of the pseudo-header alone, which the NIC completes."""
    octets = bytearray(octets_of(V4 / TCP(flags="A") / b"abc"))
    partial = (10 << 8) * 2 + 1 + 2 + 6 + 23
    octets[36:38] = partial.to_bytes(2, "big")
    assert checksum_unfinished(read(bytes(octets)))
    assert checksum_ok(read(bytes(octets)), bytes(octets)) is False


@given(
    payload=st.binary(max_size=64).flatmap(
        lambda head: st.integers(0, 5000).map(lambda size: (head * (size + 1))[:size])
    ),
    family=st.sampled_from([V4, V6]),
)
def test_checksum_of_any_length(payload: bytes, family: Scapy) -> None:
    """Against scapy, which computes it another way; one flipped bit is detected."""
    octets = octets_of(family / TCP() / Raw(payload))
    assert checksum_ok(read(octets), octets)
    broken = octets[:-1] + bytes([octets[-1] ^ 1])
    assert checksum_ok(read(broken), broken) is False


@pytest.mark.parametrize("size", [1, 255, 300, 511, 600, 1025, 2047, 3000])
def test_checksum_of_any_size(size: int) -> None:
    """Long packets are summed another way than short ones."""
    octets = octets_of(V4 / UDP(sport=5, dport=6) / (b"\x5a\xc3\x01" * size)[:size])
    assert checksum_ok(read(octets), octets) is True
    broken = octets[:-1] + bytes([octets[-1] ^ 1])
    assert checksum_ok(read(broken), broken) is False


@pytest.mark.parametrize("outer", [V4, V6], ids=["IPv4", "IPv6"])
def test_outer_checksum_that_waits_for_the_inner_one(outer: Scapy) -> None:
    """As Linux leaves a tunnel's datagram: right once the NIC has finished the inner segment."""
    inner = octets_of(IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / b"abc")
    done = octets_of(outer / UDP(dport=4789) / Raw(bytes(8) + inner))
    inside = len(done) - len(inner) + 20
    pseudo = sum(struct.unpack("!6H", inner[12:20] + struct.pack("!HH", 6, len(inner) - 20)))
    field = (pseudo & 0xFFFF) + (pseudo >> 16)
    octets = done[: inside + 16] + field.to_bytes(2) + done[inside + 18 :]
    packet = read(octets)
    assert checksum_ok(packet, octets) is False
    assert right_once_finished(packet, octets, inside, field)
    assert not right_once_finished(packet, octets, inside, field ^ 1)
