# SPDX-License-Identifier: MIT
"""Tests for a kernel with netem, flowtables and VRFs; run by name in the machine.

Translated connections under an enforcing guard: over a link that delays, reorders and doubles
packets, and through a flowtable, which bypasses conntrack and is then torn down. A packet that a
port of a VRF receives.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from nfq_guard.doctor import collect
from nfq_guard.flow import IPS_OFFLOAD, Direction, FlowSnapshot, FlowTuple, Peer
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.liberal import LiberalFlag
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.strays import send
from nfq_guard.seqno import Seq
from tests.flows.conftest import PORTS, Connection, Connector, Routed, connect, routed
from tests.support.late_healer import LIMITS, LateHealer, judged
from tests.support.lookups import answered
from tests.support.queue import GuardProcess, wait_for

__all__ = ["connect", "routed"]

_SERVED = 400_000
# 1 in 4 packets is not delayed, so that it overtakes earlier ones.
_LATE = ("delay", "15ms", "10ms", "reorder", "25%", "duplicate", "10%")
_RST = 0x04
_RPS = """\
for device in lan wan; do
	echo $1 >/sys/class/net/$device/queues/rx-0/rps_cpus
done
"""
_FLOWTABLE = """\
table inet fast {
	flowtable links {
		hook ingress priority 0; devices = { lan, wan };
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state established flow add @links
	}
}
"""


@pytest.fixture
def guard(routed: Routed, tmp_path: Path) -> Iterator[GuardProcess]:
    config = tmp_path / "c.toml"
    config.write_text('[daemon]\nmode = "enforce"\ncontrol_socket = ""\n', encoding="ascii")
    with GuardProcess(routed.router, tmp_path / "log", "--config", str(config)).ready() as process:
        yield process


def _survived(connection: Connection) -> None:
    """Whether it still carries data in both directions."""
    connection.exchange()
    assert not [packet for packet in connection.packets() if packet.flags & _RST]


@pytest.mark.parametrize("spread", [False, True], ids=["", "rps"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_link_that_reorders(
    routed: Routed, connect: Connector, guard: GuardProcess, family: int, *, spread: bool
) -> None:
    """Also if the router distributes received packets to other CPUs (RPS)."""
    handed_over = _handed_over()
    # The router is still that of the previous test.
    routed.router.run("sh", "-ec", _RPS, "sh", f"{_all_cpus() if spread else 0:x}")
    routed.server.run("tc", "qdisc", "add", "dev", "eth0", "root", "netem", *_LATE)
    try:
        connection = connect(family, PORTS["dnat"])
        connection.client.settimeout(60)
        connection.server.settimeout(60)
        left = _SERVED
        while left:
            connection.server.sendall(bytes(size := min(left, 20_000)))
            left -= size
            while size:
                size -= len(connection.client.recv(size))
        _survived(connection)
    finally:
        routed.server.run("tc", "qdisc", "del", "dev", "eth0", "root")
    assert guard.stop() == 0
    assert (_handed_over() > handed_over) is spread


@pytest.mark.parametrize("family", [4, 6])
def test_a_flowtable_that_is_torn_down(
    routed: Routed, connect: Connector, guard: GuardProcess, family: int
) -> None:
    routed.router.run("nft", "-f", "-", stdin=_FLOWTABLE)
    connection = connect(family, PORTS["dnat"])
    connection.exchange()
    assert _status(routed, connection.original) & IPS_OFFLOAD
    routed.router.run("nft", "delete", "table", "inet", "fast")
    _survived(connection)
    assert not _status(routed, connection.original) & IPS_OFFLOAD
    assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert stopped["actions"].get("drop", 0) == 0


def test_an_offloaded_flow_is_left_alone(
    routed: Routed, connect: Connector, tmp_path: Path
) -> None:
    """Whether it was offloaded before the heal or after it.

    The kernel itself sets the flag, for both directions, but 5.10 clears it.
    """
    offloaded, healed = (connect(4, PORTS["dnat"]) for _ in range(2))
    for connection in (offloaded, healed):
        connection.exchange()
    with routed.router.entered():
        flag = LiberalFlag()
    late = LateHealer(routed.router, tmp_path / "log")
    try:
        packets = [judged(_with_window(routed, each.original)) for each in (offloaded, healed)]
        late.heal(packets[1])
        assert late.counts() == (1, 0, 0, 0)
        assert _liberal(flag, healed)
        routed.router.run("nft", "-f", "-", stdin=_FLOWTABLE)
        for connection in (offloaded, healed):
            connection.exchange()
            assert _status(routed, connection.original) & IPS_OFFLOAD
        late.heal(packets[0])
        assert late.counts() == (1, 0, 1, 0)
        late.tick(LIMITS.timeout_s + 1)
        assert late.counts() == (1, 0, 1, 0)
        # While it is offloaded, ctnetlink does not show the flags of a flow.
        routed.router.run("nft", "delete", "table", "inet", "fast")
        by_kernel = frozenset() if platform.release().startswith("5.10.") else frozenset(Direction)
        for connection in (offloaded, healed):
            assert _liberal(flag, connection) == by_kernel
            _survived(connection)
    finally:
        late.close()
        flag.close()


@pytest.mark.parametrize("family", [4, 6])
def test_a_vrf_has_a_packet_pass_twice(family: int) -> None:
    """With each of the two interfaces it is INVALID, as `doctor` says."""
    kind, program, left, right = {
        4: (IP, "iptables", "10.9.0.1", "10.9.0.2"),
        6: (IPv6, "ip6tables", "fd09::1", "fd09::2"),
    }[family]
    with Namespace("peer") as peer, Namespace("router") as router:
        router.ip("link", "add", "red", "type", "vrf", "table", "10")
        router.ip("link", "set", "red", "up")
        size, no_wait = {4: (24, ()), 6: (64, ("nodad",))}[family]
        veth(peer, "eth0", router, "port")
        router.ip("link", "set", "port", "master", "red")  # removes addresses of IPv6
        for end, device, address in ((peer, "eth0", left), (router, "port", right)):
            end.ip("addr", "add", f"{address}/{size}", "dev", device, *no_wait)
        for device in ("port", "red"):
            router.run(
                *(program, "-t", "mangle", "-A", "PREROUTING", "-i", device, "-p", "tcp"),
                *("-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"),
            )
        send(peer, bytes(kind(src=left, dst=right) / TCP(sport=5, dport=9, flags="SA")))

        def counts() -> list[str]:
            saved = router.run(f"{program}-save", "-c", "-t", "mangle").stdout
            return [line.partition(":")[0] for line in saved.splitlines() if " -i " in line]

        wait_for(lambda: counts() == ["[1", "[1"])
        with router.entered():
            assert collect.vrf_names() == ["red"]


def _all_cpus() -> int:
    cpus = os.cpu_count() or 1
    assert cpus > 1, "RPS takes a machine of several CPUs"
    return (1 << cpus) - 1


def _handed_over() -> int:
    """How often a CPU took packets from another one: `received_rps` of /proc/net/softnet_stat."""
    lines = Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[9], 16) for line in lines)


def _liberal(flag: LiberalFlag, connection: Connection) -> frozenset[Direction]:
    found = flag.read(connection.original, 0)
    assert found is not None
    return found.liberal


def _with_window(routed: Routed, flow: FlowTuple) -> FlowSnapshot:
    """The entry of a flow, with a made-up window for a kernel that does not show it."""
    found = _entry(routed, flow)
    client = Peer(Seq(1000), Seq(1500), 1000, Seq(2000), 0, 0)
    server = Peer(Seq(2000), Seq(2500), 1000, Seq(1000), 0, 0)
    return replace(found, peers=(client, server))


def _status(routed: Routed, flow: FlowTuple) -> int:
    return _entry(routed, flow).status


def _entry(routed: Routed, flow: FlowTuple) -> FlowSnapshot:
    with routed.router.entered():
        lookup = CtnetlinkFlows((0,))
        (found,) = answered(lookup.lookup([flow]))
    lookup.close()
    assert found is not None
    return found
