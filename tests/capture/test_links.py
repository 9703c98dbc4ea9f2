# SPDX-License-Identifier: MIT
"""The start of the IP packet, by link type."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.capture import links

V4 = b"\x45" + bytes(19)
V4_OPTIONS = b"\x46" + bytes(23)
V6 = b"\x60" + bytes(39)
MACS = bytes(12)
SLL2 = bytes(18)


def nflog(order: str) -> bytes:
    """A frame as captured by `tcpdump -i nflog`: packet header, prefix, payload."""

    def attribute(kind: int, value: bytes) -> bytes:
        head = struct.pack(order + "HH", len(value) + 4, kind)
        return head + value + bytes(-len(value) % 4)

    return (
        b"\x02\x00\x00\x05"
        + attribute(1, b"\x08\x00\x00\x00")
        + attribute(10, b"a prefix\0")
        + attribute(9, V4)
    )


@pytest.mark.parametrize(
    ("linktype", "header", "packet"),
    [
        (links.ETHERNET, MACS + b"\x08\x00", V4),
        (links.ETHERNET, MACS + b"\x08\x00", V4_OPTIONS),
        (links.ETHERNET, MACS + b"\x86\xdd", V6),
        (links.ETHERNET, MACS + b"\x81\x00\x00\x07\x08\x00", V4),
        (links.ETHERNET, MACS + b"\x88\xa8\x00\x07\x81\x00\x00\x08\x86\xdd", V6),
        (links.LINUX_SLL, bytes(14) + b"\x08\x00", V4),
        (links.LINUX_SLL, bytes(14) + b"\x81\x00\x00\x07\x86\xdd", V6),
        (links.LINUX_SLL2, b"\x08\x00" + SLL2, V4),
        (links.LINUX_SLL2, b"\x86\xdd" + SLL2, V6),
        (links.LINUX_SLL2, b"\x81\x00" + SLL2 + b"\x00\x07\x08\x00", V4),
        (links.ETHERNET, MACS + b"\x88\x64\x11\x00\x12\x34\x00\x16\x00\x21", V4),
        (links.ETHERNET, MACS + b"\x88\x64\x11\x00\x12\x34\x00\x2a\x00\x57", V6),
        (links.ETHERNET, MACS + b"\x81\x00\x00\x07\x88\x64\x11\0\0\1\0\x16\x21", V4),
        (links.ETHERNET, MACS + b"\x88\x47\x00\x01\x00\x40\x00\x01\x01\x40", V4),
        (links.ETHERNET, MACS + b"\x88\x48\x00\x01\x01\x40", V6),
        (links.LINUX_SLL, bytes(14) + b"\x88\x64\x11\x00\x12\x34\x00\x16\x00\x21", V4),
        (links.LINUX_SLL2, b"\x88\x47" + SLL2 + b"\x00\x01\x01\x40", V4),
        (links.PPP, b"\x00\x21", V4),
        (links.PPP, b"\xff\x03\x00\x57", V6),
        (links.PPP_HDLC, b"\xff\x03\x21", V4),
        (links.PPP_ETHER, b"\x11\x00\x12\x34\x00\x16\x00\x21", V4),
        (links.RAW, b"", V4),
        (links.RAW, b"", V6),
        (links.RAW_DLT_12, b"", V4),
        (links.RAW_DLT_14, b"", V6),
        (links.IPV4, b"", V4),
        (links.IPV6, b"", V6),
        (links.NULL, b"\x02\0\0\0", V4),
        (links.NULL, b"\0\0\0\x1e", V6),
        (links.LOOP, b"\0\0\0\x02", V4),
        (links.NFLOG, nflog("<")[: -len(V4)], V4),
        (links.NFLOG, nflog(">")[: -len(V4)], V4),
    ],
)
def test_packet_start(linktype: int, header: bytes, packet: bytes) -> None:
    assert links.LINKS[linktype](header + packet) == len(header)


@pytest.mark.parametrize(
    ("linktype", "octets"),
    [
        (links.ETHERNET, MACS + b"\x08\x06" + bytes(28)),
        (links.ETHERNET, MACS + b"\x08\x00" + V6),
        (links.ETHERNET, MACS + b"\x86\xdd" + V4),
        (links.ETHERNET, MACS + b"\x08\x00"),
        (links.ETHERNET, MACS + b"\x81\x00"),
        (links.LINUX_SLL, bytes(14) + b"\x00\x04" + V4),
        (links.LINUX_SLL2, b"\x08\x06" + SLL2 + bytes(28)),
        (links.RAW, b"\x15" + bytes(19)),
        (links.IPV4, V6),
        (links.IPV6, V4),
        (links.NULL, bytes(4)),
        (links.NFLOG, b"\x02\0\0\0" + b"\x00\x00\x09\x00"),
        (links.NFLOG, nflog("<")[:30]),
    ],
)
def test_no_packet(linktype: int, octets: bytes) -> None:
    assert links.LINKS[linktype](octets) == links.NO_PACKET


@given(linktype=st.sampled_from(sorted(links.LINKS)), octets=st.binary(max_size=80))
def test_any_octets(linktype: int, octets: bytes) -> None:
    """No input raises; a packet starts inside the frame, with a known IP version."""
    start = links.LINKS[linktype](octets)
    assert start == links.NO_PACKET or octets[start] >> 4 in {4, 6}


@pytest.mark.parametrize(
    "frame",
    [
        MACS + b"\x88\x64\x11\x09\x00\x00\x00\x16\x00\x21" + V4,
        MACS + b"\x88\x64\x11",
        MACS + b"\x88\x64\x11\x00\x12\x34\x00\x16\xc0\x21" + V4,
        MACS + b"\x88\x47" + bytes(80),
        MACS + b"\x88\x47\x00\x01\x01\x40" + bytes(20),
    ],
)
def test_no_packet_below_sessions_and_labels(frame: bytes) -> None:
    """Discovery and control frames, an endless stack of labels, and other protocols than IP."""
    assert links.LINKS[links.ETHERNET](frame) == links.NO_PACKET


def test_names() -> None:
    assert links.name_of(127) == "127 (radiotap)"
    assert links.name_of(109) == "109 (OpenBSD IPsec encapsulation)"
    assert links.name_of(166) == "166 (PPP of pppd with direction)"
    assert links.name_of(204) == "204 (PPP with direction)"
    assert links.name_of(285) == "285 (Marvell EDSA tag)"
    assert links.name_of(60_000) == "60000"
    assert set(links.LINKS) <= set(links.NAMES)
