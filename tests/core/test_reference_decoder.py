# SPDX-License-Identifier: MIT
"""The decoder against the slow one of `tests.support.reference_decoder`."""

import random

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet, Segment
from tests.support import reference_decoder


def test_random_packets_decode_alike() -> None:
    rng = random.Random(14)  # noqa: S311 - reproducible, no secret
    whole = 0
    for _ in range(4000):
        octets = reference_decoder.packet(rng)
        fast = decode(octets)
        whole += isinstance(fast, Packet)
        assert reference_decoder.difference(octets, fast) == ""
    assert 1000 < whole < 3900


@given(st.binary(max_size=200), st.sampled_from([None, 0x45, 0x46, 0x60]))
def test_any_octets_decode_alike(octets: bytes, first: int | None) -> None:
    if first is not None:
        octets = bytes((first,)) + octets
    assert reference_decoder.difference(octets, decode(octets)) == ""


def test_every_type_of_icmp_decodes_alike() -> None:
    """Random packets meet some of them once in half a million."""
    for kind in range(256):
        message = bytes((kind, 0, 0xE4, 0xC9, 0xF7, 0x56, 0x99, 0xC0)) + bytes(40)
        for head in (
            b"\x45\0\0\x44" + bytes(4) + b"\x40\x01\0\0" + bytes(range(8)),
            b"\x60\0\0\0\0\x30\x3a\x40" + bytes(range(32)),
        ):
            octets = head + message
            assert isinstance(decode(octets), Packet)
            assert reference_decoder.difference(octets, decode(octets)) == "", (kind, octets.hex())


def test_a_difference_is_seen_in_every_field() -> None:
    """Each octet of the headers that is decoded makes the values differ."""
    head = bytes.fromhex("4500002c0000000040060000c0000201c6336402")
    octets = head + bytes.fromhex("1f9001bb000000010000000260120400abcd0000") + b"\2\4\5\xb4"
    fast = decode(octets)
    assert isinstance(fast, Packet)
    assert isinstance(fast.l4, Segment)
    unread = {1, 4, 5, 10, 11, 38, 39}
    for at in {*range(44)} - unread:
        changed = bytearray(octets)
        changed[at] ^= 1 << 6
        if at != 6:  # the bit that says "do not fragment"
            assert reference_decoder.difference(bytes(changed), fast) != "", at


@given(st.binary(min_size=20, max_size=60))
def test_the_checksum_is_that_of_the_reference(segment: bytes) -> None:
    segment = segment[:12] + b"\x50" + segment[13:16] + b"\0\0" + segment[18:]
    head = b"\x45\0" + (20 + len(segment)).to_bytes(2) + bytes(4) + b"\x40\6\0\0" + bytes(range(8))
    pseudo = head[12:20] + b"\0\6" + len(segment).to_bytes(2)
    right = reference_decoder.checksum(pseudo + segment)
    for field in (right, right ^ 1):
        octets = head + segment[:16] + field.to_bytes(2) + segment[18:]
        packet = decode(octets)
        assert isinstance(packet, Packet)
        assert checksum_ok(packet, octets) is (field == right)
