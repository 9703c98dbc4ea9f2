# SPDX-License-Identifier: MIT
"""A router with conntrack between a client and a server, in three namespaces."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from nfq_guard.flow import PROTO_TCP, FlowTuple
from nfq_guard.lab.netns import Namespace, veth
from tests.support.segments import Seen, read

# What the router does with connections to these ports.
PORTS = {"none": 8001, "snat": 8002, "dnat": 8003, "both": 8004}
ZONE_PORT = 8007
ZONE = 7
MARK_PORT = 8008
MARK = 0xABC
_ETH_P_ALL = 3

_RULES = """*raw
-A PREROUTING -p tcp --dport 8007 -j CT --zone 7
-A PREROUTING -p tcp --sport 8007 -j CT --zone 7
COMMIT
*mangle
-A PREROUTING -m conntrack --ctstate INVALID
-A PREROUTING -p tcp --dport 8008 -j CONNMARK --set-mark 0xabc
COMMIT
*nat
-A PREROUTING -p tcp --dport 8003 -j DNAT --to-destination {server}:9003
-A PREROUTING -p tcp --dport 8004 -j DNAT --to-destination {server}:9004
-A POSTROUTING -p tcp -m multiport --dports 8002,9004 -j SNAT --to-source {source}
COMMIT
"""


@dataclass
class Routed:
    """The three namespaces, and the addresses of client, router (both sides) and server."""

    client: Namespace
    router: Namespace
    server: Namespace
    addresses: dict[int, tuple[str, str, str, str]] = field(
        default_factory=lambda: {
            4: ("10.7.1.2", "10.7.1.1", "10.7.2.1", "10.7.2.2"),
            6: ("fd07:1::2", "fd07:1::1", "fd07:2::1", "fd07:2::2"),
        }
    )


@dataclass
class Connection:
    """One TCP connection through the router, and the packets of it that the router saw."""

    client: socket.socket
    server: socket.socket
    tap: socket.socket
    seen: list[Seen] = field(default_factory=list)

    @property
    def original(self) -> FlowTuple:
        """The tuple of the client's packets as they reach the router."""
        return tuple_between(self.client.getsockname(), self.client.getpeername())

    @property
    def reply(self) -> FlowTuple:
        """The tuple of the server's packets as they reach the router."""
        return tuple_between(self.server.getsockname(), self.server.getpeername())

    def exchange(self) -> None:
        """Send some data both ways, and wait for it."""
        for sender, receiver, size in (
            (self.client, self.server, 3000),
            (self.server, self.client, 50_000),
            (self.client, self.server, 1),
        ):
            sender.sendall(b"x" * size)
            left = size
            while left:
                left -= len(receiver.recv(left))

    def packets(self) -> list[Seen]:
        """All packets captured so far."""
        while True:
            try:
                packet = self.tap.recv(1 << 17)
            except BlockingIOError:
                return self.seen
            segment = read(packet)
            if segment and self.original.sport in {segment.sport, segment.dport}:
                self.seen.append(segment)

    def close(self) -> None:
        for one in (self.client, self.server, self.tap):
            one.close()


def octets(address: str) -> bytes:
    """The address as octets of a packet."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def tuple_between(
    source: tuple[Any, ...], target: tuple[Any, ...], proto: int = PROTO_TCP
) -> FlowTuple:
    """The tuple from one socket address to another."""
    return FlowTuple(proto, octets(source[0]), octets(target[0]), source[1], target[1])


@pytest.fixture(scope="module")
def routed() -> Iterator[Routed]:
    """The router with its rules; made once a module."""
    with ExitStack() as stack:
        client, router, server = (
            stack.enter_context(Namespace(label)) for label in ("client", "router", "server")
        )
        net = Routed(client, router, server)
        for end, left, right, inside, outside in (
            (client, "eth0", "lan", 0, 1),
            (server, "eth0", "wan", 3, 2),
        ):
            addresses = [
                (
                    f"{net.addresses[family][inside]}/{size}",
                    f"{net.addresses[family][outside]}/{size}",
                )
                for family, size in ((4, 24), (6, 64))
            ]
            veth(end, left, router, right, *addresses)
            end.ip("route", "add", "default", "via", net.addresses[4][outside])
            end.ip("-6", "route", "add", "default", "via", net.addresses[6][outside])
        router.sysctl("ipv4.ip_forward", 1)
        router.sysctl("ipv6.conf.all.forwarding", 1)
        for restore, family, server_address in (
            ("iptables-restore", 4, net.addresses[4][3]),
            ("ip6tables-restore", 6, f"[{net.addresses[6][3]}]"),
        ):
            rules = _RULES.format(server=server_address, source=net.addresses[family][2])
            router.run(restore, stdin=rules)
        yield net


@pytest.fixture
def connect(routed: Routed) -> Iterator["Connector"]:
    """Open connections by family and port; all are closed at the end."""
    connector = Connector(routed)
    yield connector
    for one in connector.opened:
        one.close()


class Connector:
    """Opens connections through the router."""

    def __init__(self, net: Routed) -> None:
        self._net = net
        self.opened: list[Connection] = []

    def __call__(self, family: int, port: int) -> Connection:
        """Connect the client to `port`, through the router's address if that is translated."""
        client, lan, _, server = self._net.addresses[family]
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        translated = port in {PORTS["dnat"], PORTS["both"]}
        with self._net.router.entered():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            tap.bind(("lan", _ETH_P_ALL))
            tap.setblocking(False)
        with self._net.server.entered():
            listener = socket.create_server(
                (server, port + 1000 if translated else port), family=kind
            )
        with listener:
            with self._net.client.entered():
                near = socket.create_connection(
                    (lan if translated else server, port), 5, (client, 0)
                )
            far, _ = listener.accept()
        far.settimeout(5)
        self.opened.append(Connection(near, far, tap))
        return self.opened[-1]
