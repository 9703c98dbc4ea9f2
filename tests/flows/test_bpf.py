# SPDX-License-Identifier: MIT
"""Compares the kernel's window, read by BPF, with arithmetic on the packets of live flows."""

import errno
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_guard.errors import UnavailableError
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_MAXACK_SET,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    IPS_ASSURED,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_UDP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupFailed,
    LookupResult,
    Nat,
    Peer,
    TcpState,
    answering,
)
from nfq_guard.flows import bpf
from nfq_guard.flows.bpf import BpfFlows, ticks_per_second
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.exchange import BATCH, Exchange
from nfq_guard.seqno import Seq, add, distance, later
from tests.flows.conftest import (
    MARK,
    MARK_PORT,
    PORTS,
    ZONE,
    ZONE_PORT,
    Connection,
    Connector,
    Routed,
    octets,
    tuple_between,
)
from tests.support.lookups import answered
from tests.support.missing import cannot_run
from tests.support.segments import ACK, SYN, Seen, checksum

pytestmark = pytest.mark.kernel

_SOURCE = Path(__file__).parents[2] / "bpf"


class Network:
    """Both lookups, inside the router."""

    def __init__(self, net: Routed) -> None:
        self._net = net
        with net.router.entered():
            self.netlink = CtnetlinkFlows((0, ZONE))
        try:
            self.bpf = BpfFlows((0, ZONE), others=self.netlink)
        except UnavailableError:
            # Before 6.11 BPF looks up zone 0 only, and `test_mark_and_zone` fails.
            self.bpf = BpfFlows(others=self.netlink)
        self.bpf_zone_0 = BpfFlows()

    def __call__(self, *tuples: FlowTuple) -> list[FlowSnapshot | None]:
        """Through BPF, in both zones."""
        return self.by(self.bpf.lookup, *tuples)

    def by(
        self, lookup: Callable[[list[FlowTuple]], list[LookupResult]], *tuples: FlowTuple
    ) -> list[FlowSnapshot | None]:
        """Through `lookup`, which must not fail."""
        with self._net.router.entered():
            return answered(lookup(list(tuples)))


@pytest.fixture(scope="module")
def look(routed: Routed) -> Iterator[Network]:
    """Both lookups, loaded once."""
    network = Network(routed)
    yield network
    network.bpf.close()
    network.bpf_zone_0.close()
    network.netlink.close()


def model(packets: list[Seen], client_port: int) -> tuple[Peer, Peer]:
    """The windows of a connection without INVALID packets by kernel.md 1.4 and 1.6."""
    sides: dict[bool, Peer] = {}
    for packet in packets:
        is_reply = packet.sport != client_port
        window = packet.window
        if packet.flags & SYN:
            assert packet.scale is not None
            sack = IP_CT_TCP_FLAG_SACK_PERM if packet.sack_permitted else 0
            sides[is_reply] = Peer(
                Seq(packet.end), Seq(packet.end), 0, Seq(0), packet.scale,
                IP_CT_TCP_FLAG_WINDOW_SCALE | sack,
            )  # fmt: skip
        else:
            window <<= sides[is_reply].td_scale
        sender = sides[is_reply]
        sender.td_end = later(sender.td_end, Seq(packet.end))
        ack = highest = Seq(packet.ack)
        for end in packet.sacked:
            highest = later(highest, Seq(end))
        sender.td_maxwin = max(sender.td_maxwin, window + distance(highest, ack))
        if packet.flags & ACK:
            is_first = not sender.flags & IP_CT_TCP_FLAG_MAXACK_SET
            sender.td_maxack = ack if is_first else later(sender.td_maxack, ack)
            sender.flags |= IP_CT_TCP_FLAG_MAXACK_SET
            peer = sides[not is_reply]
            peer.td_maxend = later(peer.td_maxend, add(highest, window or 1))
    for is_reply, side in sides.items():
        if sides[not is_reply].td_maxack != side.td_end:
            side.flags |= IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
    return sides[False], sides[True]


def settled(look: Network, connection: Connection) -> tuple[FlowSnapshot, FlowSnapshot]:
    """Both directions' snapshots at rest: all acknowledged, which may take a delayed ACK."""
    deadline = time.monotonic() + 3
    before: tuple[Peer, Peer] | None = None
    while True:
        first, second = look(connection.original, connection.reply)
        assert first is not None
        assert second is not None
        assert first.peers is not None
        one, other = first.peers
        acknowledged = one.td_end == other.td_maxack and other.td_end == one.td_maxack
        if acknowledged and first.peers == before:
            return first, second
        before = first.peers
        assert time.monotonic() < deadline, (one, other)
        time.sleep(0.03)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("nat", list(PORTS))
def test_window_is_that_of_the_packets(
    look: Network, connect: Connector, family: int, nat: str
) -> None:
    connection = connect(family, PORTS[nat])
    connection.exchange()
    forth, back = settled(look, connection)
    assert forth.peers == model(connection.packets(), connection.original.sport)
    assert back.peers == forth.peers
    assert (forth.direction, back.direction) == (0, 1)
    assert (forth.original, forth.reply) == (connection.original, connection.reply)
    assert (back.original, back.reply) == (connection.original, connection.reply)
    assert forth.nat is Nat(nat)
    assert forth.state == TcpState.ESTABLISHED
    assert forth.status & IPS_ASSURED
    assert forth.evidence is Evidence.BPF
    last = connection.packets()[-1]
    assert (forth.last_seq, forth.last_ack, forth.last_end) == (last.seq, last.ack, last.end)
    assert forth.last_win == last.window
    assert forth.last_dir == int(last.sport != connection.original.sport)


@pytest.mark.parametrize("family", [4, 6])
def test_window_of_a_connection_that_loses_packets(
    routed: Routed, look: Network, connect: Connector, family: int
) -> None:
    """Selective acknowledgements are added to the window of their sender."""
    program = "iptables" if family == 4 else "ip6tables"
    port = PORTS["none"]
    # Of data alone, which is sent again: conntrack has seen what is lost, the tap has not.
    data = f"-p tcp --sport {port} -m length --length 500:65535"
    loss = f"{data} -m statistic --mode nth --every 3 --packet 1 -j DROP".split()
    connection = connect(family, port)
    routed.router.run(program, "-I", "FORWARD", *loss)
    try:
        connection.exchange()
    finally:
        routed.router.run(program, "-D", "FORWARD", *loss)
    forth, _ = settled(look, connection)
    packets = connection.packets()
    assert any(packet.sacked for packet in packets)
    assert forth.peers == model(packets, connection.original.sport)


def test_closing_moves_the_state(look: Network, connect: Connector) -> None:
    connection = connect(4, PORTS["none"])
    connection.client.shutdown(socket.SHUT_WR)
    assert connection.server.recv(1) == b""
    forth, _ = settled(look, connection)
    assert forth.state in {TcpState.FIN_WAIT, TcpState.CLOSE_WAIT}
    assert forth.peers is not None
    assert forth.peers[0].td_end == connection.packets()[-1].ack
    assert forth.timeout_s <= 120


def test_timeout_is_in_seconds(look: Network, connect: Connector) -> None:
    """The kernel counts in ticks; ctnetlink reports seconds."""
    connection = connect(4, PORTS["none"])
    connection.exchange()
    settled(look, connection)
    (by_bpf,) = look(connection.original)
    (by_netlink,) = look.by(look.netlink.lookup, connection.original)
    assert by_bpf is not None
    assert by_netlink is not None
    assert abs(by_bpf.timeout_s - by_netlink.timeout_s) <= 1
    assert by_bpf.timeout_s > 100


def test_ticks_are_those_of_the_kernel_configuration() -> None:
    assert ticks_per_second() in {100, 250, 300, 1000}


@pytest.mark.parametrize("nat", list(PORTS))
@pytest.mark.parametrize("family", [4, 6])
def test_ctnetlink_says_the_same(look: Network, connect: Connector, family: int, nat: str) -> None:
    connection = connect(family, PORTS[nat])
    connection.exchange()
    settled(look, connection)
    tuples = (connection.original, connection.reply)
    for one, other in zip(look(*tuples), look.by(look.netlink.lookup, *tuples), strict=True):
        assert one is not None
        assert other is not None
        assert other.evidence is Evidence.CTNETLINK
        assert other.peers is None
        for name in ("direction", "original", "reply", "status", "mark", "zone", "state", "nat"):
            assert getattr(one, name) == getattr(other, name), name


def test_mark_and_zone(look: Network, connect: Connector) -> None:
    marked = connect(4, MARK_PORT)
    zoned = connect(4, ZONE_PORT)
    tuples = (marked.original, zoned.original, zoned.reply)
    for lookup in (look.bpf.lookup, look.netlink.lookup):
        one, two, three = look.by(lookup, *tuples)
        assert one is not None
        assert two is not None
        assert three is not None
        assert (one.mark, one.zone) == (MARK, 0)
        assert (two.mark, two.zone, two.direction) == (0, ZONE, 0)
        assert (three.zone, three.direction) == (ZONE, 1)
    only_zone_0 = look.by(look.bpf_zone_0.lookup, *tuples)
    assert [found is not None for found in only_zone_0] == [True, False, False]


def test_batch_of_any_size_keeps_its_order(look: Network, connect: Connector) -> None:
    """Known and unknown, both families, both ways, across the edges of the kernel's batch."""
    one, two = connect(4, PORTS["dnat"]), connect(6, PORTS["none"])
    unknown = FlowTuple(6, bytes(4), bytes(4), 1, 2)
    pattern = [one.original, unknown, two.reply, one.reply, two.original]
    for size in (0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 5):
        tuples = [pattern[index % len(pattern)] for index in range(size)]
        found = look(*tuples)
        assert len(found) == size
        for wanted, snapshot in zip(tuples, found, strict=True):
            if wanted is unknown:
                assert snapshot is None
            else:
                assert snapshot is not None
                assert wanted == (snapshot.original, snapshot.reply)[snapshot.direction]


@pytest.mark.parametrize("family", [4, 6])
def test_udp_and_icmp(look: Network, routed: Routed, family: int) -> None:
    """UDP comes through BPF without a window, ICMP echo through ctnetlink."""
    client, _, _, server = routed.addresses[family]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with routed.client.entered(), socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.bind((client, 0))
        sender.sendto(b"x", (server, 53))
        asked = tuple_between(sender.getsockname(), (server, 53), PROTO_UDP)
    identifier = 0x1234
    proto, request, answer = (PROTO_ICMP, 8, 0) if family == 4 else (PROTO_ICMPV6, 128, 129)
    with routed.client.entered(), socket.socket(kind, socket.SOCK_RAW, proto) as pinger:
        # For ICMPv6 the kernel computes the checksum.
        header = struct.pack(">BBHHH", request, 0, 0, identifier, 1)
        header = header[:2] + struct.pack(">H", checksum(header)) + header[4:]
        pinger.settimeout(5)
        pinger.sendto(header, (server, 0))
        pinger.recv(100)
    reply = FlowTuple(PROTO_UDP, asked.dst, asked.src, asked.dport, asked.sport)
    forth, back = look(asked, reply)
    assert forth is not None
    assert back is not None
    assert (forth.direction, back.direction) == (0, 1)
    assert (forth.original, forth.reply) == (asked, reply)
    assert forth.peers is None
    assert forth.state == 0
    assert 0 < forth.timeout_s <= 120
    echo = FlowTuple(proto, octets(client), octets(server), identifier, request << 8)
    echoed = FlowTuple(proto, octets(server), octets(client), identifier, answer << 8)
    assert answering(echo) == echoed
    first, second, third = look(echoed, asked, echo)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.evidence, second.evidence) == (Evidence.CTNETLINK, Evidence.BPF)
    assert (first.direction, third.direction) == (1, 0)
    assert (first.original, first.reply) == (echo, echoed)


def test_it_looks_into_the_namespace_of_the_caller(look: Network, connect: Connector) -> None:
    connection = connect(4, PORTS["none"])
    assert look(connection.original) != [None]
    assert look.bpf.lookup([connection.original]) == [None]


def test_object_comes_from_its_source(tmp_path: Path) -> None:
    """Byte for byte, with a clang of the major version that the Makefile names."""
    built = _build(tmp_path)
    committed = _SOURCE.parent / "nfq_guard" / "flows" / "ct_lookup.bpf.o"
    assert built.read_bytes() == committed.read_bytes()


def test_kernels_before_6_11_know_zone_0_alone(
    tmp_path: Path, routed: Routed, connect: Connector
) -> None:
    """Built to pass the shorter options, which later kernels still accept."""
    image = _build(tmp_path, "CPPFLAGS=-DOPTIONS_SIZE=12").read_bytes()
    with pytest.raises(UnavailableError, match=r"zones other than 0 needs kernel 6\.11"):
        BpfFlows((0, ZONE), program=bpf.load(image))
    connection = connect(6, PORTS["both"])
    program = bpf.load(image)
    flows = BpfFlows(program=program)
    with routed.router.entered():
        found = answered(flows.lookup([connection.original, connection.reply]))
        refused = Exchange(program.memory, program.run).ask([connection.original], ZONE)
    assert [one.direction for one in found if one] == [0, 1]
    assert refused == [LookupFailed(errno.EOPNOTSUPP)]
    flows.close()


def test_what_the_kernel_refuses_is_a_failed_lookup(
    look: Network, routed: Routed, connect: Connector
) -> None:
    """It is not "no entry", and the other lookups of the same call succeed."""
    connection = connect(4, PORTS["none"])
    unknown = FlowTuple(6, bytes(4), bytes(4), 1, 2)
    foreign = FlowTuple(132, bytes(4), bytes(4), 1, 2)
    with routed.router.entered():
        found, none, refused = look.bpf_zone_0.lookup([connection.original, unknown, foreign])
    assert isinstance(found, FlowSnapshot)
    assert found.original == connection.original
    assert none is None
    assert refused == LookupFailed(errno.EPROTO)


def _build(folder: Path, *settings: str) -> Path:
    """The rebuilt object; without the right clang the test fails in CI and is skipped elsewhere."""
    makefile = (_SOURCE / "Makefile").read_text(encoding="ascii")
    found = re.search(r"CLANG_MAJOR := (\d+)", makefile)
    assert found
    for tool in ("clang", "llvm-strip"):
        if not shutil.which(f"{tool}-{found[1]}"):
            cannot_run(f"{tool}-{found[1]} is missing (Debian packages clang-14 and llvm-14)")
    built = folder / "built.o"
    subprocess.run(
        ["make", "-s", "-C", str(_SOURCE), f"OUT={built}", *settings],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return built
