# SPDX-License-Identifier: MIT
"""Fragments are reassembled to the packet that was sent, or discarded."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw

from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.fragments import (
    MEMORY_OCTETS,
    TIMEOUT_V4_S,
    TIMEOUT_V6_S,
    WAITING,
    Reassembler,
    is_fragment,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Datagram, Packet

PAYLOAD = bytes(range(250)) * 12


def pieces_v4(identifier: int = 7) -> list[bytes]:
    whole = IP(src="10.0.0.1", dst="10.0.0.2", id=identifier) / UDP(sport=1, dport=2)
    return [bytes(piece) for piece in fragment(IP(bytes(whole / Raw(PAYLOAD))), 1000)]


def pieces_v6(*, options: bool = False) -> list[bytes]:
    header: Any = IPv6(src="fd00::1", dst="fd00::2")
    if options:
        header /= IPv6ExtHdrDestOpt()
    whole = header / IPv6ExtHdrFragment(id=9) / UDP(sport=1, dport=2) / Raw(PAYLOAD)
    return [bytes(piece) for piece in fragment6(whole, 1000)]


SETS = {"v4": pieces_v4(), "v6": pieces_v6(), "v6 behind options": pieces_v6(options=True)}


@pytest.mark.parametrize("pieces", SETS.values(), ids=SETS)
def test_in_any_order(pieces: list[bytes]) -> None:
    """The piece that arrives last completes the packet, whose checksum is correct."""
    for order in itertools.permutations(pieces):
        reassembler = Reassembler()
        answers = [reassembler.offer(piece, 0.0) for piece in order]
        assert answers[:-1] == [WAITING] * (len(order) - 1)
        packet = decode(answers[-1])
        assert isinstance(packet, Packet)
        assert isinstance(packet.l4, Datagram)
        assert packet.l4.length == len(PAYLOAD) + 8
        assert not packet.more_fragments
        assert checksum_ok(packet, answers[-1])
        assert answers[-1].endswith(PAYLOAD)
        assert (len(reassembler), reassembler.octets_held) == (0, 0)


@pytest.mark.parametrize(
    ("pieces", "timeout"), [(SETS["v4"], TIMEOUT_V4_S), (SETS["v6"], TIMEOUT_V6_S)]
)
def test_gives_up(pieces: list[bytes], timeout: float) -> None:
    """After the timeout, counted from the first piece, reassembly starts anew."""
    in_time, late = Reassembler(), Reassembler()
    for reassembler in (in_time, late):
        for piece in pieces[:-1]:
            assert reassembler.offer(piece, 0.0) == WAITING
    assert in_time.offer(pieces[-1], timeout - 0.1) != WAITING
    assert late.offer(pieces[-1], timeout) == WAITING
    assert len(late) == 1


def test_expired_behind_one_that_waits_longer() -> None:
    reassembler = Reassembler()
    reassembler.offer(SETS["v6"][0], 0.0)
    reassembler.offer(SETS["v4"][0], 0.0)
    for piece in SETS["v4"][1:]:
        assert reassembler.offer(piece, 31.0) == WAITING


def test_repeated_piece_is_harmless() -> None:
    reassembler = Reassembler()
    first, *rest = SETS["v4"]
    assert reassembler.offer(first, 0.0) == WAITING
    assert reassembler.offer(first, 0.0) == WAITING
    assert [reassembler.offer(piece, 0.0) for piece in rest][-1] != WAITING


def shifted(piece: bytes, octets: int) -> bytes:
    """A fragment with a changed offset."""
    packet = IP(piece)
    packet.frag += octets // 8
    return bytes(packet)


def test_overlap_gives_up_the_datagram() -> None:
    """By RFC 5722, which Linux applies to IPv4 as well."""
    reassembler = Reassembler()
    for piece in [SETS["v4"][0], shifted(SETS["v4"][1], -8), *SETS["v4"][1:]]:
        assert reassembler.offer(piece, 0.0) == WAITING


@pytest.mark.parametrize(
    "bad",
    [
        bytes(IP(flags="MF") / Raw(b"x" * 7)),
        bytes(IP(flags="MF")),
        bytes(IP(frag=3)),
        b"\x44" + bytes(IP(frag=3) / Raw(b"x" * 8))[1:],
        bytes(IPv6(nh=44, plen=4) / IPv6ExtHdrFragment(m=1)),
    ],
)
def test_impossible_piece(bad: bytes) -> None:
    """Empty, or too short for its headers; with IPv4 also what is left out of an odd length."""
    reassembler = Reassembler()
    assert is_fragment(bad)
    assert reassembler.offer(bad, 0.0) == WAITING
    assert len(reassembler) == 0


def test_end_that_contradicts_itself() -> None:
    """A second last piece, or one beyond the last."""
    head, middle, *_, last = SETS["v4"]
    early = bytes(IP(src="10.0.0.1", dst="10.0.0.2", id=7, proto=17, frag=10) / Raw(b"x" * 8))
    for order in ([last, early], [middle, early], [early, middle]):
        reassembler = Reassembler()
        reassembler.offer(head[:20] + head[20:], 0.0)
        for piece in order:
            assert reassembler.offer(piece, 0.0) == WAITING


def test_snapped_piece() -> None:
    """The packet is cut where the capture is, and says its whole length."""
    reassembler = Reassembler()
    answers = [reassembler.offer(piece[:60], 0.0) for piece in SETS["v4"]]
    packet = decode(answers[-1])
    assert isinstance(packet, Packet)
    assert packet.length == 20 + 8 + len(PAYLOAD)
    assert len(answers[-1]) == 60
    assert checksum_ok(packet, answers[-1]) is None


def test_memory_is_bounded() -> None:
    """A flood of first pieces is refused once the memory is used, until it expires."""
    reassembler = Reassembler()
    first = bytearray(SETS["v4"][0])
    for flood in range(20_000):
        first[4:6] = (flood & 0xFFFF).to_bytes(2, "big")
        first[12:16] = (flood >> 16).to_bytes(4, "big")
        reassembler.offer(bytes(first), 0.0)
    assert MEMORY_OCTETS <= reassembler.octets_held <= MEMORY_OCTETS + 65_535
    assert [reassembler.offer(piece, 1.0) for piece in pieces_v4(65_000)][-1] == WAITING
    assert [reassembler.offer(piece, 31.0) for piece in pieces_v4(65_000)][-1] != WAITING
    assert reassembler.octets_held == 0


def test_datagrams_without_a_fragment_are_bounded() -> None:
    """An empty fragment of IPv6 is left out, and its datagram waits for others."""
    reassembler = Reassembler(memory=100_000)
    for number in range(1_000):
        empty = IPv6() / IPv6ExtHdrFragment(offset=1, m=1, id=number, nh=6)
        assert reassembler.offer(bytes(empty), 0.0) == WAITING
    assert 0 < len(reassembler) < 1_000
    assert 100_000 <= reassembler.octets_held < 101_000
    assert (
        reassembler.offer(bytes(IPv6() / IPv6ExtHdrFragment(offset=1, m=1) / Raw(bytes(8))), 60.0)
        == WAITING
    )
    assert len(reassembler) == 1


def test_the_only_fragment_of_its_datagram() -> None:
    """Its fragment header is removed, unless another with the same identification has arrived."""
    whole = bytes(IPv6() / IPv6ExtHdrFragment(offset=0, m=0) / UDP())
    assert is_fragment(whole)
    assert Reassembler().offer(whole, 0.0) == bytes(IPv6() / UDP())
    reassembler = Reassembler()
    other = bytes(IPv6() / IPv6ExtHdrFragment(offset=9, m=0) / UDP())
    assert [reassembler.offer(piece, 0.0) for piece in (other, whole)] == [WAITING, WAITING]
    assert not is_fragment(bytes(IP() / UDP()))
    assert not is_fragment(b"")


@given(octets=st.lists(st.binary(max_size=120), max_size=20), now=st.floats(0, 1e6))
def test_any_octets(octets: list[bytes], now: float) -> None:
    reassembler = Reassembler()
    for each in octets:
        if each and is_fragment(each):
            reassembler.offer(each, now)


@given(
    data=st.lists(
        st.tuples(
            st.sampled_from([*SETS["v4"], *SETS["v6 behind options"]]),
            st.integers(0, 90),
            st.integers(0, 255),
        ),
        max_size=30,
    )
)
def test_changed_fragments(data: list[tuple[bytes, int, int]]) -> None:
    """Never an exception, and what is held is accounted for."""
    reassembler = Reassembler()
    for piece, position, value in data:
        octets = bytearray(piece)
        octets[position % len(octets)] = value
        if is_fragment(bytes(octets)):
            reassembler.offer(bytes(octets), 0.0)
    assert (reassembler.octets_held > 0) == (len(reassembler) > 0)


def piece_v4(start: int, size: int, *, more: bool) -> bytes:
    field = start >> 3 | (0x2000 if more else 0)
    header = bytes((0x45, 0)) + (20 + size).to_bytes(2) + b"\0\7" + field.to_bytes(2)
    return header + bytes((64, 17, 0, 0)) + bytes(8) + bytes(size)


def test_a_datagram_too_long_for_its_length_field() -> None:
    """Each fragment fits, but header and data together exceed 65,535 octets."""
    reassembler = Reassembler()
    assert reassembler.offer(piece_v4(0, 65_512, more=True), 0.0) == WAITING
    assert reassembler.offer(piece_v4(65_512, 18, more=False), 0.0) == WAITING
    assert (len(reassembler), reassembler.octets_held) == (0, 0)


def test_only_ip_is_a_fragment() -> None:
    """The same octets with another IP version are no fragment."""
    piece = SETS["v6"][0]
    assert is_fragment(piece)
    assert not is_fragment(bytes((0x50,)) + piece[1:])
    assert not is_fragment(piece[:39])


def test_extensions_without_a_fragment_header() -> None:
    """And `offer`, given one all the same, holds nothing."""
    whole = bytes(IPv6() / IPv6ExtHdrDestOpt() / UDP())
    assert not is_fragment(whole)
    assert not is_fragment(whole[:44])
    reassembler = Reassembler()
    assert reassembler.offer(whole, 0.0) == WAITING
    assert len(reassembler) == 0


def test_a_last_fragment_in_front_of_another() -> None:
    """It contradicts what arrived before, so the datagram is discarded."""
    reassembler = Reassembler()
    assert reassembler.offer(piece_v4(1600, 800, more=True), 0.0) == WAITING
    assert len(reassembler) == 1
    assert reassembler.offer(piece_v4(0, 800, more=False), 0.0) == WAITING
    assert len(reassembler) == 0


def piece_v6(start: int, size: int, *, more: bool, proto: int = 17) -> bytes:
    header = bytes((proto, 0)) + (start | int(more)).to_bytes(2) + bytes(4)
    return bytes(IPv6(nh=44, plen=8 + size)) + header + bytes(size)


def test_a_piece_of_an_odd_length() -> None:
    """IPv4 omits octets past a multiple of eight; IPv6 discards the datagram."""
    reassembler = Reassembler()
    assert reassembler.offer(piece_v4(0, 19, more=True), 0.0) == WAITING
    whole = reassembler.offer(piece_v4(16, 9, more=False), 0.0)
    assert len(whole) == 20 + 25
    odd = piece_v6(16, 19, more=True)
    assert reassembler.offer(odd, 0.0) == odd
    assert reassembler.offer(piece_v6(0, 16, more=True), 0.0) == WAITING
    assert reassembler.offer(odd, 0.0) == odd
    assert len(reassembler) == 0


@pytest.mark.parametrize(("proto", "size"), [(17, 7), (58, 7), (6, 19), (253, 0)])
def test_a_first_piece_without_its_transport_header(proto: int, size: int) -> None:
    """IPv6 passes it on as it is, and waits for another."""
    reassembler = Reassembler()
    assert reassembler.offer(piece_v6(24, 9, more=False, proto=proto), 0.0) == WAITING
    short = piece_v6(0, size, more=True, proto=proto)
    assert reassembler.offer(short, 0.0) == short
    assert reassembler.offer(piece_v6(0, 24, more=True, proto=proto), 0.0) != WAITING


def test_a_first_piece_that_ends_behind_long_options() -> None:
    """Destination options of 264 octets, behind which a TCP header is announced."""
    options = bytes((6, 32)) + bytes(262)
    short = piece_v6(0, 264, more=True, proto=60)[:-264] + options
    assert Reassembler().offer(short, 0.0) == short


def test_a_first_piece_that_ends_in_an_extension_header() -> None:
    assert Reassembler().offer(piece_v6(0, 0, more=True, proto=60), 0.0) == WAITING


def test_repeated_within_a_run() -> None:
    """Ignored within fragments that arrived in order; any other discards the datagram."""
    for first, second, harmless in ((0, 16, True), (16, 0, False)):
        reassembler = Reassembler()
        for start in (first, second):
            assert reassembler.offer(piece_v4(start, 16, more=True), 0.0) == WAITING
        assert reassembler.offer(piece_v4(8, 16, more=True), 0.0) == WAITING
        assert (len(reassembler) == 1) is harmless


def test_contradictions_are_left_out_of_ipv6() -> None:
    """Fragments beyond the end, with a second end, or empty."""
    reassembler = Reassembler()
    for piece in (
        piece_v6(16, 9, more=False),
        piece_v6(16, 16, more=True),
        piece_v6(24, 8, more=False),
        piece_v6(8, 0, more=True),
        piece_v6(65_528, 16, more=True),
        piece_v6(16, 9, more=False),
    ):
        assert reassembler.offer(piece, 0.0) == WAITING
    assert len(reassembler.offer(piece_v6(0, 16, more=True), 0.0)) == 40 + 25


def test_an_end_in_a_repeated_piece() -> None:
    """It counts, but does not complete the datagram."""
    reassembler = Reassembler()
    assert reassembler.offer(piece_v4(0, 16, more=True), 0.0) == WAITING
    assert reassembler.offer(piece_v4(0, 16, more=False), 0.0) == WAITING
    assert reassembler.offer(piece_v4(16, 8, more=False), 0.0) == WAITING
    assert len(reassembler) == 0


def test_an_end_before_an_end() -> None:
    reassembler = Reassembler()
    for start, size in ((16, 8), (8, 8)):
        assert reassembler.offer(piece_v4(start, size, more=False), 0.0) == WAITING
    assert len(reassembler) == 0
