# SPDX-License-Identifier: MIT
"""Compares our reassembly before conntrack with the kernel's over random fragments."""

import itertools
import random
import struct
import time
from dataclasses import dataclass, replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import CTSTATES, FlowTable
from nfq_guard.flow import IPV4, IPV6, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP
from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.fragments import Reassembler, is_fragment
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet
from tests.fuzz_kernel.others import Difference, OthersTally, hosts_of
from tests.support.live import LiveConntrack
from tests.support.packets import ip, summed

_FRAGMENT: Final = 44


@dataclass(frozen=True, slots=True)
class Piece:
    """One fragment.

    Attributes:
        proto: Protocol of the datagram.
        identification: Identification of the datagram.
        start: Offset, in octets; a multiple of 8.
        more: The flag that more fragments follow.
        data: Its octets.
        padding: Octets after the packet, such as a link layer adds.
    """

    proto: int
    identification: int
    start: int
    more: bool
    data: bytes
    padding: int = 0

    def __str__(self) -> str:
        more = "+" if self.more else ""
        return f"id {self.identification} {self.start}:{self.start + len(self.data)}{more}"

    def octets(self, src: bytes, dst: bytes) -> bytes:
        """The whole packet."""
        if len(src) == 16:
            header = struct.pack(
                "!BBHI", self.proto, 0, self.start | int(self.more), self.identification
            )
            return ip(src, dst, _FRAGMENT, header + self.data) + bytes(self.padding)
        whole = ip(src, dst, self.proto, self.data)
        field = struct.pack("!HH", self.identification, self.start >> 3 | int(self.more) << 13)
        head = whole[:4] + field + whole[8:10] + b"\0\0" + whole[12:20]
        total = 0xFFFF - int.from_bytes(head) % 0xFFFF
        return head[:10] + total.to_bytes(2) + head[12:] + self.data + bytes(self.padding)


def pieces_of(
    rng: random.Random, family: int, identification: int, hosts: tuple[bytes, bytes]
) -> list[Piece]:
    """The fragments of a datagram, possibly out of order, some of them damaged or repeated."""
    payload = rng.randbytes(rng.choice((0, 1, 7, 8, 9, 16, 40, 100, 333)))
    draw = rng.random()
    if draw < 0.2:
        proto = PROTO_TCP
        body = struct.pack("!HHIIBBHHH", 1, 2, 7, 0, 5 << 4, 2, 1000, 0, 0) + payload
        at = 16
    elif draw < 0.75:
        proto = PROTO_UDP
        length = 8 + len(payload) + rng.choice((0, 0, 0, 0, 0, 1, -1, 8))
        body = struct.pack("!HHHH", 1, 2, max(0, length), 0) + payload
        at = 6
    else:
        proto = PROTO_ICMP if family == IPV4 else PROTO_ICMPV6
        kind = 8 if family == IPV4 else 128
        body = struct.pack("!BBHHH", kind, 0, 0, 7, 1) + payload
        at = 2
    if rng.random() < 0.95:
        body = summed(*hosts, proto, body, at)
    cuts = sorted({0, len(body), *(8 * rng.randrange(0, len(body) // 8 + 1) for _ in range(3))})
    pieces = [
        Piece(proto, identification, start, end < len(body), body[start:end])
        for start, end in itertools.pairwise(cuts)
    ]
    if rng.random() < 0.5:
        rng.shuffle(pieces)
    draw = rng.random()
    if draw < 0.45:
        return pieces
    place = rng.randrange(len(pieces))
    piece = pieces[place]
    wrong = rng.choice(
        (
            replace(piece, data=piece.data[: -rng.randrange(1, 8)]),
            replace(piece, data=piece.data + rng.randbytes(rng.randrange(1, 9))),
            replace(piece, data=b""),
            replace(piece, more=not piece.more),
            replace(piece, start=max(0, piece.start + rng.choice((-8, 8, 16)))),
            replace(piece, start=rng.choice((65528, 65512, 32768))),
            replace(piece, padding=rng.randrange(1, 20)),
            replace(piece, proto=PROTO_UDP if piece.proto != PROTO_UDP else 253),
            piece,
        )
    )
    if rng.random() < 0.5:
        pieces[place] = wrong
    else:
        pieces.insert(rng.randrange(len(pieces) + 1), wrong)
    if rng.random() < 0.2:
        pieces.append(rng.choice(pieces))
    return pieces


class FragmentsPair:
    """The kernel's reassembly and conntrack, and ours."""

    def __init__(self, live: LiveConntrack) -> None:
        """Pair the live kernel with our rules."""
        self._live = live
        self._fragments = Reassembler()
        self._table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)

    def step(self, hosts: tuple[bytes, bytes], piece: Piece) -> tuple[int | None, list[str]]:
        """Send one fragment; returns our ctstate (None while it waits) and the differences."""
        octets = piece.octets(*hosts)
        now = time.monotonic()
        whole = self._fragments.offer(octets, now) if is_fragment(octets) else octets
        ours: int | None = None
        if whole:
            packet = decode(whole)
            right = checksum_ok(packet, whole) if isinstance(packet, Packet) else None
            ours = self._table.track(packet, now, right)
        seen = self._live.send_all(octets)
        if seen == ours:
            return ours, []
        words = ["nothing" if one is None else str(CTSTATES[one]) for one in (seen, ours)]
        return ours, [f"kernel {words[0]}, ours {words[1]}"]


def run_fragments(seed: int, number: int, tally: OthersTally, packets: int) -> None:
    """Run chunk `number` of `seed`, all of one IP version, and add it to `tally`."""
    rng = random.Random(f"fragments/{seed}/{number}")  # noqa: S311 - reproducible, no secret
    family = IPV6 if number & 1 else IPV4
    with LiveConntrack(DEFAULT_SYSCTLS) as live:
        pair = FragmentsPair(live)
        stop_at = tally.packets + packets
        serial = 0
        while tally.packets < stop_at:
            serial += 1
            tally.flows += 1
            hosts = hosts_of(family, serial)
            pieces = pieces_of(rng, family, serial, hosts)
            for place, piece in enumerate(pieces):
                ours, what = pair.step(hosts, piece)
                tally.packets += 1
                if ours is not None:
                    tally.ctstates[ours] += 1
                if what:
                    sent = tuple(map(str, pieces[: place + 1]))
                    tally.failures.append(Difference(family, sent, tuple(what)))
                    break
