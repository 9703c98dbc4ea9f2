# SPDX-License-Identifier: MIT
"""SCTP and GRE decoded from octets."""

import pytest
from scapy.layers.inet import ICMP
from scapy.packet import Raw

from nfq_guard.flow import FlowTuple
from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
    crc32c,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import (
    Chunk,
    GreHeader,
    IcmpMessage,
    Malformed,
    SctpPacket,
    flow_key,
    tuple_of,
)
from tests.support.octets import HOST_1, HOST_2, V4, ended, octets_of, problem, read
from tests.support.sctp import chunk, init, sctp


def test_sctp() -> None:
    octets = sctp(HOST_1, HOST_2, 1, 2, 77, chunk(0, b"abcde", 3), init(2, 9), chunk(64))
    packet = read(octets)
    assert packet.l4 == SctpPacket(
        1, 2, 77, crc32c(octets[20:28] + bytes(4) + octets[32:]),
        (Chunk(0, 3, 9, -1), Chunk(2, 0, 20, 9), Chunk(64, 0, 4, -1)), True,
    )  # fmt: skip
    assert checksum_ok(packet, octets)
    assert not checksum_unfinished(packet)
    damaged = octets[:-1] + b"\1"
    assert checksum_ok(read(damaged), damaged) is False
    unfinished = octets[:28] + bytes(4) + octets[32:]
    assert checksum_unfinished(read(unfinished))
    assert tuple_of(packet) == FlowTuple(132, HOST_1, HOST_2, 1, 2)
    assert flow_key(packet) == (132, HOST_1, HOST_2, 1, 2)


def test_crc32c() -> None:
    """The check value of the polynomial."""
    assert crc32c(b"123456789") == 0xE3069283


def test_sctp_ends_with_a_chunk_without_a_length() -> None:
    octets = sctp(HOST_1, HOST_2, 1, 2, 77, chunk(0), b"\0\0\0\0", chunk(1))
    found = read(octets).l4
    assert isinstance(found, SctpPacket)
    assert [one.length for one in found.chunks] == [4, 0]


@pytest.mark.parametrize("captured", [31, 32, 35, 40, 51])
def test_sctp_cut_by_the_capture(captured: int) -> None:
    """In its headers or in an INIT nothing can be said; behind that, chunks are missing."""
    octets = sctp(HOST_1, HOST_2, 1, 2, 0, init(1, 9))
    found = decode(octets[:captured])
    assert isinstance(found, Malformed)
    assert (found.problem, found.snapped) == ("capture ends inside the SCTP header", True)
    two = read(sctp(HOST_1, HOST_2, 1, 2, 0, chunk(0, bytes(8)), chunk(3))[:36]).l4
    assert isinstance(two, SctpPacket)
    assert (len(two.chunks), two.whole) == (1, False)


def test_sctp_cut_short() -> None:
    assert problem(ended(132, bytes(11))) == "SCTP header cut short"
    found = read(sctp(HOST_1, HOST_2, 1, 2, 0, init(1, 9)[:16])).l4
    assert isinstance(found, SctpPacket)
    assert found.chunks[0].initiate_tag == -1


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"\0\0\x08\0" + bytes(20), GreHeader(0, 0)),
        (b"\x30\x01\x88\x0b\0\4\0\7", GreHeader(1, 7)),
        (b"\x30\x01\x88\x0b\0\4\0", GreHeader(0, 0)),
        (b"", GreHeader(0, 0)),
    ],
)
def test_gre(body: bytes, header: GreHeader) -> None:
    packet = read(ended(47, body))
    assert packet.l4 == header
    assert flow_key(packet) == (47, packet.src, packet.dst, 0, 0)
    assert checksum_ok(packet, ended(47, body)) is None
    assert not checksum_unfinished(packet)


def test_gre_that_is_refused() -> None:
    assert problem(ended(47, b"\0\1\x08\0" + bytes(4))).startswith("GRE version 1")
    found = decode(ended(47, b"\0\1\x88\x0b" + bytes(4))[:26])
    assert isinstance(found, Malformed)
    assert (found.problem, found.snapped) == ("capture ends inside the GRE header", True)


@pytest.mark.parametrize(
    ("body", "call"),
    [(b"\0\1\x88\x0b\0\4\0\7", 7), (b"\0\0\x08\0", 0), (b"\0\1\x08\0" + bytes(4), None)],
)
def test_icmp_error_about_gre(body: bytes, call: int | None) -> None:
    message = read(octets_of(V4 / ICMP(type=3) / Raw(ended(47, body)))).l4
    assert isinstance(message, IcmpMessage)
    assert (None if message.quoted is None else message.quoted.dport) == call
