# SPDX-License-Identifier: MIT
"""Builds capture files octet by octet, so that tests compare the reader with the formats."""

import struct
from collections.abc import Iterable, Sequence

SECTION = 0x0A0D0D0A
INTERFACE = 1
OBSOLETE_PACKET = 2
SIMPLE_PACKET = 3
NAMES = 4
STATISTICS = 5
ENHANCED_PACKET = 6


def pcap(
    records: Iterable[tuple[int, int, bytes]],
    *,
    order: str = "<",
    nanoseconds: bool = False,
    linktype: int = 1,
    snaplen: int = 262144,
) -> bytes:
    """A classic file of (seconds, fraction, octets), each cut to `snaplen`."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)]
    for seconds, fraction, octets in records:
        kept = octets[:snaplen]
        parts.append(struct.pack(order + "IIII", seconds, fraction, len(kept), len(octets)) + kept)
    return b"".join(parts)


def padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def options(pairs: Sequence[tuple[int, bytes]], order: str = "<") -> bytes:
    parts = [struct.pack(order + "HH", code, len(value)) + padded(value) for code, value in pairs]
    return b"".join(parts) + bytes(4) if parts else b""


def section(order: str = "<", major: int = 1) -> bytes:
    body = struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1)
    return block(SECTION, body, order)


def interface(
    linktype: int = 1,
    *,
    snaplen: int = 0,
    tsresol: int | None = None,
    tsoffset: int | None = None,
    name: bytes = b"eth0",
    order: str = "<",
) -> bytes:
    pairs: list[tuple[int, bytes]] = [(2, name)]
    if tsresol is not None:
        pairs.append((9, bytes([tsresol])))
    if tsoffset is not None:
        pairs.append((14, struct.pack(order + "q", tsoffset)))
    body = struct.pack(order + "HHI", linktype, 0, snaplen) + options(pairs, order)
    return block(INTERFACE, body, order)


def enhanced(
    octets: bytes,
    ticks: int = 0,
    *,
    number: int = 0,
    order: str = "<",
    more: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """A frame, with any options."""
    head = struct.pack(
        order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(octets), len(octets)
    )
    return block(ENHANCED_PACKET, head + padded(octets) + options(more, order), order)


def statistics(number: int, *, ifdrop: int, osdrop: int, order: str = "<") -> bytes:
    counters = [(5, struct.pack(order + "Q", ifdrop)), (7, struct.pack(order + "Q", osdrop))]
    body = struct.pack(order + "III", number, 0, 0) + options(counters, order)
    return block(STATISTICS, body, order)


def simple(octets: bytes, wire_len: int | None = None, *, order: str = "<") -> bytes:
    length = len(octets) if wire_len is None else wire_len
    return block(SIMPLE_PACKET, struct.pack(order + "I", length) + padded(octets), order)


def obsolete(octets: bytes, ticks: int = 0, *, number: int = 0, order: str = "<") -> bytes:
    head = struct.pack(
        order + "HHIIII", number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(octets), len(octets)
    )
    return block(OBSOLETE_PACKET, head + padded(octets), order)
