# SPDX-License-Identifier: MIT
"""Packets that a host only bridges meet the guard's rules with one sysctl, which is read."""

from functools import partial
from typing import Final

import pytest
from scapy.layers.inet import IP, TCP

from nfq_guard.doctor import host_rules
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.strays import send
from tests.support.queue import wait_for

pytestmark = pytest.mark.kernel

INVALID: Final = ("-m", "conntrack", "--ctstate", "INVALID")
COUNT: Final = ("iptables-legacy", "-t", "mangle", "-A", "PREROUTING")


def counted(namespace: Namespace) -> int:
    """Packets that the one rule of mangle PREROUTING has counted."""
    saved = namespace.run("iptables-legacy-save", "-c", "-t", "mangle").stdout
    (line,) = (line for line in saved.splitlines() if line.startswith("["))
    return int(line[1:].partition(":")[0])


def has_counted(namespace: Namespace, packets: int) -> bool:
    return counted(namespace) == packets


def test_the_guard_sees_bridged_packets_if_they_are_handed_over() -> None:
    with Namespace("left") as left, Namespace("right") as right, Namespace("bridge") as middle:
        middle.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        middle.ip("link", "set", "br0", "up")
        for port, host in (("p1", left), ("p2", right)):
            veth(middle, port, host, "eth0")
            middle.ip("link", "set", port, "master", "br0")
        for number, host in enumerate((left, right), start=1):
            host.ip("addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
        mac = right.run("cat", "/sys/class/net/eth0/address").stdout.strip()
        left.ip("neigh", "add", "10.9.0.2", "lladdr", mac, "dev", "eth0")
        middle.run(*COUNT, *INVALID)
        right.run(*COUNT, "-p", "tcp", "-j", "DROP")  # without an RST
        wait_for(lambda: middle.run("bridge", "link").stdout.count("state forwarding") == 2)
        answer = IP(src="10.9.0.1", dst="10.9.0.2") / TCP(
            sport=5, dport=9, flags="SA", seq=1, ack=7
        )
        middle.run("sysctl", "-w", "net.bridge.bridge-nf-call-ip6tables=0")
        for sent, (of_all, of_bridge) in enumerate(((0, 0), (1, 0), (0, 1)), start=1):
            middle.run("sysctl", "-w", f"net.bridge.bridge-nf-call-iptables={of_all}")
            one = ("type", "bridge", "nf_call_iptables", str(of_bridge))
            middle.ip("link", "set", "br0", *one)
            handed_over = of_all or of_bridge
            before = counted(middle)
            send(left, bytes(answer))
            wait_for(partial(has_counted, right, sent))
            assert counted(middle) - before == handed_over
            with middle.entered():
                assert host_rules.read().handed_over is bool(handed_over)
