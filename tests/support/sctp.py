# SPDX-License-Identifier: MIT
"""Hand-made SCTP packets with correct checksums."""

import struct

from nfq_guard.flow import PROTO_SCTP
from nfq_guard.wire.checksum import crc32c
from tests.support.packets import ip


def chunk(kind: int, value: bytes = b"", flags: int = 0) -> bytes:
    """One chunk, padded."""
    octets = struct.pack("!BBH", kind, flags, 4 + len(value)) + value
    return octets + bytes(-len(octets) % 4)


def init(kind: int, tag: int, flags: int = 0, parameters: bytes = b"") -> bytes:
    """An INIT, or an INIT ACK, with its initiate tag."""
    return chunk(kind, struct.pack("!IIHHI", tag, 65536, 10, 10, 1) + parameters, flags)


def sctp_body(sport: int, dport: int, tag: int, *chunks: bytes) -> bytes:
    """A packet without its IP header."""
    head = struct.pack("!HHI", sport, dport, tag)
    rest = b"".join(chunks)
    return head + crc32c(head + bytes(4) + rest).to_bytes(4, "little") + rest


def sctp(src: bytes, dst: bytes, sport: int, dport: int, tag: int, *chunks: bytes) -> bytes:
    """A whole packet."""
    return ip(src, dst, PROTO_SCTP, sctp_body(sport, dport, tag, *chunks))
