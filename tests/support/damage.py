# SPDX-License-Identifier: MIT
"""Captures of every kind, damaged in many ways; reproducible by a seed.

Whatever the damage, a command must read the intact part or refuse the file by name. `Crash`
describes a damaged file on which a command failed.
"""

import gzip
import io
import lzma
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final, NamedTuple

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from nfq_guard.cli import main
from nfq_guard.errors import EXIT_OK, EXIT_USAGE
from tests.support import captures
from tests.support.conversation import RAW
from tests.support.healthy import swapped, traffic, without

ETHERNET, PPP, SLL, SLL2, NFLOG, NULL = 1, 9, 113, 276, 239, 0
_MACS: Final = bytes(12)
_FRAMES: Final = 24
_EXTREMES: Final = (0, 1, 3, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Crash(NamedTuple):
    """A command that ended in an unexpected way.

    Attributes:
        source: The capture.
        damage: The damage.
        words: The command, without the file.
        what: How it ended.
        octets: The damaged file.
    """

    source: str
    damage: str
    words: Sequence[str]
    what: str
    octets: bytes


def _packets(seed: int) -> list[bytes]:
    """IP packets of many kinds, TCP first."""
    whole = traffic(seed, 2)
    lossy = swapped(without(whole, 0.1, seed), 0.1, seed, keeps_times=False)
    packets = [frame.octets for frame in lossy[:_FRAMES]]
    inside = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80, flags="S")
    outer = IP(src="192.0.2.1", dst="192.0.2.2")
    six = IPv6(src="fd00::1", dst="fd00::2")
    others = [
        outer / UDP(sport=5, dport=53) / Raw(b"query"),
        outer / UDP(dport=4789) / VXLAN(vni=1, flags=8) / Raw(_MACS + b"\x08\0") / inside,
        outer / UDP(dport=6081) / GENEVE(vni=1, proto=0x0800) / inside,
        outer / GRE(proto=0x0800) / inside,
        outer / inside,
        outer / ICMP(type=3, code=4) / inside,
        outer / ICMP() / Raw(b"ping"),
        outer / SCTP(sport=1, dport=2) / SCTPChunkInit(init_tag=7),
        six / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(sport=1, dport=2, flags="S"),
        six / IPv6ExtHdrFragment(m=1) / UDP(sport=1, dport=2) / Raw(bytes(64)),
        six / UDP(sport=1, dport=2) / Raw(b"six"),
        *fragment(outer / UDP(sport=1, dport=2) / Raw(bytes(3000)), 1400),
    ]
    return packets + [bytes(one) for one in others]


def _framed(packet: bytes, linktype: int) -> bytes:
    six = packet[0] >> 4 == 6
    ethertype = b"\x86\xdd" if six else b"\x08\0"
    return {
        ETHERNET: _MACS + ethertype,
        PPP: b"\xff\x03\0\x57" if six else b"\xff\x03\0\x21",
        SLL: struct.pack("!HHH8s", 0, 1, 6, bytes(8)) + ethertype,
        SLL2: ethertype + struct.pack("!HIHBB8s", 0, 3, 1, 0, 6, bytes(8)),
        NFLOG: b"\x02\0\0\x05" + struct.pack("<HH", len(packet) + 4, 9),
        NULL: struct.pack("<I", 10 if six else 2),
        RAW: b"",
    }[linktype] + packet


def sources(seed: int) -> Iterator[tuple[str, bytes]]:
    """Whole captures, each with its name: formats, byte orders, link types and compressions."""
    packets = _packets(seed)
    for linktype in (ETHERNET, PPP, SLL, SLL2, NFLOG, NULL, RAW):
        framed = [_framed(packet, linktype) for packet in packets]
        records = [(1_700_000_000, number, octets) for number, octets in enumerate(framed)]
        yield f"pcap-{linktype}", captures.pcap(records, linktype=linktype)
    records = [
        (1_700_000_000, number, _MACS + b"\x81\0\0\7\x88\x64\x11\0\0\1\0\x16\0\x21" + packet)
        for number, packet in enumerate(packets)
    ]
    yield "pcap-tagged-big", captures.pcap(records, order=">", nanoseconds=True)
    yield "pcap-snapped", captures.pcap(records, snaplen=60)
    for order in "<>":
        blocks = [captures.section(order)]
        blocks += [captures.interface(kind, tsresol=9, order=order) for kind in (RAW, ETHERNET)]
        for number, packet in enumerate(packets):
            which = number & 1
            octets = _framed(packet, ETHERNET if which else RAW)
            blocks.append(captures.enhanced(octets, number * 10**6, number=which, order=order))
        blocks.append(captures.simple(packets[0], order=order))
        blocks.append(captures.obsolete(packets[1], order=order))
        blocks.append(captures.statistics(0, ifdrop=1, osdrop=2, order=order))
        yield f"pcapng-{'little' if order == '<' else 'big'}", b"".join(blocks)
    whole = captures.pcap(
        [(1, number, octets) for number, octets in enumerate(packets)], linktype=RAW
    )
    yield "gzip", gzip.compress(whole, mtime=0)
    yield "xz", lzma.compress(whole)


def _ends_of_records(octets: bytes) -> list[int]:
    """The ends of a capture's records; empty for a compressed capture."""
    ends: list[int] = []
    magic = octets[:4]
    if magic in {b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d"}:
        order, at = ("<" if magic[0] == 0xD4 else ">"), 24
        while at + 16 <= len(octets):
            ends.append(at)
            at += 16 + int(struct.unpack_from(order + "I", octets, at + 8)[0])
    elif magic == b"\x0a\x0d\x0d\x0a":
        order, at = ("<" if octets[8] == 0x4D else ">"), 0
        while at + 12 <= len(octets):
            ends.append(at)
            at += int(struct.unpack_from(order + "I", octets, at + 4)[0])
    return ends


def cuts(octets: bytes) -> Iterator[tuple[str, bytes]]:
    """The file truncated at every record, just before and after, and inside its first octets."""
    places = {*range(0, 64, 3)}
    for end in _ends_of_records(octets):
        places |= {end - 1, end, end + 1, end + 8, end + 15}
    for place in sorted(places):
        if 0 <= place < len(octets):
            yield f"cut at {place}", octets[:place]


def changes(octets: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """An infinite sequence of random damage."""
    ends = _ends_of_records(octets) or [0]
    while True:
        damaged = bytearray(octets)
        kind = rng.randrange(6)
        if kind == 0:
            flipped = [rng.randrange(len(damaged)) for _ in range(rng.choice((1, 1, 3, 20)))]
            for place in flipped:
                damaged[place] ^= 1 << rng.randrange(8)
            yield f"bits flipped at {flipped}", bytes(damaged)
        elif kind == 1:
            # The lengths of a record are in its first words.
            place = rng.choice(ends) + 4 * rng.randrange(8)
            value = rng.choice(_EXTREMES)
            damaged[place : place + 4] = struct.pack(rng.choice("<>") + "I", value)
            yield f"{value:#x} at {place}", bytes(damaged)
        elif kind == 2:
            place = rng.randrange(len(damaged))
            length = rng.choice((1, 2, 4, 16, 60, 400))
            del damaged[place : place + length]
            yield f"{length} octets removed at {place}", bytes(damaged)
        elif kind == 3:
            place = rng.randrange(len(damaged))
            length = rng.choice((1, 4, 16, 60))
            damaged[place:place] = rng.randbytes(length)
            yield f"{length} octets inserted at {place}", bytes(damaged)
        elif kind == 4:
            place = rng.randrange(len(damaged))
            other = rng.choice(ends)
            yield f"from {place} on as from {other}", bytes(damaged[:place] + damaged[other:])
        else:
            place = rng.randrange(len(damaged))
            length = rng.randrange(1, 200)
            damaged[place : place + length] = bytes([rng.choice((0, 255))]) * length
            yield f"{length} octets overwritten at {place}", bytes(damaged)


_COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    ("replay", "--all", "--format", "json", "--decapsulate"),
    ("replay", "--all"),
    ("replay", "--flows"),
    ("replay", "--flows", "--format", "json", "--assume-wscale", "14"),
    ("replay", "--summary", "--checksum", "verify", "--strict", "--kernel", "5.10"),
    ("replay", "--summary", "--format", "json", "--flow-table", "2", "--no-timeouts"),
    ("replay", "--interface", "0"),
    ("whatif", "--policy", "preset:strict"),
)


class Bench:
    """Runs commands on damaged files.

    Attributes:
        runs: How many commands ran.
        refused: How many of them refused the file.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the files into `folder`."""
        self.runs = 0
        self.refused = 0
        self._path = folder / "damaged"
        self._written = folder / "written.pcapng"
        self._rng = random.Random(seed)  # noqa: S311 - reproducible, no secret

    def try_one(self, source: str, damage: str, octets: bytes) -> Crash | None:
        """Run one command on a file, and `explain` on a frame of it."""
        self._path.write_bytes(octets)
        words = self._rng.choice(_COMMANDS)
        if words == ("replay", "--all") and self._rng.random() < 0.5:
            words = (*words, "--write", str(self._written))
        frame = str(self._rng.randrange(1, _FRAMES))
        for command in ((*words, str(self._path)), ("explain", str(self._path), frame)):
            what = self._run(command)
            if what:
                return Crash(source, damage, command, what, octets)
        return None

    def _run(self, words: Sequence[str]) -> str:
        """How a command failed; empty if it did not."""
        self.runs += 1
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = main(words)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            return f"{type(error).__name__}: {error}"
        if status == EXIT_USAGE:
            self.refused += 1
            said = err.getvalue()
            named = str(self._path) in said or "--interface: " in said
            if not (said.startswith("nfq-guard: ") and named):
                return f"refused without a name: {said!r}"
        elif status != EXIT_OK:
            return f"exit status {status}: {err.getvalue()!r}"
        return ""


def damaged(seed: int, changes_each: int) -> Iterator[tuple[str, str, bytes]]:
    """Every source with every cut, and with `changes_each` random changes."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    for source, octets in sources(seed):
        for damage, cut in cuts(octets):
            yield source, damage, cut
        random_changes = changes(octets, rng)
        for _ in range(changes_each):
            yield source, *next(random_changes)
