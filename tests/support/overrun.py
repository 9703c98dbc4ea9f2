# SPDX-License-Identifier: MIT
"""A host with live TCP connections, and a peer that overruns their windows: real INVALID packets.

The peer reads the sequence numbers of its own connections from the packets that it receives, and
sends segments beyond the window by a chosen distance. The host counts those that passed its packet
filter.
"""

import socket
import struct
from collections.abc import Sequence
from typing import Self

from nfq_guard.lab.netns import Namespace, veth

PEER = "10.77.0.1"
HOST = "10.77.0.2"
# Connections to this port are redirected to the next one.
REDIRECTED = 8080
PLAIN = 9090
_RCVBUFFORCE = 33
_TCP = struct.Struct("!HHIIBBHHH")
# An urgent pointer without the flag has no meaning in TCP; by it the host recognises our segments.
_OURS = 0x5A5A


class Connection:
    """One connection of the peer, and its sockets on the peer and on the host."""

    def __init__(
        self, sport: int, dport: int, seq: int, ack: int, ends: tuple[socket.socket, socket.socket]
    ) -> None:
        self.sport = sport
        self.dport = dport
        self.seq = seq
        self.ack = ack
        self.ends = ends

    def exchange(self, octets: int) -> bool:
        """Send data to the host and as much back; False once the connection was reset."""
        one, other = self.ends
        try:
            for sender, receiver in ((one, other), (other, one)):
                sender.sendall(bytes(octets))
                if len(receiver.recv(octets, socket.MSG_WAITALL)) < octets:
                    return False
        except OSError:
            return False
        self.seq = (self.seq + octets) & 0xFFFFFFFF
        self.ack = (self.ack + octets) & 0xFFFFFFFF
        return True


class Overrun:
    """Two namespaces, `host` with the packet filter and `peer`, and the packets between them."""

    def __init__(self, peer: Namespace, host: Namespace) -> None:
        self.peer = peer
        self.host = host
        self._sockets: list[socket.socket] = []
        veth(peer, "p0", host, "h0", (f"{PEER}/24", f"{HOST}/24"))
        redirect = ["-p", "tcp", "--dport", str(REDIRECTED), "-j", "REDIRECT"]
        host.run(
            *("iptables", "-t", "nat", "-A", "PREROUTING", *redirect),
            *("--to-ports", str(REDIRECTED + 1)),
        )
        with host.entered():
            self._listeners = [_listening(port) for port in (REDIRECTED + 1, PLAIN)]
            self._arriving = _raw()
        with peer.entered():
            self._raw = _raw()
        # The kernel tracks connections only if something in the namespace requires it; nothing else
        # does.
        host.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")

    def connect(self, port: int) -> Connection:
        """A connection to `PLAIN` or `REDIRECTED`, established and quiet."""
        with self.peer.entered():
            made = socket.create_connection((HOST, port), timeout=5)
        listener = self._listeners[port == PLAIN]
        accepted, _ = listener.accept()
        accepted.settimeout(5)
        self._sockets += [made, accepted]
        sport = made.getsockname()[1]
        while True:
            octets = self._raw.recv(4096)
            source, dest, seq, ack, _, flags, *_ = _TCP.unpack_from(octets, 20)
            if (source, dest) == (port, sport) and flags & 0x12 == 0x12:
                return Connection(sport, port, ack, (seq + 1) & 0xFFFFFFFF, (made, accepted))

    def overrun(
        self, connections: Sequence[Connection], count: int, octets: int = 10 << 20
    ) -> None:
        """Send `count` segments, each beyond the window by about `octets`, one after the other."""
        for number in range(count):
            one = connections[number % len(connections)]
            seq = (one.seq + octets) & 0xFFFFFFFF
            self._raw.sendto(_segment(one, seq), (HOST, 0))

    def send(
        self, one: Connection, octets: int, *, data: int = 0, is_damaged: bool = False
    ) -> None:
        """Send one segment `octets` away from the next expected number, with data."""
        segment = _segment(one, (one.seq + octets) & 0xFFFFFFFF, data)
        if is_damaged:  # with another checksum
            segment = segment[:16] + bytes((segment[16] ^ 1,)) + segment[17:]
        self._raw.sendto(segment, (HOST, 0))

    def arrived(self) -> int:
        """The number of segments that passed since the last call."""
        count = 0
        while True:
            try:
                octets = self._arriving.recv(4096)
            except (BlockingIOError, TimeoutError):
                return count
            count += struct.unpack_from("!H", octets, 38)[0] == _OURS

    def close(self) -> None:
        for one in (*self._sockets, *self._listeners, self._raw, self._arriving):
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _segment(one: Connection, seq: int, data: int = 0) -> bytes:
    def packed(checksum: int) -> bytes:
        return _TCP.pack(one.sport, one.dport, seq, one.ack, 5 << 4, 0x10, 512, checksum, _OURS)

    pseudo = (
        socket.inet_aton(PEER) + socket.inet_aton(HOST) + struct.pack("!HH", 6, _TCP.size + data)
    )
    total = sum(struct.unpack("!16H", pseudo + packed(0)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packed(~total & 0xFFFF) + bytes(data)


def _listening(port: int) -> socket.socket:
    listener = socket.create_server((HOST, port), backlog=64)
    listener.settimeout(5)
    return listener


def _raw() -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 25)
    raw.settimeout(0.2)
    return raw
