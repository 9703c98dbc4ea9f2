# SPDX-License-Identifier: MIT
"""The jumps to our chain in the kernel's tables of legacy iptables."""

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from nfq_guard import capabilities
from nfq_guard.doctor import before_conntrack
from nfq_guard.firewall import Backend, FailMode, Family, Firewall, RulesSpec, legacy_copy
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.firewall.legacy_tables import Jump, LegacyTables
from nfq_guard.firewall.queued import queued_packets
from nfq_guard.lab.netns import Namespace
from nfq_guard.raw_rules import RawReading
from tests.firewall.conftest import ADDRESSES, Wire

pytestmark = pytest.mark.kernel

# NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT, of both families.
BOTH = frozenset((("mangle", 2, 0), ("mangle", 2, 3), ("mangle", 10, 0), ("mangle", 10, 3)))
# NF_INET_LOCAL_IN, NF_INET_FORWARD and NF_INET_LOCAL_OUT.
DROPPING = frozenset(("filter", family, hook) for family in (2, 10) for hook in (1, 2, 3))
ALL = BOTH | DROPPING
MANGLE_6 = frozenset(jump for jump in BOTH if jump[1] == 10)
DROPPING_6 = frozenset(jump for jump in DROPPING if jump[1] == 10)
COMMENT = ("-m", "comment", "--comment", "nfq_guard: nobody judged it")


@pytest.fixture
def tables(wire: Wire) -> Iterator[LegacyTables]:
    """The tables of a namespace, emptied afterwards."""
    with ExitStack() as stack, wire.guarded.ns.entered():
        for table in ("mangle", "filter"):
            for words in (("-X",), ("-F",)):
                stack.callback(run, wire, "iptables-legacy", "-t", table, *words)
        yield LegacyTables(
            [
                stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                for family in (socket.AF_INET, socket.AF_INET6)
            ],
            fallback=True,
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
    dropping = DROPPING if fail_mode is FailMode.KERNEL_DROP else frozenset()
    assert tables.jumps() == BOTH | dropping
    firewall.remove()
    assert tables.jumps() == frozenset()


def test_looking_for_jumps_makes_no_table() -> None:
    """It would take time of every packet, and iptables-nft warns of one ever after."""
    with ExitStack() as stack, Namespace("legacy") as host, host.entered():
        sockets = [
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        for fallback in (False, True):
            assert LegacyTables(sockets, fallback=fallback).jumps() == frozenset()
        assert legacy_copy.made() == b""
        names = host.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout
        assert names == ""


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("iptables-legacy", "-t", "mangle", "-F"), DROPPING | MANGLE_6),
        (("ip6tables-legacy", "-t", "mangle", "-F", "OUTPUT"), ALL - {("mangle", 10, 3)}),
        (("iptables-legacy", "-t", "mangle", "-F", "NFQ_GUARD"), DROPPING | MANGLE_6),
        (("iptables-legacy", "-F"), BOTH | DROPPING_6),
        (("iptables-legacy", "-F", "NFQ_GUARD_DROP"), BOTH | DROPPING_6),
        (("ip6tables-legacy", "-F", "INPUT"), ALL - {("filter", 10, 1)}),
    ],
)
def test_what_a_flush_takes_is_missed(
    wire: Wire, tables: LegacyTables, words: tuple[str, ...], left: frozenset[Jump]
) -> None:
    Firewall(RulesSpec(fail_mode=FailMode.KERNEL_DROP), Backend.LEGACY).install()
    for _ in range(2):  # a table that has not changed is not read again
        assert tables.jumps() == ALL
    run(wire, *words)
    assert tables.jumps() == left


def test_the_table_of_others_is_read_rarely(wire: Wire, tables: LegacyTables) -> None:
    """But is read even though a change left its size and its chains as they were."""
    Firewall(RulesSpec(fail_mode=FailMode.KERNEL_DROP), Backend.LEGACY).install()
    assert tables.jumps() == ALL
    run(wire, "iptables-legacy", "-R", "NFQ_GUARD_DROP", "1", *COMMENT, "-j", "ACCEPT")
    looks = next(look for look in range(1, 100) if tables.jumps() == BOTH | DROPPING_6)
    assert looks == 31


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


NOTRACK = ("-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--sport", "80", "-j", "CT", "--notrack")


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_a_copy_has_the_rules_for_a_daemon_that_may_not_read_them(wire: Wire, program: str) -> None:
    """With CAP_NET_ADMIN alone it notices whether the rules changed; counters do not matter."""
    family = Family.IPV6 if program.startswith("ip6") else Family.IPV4
    here = ADDRESSES[family][1]
    with ExitStack() as stack, wire.guarded.ns.entered():
        stack.callback(run, wire, program, "-t", "raw", "-F")
        run(wire, program, *NOTRACK)
        run(wire, program, "-t", "raw", "-A", "PREROUTING", "-m", "limit", "-j", "RETURN")
        sockets = [
            stack.enter_context(socket.socket(domain, socket.SOCK_DGRAM))
            for domain in (socket.AF_INET, socket.AF_INET6)
        ]
        copy = LegacyCopy(legacy_copy.made(), sockets)
        wire.peer.send_invalid(family, here, count=3)

        def unprivileged() -> RawReading:
            return in_child(lambda: before_conntrack.read([0], copy), 1 << capabilities.NET_ADMIN)

        reading = unprivileged()
        assert [rule.text for rule in reading.rules] == [
            "`-p tcp -m tcp --sport 80 -j CT --notrack` (legacy table raw, chain PREROUTING)"
        ]
        assert reading.one_sided
        assert not [text for text in reading.problems if "have changed" in text]
        run(wire, program, "-t", "raw", "-D", "PREROUTING", "2")
        reading = unprivileged()
        (problem,) = [text for text in reading.problems if "have changed" in text]
        assert f"IPv{int(family)} in table raw" in problem
        assert reading.one_sided, "what is known of them is from then"
        assert copy.changed(family) == ["raw"]
        assert LegacyCopy(legacy_copy.made(), sockets).changed(family) == []
        assert "raw" in LegacyCopy(legacy_copy.made(), []).changed(family)
    assert not LegacyCopy(b"", []).has(family)


def in_child(read: Callable[[], RawReading], kept: int) -> RawReading:
    """The result of a child that has only these capabilities."""
    mine, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            capabilities.keep_only(kept)
            os.write(theirs, pickle.dumps(read()))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(mine, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    found = pickle.loads(content)  # noqa: S301 - of our own child
    assert isinstance(found, RawReading)
    return found


def test_what_the_rules_have_queued_is_read_from_the_kernel(
    wire: Wire, tables: LegacyTables, backend: Backend
) -> None:
    """The packets of both hooks and families, without those of other rules."""
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
