# SPDX-License-Identifier: MIT
"""A second decoder, slow and written from the RFCs field by field, to check the fast one.

It shares no code with `nfq_guard.wire`. A packet is one large number, of which a `Reader` takes
bits from the left. Where Linux differs from an RFC (docs/kernel.md), so does this decoder.
"""

import random
import struct
from typing import Final

from nfq_guard.wire.packet import Malformed, Packet

Values = tuple[object, ...]

_WITH_PORTS: Final = {6, 17, 132}
_EXTENSIONS: Final = {0, 43, 44, 51, 60}


class WrongError(Exception):
    """The packet is malformed, or too little of it was captured."""


class Reader:
    """Takes fields of a string of octets, from the left."""

    def __init__(self, octets: bytes) -> None:
        self._number = int.from_bytes(octets, "big")
        self.left = 8 * len(octets)

    def take(self, bits: int) -> int:
        """The next field of so many bits."""
        if bits > self.left:
            raise WrongError
        self.left -= bits
        return self._number >> self.left & ((1 << bits) - 1)

    def octets(self, count: int) -> bytes:
        return self.take(8 * count).to_bytes(count, "big")


def decode(octets: bytes) -> Values | None:
    """The fields in the order of `Packet`, the transport as a tuple; None: malformed."""
    try:
        version = Reader(octets).take(4)
        if version == 4:
            return _ipv4(octets)
        if version == 6:
            return _ipv6(octets)
    except WrongError:
        pass
    return None


def _ipv4(octets: bytes) -> Values:
    """RFC 791 3.1."""
    reader = Reader(octets)
    _version, words, _service, length, _identification = map(reader.take, (4, 4, 8, 16, 16))
    _reserved, _do_not, more, fragment = map(reader.take, (1, 1, 1, 13))
    hops, protocol, _checksum = map(reader.take, (8, 8, 16))
    source, destination = reader.octets(4), reader.octets(4)
    length = length or len(octets)  # one that segmentation offload has made
    header = 4 * words
    if header < 20 or header > min(length, len(octets)):
        raise WrongError
    transport = None
    if fragment == 0:
        transport = _transport(octets, 4, protocol, header, length - header, cut=more == 1)
    return (
        *(4, source, destination, protocol, length, header, hops, 8 * fragment, more == 1),
        transport,
    )


def _ipv6(octets: bytes) -> Values:
    """RFC 8200 3."""
    reader = Reader(octets)
    _version, _class, _label, payload, following, hops = map(reader.take, (4, 8, 20, 16, 8, 8))
    source, destination = reader.octets(16), reader.octets(16)
    if payload == 0 and following == 0:
        payload = _jumbo(octets[40:])
    length = 40 + payload if payload else len(octets)
    protocol, header, fragment, more = _walk(octets, following)
    if header > length:
        raise WrongError
    transport = None
    if fragment == 0:
        transport = _transport(octets, 6, protocol, header, length - header, cut=False)
    return (
        *(6, source, destination, protocol, length, header, hops, 8 * fragment, more),
        transport,
    )


def _walk(octets: bytes, following: int) -> tuple[int, int, int, bool]:
    """RFC 8200 4: the transport protocol, its offset, and the fields of a fragment header."""
    at, fragment, more = 40, 0, False
    while following in _EXTENSIONS:
        reader = Reader(octets[at : at + 8])
        kind = following
        following, words, rest = map(reader.take, (8, 8, 48))
        if kind == 44:
            fragment, more = rest >> 35, bool(rest >> 32 & 1)
            at += 8
            if fragment:
                break
        elif kind == 51:
            at += 4 * (words + 2)
        else:
            at += 8 * (words + 1)
    return following, at, fragment, more


def _jumbo(extension: bytes) -> int:
    """RFC 2675 2: the length in the jumbo option of a hop-by-hop header; 0 without one."""
    if len(extension) < 8:
        return 0
    options = extension[2 : 8 * (extension[1] + 1)]
    while len(options) > 1:
        kind, size = options[0], options[1]
        if kind == 0:
            options = options[1:]
        elif kind == 0xC2 and size == 4 and len(options) >= 6:
            return int.from_bytes(options[2:6], "big")
        else:
            options = options[2 + size :]
    return 0


def _transport(
    octets: bytes, family: int, protocol: int, at: int, length: int, *, cut: bool
) -> Values | None:
    rest = octets[at:]
    if protocol == 6:
        return _tcp(rest, length)
    if protocol == 17:
        return _udp(rest, length, cut=cut)
    if protocol == {4: 1, 6: 58}[family]:
        return _icmp(rest, family, length)
    if protocol == 132:
        return _sctp(rest, length)
    if protocol == 47:
        return _gre(rest, length)
    return None


def _tcp(rest: bytes, length: int) -> Values:
    """RFC 9293 3.1."""
    if length < 20:
        raise WrongError
    reader = Reader(rest)
    sport, dport, seq, ack = map(reader.take, (16, 16, 32, 32))
    words, _reserved, flags, window, checksum, _urgent = map(reader.take, (4, 4, 8, 16, 16, 16))
    if not 20 <= 4 * words <= length:
        raise WrongError
    options = rest[20 : 4 * words]
    return sport, dport, seq, ack, flags, window, length - 4 * words, options, checksum


def _udp(rest: bytes, length: int, *, cut: bool) -> Values:
    """RFC 768."""
    if length < 8:
        raise WrongError
    reader = Reader(rest)
    sport, dport, stated, checksum = (reader.take(16) for _ in range(4))
    if stated < 8 or (stated > length and not cut):
        raise WrongError
    return sport, dport, stated, checksum


def _icmp(rest: bytes, family: int, length: int) -> Values:
    """RFC 792, RFC 4443 2.1."""
    if length < 8:
        raise WrongError
    reader = Reader(rest)
    kind, code, checksum, identifier = map(reader.take, (8, 8, 16, 16))
    reader.take(16)
    if family == 4:
        error, identified = kind in {3, 4, 5, 11, 12}, kind in {0, 8, *range(13, 19)}
    else:
        # Node information (RFC 4620) has other fields there, which conntrack takes for one.
        error, identified = kind < 128 or kind == 137, kind in {128, 129, 139, 140}
    cut = length > len(rest)
    if family == 6 and kind == 137:
        quoted = _redirected(rest[:length], code, length, cut=cut)
    else:
        quoted = _quoted(rest[8:length], family, cut=cut) if error else None
    return kind, code, identifier if identified else 0, checksum, error, quoted


def _redirected(message: bytes, code: int, length: int, *, cut: bool) -> Values | None:
    """The flow of the packet quoted in the first option of a redirect, RFC 4861 4.5."""
    if length < 40:
        raise WrongError
    if code:
        return None
    option = message[40:48]
    if len(option) < 2:
        if cut:
            raise WrongError
        return None
    kind, words = option[:2]
    return _quoted(message[48:], 6, cut=cut) if kind == 4 and words else None


def _quoted(inner: bytes, family: int, *, cut: bool) -> Values | None:
    """The flow of the packet quoted in an error, which may be truncated anywhere.

    If the capture is `cut`, a quoted packet that ends too early may have been whole. Neither the
    version nor the least length of an IPv4 header is checked, as conntrack checks neither.
    """
    if cut and len(inner) < {4: 20, 6: 40}[family]:
        raise WrongError
    try:
        reader = Reader(inner)
        reader.take(4)
        if family == 4:
            words, _service, _length, _identification = map(reader.take, (4, 8, 16, 16))
            _flags, fragment, _hops, protocol = map(reader.take, (3, 13, 8, 8))
            reader.take(16)
            source, destination = reader.octets(4), reader.octets(4)
            at = 4 * words
        else:
            reader.take(8 + 20 + 16)
            following = reader.take(8)
            reader.take(8)
            source, destination = reader.octets(16), reader.octets(16)
            protocol, at, fragment, _ = _walk(inner, following)
    except WrongError:
        if cut:
            raise
        return None
    if fragment:
        return None
    rest = inner[at:]
    if cut and protocol == 47 and len(rest) < 8:
        raise WrongError
    try:
        ends = _ends(protocol, Reader(rest), rest)
    except WrongError:
        if cut and protocol != 47:
            raise
        return None
    return protocol, source, destination, *ends


def _ends(protocol: int, reader: Reader, rest: bytes) -> tuple[int, int]:
    if protocol in _WITH_PORTS:
        return reader.take(16), reader.take(16)
    if protocol in {1, 58}:
        kind_and_code, _checksum, identifier, _ = (reader.take(16) for _ in range(4))
        return identifier, kind_and_code
    if protocol == 47:
        _version, call = _gre(rest, len(rest))
        assert isinstance(call, int)
        return 0, call
    return 0, 0


def _sctp(rest: bytes, length: int) -> Values:
    """RFC 9260 3."""
    if length < 12:
        raise WrongError
    reader = Reader(rest)
    sport, dport, tag = map(reader.take, (16, 16, 32))
    checksum = int.from_bytes(reader.octets(4), "little")
    chunks: list[Values] = []
    at = 12
    while at + 4 <= min(length, len(rest)):
        chunk = Reader(rest[at:])
        kind, flags, size = map(chunk.take, (8, 8, 16))
        initiate = chunk.take(128) >> 96 if kind in {1, 2} and at + 20 <= length else -1
        chunks.append((kind, flags, size, initiate))
        if size == 0:
            break
        at += size + -size % 4
    if not chunks and at + 4 <= length:
        raise WrongError
    return sport, dport, tag, checksum, tuple(chunks), at + 4 > length


def _gre(rest: bytes, length: int) -> Values:
    """RFC 2784 2.1, RFC 2637 4.1."""
    if length < 8:
        return 0, 0
    reader = Reader(rest)
    _flags, version, protocol, _payload, call = map(reader.take, (13, 3, 16, 16, 16))
    if version != 1:
        return version, 0
    if protocol != 0x880B:
        raise WrongError
    return version, call


def difference(octets: bytes, fast: Packet | Malformed) -> str:
    """How the two decoders differ on a packet; empty if they agree."""
    wanted = decode(octets)
    found = None if isinstance(fast, Malformed) else _values(fast)
    return "" if wanted == found else f"{octets.hex()}: {wanted} is {found}"


def _values(one: object) -> Values:
    """The fields of a decoded value, and those of the values in it."""
    names = (*getattr(type(one), "__dataclass_fields__", ()), *getattr(one, "_fields", ()))
    values: list[object] = []
    for name in names:
        value = getattr(one, name)
        if name == "chunks":
            values.append(tuple(map(_values, value)))
        elif hasattr(type(value), "__dataclass_fields__") or hasattr(value, "_fields"):
            values.append(_values(value))
        else:
            values.append(value)
    return tuple(values)


def checksum(octets: bytes) -> int:
    """RFC 1071 1: add words, and add each carry again."""
    total = 0
    for at in range(0, len(octets), 2):
        (word,) = struct.unpack("!H", octets[at : at + 2].ljust(2, b"\0"))
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(rng: random.Random) -> bytes:
    """A packet with mostly valid fields, possibly truncated or changed in places."""
    protocol = rng.choice([1, 6, 6, 6, 17, 47, 58, 132, rng.randrange(256)])
    body = _some_transport(rng, protocol)
    octets = _in_ip(rng, protocol, body)
    if rng.random() < 0.6:
        changed = bytearray(octets)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.randrange(len(changed))] = rng.choice([0, 1, 255, rng.randrange(256)])
        octets = bytes(changed)
    return octets[: rng.randrange(len(octets) + 1)] if rng.random() < 0.3 else octets


def _some_transport(rng: random.Random, protocol: int) -> bytes:
    data = rng.randbytes(rng.choice([0, 1, 8, 40]))
    if protocol == 6:
        options = rng.randbytes(4 * rng.choice([0, 0, 1, 3, 10]))
        words = (5 + len(options) // 4) << 4
        return rng.randbytes(12) + bytes((words,)) + rng.randbytes(7) + options + data
    if protocol == 17:
        return rng.randbytes(4) + struct.pack("!H", 8 + len(data)) + rng.randbytes(2) + data
    if protocol in {1, 58}:
        kind = rng.choice([0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 18, 128, 129, 137])
        inner = rng.choice([6, 17, 1, 58, 132, 47, 50])
        quoted = _in_ip(rng, inner, rng.randbytes(rng.choice([0, 4, 8, 20])))
        if kind == 137 and rng.random() < 0.8:
            quoted = (
                bytes(32) + bytes((rng.choice([4, 4, 4, 2]), rng.randrange(3))) + bytes(6) + quoted
            )
        return bytes((kind, 0)) + rng.randbytes(6) + quoted
    if protocol == 47:
        return bytes((0x20, rng.choice([0, 1, 0x81]))) + b"\x88\x0b" + rng.randbytes(4) + data
    if protocol == 132:
        chunks = b"".join(
            bytes((rng.randrange(16), 0))
            + struct.pack("!H", size)
            + rng.randbytes(size + -size % 4 - 4)
            for size in (rng.choice([4, 7, 20, 24]) for _ in range(rng.randrange(4)))
        )
        return rng.randbytes(12) + chunks
    return data


def _in_ip(rng: random.Random, protocol: int, body: bytes) -> bytes:
    if rng.random() < 0.5:
        options = bytes(4 * rng.choice([0, 0, 0, 1, 10]))
        words = 5 + len(options) // 4
        length = rng.choice([4 * words + len(body)] * 9 + [0])
        fragment = rng.choice([0, 0, 0, 0, 0x4000, 0x2000, 0x0001, 0x2010])
        head = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, 7, fragment, 64, protocol, 0)
        return head + rng.randbytes(8) + options + body
    chain = b""
    for _ in range(rng.choice([0, 0, 0, 1, 2, 4])):
        kind = rng.choice([0, 43, 44, 51, 60])
        if kind == 44:
            field = struct.pack("!H", rng.choice([0, 0, 1, 8, 9]))
            extension = bytes((protocol, 0)) + field + rng.randbytes(4)
        elif kind == 51:
            extension = bytes((protocol, 1)) + rng.randbytes(10)
        else:
            jumbo = b"\xc2\x04" + struct.pack("!I", 70_000)
            extension = bytes((protocol, 0)) + rng.choice([b"\1\4\0\0\0\0", jumbo])
        chain, protocol = extension + chain, kind
    length = rng.choice([len(chain) + len(body)] * 9 + [0])
    return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + rng.randbytes(32) + chain + body
