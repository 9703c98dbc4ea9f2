# SPDX-License-Identifier: MIT
"""The kernel drops offloaded repeats: on real queues, rules and sets."""

import errno
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from nfq_guard.firewall import Backend, Firewall, RulesSpec
from nfq_guard.firewall.offload import TABLE
from nfq_guard.firewall.offload_sets import OffloadSets, OneWay
from nfq_guard.flow import Hook
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.telemetry.reader import EventReader
from tests.support.queue import GuardProcess, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

ADDRESSES = {4: ("10.79.0.1", "10.79.0.2"), 6: ("fd79::1", "fd79::2")}
DOMAINS = {4: socket.AF_INET, 6: socket.AF_INET6}
ADVERTISED = 80
SERVED = 8080
AFTER = 20
DROPS_ALL = '[policy]\ndefault = "drop"\non_unknown = "drop"\ni_know = "drops everything"\n'
LOGS_ALL = '[policy]\ndefault = "log"\non_unknown = "log"\n'


@dataclass
class Site:
    """A client, and a guarded host that redirects a port."""

    client: Namespace
    guarded: Namespace

    @contextmanager
    def connection(self, family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
        """The two ends of a live connection that the guarded host translates."""
        near, far = ADDRESSES[family]
        program = "iptables" if family == 4 else "ip6tables"
        words = ("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", str(ADVERTISED))
        self.guarded.run(program, *words, "-j", "REDIRECT", "--to-ports", str(SERVED))
        with self.guarded.entered():
            listener = socket.socket(DOMAINS[family])
        with self.client.entered():
            client = socket.socket(DOMAINS[family])
        with listener, client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((far, SERVED))
            listener.listen()
            client.settimeout(5)
            client.bind((near, 0))
            client.connect((far, ADVERTISED))
            server, _ = listener.accept()
            with server:
                server.settimeout(5)
                yield client, server

    def flood(
        self,
        family: int,
        sport: int,
        count: int,
        *,
        own: bool = False,
        dport: int = ADVERTISED,
        flags: str = "SA",
    ) -> None:
        """Send SYN+ACKs without a flow, or other segments; with `own`, from the guarded host."""
        src, dst = ADDRESSES[family] if not own else ADDRESSES[family][::-1]
        layer = IP if family == 4 else IPv6
        packet = layer(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags=flags, seq=1)
        octets = bytes(packet)[20 if family == 4 else 40 :]
        sender = self.guarded if own else self.client
        with sender.entered():
            raw = socket.socket(DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
        with raw:
            for _ in range(count):
                try:
                    raw.sendto(octets, (dst, 0))
                except PermissionError:
                    assert own  # its own kernel dropped it, which fails the call

    def left(self) -> dict[str, int]:
        """The elements of the sets."""
        text = self.guarded.run("nft", "-j", "list", "table", "inet", TABLE).stdout
        sets = [one["set"] for one in json.loads(text)["nftables"] if "set" in one]
        return {one["name"]: len(one.get("elem", ())) for one in sets if one.get("elem")}

    def listen(self, family: int) -> socket.socket:
        """The packets that the guarded host accepts, as a raw socket sees them."""
        with self.guarded.entered():
            raw = socket.socket(DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        raw.settimeout(0.2)
        return raw


@pytest.fixture
def site(namespace: Make) -> Site:
    client, guarded = namespace("client"), namespace("guarded")
    lengths = {4: 24, 6: 64}
    pairs = [
        (f"{near}/{lengths[family]}", f"{far}/{lengths[family]}")
        for family, (near, far) in ADDRESSES.items()
    ]
    veth(client, "c0", guarded, "g0", *pairs)
    return Site(client, guarded)


@contextmanager
def guard(site: Site, path: Path, *lines: str, policy: str = "") -> Iterator[GuardProcess]:
    """The daemon in mode enforce with rules that were installed before, as under systemd."""
    config = configured(path / "c", *lines, policy=policy)
    words = [sys.executable, "-m", "nfq_guard", "rules", "install", "--config", config]
    with site.guarded.entered():
        subprocess.run(words, check=True, capture_output=True)
    log = path / "log"
    log.unlink(missing_ok=True)
    with GuardProcess(site.guarded, log, "--no-rules", "--config", config).ready() as process:
        yield process


def configured(path: Path, *lines: str, policy: str) -> str:
    text = ["[daemon]", "offload = true", f"offload_after = {AFTER}", *lines]
    if not any(line.startswith("mode") for line in lines):
        text.append('mode = "enforce"')
    if not any(line.startswith("control_socket") for line in lines):
        text.append('control_socket = ""')
    path.write_text("\n".join([*text, policy]))
    return str(path)


def stopped(process: GuardProcess) -> dict[str, Any]:
    assert process.stop() == 0
    (event,) = process.events("stopped")
    return event


def waiting(site: Site) -> bool:
    lines = site.guarded.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout.splitlines()
    return any(int(line.split()[2]) for line in lines)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend", list(Backend))
def test_a_flood_of_repeats_stays_in_the_kernel(
    site: Site, tmp_path: Path, backend: Backend, family: int
) -> None:
    """On a translated flow, which survives."""
    near, _ = ADDRESSES[family]
    with (
        guard(site, tmp_path, f'backend = "{backend}"', policy=DROPS_ALL) as process,
        site.connection(family) as (client, server),
        site.listen(family) as inside,
    ):
        sport = client.getsockname()[1]
        site.flood(family, sport, 100)
        wait_for(lambda: site.left() == {f"received{family}": 1})
        wait_for(lambda: not waiting(site))
        site.flood(family, sport, 3000)
        client.sendall(b"still here")
        assert server.recv(100) == b"still here"
        server.sendall(b"so am I")
        assert client.recv(100) == b"so am I"
        came = []
        while True:
            try:
                octets, sender = inside.recvfrom(4096)
            except TimeoutError:
                break
            start = (octets[0] & 0xF) * 4 if family == 4 else 0
            if sender[0] == near and octets[start + 13] == 0x12:
                came.append(octets)
        assert came == []
        event = stopped(process)
    assert AFTER <= event["packets"] <= 100
    assert event["packets"] + event["offload_drops"] == 3100
    assert event["offloaded_flows"] == 1
    assert event["actions"] == {"drop": event["packets"]}
    assert site.left() == {}


def test_one_packet_renews_an_offload(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, "offload_timeout_s = 1", policy=DROPS_ALL) as process:
        site.flood(4, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1})
        wait_for(lambda: site.left() == {})
        site.flood(4, 5000, 1)
        wait_for(lambda: site.left() == {"received4": 1})
        event = stopped(process)
    assert event["offloaded_flows"] == 2
    told = process.events("offloaded")
    assert told[0]["example"] == {
        "hook": "PREROUTING",
        "interface": "g0",
        "src": "10.79.0.1",
        "dst": "10.79.0.2",
        "sport": 5000,
        "dport": ADVERTISED,
    }


@pytest.mark.parametrize("queues", ["0", "0-1"])
def test_the_last_drops_count_although_the_rules_are_removed(
    site: Site, tmp_path: Path, queues: str
) -> None:
    """The kernel's counter vanishes with the table, which the daemon removes at its end."""
    config = configured(tmp_path / "c", f'queues = "{queues}"', policy=DROPS_ALL)
    with GuardProcess(site.guarded, tmp_path / "log", "--config", config).ready() as process:
        site.flood(4, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1})
        wait_for(lambda: not waiting(site))
        site.flood(4, 5000, 500)
        event = stopped(process)
    assert event["packets"] + event["offload_drops"] == 600
    assert (
        sum(one["offload_drops"] for one in process.events("offloaded")) == (event["offload_drops"])
    )


def test_the_file_of_events_accounts_for_every_packet(site: Site, tmp_path: Path) -> None:
    """Also for those that the kernel drops right before the end."""
    file = tmp_path / "events"
    lines = (f'events_file = "{file}"', "log_interval_s = 1")
    with guard(site, tmp_path, *lines, policy=DROPS_ALL) as process:
        site.flood(4, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1})
        wait_for(lambda: not waiting(site))
        site.flood(4, 5000, 500)
        event = stopped(process)
    reader = EventReader()
    with file.open("rb") as stream:
        judged = sum(read.event.count for read in reader.read(stream))
    assert judged == event["packets"]
    assert judged + reader.unrecorded.offloaded == 600


def test_packets_of_the_host_itself(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, policy=DROPS_ALL) as process:
        site.flood(4, 5000, 100, own=True)
        wait_for(lambda: site.left() == {"sent4": 1})
        site.flood(4, 5000, 100, own=True)
        site.flood(4, 5001, 5, own=True)
        event = stopped(process)
    assert event["packets"] + event["offload_drops"] == 205


def test_dry_run_offloads_nothing(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, 'mode = "dry-run"', policy=DROPS_ALL) as process:
        site.flood(4, 5000, 200)
        wait_for(lambda: not waiting(site))
        assert site.left() == {}
        event = stopped(process)
    # Packets that arrived are answered with RSTs, which are INVALID too.
    assert event["packets"] >= 200
    assert (event["offloaded_flows"], event["offload_drops"]) == (0, 0)


def test_a_flow_of_which_a_packet_may_pass_is_not_offloaded(site: Site, tmp_path: Path) -> None:
    """A tuple without an entry: the policy may decide differently once there is one."""
    rules = '[[policy.rule]]\nname = "late"\nreason = "no-entry"\naction = "drop"\n'
    with guard(site, tmp_path, policy=LOGS_ALL + rules) as process:
        site.flood(4, 5000, 200)
        wait_for(lambda: not waiting(site))
        assert site.left() == {}
        event = stopped(process)
    assert event["packets"] == 200
    assert event["offload_refused"] >= 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("words", [("--notrack",), ("--zone", "7")])
def test_a_connection_with_a_hidden_half_survives_a_flood(
    site: Site, tmp_path: Path, words: tuple[str, ...], family: int
) -> None:
    """Conntrack sees none of the server's packets, so that all of the client's are INVALID.

    Forged ones of the same flow with contradicting flags are dropped, by the daemon alone.
    """
    near, far = ADDRESSES[family]
    program = "iptables" if family == 4 else "ip6tables"
    rule = ("-p", "tcp", "--sport", str(SERVED), "-j", "CT", *words)
    site.guarded.run(program, "-t", "raw", "-A", "OUTPUT", *rule)
    with guard(site, tmp_path, policy=DROPS_ALL) as process, ExitStack() as stack:
        wait_for(lambda: bool(process.events("half_hidden")))
        with site.guarded.entered():
            listener = socket.create_server((far, SERVED), family=DOMAINS[family])
        stack.enter_context(listener)
        with site.client.entered():
            client = stack.enter_context(socket.socket(DOMAINS[family]))
        client.settimeout(5)
        client.bind((near, 0))
        client.connect((far, SERVED))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(5)
        site.flood(family, client.getsockname()[1], 100, dport=SERVED, flags="SF")
        wait_for(lambda: not waiting(site))
        assert site.left() == {}
        for sender, receiver in ((client, server), (server, client)):
            sender.sendall(b"12345678")
            assert receiver.recv(8, socket.MSG_WAITALL) == b"12345678"
        event = stopped(process)
    assert (event["offloaded_flows"], event["offload_drops"]) == (0, 0)
    assert event["offload_refused"] >= 1
    assert event["actions"]["drop"] == 100
    assert event["actions"]["allow"] >= 2


def test_a_reload_takes_everything_back(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, policy=DROPS_ALL) as process, site.listen(4) as inside:
        site.flood(4, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1})
        configured(tmp_path / "c", policy=LOGS_ALL)
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: site.left() == {})
        site.flood(4, 5000, 10)
        assert all(inside.recv(4096) for _ in range(10))
        assert site.left() == {}
        assert process.stop() == 0


@pytest.mark.parametrize("queues", ["0", "0-1"])
def test_dry_run_at_run_time_takes_everything_back(site: Site, tmp_path: Path, queues: str) -> None:
    """Also with several workers, which share one table; their counts are added."""
    control = tmp_path / "control"
    lines = (f'queues = "{queues}"', f'control_socket = "{control}"')
    with guard(site, tmp_path, *lines, policy=DROPS_ALL) as process:
        for family in (4, 6):
            site.flood(family, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1, "received6": 1})
        site.flood(4, 5000, 500)
        wait_for(lambda: not waiting(site))
        words = ("mode", "dry-run", "--socket", str(control))
        site.guarded.run(sys.executable, "-m", "nfq_guard", *words)
        wait_for(lambda: site.left() == {}, 0.9)
        event = stopped(process)
    assert event["packets"] + event["offload_drops"] == 700
    assert event["offloaded_flows"] == 2


def test_flows_beyond_the_limit_stay_with_the_daemon(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, "offload_max_entries = 2", policy=DROPS_ALL) as process:
        for sport in (5000, 5001, 5002):
            site.flood(4, sport, 100)
        wait_for(lambda: not waiting(site))
        assert site.left() == {"received4": 2}
        event = stopped(process)
    assert event["offload_full"] >= 1
    assert event["packets"] + event["offload_drops"] == 300
    assert event["packets"] >= 100


def test_flows_of_a_killed_daemon_time_out_or_go_with_the_rules(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, "offload_timeout_s = 2", policy=DROPS_ALL) as process:
        site.flood(4, 5000, 100)
        wait_for(lambda: site.left() == {"received4": 1})
        process.process.kill()
        process.process.wait()
        assert site.left() == {"received4": 1}
        wait_for(lambda: site.left() == {})
    # The configuration may have changed by then, or be missing.
    with site.guarded.entered():
        Firewall(RulesSpec()).remove()
        assert site.guarded.run("nft", "list", "tables").stdout.count(TABLE) == 0


def test_rules_without_the_table_are_logged_once(site: Site, tmp_path: Path) -> None:
    with guard(site, tmp_path, policy=DROPS_ALL) as process:
        site.guarded.run("nft", "delete", "table", "inet", TABLE)
        site.flood(4, 5000, 200)
        wait_for(lambda: bool(process.events("offload_failed")))
        wait_for(lambda: not waiting(site))
        event = stopped(process)
        assert len(process.events("offload_failed")) == 1
    assert event["packets"] == 200


def test_sets_need_only_net_admin(site: Site) -> None:
    """As the systemd unit has it; without it the kernel refuses."""
    with site.guarded.entered():
        Firewall(RulesSpec(offload_entries=8)).install()
    program = (
        "from nfq_guard.firewall.offload_sets import OffloadSets, OneWay\n"
        "sets = OffloadSets()\n"
        "sets.add([(OneWay(0, 'g0', bytes(4), bytes(4), 1, 2), 30.0)])\n"
        "print(sets.take_dropped())\n"
    )
    for caps, status in (("-all,+net_admin", 0), ("-all", 1)):
        words = ("setpriv", f"--bounding-set={caps}", sys.executable, "-c", program)
        done = site.guarded.run(*words, check=False)
        assert done.returncode == status, done.stderr
    assert site.left() == {"received4": 1}


def test_a_message_is_taken_whole_or_not_at_all(site: Site) -> None:
    with site.guarded.entered():
        Firewall(RulesSpec(offload_entries=8)).install()
    with site.guarded.entered(), closing(OffloadSets()) as sets:
        one, other = bytes(4), bytes(16)
        flows = [(OneWay(Hook.OUTPUT, "g0", other, other, port, 2), 30.0) for port in range(9)]
        with pytest.raises(OSError, match="Too many") as full:
            sets.add([(OneWay(Hook.PREROUTING, "g0", one, one, 1, 2), 30.0), *flows])
        assert full.value.errno == errno.ENFILE
        assert site.left() == {}
        gone = OneWay(Hook.OUTPUT, "no-such", one, one, 1, 2)
        sets.add([(gone, 30.0), (OneWay(Hook.PREROUTING, "g0", one, one, 1, 2), 30.0)])
        assert site.left() == {"received4": 1}


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (f"delete rule inet {TABLE} prerouting handle", "missing-rule"),
        (f"flush chain inet {TABLE} output", "missing-rule"),
        (f"add rule inet {TABLE} output counter", "extra-rule"),
        (f"delete table inet {TABLE}", "missing-chain"),
    ],
)
def test_verify_and_install_know_the_table(site: Site, harm: str, kind: str) -> None:
    with site.guarded.entered():
        firewall = Firewall(RulesSpec(offload_entries=8))
        firewall.install()
        assert firewall.verify() == []
        assert firewall.install().done == ()
        words = harm.split()
        if words[-1] == "handle":
            shown = site.guarded.run("nft", "-a", "list", "chain", "inet", TABLE, "prerouting")
            (line,) = [one for one in shown.stdout.splitlines() if "accept" in one and "ct" in one]
            words.append(line.split()[-1])
        site.guarded.run("nft", *words)
        (found,) = firewall.verify()
        assert found.kind == kind
        assert str(found).startswith(f"{kind}: nft inet {TABLE}")
        assert firewall.install().done == (f"nft: installed the table inet {TABLE}",)
        assert firewall.verify() == []
        (left,) = Firewall(RulesSpec()).verify()
        assert left.kind == "leftover"
        assert Firewall(RulesSpec()).install().done == (f"nft: removed the table inet {TABLE}",)
