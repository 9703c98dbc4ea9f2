# SPDX-License-Identifier: MIT
"""Rules before conntrack that make one direction of every connection INVALID, with real traffic.

The guarded host forwards between a client and a server. The policy drops every INVALID packet; this
would keep each connection of which such a rule hides one direction from opening.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.pace import limit
from tests.support.queue import GuardProcess, configured, import_path, typed, wait_for

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]

NEAR, FAR = {4: "10.82.0.1", 6: "fd82::1"}, {4: "10.83.0.1", 6: "fd83::1"}
ROUTER = {4: ("10.82.0.2", "10.83.0.2"), 6: ("fd82::2", "fd83::2")}
DOMAINS = {4: socket.AF_INET, 6: socket.AF_INET6}
PATIENCE_S = 20.0
POLICY = '[policy]\ndefault = "drop"\non_unknown = "drop"\ni_know = "drops everything"\n'

# Rules by port: for the raw table of iptables or, with `nft`, for a chain of that priority.
HALF = {
    9001: ["-p tcp --sport 9001 -j CT --notrack"],
    9002: ["-p tcp --dport 9002 -j CT --notrack"],
    9003: ["-p tcp --dport 9003 -j CT --zone 7"],
    9004: ["-p tcp --sport 9004 -j CT --zone 7"],
    9005: ["-i r1 -p tcp --sport 9005 -j CT --notrack"],
    9006: ["nft tcp sport 9006 notrack"],
    9007: ["nft tcp dport 9007 ct zone set 7"],
    9008: ["nft tcp sport 9008 ct zone set 7"],
    9009: ["-p tcp --dport 9009 -m conntrack --ctstate INVALID -j NFQUEUE --queue-num 7"],
}
WHOLE = {
    9011: ["-p tcp --sport 9011 -j CT --notrack", "-p tcp --dport 9011 -j CT --notrack"],
    9012: ["-p tcp --sport 9012 -j CT --zone 7", "-p tcp --dport 9012 -j CT --zone 7"],
    # A zone for one direction alone, as conntrack intends it: replies stay in zone 0.
    9013: ["-p tcp --dport 9013 -j CT --zone-orig 7"],
    9014: ["nft tcp dport 9014 ct original zone set 7"],
}
NONE = 9015
FORGED = 9016
# Added last, to the table that is read first: who knows of it knows of all.
LAST = 9017


class Router:
    """A client, the guarded host and a server that listens on every port of the test."""

    def __init__(self, make: Make, stack: ExitStack) -> None:
        self.client, self.host, self.server = (make(name) for name in ("near", "router", "far"))
        lengths = {4: 24, 6: 64}
        for space, name, here, end in (
            (self.client, "c0", NEAR, 0),
            (self.server, "s0", FAR, 1),
        ):
            pairs = [
                (f"{here[family]}/{length}", f"{ROUTER[family][end]}/{length}")
                for family, length in lengths.items()
            ]
            veth(space, name, self.host, f"r{end}", *pairs)
            space.ip("route", "add", "default", "via", ROUTER[4][end])
            space.ip("-6", "route", "add", "default", "via", ROUTER[6][end])
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.host.run("sysctl", "-qw", f"{key}=1")
        for program in ("iptables", "ip6tables"):
            words = ("-t", "mangle", "-A", "PREROUTING", "-m", "conntrack", "--ctstate", "INVALID")
            self.host.run(program, *words, "-j", "NFQUEUE", "--queue-num", "7", "--queue-bypass")
        self._listeners: dict[tuple[int, int], socket.socket] = {}
        for port in (*HALF, *WHOLE, NONE):
            for family, address in FAR.items():
                with self.server.entered():
                    listener = stack.enter_context(socket.socket(DOMAINS[family]))
                listener.bind((address, port))
                listener.listen()
                listener.settimeout(PATIENCE_S)
                self._listeners[family, port] = listener

    def add(self, *rules: str) -> None:
        """Add rules for both families."""
        native = [rule.removeprefix("nft ") for rule in rules if rule.startswith("nft ")]
        if native:
            text = "\n".join(native)
            self.host.run(
                "nft",
                "-f",
                "-",
                stdin="table inet early {\nchain early {\n"
                f"type filter hook prerouting priority raw\n{text}\n}}\n}}\n",
            )
        for program in ("iptables", "ip6tables"):
            for rule in rules:
                if not rule.startswith("nft "):
                    self.host.run(program, "-t", "raw", "-A", "PREROUTING", *rule.split())

    def clear(self) -> None:
        """Remove all of them."""
        for program in ("iptables", "ip6tables"):
            self.host.run(program, "-t", "raw", "-F")
        self.host.run("nft", "delete", "table", "inet", "early")

    def works(self, family: int, port: int) -> None:
        """Assert that a connection opens, carries data both ways and is closed by both ends."""
        with self.client.entered():
            client = socket.socket(DOMAINS[family])
        with client:
            client.settimeout(PATIENCE_S)
            client.connect((FAR[family], port))
            server, _ = self._listeners[family, port].accept()
            with server:
                server.settimeout(PATIENCE_S)
                for sender, receiver in ((client, server), (server, client)):
                    sender.sendall(b"12345678")
                    assert receiver.recv(8, socket.MSG_WAITALL) == b"12345678"
                    sender.shutdown(socket.SHUT_WR)
                    assert receiver.recv(1) == b""

    def forge(self, family: int, flags: str) -> None:
        """Send a segment that belongs to no connection."""
        layer = IP if family == 4 else IPv6
        segment = TCP(sport=7, dport=FORGED, flags=flags, seq=9, ack=9)
        packet = bytes(layer(src=NEAR[family], dst=FAR[family]) / segment)
        with (
            self.client.entered(),
            socket.socket(DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        ):
            raw.sendto(packet[20 if family == 4 else 40 :], (FAR[family], 0))


@pytest.mark.parametrize("queues", ["7:7", "7:8"])
def test_half_of_each_connection_is_hidden(namespace: Make, tmp_path: Path, queues: str) -> None:
    """With one process, and with a worker for each queue."""
    with ExitStack() as stack:
        router = Router(namespace, stack)
        lines = ('mode = "enforce"', "verify_rules_s = 1", "log_interval_s = 0")
        config = configured(tmp_path / "c", *lines, policy=POLICY)
        router.add(*(rule for rules in WHOLE.values() for rule in rules))
        guard = stack.enter_context(
            GuardProcess(
                router.host, tmp_path / "log", "--config", config, "--queues", queues
            ).ready()
        )

        def status() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(
                typed(Path(f"{config}.sock"), "status", "--format", "json")
            )
            return found

        def forged(number: int) -> None:
            for family in (4, 6):
                router.forge(family, "SA")
            wait_for(lambda: len(guard.events("packet_judged")) == number)
            for event in guard.events("packet_judged"):
                assert (event["reason"], event["verdict"]) == ("no-entry", "drop"), event
                assert event["dport"] == FORGED, event

        # Rules that treat both directions alike hide no half.
        for port in (*WHOLE, NONE):
            router.works(4, port)
        forged(2)
        assert guard.events("half_hidden") == []

        # A reading may be under way, of which only the second half sees the rules. Stopping the
        # daemon makes such a reading rare: the next one may be seconds away.
        guard.process.send_signal(signal.SIGSTOP)
        router.add(*(rule for rules in HALF.values() for rule in rules))
        words = ("-p", "tcp", "--sport", str(LAST), "-j", "CT", "--notrack")
        router.host.run("iptables", "-t", "raw", "-A", "PREROUTING", *words)
        guard.process.send_signal(signal.SIGCONT)
        one_sided = len(HALF) + 1
        wait_for(lambda: len(status()["raw_rules"]["one_sided"]) == one_sided)
        for family in (4, 6):
            for port in (*HALF, *WHOLE, NONE):
                router.works(family, port)
        # All other packets are judged as before.
        forged(4)
        # A worker reports its counts four times a second.
        wait_for(lambda: status()["decided_by"].keys() == {"default", "hidden-half"})
        assert guard.events("half_hidden")[-1]["level"] == "warning"
        assert "not enforced where" in typed(Path(f"{config}.sock"), "status")
        argv = [sys.executable, "-m", "nfq_guard", "doctor", "--format", "json", "--config", config]
        done = subprocess.run(
            router.host.argv(argv),
            check=False,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": import_path()},
        )
        checks = [json.loads(line) for line in done.stdout.splitlines()]
        assert sum(check["id"] == "tracking.half" for check in checks) == one_sided

        router.clear()
        wait_for(lambda: bool(guard.events("half_hidden_over")))
        router.works(6, NONE)
        forged(6)
        assert guard.stop() == 0


def test_whatif_says_what_the_policy_then_does(namespace: Make, tmp_path: Path) -> None:
    """A recording of a policy that drops nothing shows which packets no policy would drop."""
    with ExitStack() as stack:
        router = Router(namespace, stack)
        router.add(*HALF[9001])

        def run(mode: str, policy: str) -> tuple[str, int]:
            """Connections and a forged segment; returns the log, and the drops by the policy."""
            folder = tmp_path / mode
            folder.mkdir()
            lines = (f'mode = "{mode}"', "log_allowed = true")
            config = configured(folder / "c", *lines, policy=policy)
            log = folder / "log"
            with GuardProcess(router.host, log, "--config", config).ready() as guard:
                wait_for(lambda: bool(guard.events("half_hidden")))
                for family in (4, 6):
                    router.works(family, 9001)
                    router.forge(family, "R")
                wait_for(lambda: "no-entry" in str(guard.events("packet_judged")))
                assert guard.stop() == 0
            found = guard.events("packet_judged")
            return str(log), sum(each.get("count", 1) for each in found if each["would"] == "drop")

        recorded, none = run("dry-run", '[policy]\ndefault = "log"\non_unknown = "log"\n')
        assert none == 0
        policy = tmp_path / "policy.toml"
        policy.write_text(POLICY)
        _, dropped = run("enforce", POLICY)
        assert dropped == 2
        argv = ["whatif", recorded, "--policy", str(policy), "--format", "json"]
        done = subprocess.run(
            [sys.executable, "-m", "nfq_guard", *argv], check=True, capture_output=True
        )
        (asked,) = json.loads(done.stdout)["policies"]
        assert (asked["drops"], asked["by_rule"].keys()) == (2, {"default", "hidden-half"})


def test_a_new_worker_knows_of_hidden_halves(namespace: Make, tmp_path: Path) -> None:
    """From its first packet on: the daemon stops as soon as the worker's process exists."""
    with ExitStack() as stack:
        router = Router(namespace, stack)
        lines = ('mode = "enforce"', "log_interval_s = 0")
        config = configured(tmp_path / "c", *lines, policy=POLICY)
        router.add(*HALF[9001])
        guard = stack.enter_context(
            GuardProcess(
                router.host, tmp_path / "log", "--config", config, "--queues", "7:8"
            ).ready()
        )
        wait_for(lambda: bool(guard.events("half_hidden")))
        router.works(4, 9001)
        old = worker_of_queue_7(guard.process.pid)
        os.kill(old, signal.SIGKILL)
        until = time.monotonic() + limit(30)
        while worker_of_queue_7(guard.process.pid) in {0, old}:
            assert time.monotonic() < until
        guard.process.send_signal(signal.SIGSTOP)
        bound = Path(f"/proc/{guard.process.pid}/net/netfilter/nfnetlink_queue")
        wait_for(lambda: any(line.split()[0] == "7" for line in bound.read_text().splitlines()))
        router.works(4, 9001)
        guard.process.send_signal(signal.SIGCONT)
        # The kernel's count at the end lacks what the killed worker had.
        wait_for(lambda: bool(guard.events("worker_restarted")))
        assert guard.stop() == 0
        assert guard.events("packet_judged") == []


def worker_of_queue_7(daemon: int) -> int:
    """The process id of the daemon's worker for that queue; 0 for none."""
    for pid in Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split():
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text().strip() == "nfq-guard/7":
                return int(pid)
    return 0
