# SPDX-License-Identifier: MIT
"""The jumps to our chain, as the kernel has them in the tables of legacy iptables."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nfq_guard import capabilities
from nfq_guard.firewall import Backend, FailMode, Firewall, RulesSpec
from nfq_guard.firewall.legacy_tables import LegacyTables
from nfq_guard.firewall.queued import queued_packets
from tests.firewall.conftest import ADDRESSES, Wire

pytestmark = pytest.mark.kernel

# NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT, of both families.
BOTH = frozenset({(2, 0), (2, 3), (10, 0), (10, 3)})


@pytest.fixture
def tables(wire: Wire) -> Iterator[LegacyTables]:
    """Those of a namespace, empty again afterwards."""
    with ExitStack() as stack, wire.guarded.ns.entered():
        for words in (("-X",), ("-F",)):
            stack.callback(run, wire, "iptables-legacy", "-t", "mangle", *words)
        yield LegacyTables(
            [
                stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                for family in (socket.AF_INET, socket.AF_INET6)
            ]
        )


def run(wire: Wire, *words: str) -> None:
    wire.guarded.ns.run(*words)


@pytest.mark.parametrize("fail_mode", FailMode)
def test_the_jumps_are_seen_among_rules_of_others(
    wire: Wire, tables: LegacyTables, fail_mode: FailMode
) -> None:
    mangle = ("iptables-legacy", "-t", "mangle")
    run(wire, *mangle, "-N", "OTHERS")
    run(wire, *mangle, "-A", "OTHERS", "-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "RETURN")
    run(wire, *mangle, "-A", "PREROUTING", "-j", "OTHERS")
    assert tables.jumps() == frozenset()
    firewall = Firewall(RulesSpec(fail_mode=fail_mode), Backend.LEGACY)
    firewall.install()
    run(wire, *mangle, "-A", "FORWARD", "-j", "ACCEPT")
    assert tables.jumps() == BOTH
    firewall.remove()
    assert tables.jumps() == frozenset()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("iptables-legacy", "-t", "mangle", "-F"), {(10, 0), (10, 3)}),
        (("ip6tables-legacy", "-t", "mangle", "-F", "OUTPUT"), BOTH - {(10, 3)}),
        (("iptables-legacy", "-t", "mangle", "-F", "NFQ_GUARD"), {(10, 0), (10, 3)}),
        (("iptables-legacy", "-t", "filter", "-F"), BOTH),
    ],
)
def test_what_a_flush_takes_is_missed(
    wire: Wire, tables: LegacyTables, words: tuple[str, ...], left: frozenset[tuple[int, int]]
) -> None:
    Firewall(RulesSpec(), Backend.LEGACY).install()
    run(wire, *words)
    assert tables.jumps() == left


def test_it_takes_one_capability(tables: LegacyTables) -> None:
    """With CAP_NET_ADMIN alone they are seen, and without it they are not known."""
    Firewall(RulesSpec(), Backend.LEGACY).install()
    for kept, seen in ((1 << capabilities.NET_ADMIN, True), (0, False)):
        child = os.fork()
        if child == 0:
            capabilities.keep_only(kept)
            os._exit(tables.jumps() == (BOTH if seen else None))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 1


def test_what_the_rules_have_queued_is_read_from_the_kernel(
    wire: Wire, tables: LegacyTables, backend: Backend
) -> None:
    """Both hooks of both families, and nothing of the rules of others."""
    guarded, peer = wire.guarded, wire.peer
    assert queued_packets(LegacyTables([])) == 0
    for port in (1, 2):
        words = ("-p", "tcp", "--dport", str(port), "-j", "NFQUEUE", "--queue-bypass")
        run(wire, f"iptables-{backend}", "-t", "mangle", "-A", "PREROUTING", *words)
    firewall = Firewall(RulesSpec(), backend)
    firewall.install()
    for family, (there, here) in ADDRESSES.items():
        peer.send_invalid(family, here, count=5)
        guarded.send_invalid(family, there, count=3)
        peer.send_invalid(family, here, count=2, port=1)
    found = queued_packets(tables)
    assert found is not None
    saved = "".join(guarded.save(backend, family, counters=True) for family in ADDRESSES)
    in_chain = [line for line in saved.splitlines() if "-A NFQ_GUARD " in line]
    assert found == sum(int(line[1:].partition(":")[0]) for line in in_chain) >= 10
    firewall.remove()
    assert queued_packets(tables) == 0
