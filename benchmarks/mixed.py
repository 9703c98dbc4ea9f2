# SPDX-License-Identifier: MIT
"""A seeded capture of mixed traffic, as a router of an access network sees it.

TCP downloads with loss, SACK and timestamps, short requests, flows that began before, scans, UDP,
ICMP, ARP, VLAN tags, fragments, tunnels, checksums that the NIC was to finish, and a few strays.
The payloads are of the protocols of their ports: TLS, HTTP, SSH, DNS, QUIC. Several hundred
conversations are open at once.
"""

import random
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

ACK: Final = 16
FIN_ACK: Final = 17
PSH_ACK: Final = 24
SYN: Final = 2
SYN_ACK: Final = 18
RST: Final = 4
RST_ACK: Final = 20
_MSS: Final = 1448
_TLS, _HTTP, _SSH = 443, 80, 22
# Conversations that are open at once.
OPEN: Final = 600
_MACS: Final = b"\x02\0\0\0\0\1\x02\0\0\0\0\2"
_VLAN: Final = b"\x81\0\0\x64"
_NOISE: Final = random.Random(7).randbytes(65_536)  # noqa: S311 - reproducible, no secret


def internet_sum(octets: bytes) -> int:
    """The checksum of RFC 1071."""
    padded = octets + bytes(len(octets) & 1)
    return ~(int.from_bytes(padded, "big") % 0xFFFF) & 0xFFFF


def ipv4(src: bytes, dst: bytes, proto: int, payload: bytes, number: int, place: int = 0) -> bytes:
    """An IPv4 packet; `place` is the field of flags and fragment offset."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number, place, 61, proto, 0)
    field = internet_sum(head + src + dst)
    return head[:10] + struct.pack("!H", field) + src + dst + payload


def ipv6(src: bytes, dst: bytes, proto: int, payload: bytes) -> bytes:
    """An IPv6 packet without extension headers."""
    return struct.pack("!IHBB", 6 << 28, len(payload), proto, 61) + src + dst + payload


class Talk:
    """Two ends, and the sequence numbers of their packets.

    Attributes:
        v6: Whether they speak IPv6.
        service: The server's port.
        offload: Whether the client's packets are captured before its NIC completes the checksum.
        numbers: The next sequence number of each end.
    """

    def __init__(self, rng: random.Random, serial: int) -> None:
        """Choose two ends that no earlier conversation had."""
        self.v6 = rng.random() < 0.2
        self.offload = rng.random() < 0.05
        client, server = serial & 0xFFFFFF, rng.randrange(1, 4000)
        if self.v6:
            prefix = b"\x20\x01\x0d\xb8"
            self._ends = (
                prefix + bytes(9) + struct.pack("!I", client)[1:],
                prefix + b"\xff" + bytes(9) + struct.pack("!H", server),
            )
        else:
            self._ends = (
                b"\x0a" + struct.pack("!I", client)[1:],
                b"\xc0\xa8" + struct.pack("!H", server),
            )
        self.service = rng.choice((_TLS, _TLS, _TLS, _HTTP, _SSH))
        self._ports = (1024 + serial * 7919 % 60_000, self.service)
        self.numbers = [rng.randrange(1 << 32), rng.randrange(1 << 32)]
        self._ident = rng.randrange(1 << 16)
        self._tag = _VLAN if rng.random() < 0.05 else b""

    def frame(self, packet: bytes) -> bytes:
        """The packet on Ethernet."""
        return _MACS + self._tag + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0") + packet

    def packet(self, side: int, proto: int, payload: bytes) -> bytes:
        """A packet from one end."""
        src, dst = self._ends[side], self._ends[1 - side]
        if self.v6:
            return ipv6(src, dst, proto, payload)
        self._ident = self._ident + 1 & 0xFFFF
        return ipv4(src, dst, proto, payload, self._ident, 0x4000)

    def pseudo(self, side: int, proto: int, size: int) -> bytes:
        """The pseudo-header of a checksum."""
        ends = self._ends[side] + self._ends[1 - side]
        return ends + struct.pack("!IHBB" if self.v6 else "!xBH", *self._tail(proto, size))

    def _tail(self, proto: int, size: int) -> tuple[int, ...]:
        return (size, 0, 0, proto) if self.v6 else (proto, size)

    def tcp(
        self,
        side: int,
        flags: int,
        data: bytes = b"",
        options: bytes = b"",
        *,
        seq: int | None = None,
        window: int = 501,
    ) -> bytes:
        """The next segment of one end, or with `seq` one out of turn."""
        number = self.numbers[side] if seq is None else seq & 0xFFFFFFFF
        ack = self.numbers[1 - side] if flags & ACK else 0
        sport, dport = self._ports[side], self._ports[1 - side]
        offset = 20 + len(options) << 2
        head = struct.pack("!HHIIBBH", sport, dport, number, ack, offset, flags, window)
        tail = options + data
        pseudo = self.pseudo(side, 6, 20 + len(tail))
        if self.offload and side == 0:
            field = ~internet_sum(pseudo) & 0xFFFF
        else:
            field = internet_sum(pseudo + head + bytes(4) + tail)
        if seq is None:
            self.numbers[side] = number + len(data) + (flags >> 1 & 1) + (flags & 1) & 0xFFFFFFFF
        return self.frame(self.packet(side, 6, head + struct.pack("!HH", field, 0) + tail))

    def udp(self, side: int, data: bytes, server_port: int) -> bytes:
        """A datagram from one end."""
        ports = (self._ports[0], server_port)
        head = struct.pack("!HHH", ports[side], ports[1 - side], 8 + len(data))
        field = internet_sum(self.pseudo(side, 17, 8 + len(data)) + head + bytes(2) + data)
        return self.frame(self.packet(side, 17, head + struct.pack("!H", field or 0xFFFF) + data))

    def echo(self, side: int, number: int) -> bytes:
        """An ICMP echo request or its answer, always IPv4."""
        kind = 8 if side == 0 else 0
        body = struct.pack("!HH", self._ports[0], number) + _NOISE[:56]
        field = internet_sum(struct.pack("!BBH", kind, 0, 0) + body)
        ends = (self._ends[side][-4:], self._ends[1 - side][-4:])
        message = struct.pack("!BBH", kind, 0, field) + body
        return _MACS + b"\x08\0" + ipv4(*ends, 1, message, number)


def _stamps(rng: random.Random) -> bytes:
    return b"\1\1\x08\x0a" + struct.pack("!II", rng.randrange(1 << 31), rng.randrange(1 << 31))


def _syn(rng: random.Random) -> bytes:
    return b"\2\4\5\xb4\4\2\x08\x0a" + struct.pack("!II", rng.randrange(1 << 31), 0) + b"\1\3\3\7"


def _noise(rng: random.Random, length: int) -> bytes:
    start = rng.randrange(len(_NOISE) - length)
    return _NOISE[start : start + length]


def _record(kind: int, body: bytes) -> bytes:
    """A TLS record."""
    return struct.pack("!BHH", kind, 0x0303, len(body)) + body


def _handshake(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, len(body) >> 16, len(body) & 0xFFFF) + body


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def _client_hello(rng: random.Random) -> bytes:
    name = b"host%d.example.net" % rng.randrange(1000)
    extensions = (
        _extension(0, struct.pack("!HBH", len(name) + 3, 0, len(name)) + name)
        + _extension(10, b"\0\4\0\x1d\0\x17")
        + _extension(13, b"\0\4\4\3\x08\4")
        + _extension(16, b"\0\x0c\2h2\x08http/1.1")
        + _extension(43, b"\4\3\4\3\3")
        + _extension(51, b"\0\x24\0\x1d\0\x20" + _noise(rng, 32))
    )
    body = b"\3\3" + _noise(rng, 32) + b"\x20" + _noise(rng, 32) + b"\0\6\x13\1\x13\2\xc0\x2f\1\0"
    return _record(22, _handshake(1, body + struct.pack("!H", len(extensions)) + extensions))


def _server_hello(rng: random.Random) -> bytes:
    extensions = _extension(43, b"\3\4") + _extension(51, b"\0\x1d\0\x20" + _noise(rng, 32))
    body = b"\3\3" + _noise(rng, 32) + b"\x20" + _noise(rng, 32) + b"\x13\1\0"
    hello = _record(22, _handshake(2, body + struct.pack("!H", len(extensions)) + extensions))
    return hello + _record(20, b"\1") + _record(23, _noise(rng, 900))


def _request(talk: Talk, rng: random.Random) -> bytes:
    """The request of a client."""
    length = rng.randrange(60, 400)
    if talk.service == _TLS:
        return _record(23, _noise(rng, length))
    if talk.service == _HTTP:
        return (
            b"GET /item/%d HTTP/1.1\r\nHost: host%d.example.net\r\nUser-Agent: client/1.0\r\n"
            b"Accept: */*\r\nAccept-Encoding: gzip\r\nCookie: session=%s\r\n\r\n"
            % (rng.randrange(10**6), rng.randrange(1000), _noise(rng, 16).hex().encode())
        )
    return _noise(rng, length & ~15)


def _answer(talk: Talk, rng: random.Random, length: int) -> bytes:
    """The response of a server, of about `length` octets."""
    if talk.service == _TLS:
        return b"".join(
            _record(23, _noise(rng, min(16_384, length - start)))
            for start in range(0, length, 16_384)
        )
    if talk.service == _HTTP:
        head = (
            b"HTTP/1.1 200 OK\r\nServer: example\r\nContent-Type: application/octet-stream\r\n"
            b"Cache-Control: no-cache\r\nContent-Length: %d\r\n\r\n" % length
        )
        return head + _noise(rng, length)
    return _noise(rng, length & ~15)


def _opening(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    yield talk.tcp(0, SYN, b"", _syn(rng), window=64240)
    yield talk.tcp(1, SYN_ACK, b"", _syn(rng), window=65160)
    yield talk.tcp(0, ACK, b"", _stamps(rng))
    if talk.service == _TLS:
        yield talk.tcp(0, PSH_ACK, _client_hello(rng), _stamps(rng))
        yield talk.tcp(1, ACK, b"", _stamps(rng))
        yield talk.tcp(1, PSH_ACK, _server_hello(rng), _stamps(rng))
        yield talk.tcp(0, PSH_ACK, _record(20, b"\1") + _record(23, _noise(rng, 53)), _stamps(rng))
    elif talk.service == _SSH:
        yield talk.tcp(1, PSH_ACK, b"SSH-2.0-OpenSSH_9.2\r\n", _stamps(rng))
        yield talk.tcp(0, PSH_ACK, b"SSH-2.0-client_1.0\r\n", _stamps(rng))


def _ending(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    if rng.random() < 0.15:
        yield talk.tcp(0, RST_ACK)
        return
    yield talk.tcp(0, FIN_ACK, b"", _stamps(rng))
    yield talk.tcp(1, FIN_ACK, b"", _stamps(rng))
    yield talk.tcp(0, ACK, b"", _stamps(rng))


def _download(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    """A response of many segments; about one in a hundred is lost before the router."""
    yield talk.tcp(0, PSH_ACK, _request(talk, rng), _stamps(rng))
    yield talk.tcp(1, ACK, b"", _stamps(rng))
    data = _answer(talk, rng, rng.choice((3_000, 8_000, 20_000, 60_000)))
    for start in range(0, len(data), _MSS):
        part = data[start : start + _MSS]
        if rng.random() < 0.01 and len(data) > start + _MSS:
            lost = talk.numbers[1]
            rest = data[start + _MSS : start + _MSS + 100]
            talk.numbers[1] = lost + len(part) & 0xFFFFFFFF
            first = talk.numbers[1]
            yield talk.tcp(1, ACK, rest, _stamps(rng))
            block = struct.pack("!II", first, talk.numbers[1])
            talk.numbers[1] = lost
            yield talk.tcp(0, ACK, b"", _stamps(rng) + b"\1\1\5\x0a" + block)
        yield talk.tcp(1, ACK, part, _stamps(rng))
        if start // _MSS % 2:
            yield talk.tcp(0, ACK, b"", _stamps(rng), window=rng.choice((300, 501, 900)))
    yield talk.tcp(0, ACK, b"", _stamps(rng))


def _requests(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    """Requests and responses of one segment each, in alternation."""
    for _ in range(rng.choice((1, 2, 6, 40))):
        yield talk.tcp(0, PSH_ACK, _request(talk, rng), _stamps(rng))
        yield talk.tcp(1, PSH_ACK, _answer(talk, rng, rng.randrange(40, 1000)), _stamps(rng))
    yield talk.tcp(0, ACK, b"", _stamps(rng))


def _tcp(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    # One in twenty began before the capture.
    if rng.random() >= 0.05:
        yield from _opening(talk, rng)
    yield from _download(talk, rng) if rng.random() < 0.3 else _requests(talk, rng)
    if rng.random() < 0.02:
        # A packet of an earlier connection between the same ports, far ahead of the window.
        yield talk.tcp(1, PSH_ACK, _noise(rng, 31), seq=talk.numbers[1] + 50_000_000)
    yield from _ending(talk, rng)


def _scan(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    yield talk.tcp(0, SYN, b"", b"\2\4\5\xb4", window=1024)
    if rng.random() < 0.5:
        yield talk.tcp(1, RST_ACK, window=0)


def _udp(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    """A DNS lookup, or a QUIC connection after its handshake."""
    if rng.random() < 0.7:
        number = rng.randrange(1 << 16)
        name = b"\x08host%04d\7example\3net\0" % rng.randrange(1000)
        question = name + b"\0\1\0\1"
        yield talk.udp(0, struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question, 53)
        answers = rng.randrange(1, 8)
        address = b"\xc0\x0c\0\1\0\1\0\0\1\x2c\0\4\xc0\0\2\1" * answers
        head = struct.pack("!6H", number, 0x8180, 1, answers, 0, 0)
        yield talk.udp(1, head + question + address, 53)
        return
    for _ in range(rng.choice((10, 40, 100))):
        side = 0 if rng.random() < 0.3 else 1
        length = rng.randrange(30, 80) if side == 0 else rng.randrange(200, 1252)
        yield talk.udp(side, b"\x4f" + _noise(rng, length), 443)


def _icmp(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    for number in range(rng.randrange(1, 6)):
        yield talk.echo(0, number)
        yield talk.echo(1, number)


def _fragments(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    """A datagram of three fragments, IPv4."""
    talk.v6 = False
    number = rng.randrange(1 << 16)
    src, dst = (rng.randbytes(4) for _ in range(2))
    whole = struct.pack("!HHHH", 5000, 5001, 8 + 4000, 0) + _NOISE[:4000]
    for start in (0, 1480, 2960):
        more = 0x2000 if start < 2960 else 0
        part = whole[start : start + 1480]
        yield _MACS + b"\x08\0" + ipv4(src, dst, 17, part, number, more | start >> 3)


def _arp(talk: Talk, rng: random.Random) -> Iterator[bytes]:  # noqa: ARG001 - as the others
    yield _MACS + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + rng.randbytes(38)


def _gre(talk: Talk, rng: random.Random) -> Iterator[bytes]:
    """A connection inside a tunnel."""
    ends = (b"\xcb\0\x71\1", b"\xcb\0\x71\2")
    for frame in _tcp(talk, rng):
        inner = frame[frame.index(b"\x86\xdd" if talk.v6 else b"\x08\0", 12) :]
        yield _MACS + b"\x08\0" + ipv4(*ends, 47, b"\0\0" + inner, rng.randrange(1 << 16))


_KINDS: Final = (_tcp, _scan, _udp, _icmp, _fragments, _arp, _gre)
_SHARES: Final = (62, 8, 20, 4, 1, 4, 1)


def write_mixed(file: BinaryIO, frames: int, seed: int = 1, *, open_at_once: int = OPEN) -> int:
    """Write `frames` frames as a classic capture, and return their number."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
    serial = 0
    talks: list[Iterator[bytes]] = []
    now_us = 1_700_000_000_000_000
    written = 0
    while written < frames:
        while len(talks) < open_at_once:
            serial += 1
            (kind,) = rng.choices(_KINDS, _SHARES)
            talks.append(kind(Talk(rng, serial), rng))
        place = rng.randrange(open_at_once)
        octets = next(talks[place], None)
        if octets is None:
            talks[place] = talks[-1]
            talks.pop()
            continue
        now_us += rng.randrange(1, 120)
        head = struct.pack("<IIII", *divmod(now_us, 1_000_000), len(octets), len(octets))
        file.write(head + octets)
        written += 1
    return written
