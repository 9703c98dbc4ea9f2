# SPDX-License-Identifier: MIT
"""Flows written as packet traces, one line per segment, in the style of packetdrill.

    > S  0:0(0) win 65535 <mss 1460,sackOK,wscale 7>
    < S. 0:0(0) ack 1 win 65535 <mss 1460>
    +12.5 > P. 1:101(100) ack 1 win 512

`>` is the original direction, `<` the reply direction. Flags are letters of `SFRP.UEW` (`.` is ACK,
W is CWR) or `-`. `ack` without `.` still fills the field. A leading `+` with a number is the
seconds since the line before. Options: mss N, wscale N, sackOK, TS N N, sack A:B [C:D ...], nop,
eol, hex OCTETS.

Sequence numbers count from the initial one of each side, which `numbers` chooses.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from nfq_guard.flow import IPV4, PROTO_TCP
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import Packet, Segment

_LETTERS: Final = {
    "F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, ".": 0x10, "U": 0x20, "E": 0x40, "W": 0x80,
}  # fmt: skip
_MASK: Final = 0xFFFFFFFF

# Initial sequence numbers of the flows of a trace: (original, reply).
PLACES: Final = {
    "plain": (1_000_000, 5_000_000),
    "across 2**31": (0x7FFFFFF0, 0x7FFFFFC0),
    "across 2**32": (0xFFFFFFF0, 0xFFFFFFC0),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One segment of a trace, with absolute numbers.

    Attributes:
        direction: 0 original, 1 reply.
        flags: The eight flag bits.
        seq: Sequence number.
        ack: Acknowledgement field.
        win: Window field.
        payload_len: Octets of data.
        options: Option octets, a multiple of four, at most 40.
        wait_s: Seconds since the step before.
    """

    direction: int
    flags: int
    seq: int
    ack: int = 0
    win: int = 65535
    payload_len: int = 0
    options: bytes = b""
    wait_s: float = 0.0

    def __str__(self) -> str:
        """The line that `parse` reads, numbers absolute."""
        letters = "".join(letter for letter, bit in _LETTERS.items() if self.flags & bit)
        end = (self.seq + self.payload_len) & _MASK
        words = [
            *([f"+{self.wait_s:g}"] if self.wait_s else []),
            "<" if self.direction else ">",
            letters or "-",
            f"{self.seq}:{end}({self.payload_len})",
            *([f"ack {self.ack}"] if self.ack or self.flags & 0x10 else []),
            f"win {self.win}",
            *([f"<hex {self.options.hex()}>"] if self.options else []),
        ]
        return " ".join(words)


def parse(line: str, numbers: tuple[int, int] = (0, 0)) -> Step:
    """Read one line; relative numbers count from `numbers` (original side, reply side)."""
    head, _, tail = (
        line.partition("<") if not line.lstrip().startswith(("<", "+")) else _split(line)
    )
    words = head.split()
    wait_s = float(words.pop(0)) if words[0].startswith("+") else 0.0
    direction = {">": 0, "<": 1}[words.pop(0)]
    mine, theirs = numbers[direction], numbers[1 - direction]
    letters = words.pop(0)
    flags = 0
    for letter in letters if letters != "-" else "":
        flags |= _LETTERS[letter]
    begin, _, rest = words.pop(0).partition(":")
    end, _, length = rest.rstrip(")").partition("(")
    assert (int(begin) + int(length) - int(end)) & _MASK == 0, f"{line!r} contradicts itself"
    ack, win = 0, 65535
    while words:
        name = words.pop(0)
        number = int(words.pop(0))
        if name == "ack":
            ack = (number + theirs) & _MASK
        elif name == "win":
            win = number
        else:
            raise ValueError(f"{line!r}: {name}")
    return Step(
        direction,
        flags,
        (int(begin) + mine) & _MASK,
        ack,
        win,
        int(length),
        _options(tail.rstrip("> \n"), theirs) if tail else b"",
        wait_s,
    )


def _split(line: str) -> tuple[str, str, str]:
    """Split a line at the `<` that opens its options, not at one that is its direction."""
    first = line.index("<") if "<" in line else -1
    arrow = line.split()[1 if line.lstrip().startswith("+") else 0]
    at = line.find("<", first + 1) if arrow == "<" else first
    return (line, "", "") if at < 0 else (line[:at], "<", line[at + 1 :])


def _options(text: str, theirs: int) -> bytes:
    octets = b""
    for option in text.split(","):
        name, *words = option.split()
        if name == "hex":
            octets += bytes.fromhex("".join(words))
        elif name == "mss":
            octets += struct.pack("!BBH", 2, 4, int(words[0]))
        elif name == "wscale":
            octets += struct.pack("!BBB", 3, 3, int(words[0]))
        elif name == "sackOK":
            octets += b"\x04\x02"
        elif name == "TS":
            octets += struct.pack("!BBII", 8, 10, int(words[0]), int(words[1]))
        elif name == "sack":
            octets += bytes((5, 2 + 8 * len(words)))
            for block in words:
                left, _, right = block.partition(":")
                octets += struct.pack(
                    "!II", (int(left) + theirs) & _MASK, (int(right) + theirs) & _MASK
                )
        else:
            octets += {"nop": b"\x01", "eol": b"\x00"}[name]
    return octets + b"\x01" * (-len(octets) % 4)


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a flow: the original direction goes from the first to the second."""

    family: int = IPV4
    addresses: tuple[bytes, bytes] = field(default=(b"\x0a\x01\0\1", b"\x0a\x02\0\1"))
    ports: tuple[int, int] = (40000, 80)

    def packet(self, step: Step) -> Packet:
        """The step as a decoded packet."""
        there = step.direction
        back = 1 - there
        segment = Segment(
            self.ports[there], self.ports[back], Seq(step.seq), Seq(step.ack), step.flags,
            step.win, step.payload_len, step.options, 0,
        )  # fmt: skip
        offset = 20 if self.family == IPV4 else 40
        length = offset + 20 + len(step.options) + step.payload_len
        return Packet(
            self.family, self.addresses[there], self.addresses[back], PROTO_TCP, length, offset,
            64, 0, False, segment,
        )  # fmt: skip

    def octets(self, step: Step) -> bytes:
        """The step as a whole IP packet with correct checksums; its data are zeros."""
        there = step.direction
        src, dst = self.addresses[there], self.addresses[1 - there]
        header_len = 20 + len(step.options)
        tcp = bytearray(
            struct.pack(
                "!HHIIBBHHH", self.ports[there], self.ports[1 - there], step.seq, step.ack,
                header_len << 2, step.flags, step.win, 0, 0,
            )
        )  # fmt: skip
        tcp += step.options
        tcp_len = header_len + step.payload_len
        total = int.from_bytes(src) + int.from_bytes(dst) + PROTO_TCP + tcp_len
        total = 0xFFFF - ((total + int.from_bytes(tcp)) % 0xFFFF)
        struct.pack_into("!H", tcp, 16, total)
        payload = bytes(step.payload_len)
        if self.family != IPV4:
            return b"".join(
                (struct.pack("!IHBB", 6 << 28, tcp_len, PROTO_TCP, 64), src, dst, tcp, payload)
            )
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + tcp_len, 0, 0x4000, 64, PROTO_TCP, 0)
        total = 0xFFFF - ((int.from_bytes(head) + int.from_bytes(src + dst)) % 0xFFFF)
        return b"".join((head[:10], total.to_bytes(2), src, dst, tcp, payload))
