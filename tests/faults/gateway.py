# SPDX-License-Identifier: MIT
"""A guarded host behind a link, numbered INVALID packets to it, and independent counts.

The packets are RST segments without a connection: conntrack calls them INVALID, and nothing answers
them. Every policy used here allows those to `ALLOWED` and drops those to `DENIED`, so a packet to
`DENIED` that arrives has passed without a judgment.
"""

import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.nfqueue.counters import parse
from tests.support.queue import wait_for

PEER: Final = "10.78.0.1"
HOST: Final = "10.78.0.2"
ALLOWED: Final = 8000
DENIED: Final = 7000
POLICY: Final = f"""
[policy]
default = "log"
on_unknown = "log"
[[policy.rule]]
name = "denied"
dport = {DENIED}
action = "drop"
"""
# One packet in so many goes to `DENIED`.
_DENIED_SHARE: Final = 5
_RCVBUFFORCE: Final = 33
_SNDBUFFORCE: Final = 32
_RST: Final = 0x04
_SEGMENT: Final = struct.Struct("!HHIIBBHHH")
_PSEUDO: Final = socket.inet_aton(PEER) + socket.inet_aton(HOST) + struct.pack("!HH", 6, 20)
_PORTS: Final = 60_000
_POLL_S: Final = 0.0005
# Time after the last packet by which all have arrived, on a link within one machine, seconds.
_QUIET_S: Final = 0.3


class Counts(NamedTuple):
    """Packets by the rules of the host, before conntrack and after the guard."""

    came: int
    passed: int


class Gap(NamedTuple):
    """Packets to `ALLOWED` that did not arrive, after one fault."""

    lost: int
    # Time between the sending of the first and of the last of them.
    outage_s: float
    # The longest time without any arrival.
    wait_s: float
    # Packets to `DENIED` that arrived, and the time from the fault to the sending of the last.
    leaked: int
    leak_s: float


class Gateway:
    """The host, the peer, and the link between them."""

    def __init__(self, peer: Namespace, host: Namespace) -> None:
        self.host = host
        self.peer = peer
        for one in (peer, host):
            # Neighbour discovery would be judged as well.
            for which in ("all", "default"):
                one.sysctl(f"ipv6.conf.{which}.disable_ipv6", 1)
        self.link()
        ports = ["-p", "tcp", "-m", "multiport", "--dports", f"{ALLOWED},{DENIED}"]
        host.run("iptables", "-t", "raw", "-I", "PREROUTING", *ports)
        host.run("iptables", "-t", "filter", "-I", "INPUT", *ports)
        with peer.entered():
            self.out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with host.entered():
            self.arriving = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.out.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 1 << 25)
        self.arriving.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 26)
        self.arriving.settimeout(0.1)

    def link(self) -> None:
        """Create the link, also after it was removed."""
        veth(self.peer, "p0", self.host, "h0", (f"{PEER}/24", f"{HOST}/24"))
        # Neither is INVALID, but neither may occur during a measurement.
        for one, other, link in ((self.peer, HOST, "p0"), (self.host, PEER, "h0")):
            one.run("ping", "-q", "-c", "1", "-w", "5", "-I", link, other, check=False)

    def fill_conntrack(self, flows: int) -> None:
        """Send one datagram in each of a number of flows."""
        with (
            self.peer.entered(),
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as out,
        ):
            out.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 1 << 25)
            for number in range(flows):
                ports = 1024 + number % _PORTS, 40000 + number // _PORTS
                out.sendto(struct.pack("!HHHH", *ports, 8, 0), (HOST, 0))

    def counts(self) -> Counts:
        """The counters of the host's own rules."""

        def first(table: str, chain: str) -> int:
            words = ("iptables", "-w", "-t", table, "-nvxL", chain)
            lines = self.host.run(*words).stdout.splitlines()
            (line,) = [one for one in lines if f"multiport dports {ALLOWED},{DENIED}" in one]
            return int(line.split()[0])

        return Counts(first("raw", "PREROUTING"), first("filter", "INPUT"))

    def waiting(self) -> int:
        """Packets in all queues of the host."""
        text = self.host.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
        return sum(line.waiting for line in parse(text).values())

    def send(self, number: int, port: int) -> None:
        self.out.sendto(segment(number, port), (HOST, 0))

    def send_octets(self, octets: bytes) -> None:
        """Send arbitrary octets after an IPv4 header with protocol TCP."""
        self.out.sendto(octets, (HOST, 0))

    @contextlib.contextmanager
    def stream(self, pps: int) -> Iterator["Stream"]:
        """Send `pps` packets a second during the block, and then wait until all have arrived."""
        stream = Stream(self, pps)
        try:
            yield stream
        finally:
            stream.end()

    def close(self) -> None:
        self.out.close()
        self.arriving.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """Numbered packets, with their times of sending and arrival."""

    def __init__(self, gateway: Gateway, pps: int) -> None:
        self._gateway = gateway
        self._pps = pps
        self._before = gateway.counts()
        self._ending = threading.Event()
        self._drained = threading.Event()
        self.sent_at: array[float] = array("d")
        self.arrived: set[int] = set()
        self.arrived_at: array[float] = array("d")
        # The delay of each packet, in the order of arrival.
        self.delays: array[float] = array("d")
        self._threads = [threading.Thread(target=one) for one in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._ending.is_set():
            due = int((time.monotonic() - begun) * self._pps)
            while len(self.sent_at) < due:
                number = len(self.sent_at)
                self.sent_at.append(time.monotonic())
                self._gateway.send(number, port_of(number))
            time.sleep(_POLL_S)

    def _receive(self) -> None:
        last = time.monotonic()
        while not (self._drained.is_set() and time.monotonic() - last > _QUIET_S):
            try:
                octets = self._gateway.arriving.recv(2048)
            except TimeoutError:
                continue
            # Other connections may exist.
            if struct.unpack_from("!H", octets, 22)[0] in {ALLOWED, DENIED}:
                last = time.monotonic()
                number = struct.unpack_from("!I", octets, 24)[0]
                self.arrived.add(number)
                self.arrived_at.append(last)
                self.delays.append(last - self.sent_at[number])

    def end(self) -> None:
        self._ending.set()
        self._threads[1].join()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self._gateway.waiting() == 0)
        self._drained.set()
        self._threads[0].join()

    @property
    def sent(self) -> int:
        return len(self.sent_at)

    def lost(self) -> list[int]:
        """Numbers of packets to `ALLOWED` that did not arrive."""
        return [
            number
            for number in range(self.sent)
            if port_of(number) == ALLOWED and number not in self.arrived
        ]

    def leaked(self) -> list[int]:
        """Numbers of packets to `DENIED` that arrived."""
        return sorted(number for number in self.arrived if port_of(number) == DENIED)

    @property
    def unharmed(self) -> bool:
        """Whether no packet was lost, and none passed that was to be dropped."""
        return not self.lost() and not self.leaked()

    def harm(self) -> str:
        """The numbers of lost and of wrongly passed packets, as text."""
        return f"{len(self.lost())} lost, {len(self.leaked())} let through"

    def gaps(self, faults: list[float]) -> list[Gap]:
        """The cost of each fault; `faults` are their times."""
        lost = [self.sent_at[number] for number in self.lost()]
        leaked = [self.sent_at[number] for number in self.leaked()]
        found: list[Gap] = []
        # Packets that were in the queue had been sent before the fault.
        begins = [at - 0.05 for at in faults]
        for place, (begin, at) in enumerate(zip(begins, faults, strict=True)):
            end = begins[place + 1] if place + 1 < len(begins) else float("inf")
            missing = [when for when in lost if begin <= when < end]
            passed = [when for when in leaked if begin <= when < end]
            found.append(
                Gap(
                    lost=len(missing),
                    outage_s=missing[-1] - missing[0] if missing else 0.0,
                    wait_s=_longest([when for when in self.arrived_at if begin <= when < end]),
                    leaked=len(passed),
                    leak_s=max(0.0, passed[-1] - at) if passed else 0.0,
                )
            )
        return found

    def longest_wait_s(self) -> float:
        """The longest time without an arrival."""
        return _longest(self.arrived_at)

    def discrepancy(self) -> str:
        """The disagreement of sender, rules and receiver; empty if there is none."""
        now = self._gateway.counts()
        came, passed = now.came - self._before.came, now.passed - self._before.passed
        if came != self.sent or passed != len(self.arrived):
            return f"sent {self.sent}, came {came}, passed {passed}, received {len(self.arrived)}"
        return ""


def _longest(times: Sequence[float]) -> float:
    """The longest interval between consecutive times."""
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def port_of(number: int) -> int:
    """The port to which the packet of that number goes."""
    return DENIED if number % _DENIED_SHARE == 0 else ALLOWED


def segment(number: int, port: int) -> bytes:
    """A whole TCP header of an RST, with the number as its sequence number."""
    sport = 20000 + number % 512
    return checksummed(_SEGMENT.pack(sport, port, number, 0, 5 << 4, _RST, 0, 0, 0))


def checksummed(header: bytes) -> bytes:
    """A TCP header of 20 bytes from the peer to the host, with its checksum in place of 0."""
    total: int = sum(struct.unpack("!16H", _PSEUDO + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + (~total & 0xFFFF).to_bytes(2, "big") + header[18:]


def mutated(rng: random.Random, number: int) -> bytes:
    """A segment with random octets changed, removed or appended, except for its port."""
    octets = bytearray(segment(number, rng.choice([ALLOWED, DENIED])))
    for _ in range(rng.randrange(1, 8)):
        octets[rng.choice([*range(2), *range(4, 20)])] = rng.randrange(256)
    octets += rng.randbytes(rng.choice([0, 0, 1, 4, 40, 1200]))
    return bytes(
        octets[: rng.choice([len(octets), len(octets), rng.randrange(4, len(octets) + 1)])]
    )
