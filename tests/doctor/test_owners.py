# SPDX-License-Identifier: MIT
"""docs/owners.md matches the doctor's findings, and these match the kernel."""

import json
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.doctor import fate, foreign, host_rules, iptables_rules, nft_rules, path
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.rule_model import TAKES, Act, Truth, known
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse
from nfq_guard.lab.netns import Namespace
from nfq_guard.wire.packet import ACK, SYN
from tests.support import owners
from tests.support.listings import fate_of
from tests.support.live import LiveConntrack
from tests.support.packets import tcp

pytestmark = pytest.mark.kernel

SRC, DST = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))


@pytest.mark.long
def test_the_page_is_the_doctors_output() -> None:
    assert owners.PAGE.read_text(encoding="utf-8") == owners.page()


def test_every_rule_set_is_on_the_page() -> None:
    assert {name for _, name in owners.SETS} == {path.name for path in owners.RULES.iterdir()}


# Matches that do not depend on the packet, in the spellings of both languages.
NFT_MATCHES = (
    "ct state invalid",
    "ct state invalid,untracked",
    "ct state established,related",
    "ct state == invalid",
    "ct state != invalid",
    "ct state != invalid,new",
    "ct state != established,related",
    "ct state ! invalid,new",
    "ct state ! established,related",
    "ct state { invalid, new }",
    "ct state != { established, related }",
    "ct state & (established | related | new) == 0",
    "ct state & (invalid | new) == invalid | new",
    "ct state & (invalid | new) != invalid",
    "ct state & invalid == invalid",
    "ct state < new",
    "ct state > new",
    "ct state @unwanted",
    "ct state != @unwanted",
    "ct state . meta l4proto { invalid . tcp }",
    "ct state . meta l4proto { invalid . udp, new . tcp }",
    "ct mark 0",
    "ct mark != 5",
    "ct status assured",
    "ct status ! dnat",
    "ct direction original",
    "meta l4proto tcp",
    "meta l4proto != tcp",
    "meta l4proto { udp, icmp }",
    "meta nfproto ipv4",
    "meta nfproto ipv6",
    "meta protocol ip",
    "ip protocol tcp",
    "ip6 nexthdr tcp",
    "udp dport 53",
    "icmp type echo-request",
    'iifname "lo"',
    'iifname != "lo"',
    'iif "lo"',
    'oifname { "lo" }',
    "add @seen { ip saddr }",
    "update @seen { ip saddr counter }",
    "add @seen6 { ip6 saddr }",
    "meta mark set ct state map { invalid : 5, new : 6 }",
    "meta mark set ct state map { new : 6 }",
    "meta mark set ct mark",
    "meta mark set 5",
    "ct mark set 5",
)
IPTABLES_MATCHES = (
    "-m conntrack --ctstate INVALID",
    "-m conntrack ! --ctstate INVALID",
    "-m conntrack --ctstate NEW,RELATED,ESTABLISHED",
    "-m conntrack ! --ctstate NEW,RELATED,ESTABLISHED",
    "-m conntrack --ctstate UNTRACKED",
    "-m conntrack --ctstate INVALID,SNAT",
    "-m conntrack --ctstate SNAT,DNAT",
    "-m conntrack --ctstate INVALID --ctstatus ASSURED",
    "-m conntrack --ctstate INVALID ! --ctstatus ASSURED",
    "-m conntrack --ctstatus ASSURED",
    "-m conntrack ! --ctstatus ASSURED",
    "-m conntrack --ctdir REPLY",
    "-m conntrack --ctproto 6",
    "-m conntrack --ctstate INVALID -m conntrack --ctproto 6",
    "-m conntrack --ctproto 6 -m conntrack ! --ctstate NEW",
    "-m state --state INVALID -m conntrack ! --ctstatus ASSURED",
    "-m conntrack ! --ctstate NEW -m conntrack ! --ctstate INVALID",
    "-m state --state INVALID",
    "-m state ! --state ESTABLISHED,RELATED",
    "-m connmark --mark 0x0",
    "-m connmark ! --mark 0x1",
    "-m connbytes --connbytes 0: --connbytes-mode packets --connbytes-dir both",
    "-m cluster --cluster-total-nodes 2 --cluster-local-nodemask 3 --cluster-hash-seed 7",
    "-m cluster --cluster-total-nodes 2 ! --cluster-local-nodemask 3 --cluster-hash-seed 7",
    "-m helper --helper ftp",
    "-m helper ! --helper ftp",
    "-m comment --comment INVALID",
    "-p tcp",
    "-p udp",
    "! -p udp",
    "-i lo",
    "! -i lo",
    "! -o lo",
)


@pytest.fixture
def live() -> Iterator[LiveConntrack]:
    """A router on which an ACK without an entry is INVALID (tcp_loose=0)."""
    with LiveConntrack(Sysctls(loose=False)) as conntrack:
        yield conntrack


@pytest.mark.parametrize(
    ("target", "passes"),
    [("CT --ctevents new", True), ("CT --zone 3", True), ("CT --notrack", True), (None, False)],
)
def test_a_template_keeps_packets_from_a_rule_in_raw(
    live: LiveConntrack, target: str | None, *, passes: bool
) -> None:
    lines = [f"-A PREROUTING -j {target}"] if target else []
    lines.append("-A PREROUTING -m conntrack --ctstate INVALID -j DROP")
    live.space.run("iptables-legacy-restore", stdin="\n".join(["*raw", *lines, "COMMIT", ""]))
    assert (live.send(tcp(SRC, DST, 40000, 80, SYN)) is not None) is passes
    (check,) = foreign.checks(path.walk(host_rules.read().tables, 4))
    assert ("it has no effect" in check.what) is passes


@pytest.mark.parametrize("reloaded", [False, True])
def test_the_order_of_a_chain_at_the_priority_of_conntrack(
    namespace: Callable[[str], Namespace], *, reloaded: bool
) -> None:
    """The first rule on the state starts conntrack, which then runs before the chain."""
    space = namespace("beside")
    rules = (
        "table ip m {\nchain c {\ntype filter hook output priority -200\n"
        "ct state invalid counter\n}\n}\n"
    )
    space.run("nft", "-f", "-", stdin=rules)
    if reloaded:
        space.run("nft", "-f", "-", stdin=f"flush ruleset\n{rules}")
    space.ip("link", "set", "lo", "up")
    with space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", 9))
    listed = space.run("nft", "-j", "list", "chain", "ip", "m", "c").stdout
    assert (sum(_packets(listed)) > 0) is reloaded


def test_a_rule_of_a_device_drops_by_the_mark_of_invalid_packets(live: LiveConntrack) -> None:
    live.space.run(
        *("nft", "-f", "-"),
        stdin="table inet m { chain c { type filter hook prerouting priority -140;\n"
        "ct state invalid meta mark set 5\n}\n}\n"
        "table netdev d { chain out { type filter hook egress device out0 priority 0;\n"
        "meta mark 5 drop\n}\n}\n",
    )
    assert live.send(tcp(SRC, DST, 40000, 80, SYN)) is not None
    assert live.send(tcp(SRC, DST, 40000, 81, ACK)) is None
    mets = list(path.walk(host_rules.read().tables, 4))
    check = next(check for check in fate.checks(mets) if check.id == "fate.egress")
    assert (check.status, "`meta mark 5 drop`" in check.what) == (Status.WARNING, True)


def _packets(chain: str) -> list[int]:
    """The counts of a chain's rules, from nft's JSON."""
    rules = [item["rule"]["expr"] for item in json.loads(chain)["nftables"] if "rule" in item]
    counters = [next(each["counter"] for each in expr if "counter" in each) for expr in rules]
    return [counter["packets"] for counter in counters]


def test_matches_of_nftables_agree_with_the_kernel(live: LiveConntrack) -> None:
    """Each rule has a counter and a drop of its own chain, to which it jumps."""
    rules = "".join(f"{match} counter jump taken\n" for match in NFT_MATCHES)
    live.space.run(
        *("nft", "-f", "-"),
        stdin="table inet probe { set unwanted { type ct_state; elements = { invalid }; }\n"
        "set seen { type ipv4_addr; flags dynamic; size 9; }\n"
        "set seen6 { type ipv6_addr; flags dynamic; size 9; }\n"
        f"chain taken {{ }}\nchain fw {{ type filter hook forward priority 0;\n{rules}}}\n}}\n",
    )
    assert live.send(tcp(SRC, DST, 40000, 80, ACK)) == CTSTATES.index("INVALID")
    listed = live.space.run("nft", "-j", "list", "ruleset").stdout
    (table,) = (
        each
        for each in nft_rules.Ruleset(listed).tables()
        if (each.name, each.family) == ("probe", 4)
    )
    said = [rule.when.truth for rule in table.chains["fw"] if rule.act is Act.JUMP]
    done = _packets(live.space.run("nft", "-j", "list", "chain", "inet", "probe", "fw").stdout)
    assert _by_match(NFT_MATCHES, said) == _by_match(NFT_MATCHES, [bool(n) for n in done])


def test_matches_of_iptables_agree_with_the_kernel(live: LiveConntrack) -> None:
    rules = "".join(f"-A FORWARD {match} -j TAKEN\n" for match in IPTABLES_MATCHES)
    live.space.run("iptables-legacy-restore", stdin=f"*filter\n:TAKEN -\n{rules}COMMIT\n")
    assert live.send(tcp(SRC, DST, 40000, 80, ACK)) == CTSTATES.index("INVALID")
    saved = live.space.run("iptables-legacy-save", "-t", "filter").stdout
    (table,) = iptables_rules.tables(parse(saved), Backend.LEGACY, Family.IPV4)
    said = [rule.when.truth for rule in table.chains["FORWARD"]]
    counted = live.space.run("iptables-legacy-save", "-c", "-t", "filter").stdout
    done = [not line.startswith("[0:") for line in counted.splitlines() if "-A FORWARD" in line]
    assert _by_match(IPTABLES_MATCHES, said) == _by_match(IPTABLES_MATCHES, done)


def _by_match(matches: Sequence[str], results: Sequence[Truth | bool]) -> dict[str, Truth]:
    truths = [each if isinstance(each, Truth) else known(each).truth for each in results]
    return dict(zip(matches, truths, strict=True))


@pytest.mark.parametrize(
    ("name", "act", "passes"),
    [
        ("kube-proxy.rules", Act.DROP, False),
        ("kube-router.rules", None, True),
        ("docker.rules", Act.DROP, False),
        ("docker-20.rules", Act.DROP, False),
        ("netavark-1.4.rules", None, True),
        ("libvirt.rules", None, True),
        ("network-manager.nft", None, True),
        ("firewalld.nft", Act.DROP, False),
        ("firewalld.rules", Act.DROP, False),
        ("ufw.rules", Act.DROP, False),
        ("fw4-reject.nft", Act.RESET, False),
        ("fw4-drop-invalid.nft", Act.DROP, False),
        ("firehol.rules", Act.DROP, False),
        ("shorewall.rules", Act.RESET, False),
        ("arno.rules", Act.DROP, False),
        ("apf.rules", None, True),
        ("uif.nft", Act.DROP, False),
        ("ferm.rules", Act.DROP, False),
        ("pve.rules", Act.DROP, False),
        ("vyos.nft", Act.DROP, False),
        ("mwan3.rules", None, True),
        ("plain.nft", Act.RESET, False),
    ],
)
def test_the_fate_of_a_forwarded_packet_is_what_the_kernel_does(
    live: LiveConntrack, name: str, act: Act | None, passes: bool
) -> None:
    """No rule of these sets names the interfaces and addresses of the test."""
    text = (owners.RULES / name).read_text(encoding="ascii")
    if name.endswith(".nft"):
        live.space.run("nft", "-f", "-", stdin=text)
    else:
        live.space.run("iptables-legacy-restore", stdin=text)
    live.space.run(
        *("nft", "-f", "-"),
        stdin="table ip see { chain out { type filter hook output priority -300;\n"
        "tcp flags rst counter\n}\n}\n",
    )
    out = live.send(tcp(SRC, DST, 40000, 80, ACK))
    assert (out is not None) is passes
    resets = _packets(live.space.run("nft", "-j", "list", "chain", "ip", "see", "out").stdout)
    assert (resets == [1]) is (act is Act.RESET)
    mets = [
        met
        for met in path.walk(host_rules.read().tables, 4)
        if met.hook == "forward" and met.finding.rule.act in TAKES
    ]
    sure = next((met for met in mets if met.finding.truth is Truth.YES), None)
    assert (None if sure is None else sure.finding.rule.act) is act


@pytest.mark.parametrize(
    ("name", "takes"), [("ferm.rules", True), ("firehol.rules", True), ("kube-proxy.rules", False)]
)
def test_what_is_said_of_packets_without_the_rule_that_names_them(
    live: LiveConntrack, name: str, *, takes: bool
) -> None:
    text = (owners.RULES / name).read_text(encoding="ascii")
    live.space.run("iptables-legacy-restore", stdin=text)
    rules = host_rules.read()
    checks = fate.checks(rules.path(), unnamed=rules.unnamed())
    (what,) = (each.what for each in checks if each.id == "fate.forward" and "IPv4" in each.what)
    assert ("; without that rule dropped by default" in what) is takes
    lines = [line for line in text.splitlines() if "INVALID" not in line or "LOG" in line]
    live.space.run("iptables-legacy-restore", stdin="\n".join([*lines, ""]))
    assert (live.send(tcp(SRC, DST, 40000, 80, ACK)) is None) is takes


# Rule sets under which a forwarded packet of a known connection passes and an INVALID one does not,
# and the names in them that stand for those of the test.
STATEFUL: tuple[tuple[str, dict[str, str]], ...] = (
    ("docker.nft", {"docker0": "out0"}),
    ("docker-20.rules", {"docker0": "out0"}),
    ("docker-28.rules", {"docker0": "out0"}),
    ("firehol.rules", {"eth1": "in0", "eth0": "out0"}),
    ("firewalld.rules", {"eth0": "in0", "eth1": "out0"}),
    ("ufw.rules", {"eth0": "in0", "eth1": "out0"}),
    ("arno.rules", {"eth0": "in0", "eth1": "out0", "192.0.2.0/24": "198.51.100.0/24"}),
    ("ferm.rules", {}),
    ("uif.nft", {}),
    ("libvirt.rules", {"virbr0": "out0", "192.168.122.0": "198.51.100.0"}),
    ("libvirt.nft", {"virbr0": "out0", "192.168.122.0": "198.51.100.0"}),
    ("network-manager.nft", {"eth1": "out0", "192.0.2.0/24": "198.51.100.0/24"}),
    ("netavark.nft", {"10.88.0.0/16": "198.51.100.0/24"}),
    ("netavark.rules", {"10.88.0.0/16": "198.51.100.0/24"}),
    # No route leads back to the sender here.
    ("foomuuri.nft", {"eth1": "in0", "eth0": "out0", "jump rpfilter_drop": "return"}),
    ("unifi.rules", {"eth8": "in0"}),
    ("weave.rules", {"-o weave": "-o out0"}),
    ("incus.nft", {"incusbr0": "out0"}),
    ("ipfire.rules", {}),
    ("firewalla.rules", {}),
    ("vyatta.rules", {"eth0": "in0"}),
    ("calico.nft", {"cali0ab": "in0"}),
)


def test_what_shorewall_does_between_interfaces_that_it_knows(live: LiveConntrack) -> None:
    """Reset by default, but dropped between these two; the doctor says both."""
    text = (owners.RULES / "shorewall.rules").read_text(encoding="ascii")
    text = text.replace("eth0", "in0").replace("eth1", "out0")
    live.space.run("iptables-legacy-restore", stdin=text)
    assert live.send(tcp(SRC, DST, 40000, 80, ACK)) is None
    counted = live.space.run("iptables-legacy-save", "-c", "-t", "filter").stdout
    rule = "-p tcp -m conntrack --ctstate INVALID -j DROP"
    assert f"[1:40] -A net-loc {rule}" in counted
    check = fate_of(list(path.walk(host_rules.read().tables, 4)), "forward")
    assert check.status is Status.PROBLEM
    assert f"(dropped by `{rule}` in chain net-loc)" in check.what


@pytest.mark.parametrize(("name", "names"), STATEFUL)
def test_what_only_packets_with_an_entry_survive_is_told(
    live: LiveConntrack, name: str, names: dict[str, str]
) -> None:
    # The acknowledgement number of `tcp` is 0: the one that follows these.
    live.send_all(tcp(SRC, DST, 40000, 80, SYN, seq=0xFFFFFFFF))
    live.send_all(tcp(DST, SRC, 80, 40000, SYN | ACK, seq=0xFFFFFFFF))
    text = (owners.RULES / name).read_text(encoding="ascii")
    for theirs, ours in names.items():
        text = text.replace(theirs, ours)
    if name.endswith(".nft"):
        live.space.run("nft", "-f", "-", stdin=text)
    else:
        live.space.run("iptables-legacy-restore", stdin=text)
    known_one = live.send(tcp(SRC, DST, 40000, 80, ACK, seq=0))
    assert known_one == CTSTATES.index("ESTABLISHED")
    assert live.send(tcp(SRC, DST, 40001, 80, ACK)) is None
    check = fate_of(list(path.walk(host_rules.read().tables, 4)), "forward")
    assert check.status is Status.WARNING


# Table bodies; FORWARD and BEFORE stand for the heads of base chains.
RULESETS = (
    # Chains without a name, which nft's JSON has as text.
    (
        "chain c { FORWARD accept; "
        "ct state invalid jump { meta l4proto tcp reject with tcp reset; }; }",
        Act.RESET,
    ),
    (
        "chain c { FORWARD drop; ct state invalid goto { meta l4proto udp accept; }; accept; }",
        Act.DROP,
    ),
    (
        "chain c { FORWARD accept; jump { ct state != { established, new } drop; }; }",
        Act.DROP,
    ),
    ("chain c { FORWARD accept; ct state new jump { drop; }; }", None),
    (
        "chain c { FORWARD drop; ct state new accept; meta l4proto tcp jump { ct mark 0 return; "
        "ct state vmap { new : drop }; accept; }; }",
        None,
    ),
    # A mark that INVALID packets are given, and that a later rule tests.
    (
        "chain c { FORWARD accept; meta mark set ct state map { invalid : 7, new : 1 }; "
        "meta mark 7 drop; }",
        Act.DROP,
    ),
    (
        "chain p { BEFORE 0; ct state invalid meta mark set meta mark | 0x10; }; "
        "chain c { FORWARD accept; meta mark & 0x10 == 0x10 reject with tcp reset; }",
        Act.RESET,
    ),
    (
        "chain c { FORWARD accept; ct state invalid meta mark set 7; meta mark set 8; "
        "meta mark 7 drop; }",
        None,
    ),
    # After it the packet is no longer INVALID.
    (
        "chain p { BEFORE -160; ct state invalid notrack; }; "
        "chain c { FORWARD accept; ct state invalid drop; }",
        Act.UNTRACKS,
    ),
)
HEADS = {
    "FORWARD": "type filter hook forward priority 0; policy",
    "BEFORE": "type filter hook prerouting priority",
}


@pytest.mark.parametrize(("chains", "act"), RULESETS)
def test_the_fate_under_rules_that_are_hard_to_follow(
    live: LiveConntrack, chains: str, act: Act | None
) -> None:
    for short, head in HEADS.items():
        chains = chains.replace(short, head)
    body = chains.replace("; ", "\n")
    live.space.run("nft", "-f", "-", stdin=f"table inet mine {{\n{body}\n}}\n")
    live.space.run(
        *("nft", "-f", "-"),
        stdin="table ip see { chain out { type filter hook output priority -300;\n"
        "tcp flags rst counter\n}\n}\n",
    )
    out = live.send(tcp(SRC, DST, 40000, 80, ACK))
    resets = _packets(live.space.run("nft", "-j", "list", "chain", "ip", "see", "out").stdout)
    assert (out is None) is (act in {Act.DROP, Act.RESET})
    assert (resets == [1]) is (act is Act.RESET)
    mets = [
        met
        for met in path.walk(host_rules.read().tables, 4)
        if met.finding.rule.act in TAKES and met.order in path.ON_THE_WAY
    ]
    sure = next((met for met in mets if met.finding.certain), None)
    assert (None if sure is None else sure.finding.rule.act) is act
