# SPDX-License-Identifier: MIT
"""Packets with other addresses: still the same packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.capture.anonymise import Anonymiser
from nfq_guard.flow import PROTO_ICMP
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import IcmpMessage, Packet, Segment
from tests.support.packets import A4, A6, B4, B6, C4, C6, error, folded, icmp, ip, tcp, udp

KEY = Anonymiser(b"key")
PACKETS = [
    tcp(A4, B4, 1, 2, 0x10),
    tcp(A6, B6, 1, 2, 0x10),
    udp(A4, B4, 1, 2, b"odd"),
    udp(A6, B6, 1, 2),
    icmp(A4, B4, 8, bytes(4)),
    icmp(A6, B6, 128, bytes(4)),
    error(B4, A4, 3, udp(A4, B4, 1, 2)),
    error(B6, A6, 1, tcp(A6, B6, 1, 2, 0x10)),
]


def sums(octets: bytes) -> list[int]:
    """The sums of the IP header and of its payload, modulo 0xFFFF: 0 if the checksum is right."""
    packet = decode(octets)
    assert isinstance(packet, Packet)
    body = octets[packet.l4_offset :]
    pseudo = packet.src + packet.dst + len(body).to_bytes(4) + packet.proto.to_bytes(4)
    head = [octets[: packet.l4_offset]] if packet.family == 4 else []
    covered = [*head, body if packet.proto == PROTO_ICMP else pseudo + body]
    return [folded(one) % 0xFFFF for one in covered]


@pytest.mark.parametrize("octets", PACKETS)
def test_only_addresses_and_checksums_differ(octets: bytes) -> None:
    before, after = decode(octets), decode(KEY.packet(octets))
    assert isinstance(before, Packet)
    assert isinstance(after, Packet)
    assert after.src == KEY.address(before.src) != before.src
    assert after.dst == KEY.address(before.dst)
    assert (after.proto, after.length, after.l4_offset) == (
        before.proto, before.length, before.l4_offset,
    )  # fmt: skip
    assert len(KEY.packet(octets)) == len(octets)


@pytest.mark.parametrize("octets", PACKETS)
def test_right_checksums_stay_right(octets: bytes) -> None:
    assert not any(sums(octets))
    assert not any(sums(KEY.packet(octets)))


def test_wrong_checksums_stay_wrong() -> None:
    for octets in PACKETS:
        wrong = octets[:-1] + bytes((octets[-1] ^ 1,))
        assert sums(KEY.packet(wrong))[-1] == sums(wrong)[-1] != 0


def test_what_an_error_quotes_is_changed_too() -> None:
    octets = KEY.packet(error(B4, A4, 3, udp(A4, B4, 1, 2)))
    assert A4 not in octets
    assert B4 not in octets
    found = decode(octets)
    assert isinstance(found, Packet)
    assert isinstance(found.l4, IcmpMessage)
    assert found.l4.quoted is not None
    assert (found.l4.quoted.src, found.l4.quoted.dst) == (KEY.address(A4), KEY.address(B4))


@pytest.mark.parametrize("first", [0x45, 0x65, 0x05, 0x40, 0x44])
def test_an_error_that_quotes_a_damaged_header(first: int) -> None:
    quoted = bytes((first,)) + udp(A4, B4, 1, 2)[1:]
    octets = KEY.packet(error(B4, A4, 3, quoted + bytes(20)))
    assert KEY.address(A4) + KEY.address(B4) in octets[40:]
    assert A4 not in octets
    assert B4 not in octets


@pytest.mark.parametrize("first", [0x60, 0x45, 0x00])
def test_an_icmpv6_error_that_quotes_a_damaged_header(first: int) -> None:
    quoted = bytes((first,)) + udp(A6, B6, 1, 2)[1:]
    octets = KEY.packet(error(B6, A6, 1, quoted))
    assert KEY.address(A6) + KEY.address(B6) in octets[56:]
    assert A6 not in octets
    assert B6 not in octets


def with_options(octets: bytes) -> bytes:
    """An IPv4 packet with a record of the route."""
    options = bytes((7, 11, 8)) + C4 + B4 + b"\0"
    head = bytearray(octets[:20] + options)
    head[0] = 0x40 | len(head) >> 2
    head[2:4] = (len(head) + len(octets) - 20).to_bytes(2)
    head[10:12] = b"\0\0"
    head[10:12] = folded(bytes(head)).to_bytes(2)
    return bytes(head) + octets[20:]


def with_extensions(octets: bytes, *kinds: int) -> bytes:
    """An IPv6 packet with extension headers, each with an address of another node."""
    chain = b""
    following = octets[6]
    for kind in reversed(kinds):
        head = bytes((following, 2, 0, 0)) if kind == 43 else bytes((following, 2, 201, 16))
        chain = head + (bytes(4) + C6 if kind == 43 else C6 + bytes(4)) + chain
        following = kind
    length = len(octets) - 40 + len(chain)
    return (
        octets[:4]
        + length.to_bytes(2)
        + bytes((following, octets[7]))
        + octets[8:40]
        + chain
        + octets[40:]
    )


@pytest.mark.parametrize(
    "octets",
    [
        with_options(tcp(A4, B4, 1, 2, 0x10)),
        error(B4, A4, 3, with_options(udp(A4, B4, 1, 2))),
        icmp(B4, A4, 5, C4 + udp(A4, B4, 1, 2)),
        icmp(A4, B4, 9, bytes((1, 2, 0, 9)) + C4 + bytes(4)),
        with_extensions(tcp(A6, B6, 1, 2, 0x10), 0, 43, 60),
        error(B6, A6, 1, with_extensions(udp(A6, B6, 1, 2), 60)),
        icmp(A6, B6, 135, bytes(4) + C6),
        icmp(A6, B6, 137, bytes(4) + C6 + C6),
    ],
)
def test_addresses_elsewhere_go_too(octets: bytes) -> None:
    assert C4 in octets or C6 in octets
    assert not any(sums(octets))
    found = KEY.packet(octets)
    assert len(found) == len(octets)
    assert not any(sums(found))
    for address in (A4, B4, C4, A6, B6, C6):
        assert address not in found
    before, after = decode(octets), decode(found)
    assert isinstance(before, Packet)
    assert isinstance(after, Packet)
    assert (after.proto, after.l4_offset) == (before.proto, before.l4_offset)


def test_a_datagram_without_a_checksum_has_none_afterwards() -> None:
    plain = udp(A4, B4, 1, 2)
    assert KEY.packet(plain[:26] + b"\0\0" + plain[28:])[26:28] == b"\0\0"


def test_a_flow_stays_a_flow() -> None:
    there, back = KEY.packet(tcp(A4, B4, 1, 2, 0)), KEY.packet(tcp(B4, A4, 2, 1, 0))
    assert there[12:16] == back[16:20]
    assert there[16:20] == back[12:16]
    assert Anonymiser(b"other").packet(tcp(A4, B4, 1, 2, 0)) != there


@pytest.mark.parametrize("cut", [24, 30, 36, 37, 39])
def test_headers_that_are_cut(cut: int) -> None:
    """Captured parts are changed; of a packet that cannot be decoded only the IP header is kept."""
    octets = tcp(A4, B4, 1, 2, 0)[:cut]
    found = KEY.packet(octets)
    assert A4 not in found
    assert len(found) == (cut if isinstance(decode(octets), Packet) else 20)


def test_a_later_fragment() -> None:
    octets = bytearray(ip(A4, B4, 6, bytes(24)))
    octets[7] = 3
    found = KEY.packet(bytes(octets))
    assert found[20:] == bytes(24)
    assert A4 not in found


@given(st.binary(max_size=120))
def test_any_octets(octets: bytes) -> None:
    assert len(KEY.packet(octets)) <= len(octets)


@given(st.binary(max_size=60))
def test_an_error_that_quotes_anything(quoted: bytes) -> None:
    octets = error(A4, B4, 3, quoted)
    assert len(KEY.packet(octets)) <= len(octets)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_no_address_is_special(address: bytes) -> None:
    found = KEY.address(address)
    assert len(found) == len(address)
    assert found[0] == 0xFD if len(address) == 16 else 64 <= found[0] < 127


def test_segments_keep_their_numbers() -> None:
    before, after = decode(PACKETS[0]), decode(KEY.packet(PACKETS[0]))
    assert isinstance(before, Packet)
    assert isinstance(after, Packet)
    assert isinstance(before.l4, Segment)
    assert isinstance(after.l4, Segment)
    assert (after.l4.seq, after.l4.flags, after.l4.sport) == (
        before.l4.seq, before.l4.flags, before.l4.sport,
    )  # fmt: skip
