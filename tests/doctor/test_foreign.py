# SPDX-License-Identifier: MIT
"""The doctor follows an INVALID segment through listings of rules."""

import json
from collections.abc import Sequence

import pytest

from nfq_guard.doctor import fate, foreign, hidden, iptables_rules, marks, nft_rules, path
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import Act, MarkWrite, Table, Truth
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse
from nfq_guard.policyfile import load_compiled

MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n"
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
OURS = "-A PREROUTING -m conntrack --ctstate INVALID -j NFQ_GUARD\n"
THEIRS = "-A PREROUTING -m conntrack --ctstate INVALID -j DROP\n"
RESET = "REJECT --reject-with tcp-reset"


def _tables(text: str, backend: Backend = Backend.LEGACY) -> list[Table]:
    return iptables_rules.tables(parse(text), backend, Family.IPV4)


def _walk(text: str, *more: Table, backend: Backend = Backend.LEGACY) -> list[Met]:
    return list(path.walk([*_tables(text, backend), *more], 4))


def _decides(mets: Sequence[Met], hook: str) -> list[tuple[Act, Truth]]:
    """What the packet may meet in a hook that decides, and whether it surely does."""
    return [
        (met.finding.rule.act, Truth.YES if met.finding.certain else Truth.DEPENDS)
        for met in mets
        if met.hook == hook
    ]


def _forward(*rules: str, chains: str = "") -> list[tuple[Act, Truth]]:
    text = FILTER + chains + "".join(f"-A {rule}\n" for rule in rules)
    return _decides(_walk(text), "forward")


def _fate(mets: Sequence[Met], hook: str) -> Check:
    (check,) = (
        each
        for each in fate.checks(mets)
        if each.id == f"fate.{hook}" and ("IPv4" in each.what or "IPv6" not in each.what)
    )
    return check


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
        ("NFQUEUE --queue-num 7 --queue-bypass", Act.ELSEWHERE),
        ("NFQUEUE --queue-balance 1:4", Act.ELSEWHERE),
        ("TPROXY --on-port 15006 --on-ip 127.0.0.1", Act.ELSEWHERE),
        ("SYNPROXY --sack-perm", Act.ELSEWHERE),
        ("STEAL", Act.UNKNOWN),
        ('LOG --log-prefix "-j DROP"', None),
        ("RETURN", None),
        ("CT --notrack", None),
        ("", None),
    ],
)
def test_targets_of_iptables(target: str, act: Act | None) -> None:
    jump = f"-j {target}" if target else ""
    assert _forward(f"FORWARD {jump}") == ([] if act is None else [(act, Truth.YES)])


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
    (met,) = _walk(
        f"{FILTER}{chains}-A FORWARD -i eth0 -j X\n-A FORWARD -m state --state INVALID -j X\n"
        "-A X -j DROP\n"
    )
    assert met.finding.truth is Truth.YES
    assert met.finding.state


def test_default_deny_is_told_with_its_chain() -> None:
    deny = FILTER.replace(":FORWARD ACCEPT", ":FORWARD DROP")
    established = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    check = _fate(_walk(deny + established), "forward")
    assert check.status is Status.WARNING
    assert "dropped by default: `policy drop` (legacy table filter, chain FORWARD)" in check.what
    check = _fate(_walk(deny + established + "-A FORWARD -i lan0 -j ACCEPT\n"), "forward")
    assert "unless an earlier rule decides; depends on: -i lan0" in check.what
    check = _fate(_walk(FILTER + established + "-A FORWARD -j DROP\n"), "forward")
    assert "dropped by default: `-j DROP`" in check.what


def test_reject_and_drop_are_told_apart() -> None:
    invalid = "-A FORWARD -p tcp -m conntrack --ctstate INVALID -j"
    reset = _fate(_walk(f"{FILTER}{invalid} {RESET}\n"), "forward")
    assert (reset.status, "reset by" in reset.what) == (Status.PROBLEM, True)
    assert "the RST ends the connection" in reset.what
    dropped = _fate(_walk(f"{FILTER}{invalid} DROP\n"), "forward")
    assert (dropped.status, "is dropped by" in dropped.what) == (Status.WARNING, True)
    rejected = _fate(_walk(f"{FILTER}{invalid} REJECT\n"), "forward")
    assert (rejected.status, "rejected with an ICMP error" in rejected.what) == (
        Status.WARNING,
        True,
    )
    (check,) = foreign.checks(_walk(f"{FILTER}{invalid} {RESET}\n"))
    assert check.status is Status.PROBLEM
    assert "a plain rule resets INVALID packets" in check.what


def test_what_cannot_be_followed_is_said() -> None:
    unknown = _fate(_walk(f"{FILTER}-A FORWARD -j STEAL\n"), "forward")
    assert (unknown.status, "cannot be followed (STEAL)" in unknown.what) == (Status.NOTE, True)
    queue = _fate(_walk(f"{FILTER}-A FORWARD -j NFQUEUE --queue-num 7\n"), "forward")
    assert (queue.status, "sent elsewhere (queue 7)" in queue.what) == (Status.WARNING, True)
    aimed = "-A FORWARD -d 192.0.2.0/24 -m conntrack --ctstate INVALID -j DROP\n"
    check = _fate(_walk(FILTER + aimed), "forward")
    assert check.status is Status.WARNING
    assert "is accepted, or dropped by" in check.what
    assert check.what.endswith("depends on: -d 192.0.2.0/24")
    other = "".join(f"-A FORWARD -s 192.0.2.{n}/32 -j DROP\n" for n in range(5))
    check = _fate(_walk(FILTER + other), "forward")
    assert check.status is Status.OK
    assert check.what.endswith("-s 192.0.2.0/32, -s 192.0.2.1/32, -s 192.0.2.2/32 and more")
    assert _fate(_walk(FILTER), "forward").what.endswith("is accepted")


def test_the_order_within_our_own_table() -> None:
    def order(text: str, *more: Table) -> list[Order]:
        return [met.order for met in _walk(text, *more)]

    assert order(MANGLE + OURS + THEIRS) == [Order.SHADOWED]
    assert order(MANGLE + THEIRS + OURS) == [Order.BEFORE]
    assert order(MANGLE + THEIRS) == [Order.BEFORE], "ours is added behind it"
    native = nft_rules.Ruleset(_nft(hook="prerouting", priority=-150, table="nfq_guard")).tables()
    assert order(MANGLE + THEIRS, *native) == [Order.TIED]
    later = nft_rules.Ruleset(_nft(hook="prerouting", priority=-149, table="nfq_guard")).tables()
    assert order(MANGLE + THEIRS, *later) == [Order.BEFORE]
    forward = THEIRS.replace("PREROUTING", "FORWARD")
    assert order(MANGLE + forward + OURS) == [Order.AFTER]


def test_a_rule_is_placed_by_the_jump_that_leads_to_it() -> None:
    chain = "-A X -m conntrack --ctstate INVALID -j DROP\n"
    jump = "-A PREROUTING -j X\n"
    declared = f"{MANGLE}:X - [0:0]\n"
    assert [met.order for met in _walk(declared + jump + OURS + chain)] == [Order.BEFORE]
    assert [met.order for met in _walk(declared + OURS + jump + chain)] == [Order.SHADOWED]
    assert _walk(declared + chain) == [], "no rule jumps to the chain"


def test_an_accept_hides_packets_only_in_our_table() -> None:
    accept = THEIRS.replace("DROP", "ACCEPT")
    (check,) = foreign.checks(_walk(MANGLE + accept + OURS))
    assert check.status is Status.PROBLEM
    assert "accepts INVALID packets" in check.what
    sent = f"{FILTER}{accept.replace('PREROUTING', 'OUTPUT')}"
    assert _walk(sent, backend=Backend.NFT) == [], "security, with our jump, comes after filter"
    (met,) = _walk(sent.replace("-j ACCEPT", "-j DROP"), backend=Backend.NFT)
    assert met.order is Order.BEFORE
    check = _fate([met], "output")
    assert "before the guard sees it" in check.what
    assert list(foreign.checks(_walk(sent))) == [], "an accept after ours harms nobody"


def test_a_rule_in_the_nat_table_has_no_effect() -> None:
    text = "*nat\n:OUTPUT ACCEPT [0:0]\n" + THEIRS.replace("PREROUTING", "OUTPUT")
    (check,) = foreign.checks(_walk(text))
    assert (check.status, "no effect" in check.what) == (Status.NOTE, True)


def test_our_own_rules_are_not_foreign() -> None:
    text = (
        f"{FILTER}:NFQ_GUARD_DROP - [0:0]\n"
        "-A FORWARD -m conntrack --ctstate INVALID -m mark --mark 0x1000/0x1000 -j NFQ_GUARD_DROP\n"
        "-A NFQ_GUARD_DROP -j DROP\n"
    )
    assert _walk(text) == []


def test_owners_are_recognised() -> None:
    def owner(text: str) -> str:
        return next(foreign.checks(_walk(FILTER + text))).id

    drop = "-m conntrack --ctstate INVALID -j DROP\n"

    def chain(name: str) -> str:
        return owner(f":{name} - [0:0]\n-A FORWARD -j {name}\n-A {name} {drop}")

    assert chain("KUBE-FORWARD") == "foreign.kube-proxy"
    assert chain("KUBE-POD-FW-AAAA") == "foreign.kube-router"
    assert chain("cali-tw-eth0") == "foreign.calico"
    assert chain("ISTIO_DROP") == "foreign.istio"
    assert chain("ufw6-before-input") == "foreign.ufw"
    assert chain("DOCKER-USER") == "foreign.docker"
    assert chain("INVDROP") == "foreign.csf"
    assert chain("PVEFW-FORWARD") == "foreign.pve"
    assert chain("f2b-sshd") == "foreign.fail2ban"
    assert chain("MINE") == "foreign.plain"
    assert owner(f"-A FORWARD {drop}") == "foreign.plain"
    for name in ("INVALID", "INVALID_DROP", "logdrop", "smurfs", "FWDLOG"):
        assert chain(name) == "foreign.plain", "others have chains of this name too"
    logs = ":LOGDROPIN - [0:0]\n"
    assert owner(f"{logs}:INVALID - [0:0]\n-A INPUT -j INVALID\n-A INVALID {drop}") == "foreign.csf"
    pair = ":shorewall - [0:0]\n:_net-loc - [0:0]\n-A FORWARD -j _net-loc\n"
    assert owner(f"{pair}-A _net-loc {drop}") == "foreign.shorewall"
    beside = ":INPUT_ZONES - [0:0]\n"
    assert owner(f"{beside}-A INPUT {drop}") == "foreign.firewalld"
    logged = '-A INPUT -m limit --limit 1/sec -j LOG --log-prefix "IN-unknown:"\n'
    assert owner(f"{logged}-A FORWARD {drop}") == "foreign.firehol"
    logged = '-A INPUT -j LOG --log-prefix "DROP INVALID INPUT:"\n'
    assert owner(f"{logged}-A INPUT {drop}") == "foreign.firehol"


def test_synproxy_is_left_alone() -> None:
    text = (
        f"{FILTER}-A FORWARD -p tcp -m tcp --dport 443 -m conntrack --ctstate INVALID,UNTRACKED "
        "-j SYNPROXY --sack-perm\n"
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
    )
    mets = _walk(text)
    assert {(each.id, each.status) for each in foreign.checks(mets)} == {
        ("foreign.synproxy", Status.NOTE)
    }
    assert all("leave it" in each.todo for each in foreign.checks(mets))
    assert _fate(mets, "forward").status is Status.NOTE


def _nft(
    *rules: object,
    hook: str = "forward",
    priority: int = 0,
    table: str = "t",
    policy: str = "accept",
    more: Sequence[object] = (),
) -> str:
    where = {"family": "inet", "table": table}
    base = {**where, "name": "c", "type": "filter", "hook": hook, "prio": priority}
    items: list[object] = [{"metainfo": {}}, {"table": {"family": "inet", "name": table}}]
    items += [{"chain": {**base, "policy": policy}}, {"chain": {**where, "name": "x"}}, *more]
    items += [{"rule": {**where, "chain": "c", "expr": expr}} for expr in rules]
    items.append({"rule": {**where, "chain": "x", "expr": [{"counter": {}}, {"drop": None}]}})
    return json.dumps({"nftables": items})


STATE = {"ct": {"key": "state"}}
NAME = {"meta": {"key": "iifname"}}


def _match(left: object, right: object, sign: str = "==") -> dict[str, object]:
    return {"match": {"op": sign, "left": left, "right": right}}


def _masked(mask: object) -> dict[str, object]:
    return {"&": [STATE, mask]}


SETS: list[object] = [
    {"set": {"family": "inet", "table": "t", "name": "st", "elem": ["invalid", "new"]}},
    {"set": {"family": "inet", "table": "t", "name": "empty"}},
    {
        "set": {
            "family": "inet",
            "table": "t",
            "name": "timed",
            "elem": [{"elem": {"val": "invalid", "timeout": 5}}],
        }
    },
    {
        "map": {
            "family": "inet",
            "table": "t",
            "name": "vm",
            "map": "verdict",
            "elem": [["established", {"accept": None}], ["invalid", {"drop": None}]],
        }
    },
]


@pytest.mark.parametrize(
    ("match", "truth"),
    [
        (_match(STATE, "invalid", "in"), Truth.YES),
        (_match(STATE, ["invalid", "untracked"], "in"), Truth.YES),
        (_match(STATE, ["established", "related"], "in"), Truth.NO),
        (_match(STATE, ["established", "related", "new"], "!"), Truth.YES),
        (_match(STATE, ["invalid", "new"], "!"), Truth.NO),
        (_match(STATE, "invalid"), Truth.YES),
        (_match(STATE, {"|": ["invalid", "new"]}), Truth.NO),
        (_match(STATE, {"|": ["invalid", "new"]}, "!="), Truth.YES),
        (_match(STATE, {"|": ["established", "related"]}, "!="), Truth.YES),
        (_match(STATE, "invalid", "!="), Truth.NO),
        (_match(STATE, {"set": ["invalid", "new"]}), Truth.YES),
        (_match(STATE, {"set": ["established", "related"]}, "!="), Truth.YES),
        (_match(STATE, {"set": ["established", "invalid"]}, "!="), Truth.NO),
        (_match(STATE, 1), Truth.YES),
        (_match(STATE, {"range": [0, 3]}), Truth.YES),
        (_match(STATE, 8, "<"), Truth.YES),
        (_match(STATE, 8, ">="), Truth.NO),
        (_match(STATE, "@st"), Truth.YES),
        (_match(STATE, "@timed"), Truth.YES),
        (_match(STATE, "@empty"), Truth.NO),
        (_match(STATE, "@missing"), Truth.NO),
        (_match(_masked("invalid"), "invalid"), Truth.YES),
        (_match(_masked(["invalid", "new"]), ["invalid", "new"]), Truth.NO),
        (_match(_masked(["invalid", "new"]), "invalid", "!="), Truth.NO),
        (_match(_masked(["established", "related"]), 0), Truth.YES),
        (
            _match({"concat": [STATE, NAME]}, {"set": [{"concat": ["invalid", "eth0"]}]}),
            Truth.DEPENDS,
        ),
        (_match({"concat": [STATE, NAME]}, {"set": [{"concat": ["new", "eth0"]}]}), Truth.NO),
        (_match({"concat": [STATE, NAME]}, {"set": [{"concat": ["invalid", "lo"]}]}), Truth.NO),
        (_match({"concat": [STATE, NAME]}, {"set": ["odd"]}), Truth.DEPENDS),
        (
            _match(
                {"concat": [STATE, {"meta": {"key": "l4proto"}}]},
                {"set": [{"concat": ["invalid", "tcp"]}]},
            ),
            Truth.YES,
        ),
        (_match({"concat": [STATE, {"ct": {"key": "mark"}}]}, {"set": []}), Truth.NO),
        (_match(NAME, "eth0"), Truth.DEPENDS),
        (_match(NAME, "lo"), Truth.NO),
        (_match(NAME, "lo", "!="), Truth.YES),
        (_match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), Truth.YES),
        (_match({"meta": {"key": "l4proto"}}, 6), Truth.YES),
        (_match({"meta": {"key": "l4proto"}}, {"range": [17, 20]}), Truth.NO),
        (_match({"meta": {"key": "l4proto"}}, "tcp", "!="), Truth.NO),
        (_match({"meta": {"key": "nfproto"}}, "ipv4"), Truth.YES),
        (_match({"meta": {"key": "nfproto"}}, "ipv6"), Truth.NO),
        (_match({"meta": {"key": "protocol"}}, "ip"), Truth.YES),
        (_match({"meta": {"key": "pkttype"}}, "unicast"), Truth.DEPENDS),
        (_match({"&": [{"meta": {"key": "mark"}}, 256]}, 256), Truth.DEPENDS),
        (_match({"payload": {"protocol": "ip", "field": "protocol"}}, "tcp"), Truth.YES),
        (_match({"payload": {"protocol": "ip", "field": "saddr"}}, "192.0.2.1"), Truth.DEPENDS),
        (_match({"payload": {"protocol": "ip6", "field": "saddr"}}, "2001:db8::1"), Truth.NO),
        (_match({"payload": {"protocol": "udp", "field": "dport"}}, 53), Truth.NO),
        (_match({"payload": {"protocol": "tcp", "field": "flags"}}, "syn", "in"), Truth.DEPENDS),
        (_match({"payload": {"base": "th", "offset": 0, "len": 16}}, 80), Truth.DEPENDS),
        # Without an entry the rule ends, also where the match is negated.
        (_match({"ct": {"key": "mark"}}, 5), Truth.NO),
        (_match({"ct": {"key": "status"}}, "dnat", "!"), Truth.NO),
        (_match({"&": [{"ct": {"key": "mark"}}, 1]}, 1, "!="), Truth.NO),
        (_match({"fib": {"result": "oif", "flags": ["saddr"]}}, False), Truth.DEPENDS),
        (_match(STATE, {"odd": 1}, "in"), Truth.DEPENDS),
        (_match(STATE, {"odd": 1}), Truth.DEPENDS),
        (_match(STATE, {"range": ["odd", 3]}), Truth.DEPENDS),
        ({"limit": {"rate": 5, "per": "second"}}, Truth.DEPENDS),
        ({"xt": {"type": "match", "name": "recent"}}, Truth.DEPENDS),
    ],
)
def test_matches_of_nftables(match: object, truth: Truth) -> None:
    tables = nft_rules.Ruleset(_nft([match, {"drop": None}], more=SETS)).tables()
    expected = [] if truth is Truth.NO else [(Act.DROP, truth)]
    assert _decides(list(path.walk(tables, 4)), "forward") == expected


def _vmap(key: object, *pairs: object) -> dict[str, object]:
    return {"vmap": {"key": key, "data": {"set": list(pairs)}}}


DROPPED = {"drop": None}
ACCEPTED = {"accept": None}


@pytest.mark.parametrize(
    ("vmap", "found"),
    [
        (_vmap(STATE, ["established", ACCEPTED], ["invalid", DROPPED]), [(Act.DROP, Truth.YES)]),
        (_vmap(STATE, ["invalid", {"jump": {"target": "x"}}]), [(Act.DROP, Truth.YES)]),
        (_vmap(STATE, ["invalid", {"goto": {"target": "x"}}]), [(Act.DROP, Truth.YES)]),
        (_vmap(STATE, ["new", DROPPED]), []),
        (_vmap(STATE, ["new", ACCEPTED], ["*", DROPPED]), [(Act.DROP, Truth.YES)]),
        (_vmap(STATE, ["invalid", ACCEPTED], ["*", DROPPED]), [(Act.ACCEPT, Truth.YES)]),
        ({"vmap": {"key": STATE, "data": "@vm"}}, [(Act.DROP, Truth.YES)]),
        ({"vmap": {"key": STATE, "data": "@missing"}}, []),
        (_vmap({"ct": {"key": "mark"}}, [1, DROPPED], ["*", DROPPED]), []),
        (_vmap(NAME, ["lo", ACCEPTED], ["eth0", DROPPED]), [(Act.DROP, Truth.DEPENDS)]),
        (
            _vmap({"concat": [STATE, NAME]}, [{"concat": ["invalid", "eth0"]}, DROPPED]),
            [(Act.DROP, Truth.DEPENDS)],
        ),
        (
            _vmap({"numgen": {"mode": "inc", "mod": 2}}, [0, DROPPED], [1, ACCEPTED]),
            [(Act.DROP, Truth.DEPENDS), (Act.ACCEPT, Truth.DEPENDS)],
        ),
    ],
)
def test_verdict_maps(vmap: object, found: list[tuple[Act, Truth]]) -> None:
    tables = nft_rules.Ruleset(_nft([vmap], more=SETS)).tables()
    assert _decides(list(path.walk(tables, 4)), "forward") == found


@pytest.mark.parametrize(
    ("verdict", "act"),
    [
        ({"reject": None}, Act.REJECT),
        ({"reject": {"type": "icmpx", "expr": "port-unreachable"}}, Act.REJECT),
        ({"reject": {"type": "tcp reset"}}, Act.RESET),
        ({"queue": {"num": 3}}, Act.ELSEWHERE),
        ({"queue": None}, Act.ELSEWHERE),
        ({"tproxy": {"port": 50080}}, Act.ELSEWHERE),
        ({"synproxy": {"mss": 1460}}, Act.ELSEWHERE),
        ({"xt": None}, Act.UNKNOWN),
        ({"xt": {"type": "target", "name": "STEAL"}}, Act.UNKNOWN),
        ({"return": None}, None),
        ({"continue": None}, None),
        ({"log": {"prefix": "x: "}}, None),
    ],
)
def test_verdicts_of_nftables(verdict: object, act: Act | None) -> None:
    tables = nft_rules.Ruleset(_nft([verdict])).tables()
    found = _decides(list(path.walk(tables, 4)), "forward")
    assert found == ([] if act is None else [(act, Truth.YES)])


def test_rules_of_nftables_in_words() -> None:
    rules = [
        [_match(STATE, ["invalid", "new"], "in"), {"counter": {}}, {"drop": None}],
        [_match(NAME, {"set": ["a", "b"]}, "!="), {"reject": {"type": "tcp reset"}}],
        [_match(_masked("invalid"), 1), {"log": {"prefix": "x"}}, {"jump": {"target": "x"}}],
        [_vmap(STATE, ["invalid", DROPPED]), {"queue": {"num": 1}}],
        [
            _match({"payload": {"protocol": "tcp", "field": "dport"}}, {"range": [1, 9]}),
            {"reject": None},
        ],
        [
            _match({"meta": {"key": "mark"}}, {"prefix": {"addr": "192.0.2.0", "len": 24}}),
            {"vmap": {"key": STATE, "data": "@vm"}},
            DROPPED,
        ],
        [_match({"concat": [STATE, NAME]}, {"elem": {"val": 1}}), {"x" * 200: None}],
    ]
    tables = nft_rules.Ruleset(_nft(*rules)).tables()
    texts = list(dict.fromkeys(rule.text for rule in tables[0].chains["c"]))
    assert texts == [
        "ct state invalid,new drop",
        "iifname != { a, b } reject with tcp reset",
        '(ct state & invalid) == 1 log prefix "x" jump x',
        "ct state vmap { invalid : drop } queue",
        "tcp dport 1-9 reject",
        "meta mark 192.0.2.0/24 ct state vmap @vm drop",
        "ct state . iifname 1 " + "x" * 96 + "...",
    ]


@pytest.mark.parametrize(
    ("hook", "priority", "order"),
    [
        ("prerouting", -300, Order.UNTRACKED),
        ("prerouting", -200, Order.UNTRACKED),
        ("output", -160, Order.BEFORE),
        ("output", -150, Order.TIED),
        ("prerouting", -149, Order.AFTER),
        ("forward", -300, Order.AFTER),
        ("input", 0, Order.AFTER),
    ],
)
def test_nftables_priorities(hook: str, priority: int, order: Order) -> None:
    text = _nft([_match(STATE, "invalid", "in"), DROPPED], hook=hook, priority=priority)
    (met,) = path.walk(nft_rules.Ruleset(text).tables(), 6)
    assert (met.order, met.hook) == (order, hook)


def test_a_chain_after_one_that_drops_is_not_reached() -> None:
    first = nft_rules.Ruleset(_nft([DROPPED], priority=-1)).tables()
    second = nft_rules.Ruleset(_nft([{"reject": None}], priority=1, table="u")).tables()
    assert _decides(list(path.walk([*second, *first], 4)), "forward") == [(Act.DROP, Truth.YES)]
    deny = nft_rules.Ruleset(_nft([ACCEPTED], policy="drop")).tables()
    assert _decides(list(path.walk([*deny, *second], 4)), "forward") == [
        (Act.ACCEPT, Truth.YES),
        (Act.REJECT, Truth.YES),
    ], "an accept ends its own base chain only"


def test_our_native_table_is_not_foreign() -> None:
    text = _nft([_match(STATE, "invalid"), DROPPED], table="nfq_guard")
    ruleset = nft_rules.Ruleset(text)
    assert ruleset.ours
    assert list(path.walk(ruleset.tables(), 4)) == []


def test_chains_of_iptables_in_nfts_list_are_left_to_iptables() -> None:
    where = {"family": "ip", "table": "security"}
    base = {**where, "name": "OUTPUT", "type": "filter", "hook": "output", "prio": 150}
    rule = {**where, "chain": "OUTPUT", "expr": [DROPPED], "comment": "theirs"}
    text = json.dumps({"nftables": [{"chain": base}, {"rule": rule}]})
    ruleset = nft_rules.Ruleset(text)
    assert list(path.walk(ruleset.tables(), 4)) == []
    (met,) = path.walk(ruleset.tables(frozenset({("ip", "security")})), 4)
    assert met.finding.rule.text == 'drop comment "theirs"'
    assert list(path.walk(ruleset.tables(frozenset({("ip", "security")})), 6)) == []


def test_flow_tables() -> None:
    text = json.dumps({"nftables": [{"flowtable": {"family": "ip", "table": "t", "name": "ft"}}]})
    ruleset = nft_rules.Ruleset(text)
    (check,) = nft_rules.flowtables(ruleset.flowtables)
    assert check.status is Status.NOTE
    assert list(nft_rules.flowtables([])) == []


ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("rule", "write"),
    [
        ("-j MARK --set-xmark 0x4000/0x4000", MarkWrite(ALL & ~0x4000, 0x4000)),
        ("-j MARK --set-xmark 0x1/0xffffffff", MarkWrite(0, 1)),
        ("-j MARK --set-mark 1", MarkWrite(0, 1)),
        ("-j MARK --set-mark 0x10/0xf", MarkWrite(ALL & ~0x1F, 0x10)),
        ("-j MARK --set-xmark 0x0/0x1000", MarkWrite(ALL & ~0x1000, 0)),
        ("-j MARK --and-mark 0xff", MarkWrite(0xFF, 0)),
        ("-j MARK --or-mark 0x1000", MarkWrite(ALL & ~0x1000, 0x1000)),
        ("-j MARK --xor-mark 0x1", MarkWrite(ALL, 1)),
        ("-j MARK --set-xmark nonsense/0x1", MarkWrite(ALL & ~1, 0)),
        ("-j MARK", None),
        # An INVALID packet has no entry whose mark could be restored.
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", None),
        ("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", None),
    ],
)
def test_how_iptables_writes_the_mark(rule: str, write: MarkWrite | None) -> None:
    (found,) = _tables(f"{FILTER}-A FORWARD {rule}\n")[0].chains["FORWARD"]
    assert found.mark == write


MARK = {"meta": {"key": "mark"}}


@pytest.mark.parametrize(
    ("value", "write"),
    [
        (1, MarkWrite(0, 1)),
        (MARK, MarkWrite(ALL, 0)),
        ({"|": [MARK, 0x10]}, MarkWrite(ALL & ~0x10, 0x10)),
        ({"&": [MARK, 0xFF]}, MarkWrite(0xFF, 0)),
        ({"^": [{"&": [MARK, 0xFF]}, 3]}, MarkWrite(0xFF, 3)),
        ({"|": [MARK, {"jhash": {}}]}, MarkWrite(0, 0)),
        ({"jhash": {"mod": 2}}, MarkWrite(0, 0)),
        ({"map": {"key": STATE, "data": {"set": [["invalid", 5]]}}}, MarkWrite(0, 0)),
        # The rule ends where it reads the mark of the entry that is not there.
        ({"ct": {"key": "mark"}}, None),
        ({"|": [{"ct": {"key": "mark"}}, 1]}, None),
    ],
)
def test_how_nftables_writes_the_mark(value: object, write: MarkWrite | None) -> None:
    rule = [{"mangle": {"key": MARK, "value": value}}, DROPPED]
    tables = nft_rules.Ruleset(_nft(rule)).tables()
    rules = tables[0].chains["c"]
    assert [each.mark for each in rules if each.mark is not None] == (
        [] if write is None else [write]
    )
    decides = _decides(list(path.walk(tables, 4)), "forward")
    assert ((Act.DROP, Truth.YES) in decides) == (write is not None)


def test_other_keys_than_the_mark_are_not_followed() -> None:
    rule = [{"mangle": {"key": {"ct": {"key": "mark"}}, "value": MARK}}, DROPPED]
    tables = nft_rules.Ruleset(_nft(rule)).tables()
    assert _decides(list(path.walk(tables, 4)), "forward") == [(Act.DROP, Truth.YES)]


def test_rules_that_write_the_mark_of_unjudged_packets() -> None:
    def found(text: str) -> list[Check]:
        return list(marks.marks(_walk(text), 0x1000))

    set_it = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
    rules = "-A FORWARD -j MARK --or-mark 0x1000\n-A FORWARD -i e -j MARK --or-mark 0x1001\n"
    (bad,) = found(set_it + rules)
    assert (bad.status, "may set" in bad.what, "1 more" in bad.what) == (Status.WARNING, True, True)
    (bad,) = found(f"{set_it}-A FORWARD -j MARK --set-xmark 0x1/0xffffffff\n")
    assert (bad.status, "may clear" in bad.what) == (Status.WARNING, True)
    for harmless in (
        "-A FORWARD -j MARK --set-xmark 0x1/0xff\n",
        "-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n",
        "-A POSTROUTING -j MARK --set-xmark 0x1000/0x1000\n",
        "-A POSTROUTING -j MARK --set-xmark 0x1/0xffffffff\n",
        "-A FORWARD -m conntrack --ctstate NEW -j MARK --set-xmark 0x1/0xffffffff\n",
        "-A FORWARD -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n",
    ):
        (good,) = found(set_it + harmless)
        assert good.status is Status.OK, harmless


def test_hidden_networks_are_found_in_the_hosts_own_rules() -> None:
    nat = (
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:POD - [0:0]\n"
        "-A POSTROUTING -s 10.88.0.0/16 ! -o cni0 -j MASQUERADE\n"
        "-A POSTROUTING -s 192.0.2.0/24 -j POD\n-A POD -j SNAT --to-source 203.0.113.9\n"
        "-A POSTROUTING -o wan0 -j MASQUERADE\n"
    )
    where = {"family": "inet", "table": "n"}
    base = {**where, "name": "c", "type": "nat", "hook": "postrouting", "prio": 100}
    source = _match(
        {"payload": {"protocol": "ip6", "field": "saddr"}},
        {"prefix": {"addr": "fd00::", "len": 8}},
    )
    rule = {**where, "chain": "c", "expr": [source, {"masquerade": None}]}
    native = nft_rules.Ruleset(json.dumps({"nftables": [{"chain": base}, {"rule": rule}]}))
    tables = [*_tables(nat), *native.tables()]
    mets = [met for family in (4, 6) for met in path.walk(tables, family)]
    assert {str(network) for network in hidden.networks(mets)} == {
        "10.88.0.0/16",
        "192.0.2.0/24",
        "fd00::/8",
    }
    (leaks,) = hidden.checks(mets, load_compiled("preset:router"))
    assert leaks.status is Status.NOTE
    assert "preset:no-leak" in leaks.todo
    assert "192.0.2.0/24, which is not private" in leaks.todo
    (leaks,) = hidden.checks(mets, load_compiled("preset:no-leak"))
    assert leaks.what.startswith("late RST and FIN of 192.0.2.0/24 leave untranslated")
    (held,) = hidden.checks(mets, load_compiled("preset:strict"))
    assert held.status is Status.OK
    assert list(hidden.checks([], load_compiled("preset:strict"))) == []
