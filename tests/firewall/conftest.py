# SPDX-License-Identifier: MIT
"""Two linked hosts; our rules are installed on `guarded`."""

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from nfq_guard.firewall import Backend, Family, Firewall, RulesSpec
from nfq_guard.lab.netns import Namespace, veth

ADDRESSES = {
    Family.IPV4: ("10.77.0.1", "10.77.0.2"),
    Family.IPV6: ("fd77::1", "fd77::2"),
}
_EMPTY_TABLE = re.compile(r"^\*\w+\n(?::\w+ ACCEPT( \[.*\])?\n)*COMMIT\n", re.MULTILINE)
DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def invalid_segment(port: int) -> bytes:
    """A SYN+ACK without a SYN: INVALID in either direction."""
    return struct.pack("!HHIIBBHHH", port, port, 1, 1, 5 << 4, 0x12, 1000, 0, 0)


def flags_of(octets: bytes) -> int:
    """The TCP flags of a segment as a raw socket gives it, of either family."""
    start = (octets[0] & 0xF) * 4 if octets[0] >> 4 == 4 else 0
    return octets[start + 13]


@dataclass
class Host:
    """One namespace, its rules and its packets."""

    ns: Namespace

    def save(self, backend: Backend, family: Family, *, counters: bool = False) -> str:
        base = "iptables" if family is Family.IPV4 else "ip6tables"
        words = [f"{base}-{backend}-save", *(["-c"] if counters else [])]
        lines = self.ns.run(*words).stdout.splitlines()
        if not counters:
            lines = [line.partition(" [")[0] if line[:1] == ":" else line for line in lines]
        text = "\n".join(line for line in lines if line[:1] not in {"#", ""})
        # Listing the rules creates empty tables.
        return _EMPTY_TABLE.sub("", f"{text}\n").rstrip()

    def restore(self, backend: Backend, family: Family, text: str) -> None:
        base = "iptables" if family is Family.IPV4 else "ip6tables"
        self.ns.run(f"{base}-{backend}-restore", "--noflush", "-w", stdin=text)

    def ipt(self, backend: Backend, family: Family, *words: str) -> None:
        base = "iptables" if family is Family.IPV4 else "ip6tables"
        self.ns.run(f"{base}-{backend}", "-w", *words)

    def packets(self, backend: Backend, family: Family, word: str) -> int:
        """Packets counted by the first rule that contains `word`."""
        for line in self.save(backend, family, counters=True).splitlines():
            if line.startswith("[") and word in line:
                return int(line[1:].partition(":")[0])
        message = f"no rule with {word}"
        raise AssertionError(message)

    def firewall(self, spec: RulesSpec | None = None, backend: Backend | None = None) -> Firewall:
        return Firewall(spec or RulesSpec(), backend)

    def send_invalid(self, family: Family, to: str, count: int = 1, port: int = 4000) -> None:
        with (
            self.ns.entered(),
            socket.socket(DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        ):
            for _ in range(count):
                # The sender's own filter may drop it, which fails the call.
                with suppress(PermissionError):
                    raw.sendto(invalid_segment(port), (to, 0))

    def listen(self, family: Family) -> socket.socket:
        """A socket that receives the packets that the filter accepts."""
        with self.ns.entered():
            raw = socket.socket(DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        raw.settimeout(0.15)
        return raw


def received(raw: socket.socket) -> int:
    """The number of SYN+ACKs received until none follows."""
    count = 0
    while True:
        try:
            count += flags_of(raw.recv(4096)) == 0x12
        except TimeoutError:
            return count


@pytest.fixture
def guarded(namespace: Callable[[str], Namespace]) -> Host:
    """A host without any rules."""
    return Host(namespace("guard"))


@dataclass
class Wire:
    """Two hosts that reach each other; `guarded` is the one with rules."""

    peer: Host
    guarded: Host


@pytest.fixture(scope="module")
def _long_wire() -> Iterator[Wire]:
    with Namespace("peer") as far, Namespace("guard") as near:
        wire = Wire(Host(far), Host(near))
        lengths = {Family.IPV4: 24, Family.IPV6: 64}
        pairs = [
            (f"{there}/{lengths[one]}", f"{here}/{lengths[one]}")
            for one, (there, here) in ADDRESSES.items()
        ]
        veth(far, "far0", near, "near0", *pairs)
        for one, (there, here) in ADDRESSES.items():
            _await_path(wire.peer, wire.guarded, one, here)
            _await_path(wire.guarded, wire.peer, one, there)
        yield wire


@pytest.fixture
def wire(_long_wire: Wire) -> Iterator[Wire]:
    """The module's linked hosts, without rules before and after."""
    yield _long_wire
    with _long_wire.guarded.ns.entered():
        _long_wire.guarded.firewall().remove()


BEYOND = {Family.IPV4: "10.78.0.2", Family.IPV6: "fd78::2"}


@pytest.fixture(scope="module")
def beyond(_long_wire: Wire) -> Iterator[Host]:
    """A third host, which `peer` reaches through `guarded`."""
    near = _long_wire.guarded.ns
    with Namespace("beyond") as ns:
        pairs = [("10.78.0.1/24", "10.78.0.2/24"), ("fd78::1/64", "fd78::2/64")]
        veth(near, "near1", ns, "far1", *pairs)
        near.sysctl("ipv4.ip_forward", 1)
        near.sysctl("ipv6.conf.all.forwarding", 1)
        routes = (("10.78.0.0/24", "10.77.0.2"), ("fd78::/64", "fd77::2"))
        for network, gateway in routes:
            _long_wire.peer.ns.ip("route", "add", network, "via", gateway)
        host = Host(ns)
        for family, to in BEYOND.items():
            _await_path(_long_wire.guarded, host, family, to)
        yield host


def _await_path(sender: Host, receiver: Host, family: Family, to: str) -> None:
    """Send until a packet arrives: a new link drops packets until it is up."""
    patience = time.monotonic() + 10
    with receiver.listen(family) as raw:
        raw.settimeout(0.1)
        while not received(raw):
            assert time.monotonic() < patience, f"no way to {to}"
            with suppress(OSError):
                sender.send_invalid(family, to)


@pytest.fixture(params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


@pytest.fixture(params=list(Family), ids=lambda family: f"IPv{family:d}")
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)
