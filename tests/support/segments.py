# SPDX-License-Identifier: MIT
"""Hand-made TCP segments, and segments read from captured packets, for tests in namespaces."""

import socket
import struct
from dataclasses import dataclass

SYN = 0x02
ACK = 0x10
_FIN_OR_SYN = 0x03


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = octets + bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_ipv4(
    src: str, dst: str, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes
) -> bytes:
    """An IPv4 packet with a TCP segment without options."""
    addresses = socket.inet_aton(src) + socket.inet_aton(dst)
    tcp = struct.pack(
        ">HHIIBBHHH", sport, dport, seq % 2**32, ack % 2**32, 5 << 4, flags, 500, 0, 0
    )
    pseudo = addresses + struct.pack(">BBH", 0, 6, len(tcp) + len(payload))
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp + payload)) + tcp[18:] + payload
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + addresses + tcp


@dataclass(frozen=True, slots=True)
class Seen:
    """One captured TCP segment; `sacked` has the ends of its selective acknowledgements."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    end: int
    scale: int | None
    sack_permitted: bool
    sacked: tuple[int, ...]


def read(packet: bytes) -> Seen | None:
    """Read an IPv4 or IPv6 packet without extension headers; None if it is not TCP."""
    if packet[0] >> 4 == 4:
        offset, proto = (packet[0] & 15) * 4, packet[9]
        total = int.from_bytes(packet[2:4], "big")
    else:
        offset, proto = 40, packet[6]
        total = 40 + int.from_bytes(packet[4:6], "big")
    if proto != 6:
        return None
    sport, dport, seq, ack, length, flags, window = struct.unpack_from(">HHIIBBH", packet, offset)
    header = (length >> 4) * 4
    kinds = _options(packet[offset + 20 : offset + header])
    payload = total - offset - header
    return Seen(
        sport=sport,
        dport=dport,
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        end=(seq + payload + (flags & _FIN_OR_SYN).bit_count()) % 2**32,
        scale=kinds[3][0] if 3 in kinds else None,
        sack_permitted=4 in kinds,
        sacked=tuple(end for _, end in struct.iter_unpack(">II", kinds.get(5, b""))),
    )


def _options(octets: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(octets) and octets[at]:
        if octets[at] == 1:
            at += 1
            continue
        size = octets[at + 1]
        found[octets[at]] = octets[at + 2 : at + size]
        at += size
    return found
