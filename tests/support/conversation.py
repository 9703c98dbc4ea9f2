# SPDX-License-Identifier: MIT
"""A TCP conversation as captured frames, written like a packet trace.

    talk = Conversation()
    talk.open()
    talk.client("PA", seq=1, ack=1, length=100)
    talk.server("A", seq=1, ack=101)

Sequence numbers are relative, as in packetdrill: 0 is the SYN of that side.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from socket import inet_aton
from typing import TypedDict, Unpack

from nfq_guard.capture.frame import Frame
from tests.support import captures

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]
RAW = 101
_OPTIONS = {
    "EOL": (0, ""),
    "NOP": (1, ""),
    "MSS": (2, "!H"),
    "WScale": (3, "!B"),
    "SAckOK": (4, ""),
}


class Extra(TypedDict, total=False):
    """What else a segment has: bytes of payload, window field, options; `wait` comes before it."""

    length: int
    win: int
    options: Sequence[tuple[str, object]]
    wait: float


def internet_sum(octets: bytes) -> int:
    """The checksum of RFC 1071."""
    number = int.from_bytes(octets + bytes(len(octets) & 1), "big")
    return ~(number % 0xFFFF or (number and 0xFFFF)) & 0xFFFF


def encoded(options: Sequence[tuple[str, object]]) -> bytes:
    """TCP options as octets, padded; by their names in scapy."""
    parts: list[bytes] = []
    for name, value in options:
        if name == "SAck":
            assert isinstance(value, tuple)
            parts.append(struct.pack(f"!BB{len(value)}I", 5, 2 + 4 * len(value), *value))
        elif name == "Timestamp":
            assert isinstance(value, tuple)
            parts.append(struct.pack("!BBII", 8, 10, *value))
        else:
            kind, form = _OPTIONS[name]
            body = struct.pack(form, value) if form else b""
            parts.append(bytes([kind]) if kind < 2 else bytes([kind, 2 + len(body)]) + body)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % 4)


class Conversation:
    """Collects frames; `now` is the time of the next one, in seconds."""

    def __init__(
        self,
        *,
        client_isn: int = 1000,
        server_isn: int = 5000,
        sport: int = 40000,
        family: int = 4,
    ) -> None:
        self.isns = (client_isn, server_isn)
        self.sport = sport
        self.family = family
        self.now = 1_700_000_000.0
        self.frames: list[Frame] = []

    def client(self, flags: str, seq: int, ack: int | None = None, **extra: Unpack[Extra]) -> None:
        """The client sends."""
        self._send(0, flags, seq, ack, extra)

    def server(self, flags: str, seq: int, ack: int | None = None, **extra: Unpack[Extra]) -> None:
        """The server sends."""
        self._send(1, flags, seq, ack, extra)

    def open(self) -> None:
        """Shake hands; both sides may use SACK and shift their windows by 7."""
        self.client("S", 0, win=64240, options=SYN_OPTIONS)
        self.server("SA", 0, 1, win=65160, options=SYN_OPTIONS)
        self.client("A", 1, 1)

    def _send(self, side: int, flags: str, seq: int, ack: int | None, extra: Extra) -> None:
        self.now += extra.get("wait", 0.01)
        ends = [(CLIENT, self.sport), (SERVER, 80)]
        (src, sport), (dst, dport) = ends if side == 0 else ends[::-1]
        options = encoded(extra.get("options", ()))
        bits = sum(1 << "FSRPAUEC".index(letter) for letter in flags)
        head = struct.pack(
            "!HHIIBBH",
            sport,
            dport,
            (self.isns[side] + seq) % 2**32,
            0 if ack is None else (self.isns[1 - side] + ack) % 2**32,
            20 + len(options) << 2,
            bits,
            extra.get("win", 502),
        )
        tail = options + b"x" * extra.get("length", 0)
        size = 20 + len(tail)
        if self.family == 4:
            addresses = inet_aton(src) + inet_aton(dst)
            ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 6, 0)
            ip = ip[:10] + struct.pack("!H", internet_sum(ip + addresses)) + addresses
        else:
            addresses = b"".join(b"\xfd" + bytes(14) + bytes([int(end[-1])]) for end in (src, dst))
            ip = struct.pack("!IHBB", 6 << 28, size, 6, 64) + addresses
        field = internet_sum(addresses + struct.pack("!HH", 6, size) + head + bytes(4) + tail)
        self.add(ip + head + struct.pack("!HH", field, 0) + tail)

    def add(self, octets: bytes, linktype: int = RAW) -> None:
        """Add any frame."""
        number = len(self.frames) + 1
        time_ns = round(self.now * 1_000_000) * 1000
        self.frames.append(Frame(number, time_ns, linktype, len(octets), octets, 0))

    def save(self, path: Path) -> str:
        """Write a classic capture; returns its name."""
        records = [
            (frame.time_ns // 10**9, frame.time_ns // 1000 % 10**6, frame.octets)
            for frame in self.frames
        ]
        path.write_bytes(captures.pcap(records, linktype=RAW))
        return str(path)
