# SPDX-License-Identifier: MIT
"""Whether conntrack tracks packets without our rules, against the kernel's table."""

import json
import sys
from collections.abc import Iterator

import pytest

from nfq_guard.doctor import collect, host_rules, tracking
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.host_rules import HostRules
from nfq_guard.doctor.nft_rules import Ruleset
from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family
from nfq_guard.firewall.saved import parse
from nfq_guard.lab.netns import Namespace
from tests.doctor.conftest import Host
from tests.support.listings import nft, tables_of

# Sends one datagram of each family to itself; prints by how many entries the table grew.
_GROWS = """
import pathlib, socket
table = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_count")
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    before = int(table.read_text())
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.bind((address, 0))
        one.sendto(b"x", one.getsockname())
    print(int(table.read_text()) - before)
"""
_IPTABLES = [
    "*mangle\n-A PREROUTING -m conntrack --ctstate NEW",
    "*mangle\n-A PREROUTING -m state --state NEW",
    "*mangle\n-A PREROUTING -m connmark --mark 1",
    "*mangle\n-A PREROUTING -m connlimit --connlimit-above 5",
    "*mangle\n-A PREROUTING -j CONNMARK --save-mark",
    "*mangle\n-A PREROUTING -p tcp -j TPROXY --on-port 5",
    "*mangle\n:x -\n-A x -m conntrack --ctstate NEW",
    "*raw\n-A PREROUTING -j CT --notrack",
    "*raw\n-A PREROUTING -j CT --zone 1",
    "*raw\n-A PREROUTING -j NOTRACK",
    "*nat\n-A PREROUTING -j ACCEPT",
    "*nat\n-A POSTROUTING -d 192.0.2.1 -j SNAT --to-source 192.0.2.2",
    '*filter\n-A FORWARD -m comment --comment "-m conntrack" -j DROP',
    "*filter\n-A INPUT -p tcp -j SYNPROXY --mss 1460",
]
_NFT = [
    "ct state new",
    "ct count over 5 drop",
    "meta mark set ct mark map { 1 : 2 }",
    'log prefix "ct state"',
    'counter comment "ct state"',
    "notrack",
    "tcp dport vmap { 22 : accept }",
    "ct zone set 1",
    "jump { ct state new; }",
]
_PLACE = "type filter hook prerouting priority -300;"


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace("tracking") as made:
        yield made


def _tracked(space: Namespace) -> list[Family]:
    grown = space.run(sys.executable, "-c", _GROWS).stdout.split()
    return [family for family, count in zip(BOTH_FAMILIES, grown, strict=True) if count != "0"]


def _not_untracked(space: Namespace) -> list[Family]:
    with space.entered():
        found = tracking.untracked(host_rules.read(), BOTH_FAMILIES, 0)
    return [family for family in BOTH_FAMILIES if family not in found]


@pytest.mark.kernel
@pytest.mark.parametrize("rules", _IPTABLES)
@pytest.mark.parametrize("backend", list(Backend))
def test_rules_of_iptables(space: Namespace, backend: Backend, rules: str) -> None:
    space.run(f"iptables-{backend}-restore", stdin=f"{rules}\nCOMMIT\n")
    assert _not_untracked(space) == _tracked(space)


@pytest.mark.kernel
@pytest.mark.parametrize("rule", _NFT)
@pytest.mark.parametrize("head", ["ip", "ip6", "inet", "inet dormant"])
def test_rules_of_nftables(space: Namespace, head: str, rule: str) -> None:
    family, *dormant = head.split()
    flags = "flags dormant; " if dormant else ""
    space.run(
        "nft", "-f", "-", stdin=f"table {family} t {{ {flags}chain c {{ {_PLACE} {rule}\n}}\n}}\n"
    )
    assert _not_untracked(space) == _tracked(space)


def _check(host: Host) -> Check | None:
    _, checks = host.examine()
    found = next((each for each in checks if each["id"] == "tracking.by_us"), None)
    if found is None:
        return None
    return Check(found["id"], Status(found["status"]), found["what"], found["todo"])


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend))
def test_a_host_that_tracks_nothing_is_told_before_and_after(host: Host, backend: Backend) -> None:
    before = _check(host)
    host.ns.sysctl("ipv4.ip_forward", 1)
    forwarding = _check(host)
    assert _tracked(host.ns) == []
    host.command("rules", "install", "--backend", backend)
    assert _tracked(host.ns) == [*BOTH_FAMILIES]
    after = _check(host)
    assert before is not None
    assert forwarding is not None
    assert after == forwarding
    assert (before.status, forwarding.status) == ("note", "warning")
    assert "no other rule has conntrack track IPv4 and IPv6 packets" in before.what
    assert "does not need the guard" in before.todo


@pytest.mark.kernel
def test_a_host_that_tracks_one_family(host: Host) -> None:
    host.ns.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
    host.ns.sysctl("ipv4.ip_forward", 1)
    found = _check(host)
    assert found is not None
    assert (found.status, "track IPv6 packets" in found.what) == ("note", True)
    assert '`families` = "4"' in found.todo
    host.ns.run("ip6tables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
    assert _check(host) is None


@pytest.mark.kernel
def test_the_plan_says_it(host: Host) -> None:
    assert host.command("doctor", "--plan", "--format", "json") == 0
    first, second = json.loads(host.capsys.readouterr().out)["found"]
    assert first == "nothing: no rule singles out INVALID packets"
    assert "ours start it" in second


def _rules(*texts: str) -> HostRules:
    saved = {(Backend.LEGACY, Family.IPV4): parse("\n".join(texts))}
    return HostRules(saved=saved, native=Ruleset('{"nftables": []}'))


def test_entries_without_a_rule_are_of_something_else() -> None:
    """For example of IPVS, which has conntrack track packets without a rule."""
    assert tracking.untracked(_rules(), BOTH_FAMILIES, 0) == [*BOTH_FAMILIES]
    assert tracking.untracked(_rules(), BOTH_FAMILIES, 7) == []
    ours = "*mangle\n:NFQ_GUARD -\n-A PREROUTING -m conntrack --ctstate INVALID -j NFQ_GUARD\n"
    assert tracking.untracked(_rules(ours), BOTH_FAMILIES, 7) == [*BOTH_FAMILIES]


def test_nothing_is_said_of_rules_that_cannot_be_read() -> None:
    rules = _rules()
    rules.problems.append("nft: no permission")
    assert tracking.untracked(rules, BOTH_FAMILIES, 0) == []
    assert tracking.untracked(HostRules(), BOTH_FAMILIES, 0) == []


def test_only_the_families_of_our_rules_count() -> None:
    assert tracking.untracked(_rules(), (Family.IPV6,), 0) == [Family.IPV6]
    used = _rules("*filter\n-A INPUT -m state --state NEW\n")
    assert tracking.untracked(used, (Family.IPV4,), 0) == []
    (check,) = tracking.checks(used, (Family.IPV4, Family.IPV6), 3, {6})
    assert check.status is Status.WARNING


def test_forwarded_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "number", lambda path: int("ipv6" in str(path)))
    assert collect.forwarded() == {6}
    assert collect.forwards()


_DNPT = "-j DNPT --src-pfx 2001:db8:a::/64 --dst-pfx fd00::/64"


def _stateless(native: str = "", *tables: str) -> list[Check]:
    mangle = "*mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
    rules = HostRules(tables=tables_of("".join((mangle, *tables))))
    if native:
        rules.tables += Ruleset(native).tables()
    return list(tracking.stateless(rules.path()))


def _writing(field: str, protocol: str = "ip6") -> dict[str, object]:
    key = {"payload": {"protocol": protocol, "field": field}}
    return {"mangle": {"key": key, "value": "fd00::2"}}


def test_a_destination_that_is_written_behind_conntrack() -> None:
    """Measured: the SYN+ACK is INVALID, and with a drop of INVALID packets nobody connects."""
    (check,) = _stateless("", f"-A PREROUTING -i eth0 {_DNPT}\n")
    assert (check.id, check.status) == ("tracking.stateless", Status.WARNING)
    (check,) = _stateless(nft([_writing("daddr")], hook="prerouting", priority=-100))
    assert check.status is Status.WARNING
    assert "writes the destination address behind conntrack" in check.what


@pytest.mark.parametrize(
    ("field", "protocol", "hook", "priority"),
    [
        ("daddr", "ip6", "prerouting", -300),
        ("daddr", "ip6", "forward", 0),
        ("saddr", "ip6", "postrouting", 0),
        ("hoplimit", "ip6", "prerouting", 0),
        ("daddr", "ether", "prerouting", 0),
    ],
)
def test_writes_that_conntrack_does_not_miss(
    field: str, protocol: str, hook: str, priority: int
) -> None:
    assert _stateless(nft([_writing(field, protocol)], hook=hook, priority=priority)) == []


def test_packets_that_are_not_tracked_may_be_written() -> None:
    untracked = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i eth0 -j CT --notrack\n"
    (check,) = _stateless("", f"-A PREROUTING -i eth0 {_DNPT}\n", untracked)
    assert check.status is Status.NOTE
    assert "unless a rule before conntrack untracks them" in check.what


@pytest.mark.kernel
def test_both_halves_of_a_translated_connection_may_be_untracked(host: Host) -> None:
    """As the manual of DNPT says; nothing is INVALID then. Each half has addresses of its own."""
    raw = "*raw\n-A PREROUTING -i a -d 2001:db8:a::/64 -j CT --notrack\nCOMMIT\n"
    host.restore(Backend.LEGACY, Family.IPV6, raw)
    (plain,) = [check for check in host.examine()[1] if check["id"] == "tracking.half"]
    host.restore(Backend.LEGACY, Family.IPV6, f"*mangle\n-A PREROUTING {_DNPT}\nCOMMIT\n")
    (half,) = [check for check in host.examine()[1] if check["id"] == "tracking.half"]
    assert (plain["status"], half["status"]) == ("warning", "note")
    assert "unless a rule hides that one too" in half["what"]


@pytest.mark.kernel
def test_stateless_translation_is_read_from_the_kernel(host: Host) -> None:
    host.restore(Backend.LEGACY, Family.IPV6, f"*mangle\n-A PREROUTING {_DNPT}\nCOMMIT\n")
    chain = "type filter hook output priority 0; ip daddr 192.0.2.1 ip daddr set 192.0.2.2;"
    host.ns.run("nft", "-f", "-", stdin=f"table ip st {{ chain c {{ {chain} }}\n}}\n")
    _, checks = host.examine()
    (check,) = [check for check in checks if check["id"] == "tracking.stateless"]
    assert "and 1 more rule" in check["what"]
    unknown = [check for check in checks if "cannot be followed" in check["what"]]
    assert unknown == [], "DNPT goes on to the next rule"
