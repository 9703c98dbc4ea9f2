# SPDX-License-Identifier: MIT
"""Hand-made IP packets of any protocol, with correct checksums by default."""

import struct

from nfq_guard.flow import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP

A4, B4, C4 = b"\x0a\x01\0\1", b"\x0a\x02\0\1", b"\x0a\x03\0\1"
A6, B6, C6 = (bytes.fromhex("fd00") + bytes(11) + bytes((n, 0, 1)) for n in (1, 2, 3))


def folded(octets: bytes) -> int:
    return 0xFFFF - int.from_bytes(octets + bytes(len(octets) & 1)) % 0xFFFF


def ip(src: bytes, dst: bytes, proto: int, body: bytes, hop_limit: int = 64) -> bytes:
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), proto, hop_limit) + src + dst + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, hop_limit, proto, 0)
    return head[:10] + folded(head + src + dst).to_bytes(2) + src + dst + body


def summed(src: bytes, dst: bytes, proto: int, body: bytes, at: int) -> bytes:
    """`body` with a correct checksum at octet `at`."""
    pseudo = b"" if proto == PROTO_ICMP else src + dst + struct.pack("!II", len(body), proto)
    body = body[:at] + b"\0\0" + body[at + 2 :]
    return body[:at] + folded(pseudo + body).to_bytes(2) + body[at + 2 :]


def udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes = b"x") -> bytes:
    body = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return ip(src, dst, PROTO_UDP, summed(src, dst, PROTO_UDP, body, 6))


def icmp(
    src: bytes, dst: bytes, kind: int, rest: bytes, code: int = 0, hop_limit: int = 64
) -> bytes:
    """An ICMP message; `rest` follows the checksum: the identifier and so on."""
    proto = PROTO_ICMPV6 if len(src) == 16 else PROTO_ICMP
    body = summed(src, dst, proto, bytes((kind, code, 0, 0)) + rest, 2)
    return ip(src, dst, proto, body, hop_limit)


def tcp(
    src: bytes, dst: bytes, sport: int, dport: int, flags: int, seq: int = 1, ack: int = 0
) -> bytes:
    body = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1000, 0, 0)
    return ip(src, dst, PROTO_TCP, summed(src, dst, PROTO_TCP, body, 16))


def error(src: bytes, dst: bytes, kind: int, quoted: bytes, code: int = 0) -> bytes:
    return icmp(src, dst, kind, bytes(4) + quoted, code)
