# SPDX-License-Identifier: MIT
"""A TCP conversation as captured frames, written like a packet trace.

    talk = Conversation()
    talk.open()
    talk.client("PA", seq=1, ack=1, length=100)
    talk.server("A", seq=1, ack=101)

Sequence numbers are relative, as in packetdrill: 0 is the SYN of that side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from nfq_guard.capture.frame import Frame
from tests.support import captures

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]
RAW = 101


class Extra(TypedDict, total=False):
    """What else a segment has: bytes of payload, window field, options; `wait` comes before it."""

    length: int
    win: int
    options: Sequence[tuple[str, object]]
    wait: float


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
        header = (
            IP(src=src, dst=dst)
            if self.family == 4
            else IPv6(src=f"fd00::{src[-1]}", dst=f"fd00::{dst[-1]}")
        )
        segment = TCP(
            sport=sport,
            dport=dport,
            flags=flags,
            seq=(self.isns[side] + seq) % 2**32,
            ack=0 if ack is None else (self.isns[1 - side] + ack) % 2**32,
            window=extra.get("win", 502),
            options=list(extra.get("options", ())),
        )
        self.add(bytes(header / segment / Raw(b"x" * extra.get("length", 0))))

    def add(self, octets: bytes, linktype: int = RAW) -> None:
        """Any frame."""
        number = len(self.frames) + 1
        time_ns = round(self.now * 1_000_000) * 1000
        self.frames.append(Frame(number, time_ns, linktype, len(octets), octets, 0))

    def save(self, path: Path) -> str:
        """Write a classic capture; its name."""
        records = [
            (frame.time_ns // 10**9, frame.time_ns // 1000 % 10**6, frame.octets)
            for frame in self.frames
        ]
        path.write_bytes(captures.pcap(records, linktype=RAW))
        return str(path)
