# SPDX-License-Identifier: MIT
"""Flows whose window one forged RST has shifted: on real connections, queues and rules."""

import json
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from netfilterqueue import NetfilterQueue
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from nfq_guard import capabilities
from nfq_guard.flow import PROTO_TCP, Direction, FlowSnapshot, FlowTuple, TcpState
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.liberal import LiberalFlag
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.strays import send
from nfq_guard.lab.wiretap import announce_carrier
from nfq_guard.netlink.connection import Connection as Netlink
from nfq_guard.netlink.messages import attribute
from nfq_guard.seqno import Seq, add
from tests.support.late_healer import LIMITS, LateHealer, judged
from tests.support.queue import GuardProcess, typed, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

ADDRESSES = {4: ("10.81.0.1", "10.81.0.2"), 6: ("fd81::1", "fd81::2")}
DOMAINS = {4: socket.AF_INET, 6: socket.AF_INET6}
ADVERTISED = 80
SERVED = 8080
# TCP retransmits after 0.2, 0.6 and 1.4 s; a connection that is not healed retransmits for minutes.
PATIENCE_S = 20.0
AT_ONCE = '[policy]\ninclude = "preset:heal"\n'
HELD_QUEUE = 9
# linux/tcp.h; Python does not name them.
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_TCP_SEND_QUEUE, _TCP_REPAIR_OFF_NO_WP = 2, -1
_HEADER = struct.Struct("IHHII")  # of a netlink message
_CHANGE, _CTA_STATUS = 1 << 8, 3
RULE = ("-t", "mangle", "-A", "PREROUTING", "-m", "conntrack", "--ctstate", "INVALID")


@dataclass
class Connection:
    """The two ends of a connection that the guarded host translates."""

    client: socket.socket
    server: socket.socket
    original: FlowTuple

    def ping(self) -> bool:
        """Exchange data in both directions; False once the connection is reset."""
        try:
            for sender, receiver in ((self.client, self.server), (self.server, self.client)):
                sender.sendall(b"12345678")
                if receiver.recv(8, socket.MSG_WAITALL) != b"12345678":
                    return False
        except ConnectionError:
            return False
        return True


class Site:
    """A client, and a guarded host that redirects a port."""

    def __init__(self, client: Namespace, guarded: Namespace) -> None:
        lengths = {4: 24, 6: 64}
        pairs = [
            (f"{near}/{lengths[family]}", f"{far}/{lengths[family]}")
            for family, (near, far) in ADDRESSES.items()
        ]
        veth(client, "c0", guarded, "g0", *pairs)
        announce_carrier(client, "c0")
        announce_carrier(guarded, "g0")
        self.client = client
        self.guarded = guarded
        words = ("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", str(ADVERTISED))
        for program in ("iptables", "ip6tables"):
            guarded.run(program, *words, "-j", "REDIRECT", "--to-ports", str(SERVED))
            guarded.run(program, *RULE)
        self.zone = 0
        with guarded.entered():
            self.flows = BpfFlows()
            self.flag = LiberalFlag()

    def move_to_zone(self, zone: int, kind: str = "--zone") -> None:
        """Put all later IPv4 flows, or one direction of them, into a conntrack zone."""
        for chain, option in (("PREROUTING", "-i"), ("OUTPUT", "-o")):
            words = ("-t", "raw", "-A", chain, option, "g0", "-j", "CT", kind, str(zone))
            self.guarded.run("iptables", *words)
        self.zone = 0 if kind == "--zone-reply" else zone
        self.flows.close()
        with self.guarded.entered():
            self.flows = BpfFlows((self.zone,))

    def close(self) -> None:
        self.flows.close()
        self.flag.close()

    @contextmanager
    def connections(self, family: int, count: int = 1) -> Iterator[list[Connection]]:
        """Open connections and exchange data over each in both directions."""
        near, far = ADDRESSES[family]
        with ExitStack() as stack:
            with self.guarded.entered():
                listener = stack.enter_context(socket.socket(DOMAINS[family]))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((far, SERVED))
            listener.listen(count)
            made: list[Connection] = []
            for _ in range(count):
                with self.client.entered():
                    client = stack.enter_context(socket.socket(DOMAINS[family]))
                client.settimeout(PATIENCE_S)
                client.connect((far, ADVERTISED))
                server = stack.enter_context(listener.accept()[0])
                server.settimeout(PATIENCE_S)
                src, dst = (socket.inet_pton(DOMAINS[family], name) for name in (near, far))
                port = client.getsockname()[1]
                flow = FlowTuple(PROTO_TCP, src, dst, port, ADVERTISED)
                made.append(Connection(client, server, flow))
                assert made[-1].ping()
            yield made

    def snapshot(self, connection: Connection) -> FlowSnapshot:
        with self.guarded.entered():
            (found,) = self.flows.lookup([connection.original])
        assert isinstance(found, FlowSnapshot)
        return found

    def liberal(self, connections: Sequence[Connection]) -> int:
        """Connections with the flag for at least one sender."""
        found = [self.flag.read(connection.original, self.zone) for connection in connections]
        return sum(bool(flow and flow.liberal) for flow in found)

    def directions(self, connection: Connection) -> frozenset[Direction]:
        """The directions of a connection whose sender has the flag."""
        found = self.flag.read(connection.original, self.zone)
        assert found is not None
        return found.liberal

    def forget(self, connection: Connection) -> None:
        """Delete its entry."""
        self.guarded.run("conntrack", "-D", *_words(connection.original))

    def insert(self, connection: Connection, zone: int) -> None:
        """Make an entry with its tuple; conntrack(8) gives both senders the flag."""
        words = ("-I", *_words(connection.original), "--zone", str(zone), "--timeout", "60")
        self.guarded.run("conntrack", *words, "--state", "ESTABLISHED", "--status", "ASSURED")

    def replace(self, connection: Connection) -> None:
        """Replace its entry by one of `insert` with another id."""
        before = self.flag.read(connection.original, 0)
        assert before is not None
        for zone in range(20, 60):
            self.forget(connection)
            # The id follows from the address of the entry in memory, which this one occupies.
            self.insert(connection, zone)
            self.insert(connection, zone=0)
            after = self.flag.read(connection.original, 0)
            assert after is not None
            if after.identity != before.identity:
                return
        pytest.fail("the id stays the same")

    def hold(self, connection: Connection, stack: ExitStack) -> None:
        """Have a valid packet of a connection wait in a queue that nobody reads."""
        port = str(connection.original.sport)
        words = ("-p", "tcp", "--sport", port, "-j", "NFQUEUE", "--queue-num", str(HELD_QUEUE))
        self.guarded.run("iptables", "-I", "INPUT", *words)
        with self.guarded.entered():
            queue = NetfilterQueue()
            queue.bind(HELD_QUEUE, lambda _: None)
        stack.callback(queue.unbind)
        connection.client.sendall(b"12345678")
        counters = Path("/proc/net/netfilter/nfnetlink_queue")
        wait_for(lambda: self.guarded.run("cat", str(counters)).stdout.split()[2] != "0")

    def entries(self) -> int:
        """Entries in memory, also those that have been deleted and are still in use."""
        return int(self.guarded.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)

    def resync(self, connection: Connection) -> None:
        """Send a SYN that conntrack ignores, its SYN+ACK and the ACK, all dropped after conntrack.

        Their numbers continue the connection, so that its packets are in the window that they open.
        """
        flow = connection.original
        family, layer = (4, IP) if len(flow.src) == 4 else (6, IPv6)
        near, far = ADDRESSES[family]
        client, server = map(_next_number, (connection.client, connection.server))
        forth, back = layer(src=near, dst=far), layer(src=far, dst=near)
        ports = {"sport": flow.sport, "dport": ADVERTISED, "window": 64_000}
        syn = forth / TCP(**ports, flags="S", seq=add(client, -1))
        ack = forth / TCP(**ports, flags="A", seq=client, ack=server)
        ports = {"sport": SERVED, "dport": flow.sport, "window": 64_000}
        answer = back / TCP(**ports, flags="SA", seq=add(server, -1), ack=client)
        program = "iptables" if family == 4 else "ip6tables"
        rules = [
            (("-t", "filter"), ("INPUT", "-p", "tcp", "-j", "DROP")),
            (("-t", "mangle"), ("POSTROUTING", "-p", "tcp", "-j", "DROP")),
        ]
        for table, rule in rules:
            self.guarded.run(program, *table, "-I", *rule)
        send(self.client, bytes(syn))
        wait_for(lambda: self.dropped(program) == 1)
        # It was dropped after conntrack.
        with pytest.raises(PermissionError):
            send(self.guarded, bytes(answer))
        assert self.snapshot(connection).state == TcpState.SYN_RECV
        send(self.client, bytes(ack))
        wait_for(lambda: self.dropped(program) == 2)
        assert self.snapshot(connection).state == TcpState.ESTABLISHED
        for table, rule in rules:
            self.guarded.run(program, *table, "-D", *rule)

    def dropped(self, program: str) -> int:
        """Packets that the rules of the table filter have dropped."""
        saved = self.guarded.run(f"{program}-save", "-c", "-t", "filter").stdout
        return sum(int(each) for each in re.findall(r"^\[(\d+):.*-j DROP$", saved, re.MULTILINE))

    def poison(self, connections: Sequence[Connection]) -> None:
        """Send one RST for each, as from the client, as far beyond its window as conntrack takes.

        No TCP accepts it. Conntrack takes the client's data to end there, and then ignores the
        server's acknowledgements as too old, with the data that they come with.
        """
        with self.client.entered():
            raw = {
                family: socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_TCP)
                for family, domain in DOMAINS.items()
            }
        for connection in connections:
            flow = connection.original
            found = self.snapshot(connection)
            assert found.peers is not None
            client, server = found.peers
            family, layer = (4, IP) if len(flow.src) == 4 else (6, IPv6)
            number = add(client.td_maxend, server.td_maxwin - 2)
            near, far = ADDRESSES[family]
            packet = layer(src=near, dst=far) / TCP(
                sport=flow.sport, dport=flow.dport, flags="R", seq=number
            )
            raw[family].sendto(bytes(packet)[20 if family == 4 else 40 :], (far, 0))
        for one in raw.values():
            one.close()


@pytest.fixture
def site(namespace: Make) -> Iterator[Site]:
    made = Site(namespace("client"), namespace("guarded"))
    yield made
    made.close()


@contextmanager
def guard(
    site: Site,
    path: Path,
    *lines: str,
    policy: str = "",
    name: str = "one",
    prefix: Sequence[str] = (),
) -> Iterator[GuardProcess]:
    """The daemon, in mode enforce, with rules of its own."""
    config = path / f"{name}.toml"
    settings = ["[daemon]", f'control_socket = "{socket_of(path, name)}"', "log_interval_s = 0"]
    if not any(line.startswith("mode") for line in lines):
        settings.append('mode = "enforce"')
    config.write_text("\n".join([*settings, *lines, policy]))
    words = ("--config", str(config))
    with GuardProcess(site.guarded, path / f"{name}.log", *words, prefix=prefix) as process:
        yield process.ready()


def socket_of(path: Path, name: str = "one") -> Path:
    return path / f"{name}.sock"


def counters(path: Path, name: str = "one") -> dict[str, Any]:
    """The status of the daemon's only queue."""
    told = json.loads(typed(socket_of(path, name), "status", "--format", "json"))
    (queue,) = told["queues"]
    return dict(queue)


def _next_number(end: socket.socket) -> Seq:
    """The sequence number of the next octet that a socket sends."""
    end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _TCP_SEND_QUEUE)
    number = end.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
    end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _TCP_REPAIR_OFF_NO_WP)
    return Seq(number & 0xFFFFFFFF)


def _words(flow: FlowTuple) -> tuple[str, ...]:
    """A tuple as arguments of conntrack(8)."""
    near, far = ADDRESSES[4]
    words = ("-p", "tcp", "-s", near, "-d", far)
    return (*words, "--sport", str(flow.sport), "--dport", str(flow.dport))


def pings(connections: Sequence[Connection]) -> list[bool]:
    """Whether each connection still works, all tried at the same time; raises if one hangs."""
    with ThreadPoolExecutor(len(connections)) as pool:
        return list(pool.map(Connection.ping, connections))


@pytest.mark.parametrize("family", [4, 6])
def test_one_forged_rst_neither_ends_nor_hangs_a_flow(
    site: Site, tmp_path: Path, family: int
) -> None:
    with site.connections(family, 2) as (poisoned, other), guard(site, tmp_path) as process:
        site.poison([poisoned])
        for _ in range(3):
            assert poisoned.ping()
        assert other.ping()
        assert (site.liberal([poisoned]), site.liberal([other])) == (1, 0)
        told = counters(tmp_path)
        assert (told["heals"], told["heal_errors"]) == (1, 0)
        assert process.stop() == 0
        assert site.liberal([poisoned, other]) == 0
    judged = process.events("packet_judged")
    assert {event["reason"] for event in judged} == {"ack-over"}
    assert {(event["action"], event["rule"], event["verdict"]) for event in judged} == {
        ("drop", "translated", "drop"),
        ("heal", "lost-window", "drop"),
    }
    (healed,) = process.events("healed")[:1]
    assert healed["example"]["dport"] == ADVERTISED
    (stopped,) = process.events("stopped")
    assert (stopped["heals"], stopped["heals_undone"]) == (1, 1)


def test_a_live_flow_is_healed_under_a_flood(site: Site, tmp_path: Path) -> None:
    """Offloaded, its segments would never come to the daemon, for as long as the flood lasts."""
    lines = ("offload = true", "offload_after = 20")
    with site.connections(4) as (one,), guard(site, tmp_path, *lines) as process:
        peers = site.snapshot(one).peers
        assert peers is not None
        far = add(peers[0].td_maxend, 1 << 30)
        near, here = ADDRESSES[4]
        packet = IP(src=near, dst=here) / TCP(
            sport=one.original.sport, dport=one.original.dport, flags="A", seq=far, ack=1
        )
        octets = bytes(packet)[20:]
        with site.client.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with raw:
            for _ in range(200):
                raw.sendto(octets, (here, 0))
        wait_for(lambda: counters(tmp_path)["packets"] >= 200)
        site.poison([one])
        for _ in range(3):
            assert one.ping()
        assert process.stop() == 0
    (stopped,) = process.events("stopped")
    assert (stopped["heals"], stopped["offloaded_flows"]) == (1, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_a_storm_of_forged_rst_costs_no_connection(site: Site, tmp_path: Path, family: int) -> None:
    """Without the guard the host resets the same connections."""
    with site.connections(family, 50) as plain:
        site.poison(plain)
        pings(plain)  # the acknowledgement of the answer is the first INVALID packet
        lost = pings(plain).count(False)
    assert lost > 0
    with site.connections(family, 100) as guarded, guard(site, tmp_path) as process:
        site.poison(guarded)
        assert pings(guarded) == pings(guarded) == [True] * 100
        assert site.liberal(guarded) > 0
        assert process.stop() == 0
        assert site.liberal(guarded) == 0


def test_without_a_window_a_flow_ends_instead_of_hanging(site: Site, tmp_path: Path) -> None:
    """By the rule `stuck` it is reset after some retransmissions, as without the guard."""
    without_bpf = ("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin")
    with site.connections(4) as (one,), guard(site, tmp_path, prefix=without_bpf) as process:
        site.poison([one])
        while one.ping():
            pass
        assert process.stop() == 0
    assert {event["evidence"] for event in process.events("packet_judged")} == {"ctnetlink"}
    assert "stuck" in {event["rule"] for event in process.events("packet_judged")}
    notes = [event["text"] for event in process.events("note")]
    assert any("rules that heal never match" in note for note in notes)


def test_a_heal_is_undone_in_time_and_made_again(site: Site, tmp_path: Path) -> None:
    lines = ("heal_timeout_s = 1", "heal_flow_per_minute = 100")
    with site.connections(4) as (one,), guard(site, tmp_path, *lines, policy=AT_ONCE) as process:
        for heals in (1, 2):
            site.poison([one])
            assert one.ping()
            assert one.ping()
            assert counters(tmp_path)["heals"] >= heals
            wait_for(lambda: site.liberal([one]) == 0)
        assert process.stop() == 0


def test_the_next_daemon_undoes_what_a_killed_one_left(site: Site, tmp_path: Path) -> None:
    with site.connections(4, 3) as made:
        site.flag.write(made[2].original, 0, frozenset(Direction), on=True)
        with guard(site, tmp_path, policy=AT_ONCE) as process:
            site.poison(made[:2])
            assert pings(made) == pings(made) == [True] * 3
            assert process.stop(signal.SIGKILL) == -signal.SIGKILL
        assert site.liberal(made) == 3
        with guard(site, tmp_path, 'mode = "dry-run"', policy=AT_ONCE) as process:
            wait_for(lambda: site.liberal(made) == 1)
            assert process.stop() == 0
        assert site.liberal(made[2:]) == 1
    assert not list(tmp_path.glob("*.healed-*"))


def test_dry_run_heals_nothing_and_says_what_it_would(site: Site, tmp_path: Path) -> None:
    """The packet passes and ends the connection, as without the guard."""
    with (
        site.connections(4) as (one,),
        guard(site, tmp_path, 'mode = "dry-run"', policy=AT_ONCE) as process,
    ):
        site.poison([one])
        while one.ping():
            pass
        assert site.liberal([one]) == 0
        told = counters(tmp_path)
        assert (told["heals"], told["would_heal"]) == (0, 1)
        assert process.stop() == 0
    event = process.events("packet_judged")[0]
    assert (event["action"], event["verdict"], event["would"]) == ("heal", "accept", "drop")


def test_a_flood_that_wants_heals_is_bounded(site: Site, tmp_path: Path) -> None:
    lines = ("heal_per_minute = 5",)
    with site.connections(4, 20) as made, guard(site, tmp_path, *lines, policy=AT_ONCE) as process:
        site.poison(made)
        for connection in made:
            connection.client.sendall(b"12345678")
            connection.server.sendall(b"12345678")
        wait_for(lambda: counters(tmp_path)["heals_over_limit"] > 0)
        assert site.liberal(made) <= 5
        assert counters(tmp_path)["heals"] <= 5
        assert process.stop(is_quiet=False) == 0
        assert site.liberal(made) == 0


def test_two_daemons_leave_no_flow_liberal(site: Site, tmp_path: Path) -> None:
    """Each of them sees half of the packets."""
    with (
        site.connections(4, 10) as made,
        guard(site, tmp_path, policy=AT_ONCE) as one,
        guard(site, tmp_path, 'rules = "none"', "queue = 1", policy=AT_ONCE, name="two") as two,
    ):
        half = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
        to_second = ("-j", "NFQUEUE", "--queue-num", "1")
        site.guarded.run("iptables", *RULE[:2], "-I", RULE[3], "1", *RULE[4:], *half, *to_second)
        site.poison(made)
        assert pings(made) == [True] * 10
        assert pings(made) == [True] * 10
        assert site.liberal(made) > 0
        assert counters(tmp_path)["heals"] + counters(tmp_path, "two")["heals"] >= 10
        assert one.stop() == 0
        assert two.stop() == 0
        assert site.liberal(made) == 0


def test_only_our_flag_is_undone(site: Site, tmp_path: Path) -> None:
    """Another program has set it for the other sender."""
    lines = ("heal_both_directions = true",)
    with site.connections(4) as (one,), guard(site, tmp_path, *lines, policy=AT_ONCE) as process:
        site.flag.write(one.original, 0, frozenset({Direction.REPLY}), on=True)
        site.poison([one])
        assert one.ping()
        assert one.ping()
        healed = site.flag.read(one.original, 0)
        assert healed is not None
        assert healed.liberal == frozenset(Direction)
        assert process.stop() == 0
        left = site.flag.read(one.original, 0)
        assert left is not None
        assert left.liberal == {Direction.REPLY}


@pytest.mark.parametrize("kind", ["--zone", "--zone-orig", "--zone-reply"])
def test_a_flow_in_a_zone(site: Site, tmp_path: Path, kind: str) -> None:
    site.move_to_zone(7, kind)
    with site.connections(4) as (one,), guard(site, tmp_path, "zones = [0, 7]") as process:
        site.poison([one])
        for _ in range(3):
            assert one.ping()
        assert site.liberal([one]) == 1
        assert process.stop() == 0
        assert site.liberal([one]) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_resync_takes_the_flag_and_the_budget_gives_it_back(
    site: Site, tmp_path: Path, family: int
) -> None:
    """A SYN that conntrack ignored, and the SYN+ACK in answer to it, restart its windows."""
    lines = ("heal_flow_per_minute = 2",)
    with (
        site.connections(family, 2) as (one, other),
        guard(site, tmp_path, *lines, policy=AT_ONCE) as process,
    ):
        assert site.liberal([one, other]) == 0
        for heals in (1, 2):
            site.poison([one])
            assert one.ping()
            assert one.ping()
            assert site.directions(one) == {Direction.ORIGINAL}
            assert counters(tmp_path)["heals"] == heals
            site.resync(one)
            assert not site.directions(one)
        site.poison([one])
        for end in (one.client, one.server):
            end.sendall(b"12345678")
        wait_for(lambda: counters(tmp_path)["heals_over_limit"] > 0)
        assert not site.directions(one)
        assert (counters(tmp_path)["heals"], counters(tmp_path)["heal_errors"]) == (2, 0)
        assert other.ping()
        assert process.stop(is_quiet=False) == 0
        assert site.liberal([one, other]) == 0


def test_what_changes_between_the_verdict_and_the_heal(site: Site, tmp_path: Path) -> None:
    """The flow is deleted, dying, in another zone, replaced, or may not be changed."""
    with site.connections(4, 4) as (one, gone, dying, other), ExitStack() as stack:
        late = LateHealer(site.guarded, tmp_path / "log")
        stack.callback(late.close)
        packets = [judged(site.snapshot(each)) for each in (one, gone, dying, other)]
        assert site.liberal([one, gone, dying, other]) == 0

        before = site.entries()
        site.forget(gone)
        wait_for(lambda: site.entries() == before - 1)
        late.heal(packets[1])
        assert late.counts() == (0, 0, 1, 0)

        # A queued packet holds a reference to the entry, which is dying once deleted.
        site.hold(dying, stack)
        site.forget(dying)
        late.heal(packets[2])
        assert site.entries() == before - 1
        assert late.counts() == (0, 0, 2, 0)

        # The same tuple in zone 9 is another flow, which stays as it is.
        site.insert(other, zone=9)
        site.flag.write(other.original, 9, frozenset(Direction), on=False)
        late.heal(judged(replace(site.snapshot(other), zone=8)))
        assert late.counts() == (0, 0, 3, 0)
        late.heal(packets[3])
        assert late.counts() == (1, 0, 3, 0)
        foreign = site.flag.read(other.original, 9)
        assert foreign is not None
        assert not foreign.liberal
        assert site.directions(other) == {Direction.REPLY}

        # The kernel refuses everything: nothing is healed, and earlier heals remain to be undone.
        with ThreadPoolExecutor(1, initializer=give_up_net_admin) as pool:
            pool.submit(late.heal, packets[0]).result()
            assert late.counts() == (1, 0, 3, 1)
            pool.submit(late.tick, LIMITS.timeout_s + 1).result()
            assert late.counts() == (1, 0, 3, 2)
        assert (site.liberal([one]), site.liberal([other])) == (0, 1)
        late.tick(LIMITS.timeout_s + 1)
        assert late.counts() == (1, 1, 3, 2)
        assert site.liberal([other]) == 0

        # Another flow has replaced a healed one, and another program has set its flag.
        late.heal(packets[0], LIMITS.timeout_s + 2)
        assert site.liberal([one]) == 1
        site.replace(one)
        late.tick(3 * LIMITS.timeout_s)
        assert late.counts() == (2, 1, 3, 2)
        assert site.directions(one) == frozenset(Direction)


def test_a_flow_that_began_again_in_the_middle_stays_liberal(site: Site, tmp_path: Path) -> None:
    """Conntrack does not know its window scales, so without the flag valid segments are INVALID."""
    with ExitStack() as stack:
        # Each CPU takes new entries from one slab, so the newest entry's memory is taken again.
        allowed = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {min(allowed)})
        made = stack.enter_context(site.connections(4, LIMITS.most))
        late = LateHealer(site.guarded, tmp_path / "log")
        stack.callback(late.close)
        ids: list[bytes] = []
        for again in reversed(made):
            late.heal(judged(site.snapshot(again)))
            healed = site.flag.read(again.original, 0)
            site.forget(again)
            assert again.ping()
            new = site.flag.read(again.original, 0)
            assert healed is not None
            assert new is not None
            ids = [each.identity[:4] for each in (healed, new)]
            if ids[0] == ids[1]:  # it occupies the same memory, as most do
                break
        assert ids[0] == ids[1]
        late.tick(LIMITS.timeout_s + 1)
        assert site.directions(again) == frozenset(Direction)
        assert late.counts()[1:] == (0, 0, 0)


class Busy:
    """A connection to ctnetlink that, while `refuses`, adds to each change of an entry another one.

    The other one would take the entry out of the table, which the kernel refuses with EBUSY.
    """

    def __init__(self) -> None:
        self._connection = Netlink()
        self.refuses = False

    def send(self, octets: bytes) -> None:
        header, content = octets[: _HEADER.size], octets[_HEADER.size :]
        length, kind, *rest = _HEADER.unpack(header)
        if self.refuses and kind == _CHANGE:
            status = attribute(_CTA_STATUS, bytes(4))
            header, content = _HEADER.pack(length + len(status), kind, *rest), content + status
        self._connection.send(header + content)

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        return self._connection.receive()

    def close(self) -> None:
        self._connection.close()


def test_flows_that_the_kernel_calls_busy(site: Site, tmp_path: Path) -> None:
    """None is healed, and the heal of one is undone once the kernel permits."""
    with site.connections(4, 2) as (one, healed), ExitStack() as stack:
        with site.guarded.entered():
            busy = Busy()
        late = LateHealer(site.guarded, tmp_path / "log", busy)
        stack.callback(late.close)
        packets = [judged(site.snapshot(each)) for each in (one, healed)]
        late.heal(packets[1])
        assert (late.counts(), site.liberal([healed])) == ((1, 0, 0, 0), 1)

        busy.refuses = True
        late.heal(packets[0])
        assert (late.counts(), site.liberal([one])) == ((1, 0, 1, 0), 0)
        late.tick(LIMITS.timeout_s + 1)
        assert (late.counts(), site.liberal([healed])) == ((1, 0, 1, 1), 1)

        busy.refuses = False
        late.tick(LIMITS.timeout_s + 2)
        assert (late.counts(), site.liberal([one, healed])) == ((1, 1, 1, 1), 0)


def give_up_net_admin() -> None:
    """Give up CAP_NET_ADMIN in the calling thread alone."""
    capabilities.keep_only(capabilities.effective() & ~(1 << capabilities.NET_ADMIN))


def test_a_change_to_dry_run_undoes_all(site: Site, tmp_path: Path) -> None:
    with site.connections(4) as (one,), guard(site, tmp_path, policy=AT_ONCE) as process:
        site.poison([one])
        assert one.ping()
        assert one.ping()
        assert site.liberal([one]) == 1
        typed(socket_of(tmp_path), "mode", "dry-run")
        wait_for(lambda: site.liberal([one]) == 0)
        assert process.stop() == 0


def test_absent_flows_and_foreign_zones_are_told_apart(site: Site) -> None:
    with site.connections(4) as (one,):
        found = site.flag.read(one.original, 0)
        assert found is not None
        assert found.liberal == frozenset()
        with pytest.raises(OSError, match="ENOENT"):
            site.flag.read(one.original, 9)
        with pytest.raises(OSError, match="ENOENT"):
            site.flag.write(one.original, 9, frozenset(Direction), on=True)
