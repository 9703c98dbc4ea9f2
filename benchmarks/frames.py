# SPDX-License-Identifier: MIT
"""Builds files of Ethernet frames with TCP segments for the generator."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

_ETHERNET: Final = struct.Struct("!6s6sH")
_IP: Final = struct.Struct("!BBHHHBBHII")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_LENGTH: Final = struct.Struct("=H")
_TTL: Final = 64


@dataclass(frozen=True, slots=True)
class Link:
    """MAC addresses of the sender and the receiver."""

    source: bytes
    target: bytes


def address(dotted: str) -> int:
    """An IPv4 address as a number."""
    a, b, c, d = map(int, dotted.split("."))
    return a << 24 | b << 16 | c << 8 | d


def segment(
    link: Link,
    src: int,
    dst: int,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    *,
    window: int = 65535,
    payload: bytes = b"",
) -> bytes:
    """One frame with valid checksums; `payload` must have an even length."""
    size = 40 + len(payload)
    ip_sum = (
        0x4500
        + size
        + (_TTL << 8 | 6)
        + (src >> 16)
        + (src & 0xFFFF)
        + (dst >> 16)
        + (dst & 0xFFFF)
    )
    tcp_sum = (
        (src >> 16) + (src & 0xFFFF) + (dst >> 16) + (dst & 0xFFFF) + 6 + size - 20
        + sport + dport + (seq >> 16) + (seq & 0xFFFF) + (ack >> 16) + (ack & 0xFFFF)
        + (0x5000 | flags) + window
    )  # fmt: skip
    if payload:
        tcp_sum += sum(struct.unpack(f"!{len(payload) // 2}H", payload))
    return (
        _ETHERNET.pack(link.target, link.source, 0x0800)
        + _IP.pack(0x45, 0, size, 0, 0, _TTL, 6, _folded(ip_sum), src, dst)
        + _TCP.pack(sport, dport, seq, ack, 0x50, flags, window, _folded(tcp_sum), 0)
        + payload
    )


def _folded(number: int) -> int:
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    return ~number & 0xFFFF


def write(path: Path, frames: Iterable[bytes]) -> int:
    """Write frames for `generate`; returns their number."""
    count = 0
    with path.open("wb") as file:
        for frame in frames:
            file.write(_LENGTH.pack(len(frame)) + frame)
            count += 1
    return count
