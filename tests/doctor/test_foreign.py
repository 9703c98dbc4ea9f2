# SPDX-License-Identifier: MIT
"""The doctor follows an INVALID segment through listings of iptables, and names owners."""

import cProfile

import pytest

from nfq_guard.doctor import fate, foreign, nft_rules, path, removed
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.nft_values import MARK
from nfq_guard.doctor.owners import owner_of
from nfq_guard.doctor.path import Order
from nfq_guard.doctor.rule_model import Act, Table, Truth
from nfq_guard.firewall import Backend
from tests.support.listings import (
    DROPPED,
    FILTER,
    STATE,
    decides,
    fate_of,
    matching,
    nft,
    tables_of,
    walk,
)

MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n"
OURS = "-A PREROUTING -m conntrack --ctstate INVALID -j NFQ_GUARD\n"
THEIRS = "-A PREROUTING -m conntrack --ctstate INVALID -j DROP\n"
RESET = "REJECT --reject-with tcp-reset"


def _forward(*rules: str, chains: str = "") -> list[tuple[Act, Truth]]:
    text = FILTER + chains + "".join(f"-A {rule}\n" for rule in rules)
    return decides(walk(text), "forward")


@pytest.mark.parametrize(
    ("rule", "truth"),
    [
        ("-m conntrack --ctstate INVALID", Truth.YES),
        ("-m conntrack --ctstate NEW,INVALID,UNTRACKED", Truth.YES),
        ("-m state --state INVALID", Truth.YES),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED", Truth.YES),
        ("-m state ! --state NEW", Truth.YES),
        ("-m conntrack ! --ctstate INVALID", Truth.NO),
        ("-m conntrack --ctstate NEW", Truth.NO),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", Truth.NO),
        # Without an entry, the match looks at nothing but the state.
        ("-m conntrack --ctstate INVALID --ctstatus ASSURED", Truth.YES),
        ("-m conntrack --ctstatus ASSURED", Truth.NO),
        ("-m conntrack ! --ctstatus ASSURED", Truth.NO),
        ("-m connmark --mark 0x1", Truth.NO),
        ("-m connmark ! --mark 0x1", Truth.NO),
        ("-m connbytes --connbytes 1: --connbytes-mode packets --connbytes-dir both", Truth.NO),
        ("-m cluster --cluster-total-nodes 2 --cluster-local-node 1", Truth.NO),
        ("-m cluster --cluster-total-nodes 2 ! --cluster-local-node 1", Truth.NO),
        ("-m helper ! --helper ftp", Truth.YES),
        ("-m comment --comment INVALID", Truth.YES),
        ('-m comment --comment "-m conntrack --ctstate NEW"', Truth.YES),
        ("-m nfacct --nfacct-name dropped", Truth.YES),
        ("-p tcp", Truth.YES),
        ("-p udp", Truth.NO),
        ("! -p udp", Truth.YES),
        ("! -p tcp", Truth.NO),
        ("-i lo", Truth.NO),
        ("! -i lo", Truth.YES),
        ("-i eth0", Truth.DEPENDS),
        ("-s 192.0.2.0/24 -m conntrack --ctstate INVALID", Truth.DEPENDS),
        ("-p tcp -m tcp ! --dport 22", Truth.DEPENDS),
        ("-m limit --limit 1/sec", Truth.DEPENDS),
        ("-m set --match-set blocked src", Truth.DEPENDS),
        ("-m socket", Truth.DEPENDS),
        ("-p tcp -m tcp", Truth.YES),
        ("", Truth.YES),
    ],
)
def test_matches_of_iptables(rule: str, truth: Truth) -> None:
    expected = [] if truth is Truth.NO else [(Act.DROP, truth)]
    assert _forward(f"FORWARD {rule} -j DROP") == expected


@pytest.mark.parametrize(
    ("target", "act"),
    [
        ("DROP", Act.DROP),
        ("ACCEPT", Act.ACCEPT),
        (RESET, Act.RESET),
        ("REJECT --reject-with icmp-port-unreachable", Act.REJECT),
        ("REJECT", Act.REJECT),
        ("NFQUEUE --queue-num 7", Act.ELSEWHERE),
        ("NFQUEUE --queue-balance 1:4", Act.ELSEWHERE),
        ("TPROXY --on-port 15006 --on-ip 127.0.0.1", Act.ELSEWHERE),
        ("SYNPROXY --sack-perm", Act.ELSEWHERE),
        ("STEAL", Act.UNKNOWN),
        ('LOG --log-prefix "-j DROP"', None),
        ("RETURN", None),
        ("CT --notrack", Act.UNTRACKS),
        ("", None),
    ],
)
def test_targets_of_iptables(target: str, act: Act | None) -> None:
    jump = f"-j {target}" if target else ""
    assert _forward(f"FORWARD {jump}") == ([] if act is None else [(act, Truth.YES)])


def test_a_queue_with_bypass_passes_packets_while_nobody_reads_it() -> None:
    invalid = "FORWARD -m conntrack --ctstate INVALID -j NFQUEUE --queue-num 7"
    assert _forward(f"{invalid} --queue-bypass") == [(Act.ELSEWHERE, Truth.DEPENDS)]
    check = fate_of(walk(f"{FILTER}-A {invalid} --queue-bypass\n"), "forward")
    assert "is accepted, or sent elsewhere (queue 7) by `" in check.what
    assert check.what.endswith("depends on: a program on the queue")


def test_nodes_of_a_cluster_drop_what_no_entry_assigns_to_them() -> None:
    """As in the manual of iptables-extensions: no INVALID packet gets the mark of its node."""
    mets = walk(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -i eth1 -m cluster --cluster-total-nodes 2 --cluster-local-node 1 "
        "--cluster-hash-seed 0xdeadbeef -j MARK --set-mark 0xffff\n"
        "-A PREROUTING -i eth1 -m mark ! --mark 0xffff -j DROP\nCOMMIT\n"
    )
    check = fate_of(mets, "prerouting")
    assert check.status is Status.WARNING
    assert "or dropped by `-i eth1 -m mark ! --mark 0xffff -j DROP`" in check.what


def test_jumps_gotos_and_returns() -> None:
    chains = ":X - [0:0]\n:Y - [0:0]\n"
    drop = (Act.DROP, Truth.YES)
    maybe = (Act.DROP, Truth.DEPENDS)
    assert _forward("FORWARD -j X", "X -j Y", "Y -j DROP", chains=chains) == [drop]
    assert _forward("FORWARD -j X", "X -j RETURN", "X -j DROP", chains=chains) == []
    assert _forward("FORWARD -j X", "X -s 192.0.2.1/32 -j RETURN", "X -j DROP", chains=chains) == [
        maybe
    ]
    assert _forward("FORWARD -g X", "FORWARD -j DROP", "X -j RETURN", chains=chains) == []
    assert _forward("FORWARD -j X", "X -g Y", "X -j DROP", "FORWARD -j DROP", chains=chains) == [
        drop
    ], "what follows a goto is skipped, what follows the jump before it is not"
    assert _forward("FORWARD -i eth0 -g X", "FORWARD -j DROP", chains=chains) == [maybe]
    assert _forward("FORWARD -j X", "X -j Y", "Y -j X", "Y -j DROP", chains=chains) == [drop]
    loop = _forward("FORWARD -j X", "X -j Y", "Y -j X", chains=chains)
    assert loop == [], "a loop decides nothing"


def test_an_earlier_rule_may_spare_the_packet() -> None:
    assert _forward("FORWARD -i eth0 -j ACCEPT", "FORWARD -j DROP") == [
        (Act.ACCEPT, Truth.DEPENDS),
        (Act.DROP, Truth.DEPENDS),
    ]
    assert _forward("FORWARD -j ACCEPT", "FORWARD -j DROP") == [(Act.ACCEPT, Truth.YES)]
    assert _forward("FORWARD -m conntrack --ctstate NEW -j ACCEPT", "FORWARD -j DROP") == [
        (Act.DROP, Truth.YES)
    ]


def test_the_most_certain_way_to_a_rule_counts() -> None:
    chains = ":X - [0:0]\n"
    found = _forward("FORWARD -i eth0 -j X", "FORWARD -j X", "X -p tcp -j DROP", chains=chains)
    assert found == [(Act.DROP, Truth.DEPENDS)]
    (met,) = walk(
        f"{FILTER}{chains}-A FORWARD -i eth0 -j X\n-A FORWARD -m state --state INVALID -j X\n"
        "-A X -j DROP\n"
    )
    assert met.finding.truth is Truth.YES
    assert met.finding.state


def test_default_deny_is_told_with_its_chain() -> None:
    deny = FILTER.replace(":FORWARD ACCEPT", ":FORWARD DROP")
    established = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    check = fate_of(walk(deny + established), "forward")
    assert check.status is Status.WARNING
    assert "dropped by default: `policy drop` (legacy table filter, chain FORWARD)" in check.what
    check = fate_of(walk(deny + established + "-A FORWARD -i lan0 -j ACCEPT\n"), "forward")
    assert "unless an earlier rule decides; depends on: -i lan0" in check.what
    check = fate_of(walk(FILTER + established + "-A FORWARD -j DROP\n"), "forward")
    assert "dropped by default: `-j DROP`" in check.what


def test_an_earlier_rule_that_does_otherwise_is_named() -> None:
    known = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    invalid = "-m conntrack --ctstate INVALID -j DROP"
    smurfs = ":S - [0:0]\n-A FORWARD -m conntrack --ctstate INVALID,NEW -j S\n"
    smurfs += "-A S -s 224.0.0.0/4 -j DROP\n"
    reset = f"-A FORWARD {known}\n-A FORWARD -j {RESET}\n"
    text = f"{FILTER}{smurfs}-A FORWARD -i eth0 {invalid}\n{reset}"
    what = fate_of(walk(text), "forward").what
    assert (
        f"unless an earlier rule decides (dropped by `-i eth0 {invalid}` in chain FORWARD)" in what
    )
    what = fate_of(walk(f"{FILTER}{smurfs}{reset}"), "forward").what
    assert "unless an earlier rule decides; depends on: -s 224.0.0.0/4" in what, "for a property"


@pytest.mark.parametrize(
    ("rules", "then"),
    [
        ("FORWARD {invalid} -j DROP;FORWARD {known} -j ACCEPT;FORWARD -j REJECT", "rejected"),
        (
            "FORWARD {invalid} -j X;X -j DROP;FORWARD {known} -j ACCEPT;FORWARD -j REJECT",
            "rejected with an ICMP error by default: `-j REJECT` (legacy table filter, chain F",
        ),
        (
            "FORWARD {invalid} -j MARK --set-xmark 0x7/0xffffffff;"
            "FORWARD -m mark --mark 0x7 -j DROP",
            None,
        ),
        ("FORWARD {invalid} -g X;X -j DROP;FORWARD {known} -j ACCEPT;FORWARD -j Y;Y -j DROP", ""),
        (
            "FORWARD {invalid} -j DROP;FORWARD {known} -j X;X -j ACCEPT;FORWARD -i eth0 -j ACCEPT;"
            "FORWARD -j DROP",
            "dropped by default: `-j DROP` (legacy table filter, chain FORWARD), unless an earlier",
        ),
        ("FORWARD {invalid} -j X;X -i eth0 -j DROP;FORWARD {invalid} -j DROP", None),
        (
            "FORWARD {known} -j ACCEPT;FORWARD {invalid} -j DROP;"
            f"FORWARD -p tcp {{invalid}} -j {RESET};FORWARD -j DROP",
            f"reset by `-p tcp -m conntrack --ctstate INVALID -j {RESET}` (legacy table filter, ",
        ),
        (
            "FORWARD {invalid} -j DROP;FORWARD -j X;X {invalid} -j DROP",
            "dropped by `-m conntrack --ctstate INVALID -j DROP` (legacy table filter, chain X)",
        ),
        ("FORWARD {invalid} -j DROP", None),
        ("FORWARD {known} -j ACCEPT;FORWARD -j DROP", None),
    ],
)
def test_what_takes_packets_where_the_rule_that_names_them_is_gone(
    rules: str, then: str | None
) -> None:
    matches = {"known": "-m conntrack --ctstate RELATED,ESTABLISHED"}
    lines = "".join(f"-A {rule}\n" for rule in rules.split(";"))
    text = lines.format(invalid="-m conntrack --ctstate INVALID", **matches)
    tables = tables_of(f"{FILTER}:X - [0:0]\n:Y - [0:0]\n{text}")
    unnamed = removed.without_takers(tables)
    (check,) = (
        each
        for each in fate.checks(list(path.walk(tables, 4)), unnamed=unnamed)
        if each.id == "fate.forward" and "IPv6" not in each.what
    )
    assert ("; without that rule " in check.what) is (then is not None)
    assert f"; without that rule {then}" in check.what or then is None


def test_the_chain_that_is_named_is_one_for_all_packets() -> None:
    text = f"{FILTER}:S - [0:0]\n-A FORWARD -m conntrack --ctstate INVALID,NEW -j S\n"
    text += "-A S -s 224.0.0.0/4 -j DROP\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
    (check,) = foreign.checks(walk(text))
    assert "chain FORWARD and 1 more" in check.what


def forwarded_by(rules: str) -> Check:
    """The fate of forwarded packets by rules of FORWARD and of two chains, X and Y.

    `{known}` in a rule is a match of packets of connections, `{new}` of those that open one.
    """
    text = "".join(f"-A {rule}\n" for rule in rules.split(";"))
    known = "-m conntrack --ctstate RELATED,ESTABLISHED"
    text = text.replace("{known}", known).replace("{new}", "-m conntrack --ctstate NEW")
    return fate_of(walk(f"{FILTER}:X - [0:0]\n:Y - [0:0]\n{text}"), "forward")


@pytest.mark.parametrize(
    "rules",
    [
        "FORWARD -o br0 {known} -j ACCEPT;FORWARD ! -i br0 -o br0 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -m connmark --mark 0x1 -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -m set --match-set pods dst {known} -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD {known} -j X;X -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -j X;X {known} -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -j X;X {known} -j Y;Y -i br1 -j ACCEPT;FORWARD -i br1 -j DROP",
        "FORWARD -o br0 -j X;X {known} -j RETURN;X -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -o br0 -j X;X -i br1 -j DROP",
    ],
)
def test_a_drop_of_what_no_rule_accepted_by_state(rules: str) -> None:
    check = forwarded_by(rules)
    assert check.status is Status.WARNING
    assert "is accepted, or dropped by default: `" in check.what


@pytest.mark.parametrize(
    "rules",
    [
        # Some connections to the port are accepted, or their answers.
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.0/24 -p tcp --dport 22 {new} -j ACCEPT;"
        "FORWARD -p tcp --dport 22 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp --dport 22 {new} -j ACCEPT;"
        "FORWARD -p tcp --dport 0:1023 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp -m multiport --dports 22,80 {new} -j ACCEPT;"
        "FORWARD -p tcp -m multiport --dports 22,443 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.0/24 -j ACCEPT;FORWARD -d 192.0.2.0/24 "
        "-j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -d 192.0.2.0/24 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD ! -s 192.0.2.1/32 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.1/32 -j ACCEPT;FORWARD -d 192.0.2.1/32 "
        "-j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp ! --syn -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp --dport 1024:65535 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp --sport 80 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -m set ! --match-set lan src -j DROP",
        "FORWARD -i br0 {known} -j ACCEPT;FORWARD -o br1 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.66/32 -j X;X {known} -j ACCEPT;X -j DROP",
    ],
)
def test_a_drop_of_some_addresses_or_ports_after_accepts_by_state(rules: str) -> None:
    check = forwarded_by(rules)
    assert check.status is Status.WARNING
    assert "is accepted, or dropped by default: `" in check.what
    assert "; depends on: " in check.what


@pytest.mark.parametrize(
    ("accepts", "drop", "status"),
    [
        ("FORWARD -p tcp --dport {} -j ACCEPT", "FORWARD -d 192.0.2.0/24 -j DROP", "warning"),
        (
            "FORWARD -p tcp --dport {} {{new}} -j ACCEPT",
            "FORWARD -p tcp --dport 7 -j DROP",
            "warning",
        ),
        ("FORWARD -i br{} {{known}} -j ACCEPT", "FORWARD -s 192.0.2.1/32 -j DROP", "ok"),
    ],
)
def test_behind_many_accepts(accepts: str, drop: str, status: str) -> None:
    many = ";".join(accepts.format(number) for number in range(1, 99))
    check = forwarded_by(f"FORWARD {{known}} -j ACCEPT;{many};{drop}")
    assert check.status == status


def test_of_several_such_rules_the_one_that_resets_is_named() -> None:
    check = forwarded_by(
        "FORWARD {known} -j ACCEPT;FORWARD -o br0 -j DROP;"
        "FORWARD -d 192.0.2.0/24 -p tcp -j REJECT --reject-with tcp-reset"
    )
    assert check.status is Status.PROBLEM
    assert "is accepted, or reset by default" in check.what


@pytest.mark.parametrize(
    "rules",
    [
        # It takes packets of connections as well.
        "FORWARD -i br1 -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -m rpfilter -j X;FORWARD -o br0 -j DROP;X -j ACCEPT",
        "FORWARD -o br0 -j DROP;FORWARD {known} -j ACCEPT",
        "FORWARD -o br1 {known} -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD -p udp {known} -j ACCEPT;FORWARD -o br0 -j DROP",
        "FORWARD {known} -j RETURN;X -j DROP",
        "FORWARD -j X;X {known} -j RETURN;FORWARD -o br0 -j DROP",
        # It is aimed at something else.
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.66/32 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -i br0 -p tcp -m tcp --dport 22 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp --dport 80 {new} -j ACCEPT;"
        "FORWARD -p tcp --dport 113 -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -p tcp --syn -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -s 192.0.2.0/24 -j ACCEPT;FORWARD -s 192.0.2.66/32 "
        "-j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -m set --match-set banned src -j DROP",
        "FORWARD {known} -j ACCEPT;FORWARD -m recent --rcheck --name bad -j DROP",
        "FORWARD -s 192.0.2.0/24 {known} -j ACCEPT;FORWARD -s 198.51.100.0/24 -j DROP",
        "FORWARD -i br+ {known} -j ACCEPT;FORWARD ! -i br+ -j DROP",
        "FORWARD -i br0 -o br0 -j ACCEPT;FORWARD -d 192.0.2.0/24 -o br0 {known} -j ACCEPT;"
        "FORWARD -i br0 -j DROP",
    ],
)
def test_a_drop_that_singles_nothing_out(rules: str) -> None:
    check = forwarded_by(rules)
    assert check.status is Status.OK


def test_a_default_after_accepts_that_all_end_in_drops() -> None:
    text = f"{FILTER}:X - [0:0]\n-A FORWARD -i br0 -j X\n-A X -j DROP\n-A FORWARD -j DROP\n"
    assert "is dropped by default: `-j DROP`" in fate_of(walk(text), "forward").what
    accepts = text.replace("-A X -j DROP", "-A X -p tcp -m tcp --dport 80 -j ACCEPT")
    assert fate_of(walk(accepts), "forward").status is Status.NOTE


def test_a_reverse_path_filter_is_no_default_deny() -> None:
    chain = f"{MANGLE}:RP - [0:0]\n-A PREROUTING -j RP\n-A RP -j DROP\n"
    filters = chain.replace("-A RP", "-A RP -m rpfilter --validmark -j RETURN\n-A RP", 1)
    assert fate_of(walk(chain), "prerouting").status is Status.WARNING
    assert fate_of(walk(filters), "prerouting").status is Status.OK


def test_advice_on_a_rule_tells_what_stands_behind_it() -> None:
    """Without the rule, packets that the guard is to decide on would be dropped or reset anyway."""
    chains = ":ufw-before-forward - [0:0]\n"
    named = (
        "-A FORWARD -j ufw-before-forward\n"
        "-A ufw-before-forward -m conntrack --ctstate INVALID -j DROP\n"
        "-A ufw-before-forward -m conntrack --ctstate ESTABLISHED -j ACCEPT\n"
    )
    for last, words in (
        ("", "let the guard decide"),
        (
            f"-A FORWARD -p tcp -j {RESET}\n",
            "behind it resets all others; the RST ends the connection",
        ),
        ("-A FORWARD -j DROP\n", "`-j DROP` behind it drops all others"),
    ):
        tables = tables_of(FILTER + chains + named + last)
        mets, unnamed = list(path.walk(tables, 4)), removed.without_takers(tables)
        (check,) = (
            each
            for each in fate.checks(mets, unnamed=unnamed)
            if each.id == "fate.forward" and "IPv4" in each.what
        )
        (other,) = foreign.checks(mets, unnamed=unnamed)
        assert check.todo == other.todo
        assert words in check.todo
        assert "before.rules" in check.todo
        assert ("First accept" in check.todo) is bool(last)


def test_advice_never_takes_away_what_a_program_installs() -> None:
    drop = "-m conntrack --ctstate INVALID -j DROP\n"
    for chain in ("NETAVARK_FORWARD", "nixos-fw", "UBIOS_WAN_LAN_USER", "neutron-x", "MINE"):
        text = f"{FILTER}:{chain} - [0:0]\n-A FORWARD -j {chain}\n-A {chain} {drop}"
        (check,) = foreign.checks(walk(text))
        assert "remove" not in check.todo
        assert check.todo


def test_reject_and_drop_are_told_apart() -> None:
    invalid = "-A FORWARD -p tcp -m conntrack --ctstate INVALID -j"
    reset = fate_of(walk(f"{FILTER}{invalid} {RESET}\n"), "forward")
    assert (reset.status, "reset by" in reset.what) == (Status.PROBLEM, True)
    assert "the RST ends the connection" in reset.what
    dropped = fate_of(walk(f"{FILTER}{invalid} DROP\n"), "forward")
    assert (dropped.status, "is dropped by" in dropped.what) == (Status.WARNING, True)
    rejected = fate_of(walk(f"{FILTER}{invalid} REJECT\n"), "forward")
    assert (rejected.status, "rejected with an ICMP error" in rejected.what) == (
        Status.WARNING,
        True,
    )
    (check,) = foreign.checks(walk(f"{FILTER}{invalid} {RESET}\n"))
    assert check.status is Status.PROBLEM
    assert "a plain rule resets INVALID packets" in check.what


def test_what_cannot_be_followed_is_said() -> None:
    unknown = fate_of(walk(f"{FILTER}-A FORWARD -j STEAL\n"), "forward")
    assert (unknown.status, "cannot be followed (STEAL)" in unknown.what) == (Status.NOTE, True)
    queue = fate_of(walk(f"{FILTER}-A FORWARD -j NFQUEUE --queue-num 7\n"), "forward")
    assert (queue.status, "sent elsewhere (queue 7)" in queue.what) == (Status.WARNING, True)
    aimed = "-A FORWARD -d 192.0.2.0/24 -m conntrack --ctstate INVALID -j DROP\n"
    check = fate_of(walk(FILTER + aimed), "forward")
    assert check.status is Status.WARNING
    assert "is accepted, or dropped by" in check.what
    assert check.what.endswith("depends on: -d 192.0.2.0/24")
    other = "".join(f"-A FORWARD -s 192.0.2.{n}/32 -j DROP\n" for n in range(5))
    check = fate_of(walk(FILTER + other), "forward")
    assert check.status is Status.OK
    assert check.what.endswith("-s 192.0.2.0/32, -s 192.0.2.1/32, -s 192.0.2.2/32 and more")
    assert fate_of(walk(FILTER), "forward").what.endswith("is accepted")


def test_the_order_within_our_own_table() -> None:
    def order(text: str, *more: Table) -> list[Order]:
        return [met.order for met in walk(text, *more)]

    assert order(MANGLE + OURS + THEIRS) == [Order.SHADOWED]
    assert order(MANGLE + THEIRS + OURS) == [Order.BEFORE]
    assert order(MANGLE + THEIRS) == [Order.BEFORE], "ours is added behind it"
    native = nft_rules.Ruleset(nft(hook="prerouting", priority=-150, table="nfq_guard")).tables()
    assert order(MANGLE + THEIRS, *native) == [Order.TIED]
    later = nft_rules.Ruleset(nft(hook="prerouting", priority=-149, table="nfq_guard")).tables()
    assert order(MANGLE + THEIRS, *later) == [Order.BEFORE]
    forward = THEIRS.replace("PREROUTING", "FORWARD")
    assert order(MANGLE + forward + OURS) == [Order.AFTER]


def test_chains_of_one_priority_have_no_order() -> None:
    """A reset that may come first is reported, whichever of the two is listed first."""
    reset = nft_rules.Ruleset(nft([{"reject": {"type": "tcp reset"}}], table="theirs"))
    deny = FILTER.replace("FORWARD ACCEPT", "FORWARD DROP")
    for mets in (
        walk(deny, *reset.tables()),
        list(path.walk([*reset.tables(), *tables_of(deny)], 4)),
    ):
        assert [act for act, _ in decides(mets, "forward")] == [Act.RESET, Act.DROP]
        check = fate_of(mets, "forward")
        assert check.status is Status.PROBLEM
        assert "reset by default" in check.what
        assert "unless an earlier rule decides" in check.what
    later = nft_rules.Ruleset(nft([DROPPED], table="theirs", priority=1)).tables()
    check = fate_of(walk(deny, *later), "forward")
    assert "unless" not in check.what


def test_the_work_grows_with_the_rules_and_not_faster() -> None:
    """Nodes have tens of thousands of rules, and the daemon reads them while it judges packets."""

    def calls(chains: int) -> int:
        lines = [f":C{n} - [0:0]\n" for n in range(chains)]
        lines += [f"-A FORWARD -s 10.{n >> 8}.{n & 255}.0/24 -j C{n}\n" for n in range(chains)]
        lines += [
            f"-A C{n} -p tcp --dport 80 -j ACCEPT\n-A C{n} -m state --state INVALID -j DROP\n"
            for n in range(chains)
        ]
        tables = tables_of(FILTER.replace("FORWARD ACCEPT", "FORWARD DROP") + "".join(lines))
        profile = cProfile.Profile(builtins=False)
        with profile:
            mets = list(path.walk(tables, 4))
            assert list(fate.checks(mets, unnamed=mets))
            list(foreign.checks(mets, unnamed=mets))
        return sum(each.callcount for each in profile.getstats())

    assert calls(400) < 12 * calls(50)


def test_a_set_of_senders_of_invalid_packets() -> None:
    def aimed(fills: str, asks: str, state: str = "INVALID") -> bool:
        rules = f"-A FORWARD -m conntrack --ctstate {state} {fills}\n-A FORWARD {asks} -j DROP\n"
        return fate_of(walk(FILTER + rules), "forward").status is Status.WARNING

    assert aimed("-j SET --add-set bad src", "-m set --match-set bad src")
    assert aimed("-m recent --set --name bad", "-m recent --update --name bad")
    assert not aimed("-j SET --add-set bad src", "-m set --match-set good src")
    assert not aimed("-j SET --add-set bad src", "-m set --match-set bad src", "NEW")
    assert aimed("-m recent --set --name bad -j DROP", "-s 192.0.2.1")


def test_rules_of_a_device_run_before_conntrack() -> None:
    rules = ([matching(STATE, "invalid", "in"), DROPPED], [matching(STATE, "new", "in"), DROPPED])
    tables = nft_rules.Ruleset(nft(*rules, hook="ingress")).tables()
    (check,) = foreign.checks(path.walk(tables, 4))
    assert check.status is Status.PROBLEM
    assert "hook INGRESS" in check.what
    assert "no packet is tracked" in check.what
    assert all(fate_of(list(path.walk(tables, 4)), hook).status is Status.OK for hook in path.HOOKS)


@pytest.mark.parametrize(("devices", "said"), [((), "of chain c"), (("dev0",), "dev0")])
def test_marks_of_invalid_packets_are_followed_to_a_device(
    devices: tuple[str, ...], said: str
) -> None:
    """The devices of a chain are missing in the listing of nft 1.0."""
    marked = {"mangle": {"key": MARK, "value": 5}}
    marks = nft([matching(STATE, "invalid", "in"), marked], hook="prerouting", priority=-140)
    drops = nft([matching(MARK, 5), DROPPED], hook="egress", table="d")
    if devices:
        drops = drops.replace('"egress",', f'"egress", "dev": "{devices[0]}",')
    drops = drops.replace('"inet"', '"netdev"')
    tables = nft_rules.Ruleset(marks).tables() + nft_rules.Ruleset(drops).tables()
    mets = list(path.walk(tables, 4))
    check = next(check for check in fate.checks(mets) if check.id == "fate.egress")
    assert check.status is Status.WARNING
    assert check.what.endswith(f"; depends on: oifname {said}, meta mark 5")
    (named,) = foreign.checks(mets)
    assert "hook EGRESS" in named.what


@pytest.mark.parametrize(("hook", "word"), [("ingress", "iifname"), ("egress", "oifname")])
def test_a_chain_of_devices_is_not_for_the_packets_of_others(hook: str, word: str) -> None:
    rules = [[matching(MARK, 1), {"accept": None}], [{"mangle": {"key": MARK, "value": 5}}]]
    text = nft(*rules, hook=hook, policy="drop")
    text = text.replace(f'"{hook}",', f'"{hook}", "dev": ["a0", "b0"],').replace("inet", "netdev")
    (table, _) = nft_rules.Ruleset(text).tables()
    assert not table.bases["c"].denies
    accept, write, deny = table.chains["c"]
    device = f"{word} {{ a0, b0 }}"
    assert accept.when.on[0] == device
    assert (write.when.truth, write.when.on) == (Truth.DEPENDS, (device,))
    assert (deny.act, deny.when.on) == (Act.DROP, (device,))


def test_a_rule_of_another_device_leaves_the_mark_open() -> None:
    """Packets of another device than that of the ingress chain keep their mark."""
    early = nft([{"mangle": {"key": MARK, "value": 7}}], hook="ingress", table="d")
    later = nft([matching(STATE, "invalid", "in"), matching(MARK, 0), DROPPED])
    tables = nft_rules.Ruleset(early).tables() + nft_rules.Ruleset(later).tables()
    assert fate_of(list(path.walk(tables, 4)), "forward").status is Status.WARNING


RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:INV - [0:0]\n"


@pytest.mark.parametrize(
    ("rules", "status", "words"),
    [
        (f"-A PREROUTING -j CT --ctevents new\n{THEIRS}", Status.NOTE, "it has no effect"),
        (f"-A PREROUTING -j CT --zone 3\n{THEIRS}", Status.NOTE, "has a template of an earlier"),
        (f"-A PREROUTING -j NOTRACK\n{THEIRS}", Status.NOTE, "so none matches"),
        (
            "-A PREROUTING -j CT --zone 3\n"
            "-A PREROUTING -m conntrack --ctstate INVALID -j INV\n-A INV -j DROP\n",
            Status.NOTE,
            "so none matches",
        ),
        (f"{THEIRS}-A PREROUTING -j CT --zone 3\n", Status.PROBLEM, "so every packet matches as"),
        (f"-A OUTPUT -j CT --zone 3\n{THEIRS}", Status.PROBLEM, "so every packet matches as"),
        (
            f"-A PREROUTING -i eth0 -j CT --zone 3\n{THEIRS}",
            Status.PROBLEM,
            "so every packet without a template of an earlier rule (CT, notrack) matches as",
        ),
        (
            "-A PREROUTING -j CT --zone 3\n"
            "-A PREROUTING -m conntrack ! --ctstate ESTABLISHED -j DROP\n",
            Status.PROBLEM,
            "so every packet without a template",
        ),
    ],
)
def test_a_template_is_before_a_rule_in_raw(rules: str, status: Status, words: str) -> None:
    (check,) = foreign.checks(walk(RAW + rules))
    assert check.status is status
    assert words in check.what


@pytest.mark.parametrize(
    ("priority", "status"), [(-310, Status.NOTE), (-300, Status.PROBLEM), (-290, Status.PROBLEM)]
)
def test_a_template_of_another_table(priority: int, status: Status) -> None:
    zone = {"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}
    native = nft_rules.Ruleset(nft([zone], hook="prerouting", priority=priority)).tables()
    (check,) = foreign.checks(path.walk([*tables_of(RAW + THEIRS), *native], 4))
    assert check.status is status


@pytest.mark.parametrize("priority", [-300, -201, -200, -199])
def test_a_chain_at_the_priority_of_conntrack(priority: int) -> None:
    rule = [matching(STATE, "invalid", "in"), DROPPED]
    zone = [{"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}]
    tables = nft_rules.Ruleset(nft(rule, hook="prerouting", priority=priority)).tables()
    (check,) = foreign.checks(path.walk(tables, 4))
    assert check.status is Status.PROBLEM
    assert ("it has the priority of connection tracking" in check.what) is (priority == -200)
    assert ("at that point no packet is tracked" in check.what) is (priority < -200)
    text = nft(zone, hook="prerouting", priority=-310, table="z")
    mets = path.walk([*nft_rules.Ruleset(text).tables(), *tables], 4)
    (check,) = foreign.checks(mets)
    assert ("it has no effect" in check.what) is (priority < -200)


def test_rules_for_bridged_packets() -> None:
    text = nft([matching(STATE, "invalid", "in"), DROPPED], table="proxmox-firewall-guests")
    ruleset = nft_rules.Ruleset(text.replace('"inet"', '"bridge"'))
    assert ruleset.tables() == []
    bridged = ruleset.bridged()
    (check,) = foreign.bridged(bridged, handed_over=False)
    assert (check.id, check.status) == ("foreign.pve", Status.NOTE)
    assert "(hook FORWARD, bridge): packets that this host only bridges, and" in check.what
    (check,) = foreign.bridged(bridged, handed_over=True)
    assert (check.id, check.status) == ("foreign.pve", Status.WARNING)
    assert "after the guard has seen them" in check.what
    plain = nft([DROPPED]).replace('"inet"', '"bridge"')
    assert list(foreign.bridged(nft_rules.Ruleset(plain).bridged(), handed_over=True)) == []


def test_a_rule_is_placed_by_the_jump_that_leads_to_it() -> None:
    chain = "-A X -m conntrack --ctstate INVALID -j DROP\n"
    jump = "-A PREROUTING -j X\n"
    declared = f"{MANGLE}:X - [0:0]\n"
    assert [met.order for met in walk(declared + jump + OURS + chain)] == [Order.BEFORE]
    assert [met.order for met in walk(declared + OURS + jump + chain)] == [Order.SHADOWED]
    assert walk(declared + chain) == [], "no rule jumps to the chain"


def test_an_accept_hides_packets_only_in_our_table() -> None:
    accept = THEIRS.replace("DROP", "ACCEPT")
    (check,) = foreign.checks(walk(MANGLE + accept + OURS))
    assert check.status is Status.PROBLEM
    assert "accepts INVALID packets" in check.what
    sent = f"{FILTER}{accept.replace('PREROUTING', 'OUTPUT')}"
    assert walk(sent, backend=Backend.NFT) == [], "security, with our jump, comes after filter"
    (met,) = walk(sent.replace("-j ACCEPT", "-j DROP"), backend=Backend.NFT)
    assert met.order is Order.BEFORE
    check = fate_of([met], "output")
    assert "before the guard sees it" in check.what
    assert list(foreign.checks(walk(sent))) == [], "an accept after ours harms nobody"


def test_a_rule_in_the_nat_table_has_no_effect() -> None:
    text = "*nat\n:OUTPUT ACCEPT [0:0]\n" + THEIRS.replace("PREROUTING", "OUTPUT")
    (check,) = foreign.checks(walk(text))
    assert (check.status, "no effect" in check.what) == (Status.NOTE, True)


def test_our_own_rules_are_not_foreign() -> None:
    text = (
        f"{FILTER}:NFQ_GUARD_DROP - [0:0]\n"
        "-A FORWARD -m conntrack --ctstate INVALID -m mark --mark 0x1000/0x1000 -j NFQ_GUARD_DROP\n"
        "-A NFQ_GUARD_DROP -j DROP\n"
    )
    assert walk(text) == []


def test_owners_are_recognised() -> None:
    def owner(text: str) -> str:
        return next(foreign.checks(walk(FILTER + text))).id

    drop = "-m conntrack --ctstate INVALID -j DROP\n"

    def chain(name: str) -> str:
        return owner(f":{name} - [0:0]\n-A FORWARD -j {name}\n-A {name} {drop}")

    assert chain("KUBE-FORWARD") == "foreign.kube-proxy"
    assert chain("KUBE-FIREWALL") == "foreign.kubelet"
    assert chain("KUBE-POD-FW-AAAA") == "foreign.kube-router"
    assert chain("KUBE-NWPLCY-COMMON") == "foreign.kube-router"
    assert chain("cali-tw-eth0") == "foreign.calico"
    assert chain("ISTIO_DROP") == "foreign.istio"
    assert chain("ufw6-before-input") == "foreign.ufw"
    assert chain("DOCKER-USER") == "foreign.plain", "its rules are the user's"
    assert chain("DOCKER-ISOLATION-STAGE-1") == "foreign.docker"
    for name in ("DOCKERFILTER", "KUBE-FORWARDED", "netavark2", "WEAVER", "shorewall2", "fw4x"):
        assert chain(name) == "foreign.plain"
    assert chain("INVDROP") == "foreign.csf"
    assert chain("PVEFW-FORWARD") == "foreign.pve"
    assert chain("f2b-sshd") == "foreign.fail2ban"
    assert chain("NETAVARK_FORWARD") == "foreign.netavark"
    assert chain("nixos-fw") == "foreign.nixos"
    assert chain("UBIOS_WAN_LAN_USER") == "foreign.unifi"
    assert chain("neutron-openvswi-i1a2b3c4d-5") == "foreign.neutron"
    assert chain("POST_INPUT_DROP_CHAIN") == "foreign.arno"
    assert chain("IN_SANITY") == "foreign.apf"
    assert chain("STATELESSFORWARD") == "foreign.uif"
    assert chain("nm-sh-fwd-eth1") == "foreign.network-manager"
    assert chain("FW_WAN_INVALID_DROP") == "foreign.firewalla"
    assert chain("ts-forward") == "foreign.tailscale"
    assert chain("MINE") == "foreign.plain"
    assert owner(f"-A FORWARD {drop}") == "foreign.plain"
    of_others = ("INVALID", "INVALID_DROP", "logdrop", "smurfs", "FWDLOG", "FWD_LAN", "IN_public")
    for name in (*of_others, "FW_FORWARD", "FW_INPUT", "calibrate", "ts-lan", "CTINPUT"):
        assert chain(name) == "foreign.plain", "others have chains of this name too"
    logs = ":LOGDROPIN - [0:0]\n"
    assert owner(f"{logs}:INVALID - [0:0]\n-A INPUT -j INVALID\n-A INVALID {drop}") == "foreign.csf"
    pair = ":shorewall - [0:0]\n:_net-loc - [0:0]\n-A FORWARD -j _net-loc\n"
    assert owner(f"{pair}-A _net-loc {drop}") == "foreign.shorewall"
    for beside in (":INPUT_ZONES - [0:0]\n", ":INPUT_POLICIES_pre - [0:0]\n"):
        assert owner(f"{beside}-A INPUT {drop}") == "foreign.firewalld"
    zone = ":FORWARD_dispatch - [0:0]\n:FWD_lan - [0:0]\n-A FORWARD -j FORWARD_dispatch\n"
    zone += "-A FORWARD_dispatch -i lan0 -j FWD_lan\n"
    assert owner(f"{zone}-A FWD_lan {drop}") == "foreign.firewalld", "from 2.5 on"
    own = ":CTINVALID - [0:0]\n:CTINPUT - [0:0]\n-A FORWARD -j CTINPUT\n"
    assert owner(f"{own}-A CTINPUT {drop}") == "foreign.ipfire"
    own = ":FW_FIREWALL - [0:0]\n:FW_FORWARD - [0:0]\n-A FORWARD -j FW_FORWARD\n"
    assert owner(f"{own}-A FW_FORWARD {drop}") == "foreign.firewalla"
    logged = '-A INPUT -m limit --limit 1/sec -j LOG --log-prefix "IN-unknown:"\n'
    assert owner(f"{logged}-A FORWARD {drop}") == "foreign.firehol"
    logged = '-A INPUT -j LOG --log-prefix "DROP INVALID INPUT:"\n'
    assert owner(f"{logged}-A INPUT {drop}") == "foreign.firehol"


def test_the_switch_of_proxmox_ve_is_advised_where_it_counts() -> None:
    """nf_conntrack_allow_invalid omits the rule of PVEFW-FORWARD, and no other one."""
    drop = "-m conntrack --ctstate INVALID -j DROP\n"
    chains = ":PVEFW-FORWARD - [0:0]\n:PVEFW-HOST-IN - [0:0]\n:PVEFW-Drop - [0:0]\n"
    jumps = "-A FORWARD -j PVEFW-FORWARD\n-A INPUT -j PVEFW-HOST-IN\n-A FORWARD -j PVEFW-Drop\n"
    rules = f"-A PVEFW-FORWARD {drop}-A PVEFW-HOST-IN {drop}-A PVEFW-Drop -i lan0 {drop}"
    checks = list(foreign.checks(walk(f"{FILTER}{chains}{jumps}{rules}")))
    assert {each.id for each in checks} == {"foreign.pve"}
    assert {
        each.todo.startswith("set nf_conntrack_allow_invalid: 1"): "PVEFW-FORWARD" in each.what
        for each in checks
    } == {True: True, False: False}


DOCKER = ":DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:MINE - [0:0]\n-A FORWARD -j DOCKER-USER\n"
UFW = ":ufw-before-input - [0:0]\n:ufw-logging-deny - [0:0]\n-A INPUT -j ufw-before-input\n"
CSF = ":INVDROP - [0:0]\n:LOCALINPUT - [0:0]\n-A INPUT -j LOCALINPUT\n"
SHOREWALL = ":shorewall - [0:0]\n:net-fw - [0:0]\n-A INPUT -j net-fw\n"
PVE = ":PVEFW-INPUT - [0:0]\n-A INPUT -j PVEFW-INPUT\n"
FIREWALLD = ":INPUT_ZONES - [0:0]\n:INPUT_direct - [0:0]\n-A INPUT -j INPUT_direct\n"
NAMED = "-m conntrack --ctstate INVALID"


@pytest.mark.parametrize(
    "rules",
    [
        f"{DOCKER}-A FORWARD {NAMED} -j DROP",
        f"{DOCKER}-A FORWARD -p tcp {NAMED} -j REJECT --reject-with tcp-reset",
        f"{DOCKER}-A DOCKER-USER {NAMED} -j DROP",
        f"{DOCKER}-A DOCKER-USER -j MINE\n-A MINE {NAMED} -j DROP",
        f"{UFW}-A INPUT {NAMED} -j DROP",
        f'{UFW}-A FORWARD {NAMED} -j X\n-A X -j LOG --log-prefix "[UFW BLOCK] "\n-A X -j DROP',
        f"{CSF}-A INPUT {NAMED} -j DROP",
        f"{SHOREWALL}-A INPUT {NAMED} -j DROP",
        f"{SHOREWALL}{DOCKER}-A DOCKER-USER {NAMED} -j DROP",
        f"{PVE}-A INPUT {NAMED} -j DROP",
        f"{FIREWALLD}-A INPUT -p tcp {NAMED} -j REJECT --reject-with tcp-reset",
        f"{FIREWALLD}-A INPUT_direct {NAMED} -j DROP",
        f"{FIREWALLD}-A OUTPUT {NAMED} -j DROP",
        f'-A FORWARD {NAMED} -m comment --comment "was Shorewall: rule" -j DROP',
        f'-A FORWARD {NAMED} -m comment --comment "not !fw3" -j DROP',
        f"-A FORWARD -o weave {NAMED} -j DROP",
        f'-A FORWARD -j LOG --log-prefix "IN-unknown:"\n-A FORWARD {NAMED} -j REJECT',
    ],
)  # fmt: skip
def test_a_rule_of_ones_own_beside_those_of_a_program(rules: str) -> None:
    (check,) = foreign.checks(walk(f"{FILTER}:X - [0:0]\n{rules}\n"))
    assert check.id == "foreign.plain"
    assert check.todo.startswith("find out what installs it")


def test_policies_have_owners() -> None:
    def owner(rules: str, chain: str = "FORWARD") -> str:
        text = f"*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}"
        return fate_of(walk(text), chain.lower()).todo

    assert "ip-forward-no-drop" in owner(DOCKER)
    # Docker leaves the policy of a host that forwards already; ufw sets it whenever it loads.
    assert "DEFAULT_FORWARD_POLICY" in owner(DOCKER + UFW)
    assert "ip-forward-no-drop" in owner(DOCKER + FIREWALLD)
    assert "ip-forward-no-drop" not in owner(DOCKER, "INPUT")


@pytest.mark.parametrize(
    ("comment", "owner"),
    [
        ("!fw4: Handle forwarded flows", "fw4"),
        ("!fw4", "fw4"),
        ("mine", "plain"),
        ("was !fw4: Handle forwarded flows", "plain"),
        ("x" * 200, "fw4"),
    ],
)
def test_a_rule_in_the_table_of_openwrt(comment: str, owner: str) -> None:
    """Files in /etc/nftables.d add to the table; only fw4 marks its rules."""
    rule = [matching(STATE, "invalid"), DROPPED, {"comment": comment}]
    tables = nft_rules.Ruleset(nft(rule, table="fw4")).tables()
    (check,) = foreign.checks(path.walk(tables, 4))
    assert check.id == f"foreign.{owner}"


@pytest.mark.parametrize(
    ("table", "owner"),
    [
        ("incus", "incus"),
        ("lxd", "incus"),
        ("lxdfw", "plain"),
        ("aclfwd", "plain"),
        ("fw4", "plain"),
        ("calico_block", "plain"),
        ("proxmox-firewall-guests", "pve"),
        ("istio-proxy-mangle", "istio"),
        ("vyos_filter", "vyos"),
        ("proxmox-firewall", "pve"),
        ("nixos-fw", "nixos"),
        ("mine", "plain"),
    ],
)
def test_owners_of_nftables_are_recognised(table: str, owner: str) -> None:
    tables = nft_rules.Ruleset(nft([matching(STATE, "invalid"), DROPPED], table=table)).tables()
    checks = foreign.checks(path.walk([each for each in tables if each.family == 4], 4))
    assert [each.id for each in checks] == [f"foreign.{owner}"]


def test_a_rule_behind_a_chain_with_synproxy_belongs_to_it() -> None:
    text = (
        f"{FILTER}:SP - [0:0]\n:MORE - [0:0]\n-A INPUT -p tcp --dport 443 -j MORE\n"
        "-A MORE -j SP\n-A SP -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY\n"
        "-A INPUT -m conntrack --ctstate INVALID -j DROP\n"
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
    )
    owners = {
        (met.hook, met.finding.rule.act): owner_of(met.finding).id
        for met in walk(text)
        if not met.finding.default
    }
    assert owners == {
        ("input", Act.ELSEWHERE): "synproxy",
        ("input", Act.DROP): "synproxy",
        ("forward", Act.DROP): "plain",
    }


def test_synproxy_in_a_chain_of_ones_own() -> None:
    jump = "-A INPUT -p tcp -m tcp --dport 443 -j SP\n"
    answer = "-A SP -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm\n"
    drop = "-A INPUT -m conntrack --ctstate INVALID -j DROP\n"

    def owners(rules: str) -> list[str]:
        checks = foreign.checks(walk(f"{FILTER}:SP - [0:0]\n{rules}"))
        return [each.id for each in checks if "drops" in each.what]

    assert owners(f"{answer}{jump}{drop}") == ["foreign.synproxy"]
    assert owners(f"{answer}{jump}{drop.replace('INPUT', 'FORWARD')}") == ["foreign.plain"]
    # It takes what SYNPROXY would answer.
    assert owners(f"{answer}{drop}{jump}") == ["foreign.plain"]
    assert owners(f"{answer.replace('INVALID,', '')}{jump}{drop}") == ["foreign.plain"]


def test_synproxy_is_left_alone() -> None:
    text = (
        f"{FILTER}-A FORWARD -p tcp -m tcp --dport 443 -m conntrack --ctstate INVALID,UNTRACKED "
        "-j SYNPROXY --sack-perm\n"
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
    )
    mets = walk(text)
    assert {(each.id, each.status) for each in foreign.checks(mets)} == {
        ("foreign.synproxy", Status.NOTE)
    }
    assert all("leave it" in each.todo for each in foreign.checks(mets))
    assert fate_of(mets, "forward").status is Status.NOTE


@pytest.mark.parametrize("deny", ["FORWARD -j DROP", "FORWARD -p tcp -j DROP", ""])
def test_a_default_deny_that_asks_for_no_state(deny: str) -> None:
    """It drops packets of connections as well, and is no accept."""
    accept = "-A FORWARD -s 192.0.2.0/24 -j ACCEPT\n"
    text = FILTER if deny else FILTER.replace(":FORWARD ACCEPT", ":FORWARD DROP")
    check = fate_of(walk(f"{text}{accept}" + (f"-A {deny}\n" if deny else "")), "forward")
    assert check.status is Status.NOTE
    assert "is dropped by default: `" in check.what
    assert check.what.endswith(
        ", as other packets are, unless a rule for other properties accepts it; depends on: "
        "-s 192.0.2.0/24"
    )


def test_a_filter_with_a_policy_is_no_default_deny() -> None:
    """It accepts most packets by what is not seen in the rule."""
    deny = FILTER.replace(":FORWARD ACCEPT", ":FORWARD DROP")
    check = fate_of(walk(f"{deny}-A FORWARD -m rpfilter -j ACCEPT\n"), "forward")
    assert check.status is Status.OK


def test_what_prerouting_takes_does_not_get_further() -> None:
    reset = f"-A FORWARD -p tcp -m conntrack --ctstate INVALID -j {RESET}\n"
    mets = walk(f"{MANGLE}{THEIRS}{FILTER}{reset}-A OUTPUT -j DROP\n")
    assert fate_of(mets, "prerouting").status is Status.WARNING
    check = fate_of(mets, "forward")
    assert check.status is Status.OK
    assert check.what == "an allowed packet (IPv4) is dropped in PREROUTING already"
    assert fate_of(mets, "output").status is Status.WARNING, "this host sends them"
    by_hook = {check.status: check.what for check in foreign.checks(mets)}
    assert "none gets there" in by_hook[Status.NOTE]
    assert "drops INVALID packets in legacy table mangle" in by_hook[Status.PROBLEM]
    some = walk(f"{MANGLE}{THEIRS.replace('-m', '-i e -m', 1)}{FILTER}{reset}")
    assert fate_of(some, "forward").status is Status.PROBLEM


def test_behind_a_rule_that_cannot_be_followed() -> None:
    """It may let the packet pass, to a rule that resets it."""
    text = f"{FILTER}-A FORWARD -j STEAL\n-A FORWARD -p tcp -m state --state INVALID -j {RESET}\n"
    check = fate_of(walk(text), "forward")
    assert check.status is Status.PROBLEM
    assert "is reset by `" in check.what
    assert "(or taken by a rule that cannot be followed by `-j STEAL` in chain" in check.what


def test_a_drop_before_conntrack_of_those_who_sent_invalid_packets() -> None:
    """It takes packets of these senders only, not every packet."""
    raw = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m recent --rcheck --name bad -j DROP\n"
    rule = "-A INPUT -m conntrack --ctstate INVALID -m recent --name bad --set\n"
    (check,) = foreign.checks(walk(f"{raw}{FILTER}{rule}"))
    assert check.status is Status.WARNING
    assert "a plain rule drops packets of a list to which INVALID ones are added" in check.what
    assert "before connection tracking: the guard never sees them" in check.what
    named = raw.replace("-m recent --rcheck --name bad", "-m state --state INVALID")
    (check,) = foreign.checks(walk(named))
    assert check.status is Status.PROBLEM
    assert "every packet matches as INVALID" in check.what
