# SPDX-License-Identifier: MIT
"""The doctor follows an INVALID segment through listings of nftables."""

import json

import pytest

from nfq_guard.doctor import foreign, nft_rules, path, removed
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.path import Order
from nfq_guard.doctor.rule_model import ANY_MARK, Act, Truth
from nfq_guard.firewall import Backend, native
from tests.support.listings import (
    ACCEPTED,
    DROPPED,
    NAME,
    STATE,
    decides,
    fate_of,
    masked,
    matching,
    nft,
    tables_of,
)

ADDRESS = {"payload": {"protocol": "ip", "field": "saddr"}}
OTHER_ADDRESS = {"payload": {"protocol": "ip6", "field": "saddr"}}
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
        (matching(STATE, "invalid", "in"), Truth.YES),
        (matching(STATE, ["invalid", "untracked"], "in"), Truth.YES),
        (matching(STATE, ["established", "related"], "in"), Truth.NO),
        (matching(STATE, ["established", "related", "new"], "!"), Truth.YES),
        (matching(STATE, ["invalid", "new"], "!"), Truth.NO),
        (matching(STATE, "invalid"), Truth.YES),
        (matching(STATE, {"|": ["invalid", "new"]}), Truth.NO),
        (matching(STATE, {"|": ["invalid", "new"]}, "!="), Truth.YES),
        (matching(STATE, {"|": ["established", "related"]}, "!="), Truth.YES),
        (matching(STATE, "invalid", "!="), Truth.NO),
        (matching(STATE, {"set": ["invalid", "new"]}), Truth.YES),
        (matching(STATE, {"set": ["established", "related"]}, "!="), Truth.YES),
        (matching(STATE, {"set": ["established", "invalid"]}, "!="), Truth.NO),
        (matching(STATE, 1), Truth.YES),
        (matching(STATE, {"range": [0, 3]}), Truth.YES),
        (matching(STATE, 8, "<"), Truth.YES),
        (matching(STATE, 8, ">="), Truth.NO),
        (matching(STATE, "@st"), Truth.YES),
        (matching(STATE, "@timed"), Truth.YES),
        (matching(STATE, "@empty"), Truth.NO),
        (matching(STATE, "@missing"), Truth.NO),
        (matching(masked("invalid"), "invalid"), Truth.YES),
        (matching(masked(["invalid", "new"]), ["invalid", "new"]), Truth.NO),
        (matching(masked(["invalid", "new"]), "invalid", "!="), Truth.NO),
        (matching(masked(["established", "related"]), 0), Truth.YES),
        (
            matching({"concat": [STATE, NAME]}, {"set": [{"concat": ["invalid", "eth0"]}]}),
            Truth.DEPENDS,
        ),
        (matching({"concat": [STATE, NAME]}, {"set": [{"concat": ["new", "eth0"]}]}), Truth.NO),
        (matching({"concat": [STATE, NAME]}, {"set": [{"concat": ["invalid", "lo"]}]}), Truth.NO),
        (matching({"concat": [STATE, NAME]}, {"set": ["odd"]}), Truth.DEPENDS),
        (
            matching(
                {"concat": [STATE, {"meta": {"key": "l4proto"}}]},
                {"set": [{"concat": ["invalid", "tcp"]}]},
            ),
            Truth.YES,
        ),
        (matching({"concat": [STATE, {"ct": {"key": "mark"}}]}, {"set": []}), Truth.NO),
        (matching(NAME, "eth0"), Truth.DEPENDS),
        (matching(NAME, "lo"), Truth.NO),
        (matching(NAME, "lo", "!="), Truth.YES),
        (matching({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), Truth.YES),
        (matching({"meta": {"key": "l4proto"}}, 6), Truth.YES),
        (matching({"meta": {"key": "l4proto"}}, {"range": [17, 20]}), Truth.NO),
        (matching({"meta": {"key": "l4proto"}}, "tcp", "!="), Truth.NO),
        (matching({"meta": {"key": "nfproto"}}, "ipv4"), Truth.YES),
        (matching({"meta": {"key": "nfproto"}}, "ipv6"), Truth.NO),
        (matching({"meta": {"key": "protocol"}}, "ip"), Truth.YES),
        (matching({"meta": {"key": "pkttype"}}, "unicast"), Truth.DEPENDS),
        (matching({"&": [{"meta": {"key": "mark"}}, 256]}, 256), Truth.DEPENDS),
        (matching({"payload": {"protocol": "ip", "field": "protocol"}}, "tcp"), Truth.YES),
        (matching({"payload": {"protocol": "ip", "field": "saddr"}}, "192.0.2.1"), Truth.DEPENDS),
        (matching({"payload": {"protocol": "ip6", "field": "saddr"}}, "2001:db8::1"), Truth.NO),
        (matching({"payload": {"protocol": "udp", "field": "dport"}}, 53), Truth.NO),
        (matching({"payload": {"protocol": "tcp", "field": "flags"}}, "syn", "in"), Truth.DEPENDS),
        (matching({"payload": {"base": "th", "offset": 0, "len": 16}}, 80), Truth.DEPENDS),
        # Without an entry the rule ends, also where the match is negated.
        (matching({"ct": {"key": "mark"}}, 5), Truth.NO),
        (matching({"ct": {"key": "status"}}, "dnat", "!"), Truth.NO),
        (matching({"&": [{"ct": {"key": "mark"}}, 1]}, 1, "!="), Truth.NO),
        (matching({"fib": {"result": "oif", "flags": ["saddr"]}}, False), Truth.DEPENDS),
        (matching(STATE, {"odd": 1}, "in"), Truth.DEPENDS),
        (matching(STATE, {"odd": 1}), Truth.DEPENDS),
        (matching(STATE, {"range": ["odd", 3]}), Truth.DEPENDS),
        ({"limit": {"rate": 5, "per": "second"}}, Truth.DEPENDS),
        ({"xt": {"type": "match", "name": "recent"}}, Truth.DEPENDS),
        ({"set": {"op": "add", "elem": ADDRESS, "set": "@seen"}}, Truth.YES),
        ({"set": {"op": "add", "elem": {"elem": {"val": ADDRESS}}, "set": "@seen"}}, Truth.YES),
        ({"set": {"op": "add", "elem": OTHER_ADDRESS, "set": "@seen"}}, Truth.NO),
        ({"set": {"elem": ADDRESS, "set": "@seen", "stmt": [{"limit": {}}]}}, Truth.DEPENDS),
        ({"set": {"elem": ADDRESS, "set": "@seen", "stmt": [{"counter": {}}]}}, Truth.YES),
        ({"flow": {"op": "add", "flowtable": "@ft"}}, Truth.NO),
        (
            {"counter": {"map": {"key": ADDRESS, "data": {"set": [["192.0.2.1", "n"]]}}}},
            Truth.DEPENDS,
        ),
        ({"counter": {"map": {"key": OTHER_ADDRESS, "data": {"set": [["::1", "n"]]}}}}, Truth.NO),
        ({"counter": {"map": {"key": STATE, "data": {"set": [["invalid", "n"]]}}}}, Truth.YES),
        ({"counter": "n"}, Truth.YES),
        (
            {"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": 8}},
            Truth.YES,
        ),
        (
            {"mangle": {"key": {"payload": {"protocol": "ip6", "field": "dscp"}}, "value": 8}},
            Truth.NO,
        ),
        ({"mangle": {"key": {"ct": {"key": "mark"}}, "value": 8}}, Truth.YES),
    ],
)
def test_matches_of_nftables(match: object, truth: Truth) -> None:
    tables = nft_rules.Ruleset(nft([match, {"drop": None}], more=SETS)).tables()
    expected = [] if truth is Truth.NO else [(Act.DROP, truth)]
    assert decides(list(path.walk(tables, 4)), "forward") == expected


def _vmap(key: object, *pairs: object) -> dict[str, object]:
    return {"vmap": {"key": key, "data": {"set": list(pairs)}}}


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
    tables = nft_rules.Ruleset(nft([vmap], more=SETS)).tables()
    assert decides(list(path.walk(tables, 4)), "forward") == found


@pytest.mark.parametrize(
    ("verdict", "act"),
    [
        ({"reject": None}, Act.REJECT),
        ({"reject": {"type": "icmpx", "expr": "port-unreachable"}}, Act.REJECT),
        ({"reject": {"type": "tcp reset"}}, Act.RESET),
        ({"queue": {"num": 3}}, Act.ELSEWHERE),
        ({"queue": None}, Act.ELSEWHERE),
        ({"queue": {"num": {"range": [1, 3]}, "flags": ["fanout"]}}, Act.ELSEWHERE),
        ({"synproxy": {"mss": 1460}}, Act.ELSEWHERE),
        ({"xt": None}, Act.UNKNOWN),
        ({"xt": {"type": "target", "name": "STEAL"}}, Act.UNKNOWN),
        ({"return": None}, None),
        ({"continue": None}, None),
        ({"log": {"prefix": "x: "}}, None),
    ],
)
def test_verdicts_of_nftables(verdict: object, act: Act | None) -> None:
    tables = nft_rules.Ruleset(nft([verdict])).tables()
    found = decides(list(path.walk(tables, 4)), "forward")
    assert found == ([] if act is None else [(act, Truth.YES)])


def test_rules_of_nftables_in_words() -> None:
    rules = [
        [matching(STATE, ["invalid", "new"], "in"), {"counter": {}}, {"drop": None}],
        [matching(NAME, {"set": ["a", "b"]}, "!="), {"reject": {"type": "tcp reset"}}],
        [matching(masked("invalid"), 1), {"log": {"prefix": "x"}}, {"jump": {"target": "x"}}],
        [_vmap(STATE, ["invalid", DROPPED]), {"queue": {"num": 1}}],
        [
            matching({"payload": {"protocol": "tcp", "field": "dport"}}, {"range": [1, 9]}),
            {"reject": None},
        ],
        [
            matching({"meta": {"key": "mark"}}, {"prefix": {"addr": "192.0.2.0", "len": 24}}),
            {"vmap": {"key": STATE, "data": "@vm"}},
            DROPPED,
        ],
        [matching({"concat": [STATE, NAME]}, {"elem": {"val": 1}}), {"x" * 200: None}],
    ]
    tables = nft_rules.Ruleset(nft(*rules)).tables()
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
        ("output", -150, Order.BEFORE),
        ("output", native.PRIORITY, Order.TIED),
        ("prerouting", -148, Order.AFTER),
        ("forward", -300, Order.AFTER),
        ("input", 0, Order.AFTER),
    ],
)
def test_nftables_priorities(hook: str, priority: int, order: Order) -> None:
    text = nft([matching(STATE, "invalid", "in"), DROPPED], hook=hook, priority=priority)
    (met,) = path.walk(nft_rules.Ruleset(text).tables(), 6)
    assert (met.order, met.hook) == (order, hook)


@pytest.mark.parametrize(
    ("hook", "priority", "order"),
    [
        ("output", -150, Order.BEFORE),
        ("output", 150, Order.TIED),
        ("prerouting", -151, Order.BEFORE),
        ("prerouting", -150, Order.TIED),
        ("prerouting", -149, Order.AFTER),
    ],
)
def test_nftables_priorities_beside_rules_of_iptables(
    hook: str, priority: int, order: Order
) -> None:
    """Ours would be installed in iptables then."""
    text = nft([matching(STATE, "invalid", "in"), DROPPED], hook=hook, priority=priority)
    rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j LOG\nCOMMIT\n"
    mets = path.walk([*tables_of(rules, Backend.NFT), *nft_rules.Ruleset(text).tables()], 4)
    assert [met.order for met in mets if met.hook == hook] == [order]


def test_a_chain_after_one_that_drops_is_not_reached() -> None:
    first = nft_rules.Ruleset(nft([DROPPED], priority=-1)).tables()
    second = nft_rules.Ruleset(nft([{"reject": None}], priority=1, table="u")).tables()
    assert decides(list(path.walk([*second, *first], 4)), "forward") == [(Act.DROP, Truth.YES)]
    deny = nft_rules.Ruleset(nft([ACCEPTED], policy="drop")).tables()
    assert decides(list(path.walk([*deny, *second], 4)), "forward") == [
        (Act.ACCEPT, Truth.YES),
        (Act.REJECT, Truth.YES),
    ], "an accept ends its own base chain only"


def test_our_native_table_is_not_foreign() -> None:
    text = nft([matching(STATE, "invalid"), DROPPED], table="nfq_guard")
    ruleset = nft_rules.Ruleset(text)
    assert ruleset.ours
    assert list(path.walk(ruleset.tables(), 4)) == []


def test_a_table_of_another_family_with_the_name_of_ours_is_foreign() -> None:
    text = nft([matching(STATE, "invalid"), DROPPED], table="nfq_guard")
    ruleset = nft_rules.Ruleset(text.replace('"inet"', '"ip"'))
    assert not ruleset.ours
    mets = list(path.walk(ruleset.tables(), 4))
    assert decides(mets, "forward") == [(Act.DROP, Truth.YES)]


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


def test_an_update_of_a_set_in_words() -> None:
    rule = [{"set": {"op": "add", "elem": ADDRESS, "set": "@seen"}}, DROPPED]
    (adds, drops) = nft_rules.Ruleset(nft(rule)).tables()[0].chains["c"]
    assert drops.text == "add @seen drop"
    assert (adds.act, adds.fills) == (Act.GO_ON, "ip saddr @seen")


def _decided(*rules: object, policy: str = "accept") -> list[tuple[Act, Truth]]:
    tables = nft_rules.Ruleset(nft(*rules, policy=policy, more=SETS)).tables()
    return decides(list(path.walk(tables, 4)), "forward")


DROP = [(Act.DROP, Truth.YES)]
JUMP, GOTO = "jump {{\n\t\t\t{}\n\t\t}}", "goto {{\n\t\t\t{}\n\t\t}}"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("drop", [(Act.DROP, Truth.YES)]),
        ("counter packets 3 bytes 180 drop", [(Act.DROP, Truth.YES)]),
        ('log prefix "a drop " level info drop comment "b"', [(Act.DROP, Truth.YES)]),
        ("ct state established,related drop", []),
        ("ct state != established,related drop", [(Act.DROP, Truth.YES)]),
        ("ct state ! invalid drop", []),
        ("ct state { invalid, new } drop", [(Act.DROP, Truth.YES)]),
        ("meta l4proto tcp reject with tcp reset", [(Act.RESET, Truth.YES)]),
        ("meta l4proto { udp, icmp } drop", []),
        ("meta nfproto ipv6 drop", []),
        ("reject", [(Act.REJECT, Truth.YES)]),
        ("reject with icmpx admin-prohibited", [(Act.REJECT, Truth.YES)]),
        ("ct mark 0x00000005 drop", []),
        ("ip saddr 192.0.2.1 drop", [(Act.DROP, Truth.DEPENDS)]),
        ("ip saddr { 192.0.2.1,\n\t\t\t\t192.0.2.2 } drop", [(Act.DROP, Truth.DEPENDS)]),
        ("ct state & (invalid | new) != 0x0 drop", [(Act.DROP, Truth.YES)]),
        ("ct state & (invalid | new) == 0x0 drop", []),
        ("ct state & (established | new) == 0x0 ct mark 0x1 drop", []),
        ("ct state & invalid == invalid drop", [(Act.DROP, Truth.YES)]),
        ("ct state & (invalid | new) == invalid | new drop", []),
        ("ct state vmap { invalid : drop }", [(Act.DROP, Truth.YES)]),
        ("ct state vmap { invalid : jump x, established : accept }", [(Act.DROP, Truth.YES)]),
        ("ct state vmap { new : drop, established : accept }", []),
        ("meta nfproto vmap { ipv4 : drop, ipv6 : accept }", [(Act.DROP, Truth.YES)]),
        ("tcp dport vmap { 80 : drop }", [(Act.DROP, Truth.DEPENDS)]),
        ("tcp flags vmap { syn / fin : drop }", [(Act.DROP, Truth.DEPENDS)]),
        ("fib daddr type vmap { local : drop }", [(Act.UNKNOWN, Truth.DEPENDS)]),
        ("ct state vmap @vm", [(Act.DROP, Truth.YES)]),
        ("ct state vmap @missing", []),
        ('iifname vmap { "eth0" : drop, "lo" : accept }', [(Act.DROP, Truth.DEPENDS)]),
        ('iifname . oifname vmap { "a" . "b" : drop }', [(Act.DROP, Truth.DEPENDS)]),
        ('ct state . iifname vmap { invalid . "a" : drop }', [(Act.DROP, Truth.DEPENDS)]),
        ("ct state @st drop", [(Act.DROP, Truth.YES)]),
        ("ct state != @st drop", []),
        ("reject with icmp host-unreachable", [(Act.REJECT, Truth.YES)]),
        ("reject with icmpv6 no-route", []),
        ("limit rate over 1/day burst 5 packets drop", [(Act.DROP, Truth.DEPENDS)]),
        ("quota over 10 mbytes used 0 bytes drop", [(Act.DROP, Truth.DEPENDS)]),
        ("ct count over 5 drop", [(Act.DROP, Truth.DEPENDS)]),
        ("ct count name x drop", [(Act.DROP, Truth.DEPENDS)]),
        ("add @bad { ip saddr timeout 1m } drop", [(Act.DROP, Truth.YES)]),
        ("add @bad { ip6 saddr } drop", []),
        ("update @bad { ip saddr limit rate 1/day } drop", [(Act.DROP, Truth.DEPENDS)]),
        ("update @bad { osf name } drop", [(Act.DROP, Truth.DEPENDS)]),
        ("meta mark set 0x00000007\n\t\t\tmeta mark 0x00000007 drop", [(Act.DROP, Truth.YES)]),
        ("meta mark set 0x1\n\t\t\tmeta mark { 0x2, 0x3 } drop", []),
        ("meta mark set 0x1\n\t\t\tmeta mark 0x0-0x4 drop", [(Act.DROP, Truth.YES)]),
        ("meta mark set meta mark | 0x8\n\t\t\tmeta mark & 0x8 == 0x8 drop", DROP),
        ("meta mark set ct mark drop", []),
        ("meta mark set ct state map { invalid : 0x1 }\n\t\t\tmeta mark 0x1 drop", DROP),
        ("meta mark set jhash ip saddr mod 2 drop", [(Act.DROP, Truth.DEPENDS)]),
        ('iifname "lo" drop', []),
        ("meta protocol ip drop", [(Act.DROP, Truth.YES)]),
        ("meta protocol != ip6 drop", [(Act.DROP, Truth.YES)]),
        ("udp dport 53 drop", []),
        ("ip6 saddr 2001:db8::1 drop", []),
        ("tcp dport 53 drop", [(Act.DROP, Truth.DEPENDS)]),
        ('iifname != "lo" drop', [(Act.DROP, Truth.YES)]),
        ('tcp dport 80 ct state established iifname "eth0" drop', []),
        ('tcp dport 80 ct state invalid iifname "eth0" drop', [(Act.DROP, Truth.DEPENDS)]),
        ('ct state . iifname { established . "eth0" } drop', []),
        ("ct original ip saddr 192.0.2.1 drop", []),
        ("counter name hits log group 7 drop", [(Act.DROP, Truth.YES)]),
        ("ct state . ct direction { invalid . original } drop", []),
        ("ct mark set 0x00000005 drop", [(Act.DROP, Truth.YES)]),
        ("ct mark set 0x00000005 ct state new drop", []),
        ("notrack", [(Act.UNTRACKS, Truth.YES)]),
        ("synproxy mss 1460", [(Act.UNKNOWN, Truth.YES)]),
        ("queue to 3", [(Act.ELSEWHERE, Truth.YES)]),
        ("queue flags bypass to 1-3", [(Act.ELSEWHERE, Truth.DEPENDS)]),
        ("jump x", [(Act.DROP, Truth.YES)]),
        ("goto elsewhere", [(Act.UNKNOWN, Truth.YES)]),
        ("return\n\t\t\tdrop", []),
        ("continue\n\t\t\tcounter packets 0 bytes 0", []),
        ("ct state invalid jump {\n\t\t\t\tdrop\n\t\t\t}", [(Act.DROP, Truth.YES)]),
        ("jump {\n\t\t\t\tdrop\n\t\t\t}", [(Act.DROP, Truth.YES)]),
    ],
)
def test_a_chain_without_a_name(body: str, found: list[tuple[Act, Truth]]) -> None:
    """Nft has no JSON for it but its text."""
    assert _decided([matching(STATE, "invalid", "in"), JUMP.format(body)]) == found
    assert _decided([matching(STATE, "new", "in"), JUMP.format(body)]) == []


def test_a_chain_without_a_name_ends_a_chain_that_goes_to_it() -> None:
    rules = ([GOTO.format("meta l4proto udp accept")], [ACCEPTED])
    assert _decided(*rules, policy="drop") == [(Act.DROP, Truth.YES)]
    rules = ([JUMP.format("meta l4proto udp accept")], [ACCEPTED])
    assert _decided(*rules, policy="drop") == [(Act.ACCEPT, Truth.YES)]
    twice = [[JUMP.format("return")], [JUMP.format("drop")]]
    assert _decided(*twice) == [(Act.DROP, Truth.YES)]


def test_a_mark_that_is_written_in_a_chain_without_a_name() -> None:
    jump = [matching(STATE, ["invalid", "new"], "in"), JUMP.format("meta mark set 0x7\nreturn")]
    mark = {"meta": {"key": "mark"}}
    tables = nft_rules.Ruleset(nft(jump, [matching(mark, 7), DROPPED])).tables()
    check = fate_of(list(path.walk(tables, 4)), "forward")
    assert check.status is Status.WARNING
    assert "is dropped by `meta mark 7 drop`" in check.what


def test_a_statement_that_is_not_known_is_not_passed_over() -> None:
    tables = nft_rules.Ruleset(nft(["frobnicate  the packet"])).tables()
    (found,) = tables[0].chains["c"]
    assert (found.act, found.target, found.text) == (
        Act.UNKNOWN,
        "frobnicate",
        "frobnicate the packet",
    )
    assert _decided([{"jump": {"target": "__chain0"}}]) == [(Act.UNKNOWN, Truth.YES)]
    assert _decided([{"notrack": None}], [DROPPED])[0] == (Act.UNTRACKS, Truth.YES)


def _xt(kind: str, name: str) -> dict[str, object]:
    return {"xt": {"type": kind, "name": name}}


def _of_iptables(*rules: list[object], policy: str = "accept") -> nft_rules.Ruleset:
    """A table of iptables-nft in nft's list."""
    where = {"family": "ip", "table": "filter"}
    base = {**where, "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0}
    items: list[object] = [{"chain": {**base, "policy": policy}}]
    items += [{"rule": {**where, "chain": "FORWARD", "expr": rule}} for rule in rules]
    return nft_rules.Ruleset(json.dumps({"nftables": items}))


@pytest.mark.parametrize("family", ["bridge", "arp"])
def test_rules_of_ebtables_and_arptables_hide_nothing(family: str) -> None:
    """As `ebtables-nft -A FORWARD -p ipv4 --ip-proto tcp -j DROP`: no match on the state."""
    rules: list[list[object]] = [[_xt("match", "ip"), _xt("target", "mark")]]
    text = nft(*rules, table="filter").replace('"inet"', f'"{family}"')
    assert list(nft_rules.Ruleset(text).unlisted()) == []
    assert list(nft_rules.Ruleset(text).unlisted(_UNREAD)) == []


_UNREAD = frozenset({("ip", "filter")})


def test_a_match_on_the_state_that_nft_lists_by_name_only() -> None:
    """Such a rule may take INVALID packets, or accept those of known connections."""
    accept: list[object] = [_xt("match", "conntrack"), ACCEPTED]
    reject: list[object] = [
        matching({"meta": {"key": "l4proto"}}, "tcp"),
        _xt("match", "conntrack"),
        _xt("match", "comment"),
        _xt("target", "REJECT"),
    ]
    ruleset = _of_iptables(accept, reject, policy="drop")
    mets = list(path.walk(ruleset.tables(_UNREAD), 4))
    check = fate_of(mets, "forward")
    assert check.status is Status.WARNING
    assert "dropped by default: `policy drop`" in check.what
    assert "(or taken by a rule that cannot be followed by `" in check.what
    assert "`meta l4proto tcp -m conntrack -m comment -j REJECT`" in check.what
    assert "depends on: -m conntrack" in check.what
    (problem,) = ruleset.unlisted(_UNREAD)
    assert "-m conntrack, -j REJECT in table ip filter" in problem
    assert list(ruleset.unlisted()) == [], "iptables can list it"
    (unknown,) = foreign.checks(mets)
    assert unknown.status is Status.NOTE
    assert "a plain rule for INVALID packets cannot be followed (-m conntrack)" in unknown.what


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ([_xt("match", "conntrack"), DROPPED], [(Act.UNKNOWN, Truth.DEPENDS)]),
        (
            [_xt("match", "state"), {"goto": {"target": "FORWARD"}}],
            [],
        ),
        ([_xt("match", "connmark"), DROPPED], []),
        ([_xt("match", "cluster"), DROPPED], []),
        ([_xt("match", "recent"), DROPPED], [(Act.DROP, Truth.DEPENDS)]),
        ([_xt("match", "comment"), DROPPED], [(Act.DROP, Truth.YES)]),
        ([_xt("target", "LOG")], []),
        ([_xt("target", "TPROXY")], [(Act.UNKNOWN, Truth.YES)]),
        ([_xt("match", "conntrack"), _xt("target", "LOG")], []),
    ],
)
def test_what_nft_lists_of_iptables(rule: list[object], found: list[tuple[Act, Truth]]) -> None:
    mets = list(path.walk(_of_iptables(rule).tables(_UNREAD), 4))
    assert decides(mets, "forward") == found
    lost = [met for met in mets if met.finding.rule.act is Act.UNKNOWN]
    assert all(fate_of(mets, "forward").status is Status.NOTE for _ in lost)


def test_a_chain_behind_a_match_that_cannot_be_read() -> None:
    where = {"family": "inet", "table": "t"}
    drops = {"rule": {**where, "chain": "x", "expr": [DROPPED]}}
    jump = [_xt("match", "conntrack"), {"jump": {"target": "x"}}]
    (tables, *_) = [nft_rules.Ruleset(nft(jump, more=[drops])).tables()]
    check = fate_of(list(path.walk(tables, 4)), "forward")
    assert check.status is Status.NOTE
    assert "or taken by a rule that cannot be followed (-m conntrack)" in check.what


@pytest.mark.parametrize(
    ("rule", "obstacle"),
    [
        (
            [_xt("match", "conntrack"), {"jump": {"target": "x"}}],
            "what leads to `ct state invalid drop` is not listed in full",
        ),
        ([{"jump": {"target": "x"}}], ""),
    ],
)
def test_the_removal_of_a_rule_behind_a_match_that_cannot_be_read(
    rule: list[object], obstacle: str
) -> None:
    where = {"family": "inet", "table": "t"}
    drops = {"rule": {**where, "chain": "x", "expr": [matching(STATE, "invalid", "in"), DROPPED]}}
    tables = nft_rules.Ruleset(nft(rule, more=[drops])).tables()
    (finding,) = [met.finding for met in path.walk(tables, 4) if met.finding.state]
    assert removed.removal_of(finding, tables[0]).obstacle == obstacle


def test_the_mark_that_a_target_of_iptables_writes_is_not_known() -> None:
    (rule,) = _of_iptables([_xt("target", "MARK")]).tables(_UNREAD)[0].chains["FORWARD"]
    assert (rule.mark, rule.act) == (ANY_MARK, Act.GO_ON)


def _written(key: object, value: object) -> dict[str, object]:
    return {"mangle": {"key": key, "value": value}}


PAIR = {"concat": [STATE, NAME]}


@pytest.mark.parametrize(
    "accept",
    [
        matching(PAIR, {"set": [{"concat": ["established", "eth0"]}]}),
        matching(
            PAIR, {"set": [{"concat": each} for each in (["invalid", "b"], ["established", "a"])]}
        ),
        matching(STATE, "established", "in"),
        matching({"ct": {"key": "status"}}, "dnat", "in"),
    ],
)
def test_a_policy_behind_an_accept_of_known_connections(accept: object) -> None:
    port = matching({"payload": {"protocol": "tcp", "field": "dport"}}, 22)
    tables = nft_rules.Ruleset(nft([accept, ACCEPTED], [port, ACCEPTED], policy="drop")).tables()
    check = fate_of(list(path.walk(tables, 4)), "forward")
    assert check.status is Status.WARNING
    assert "is dropped by default: `policy drop`" in check.what
    assert "tcp dport 22" in check.what


@pytest.mark.parametrize(
    ("on", "status"),
    [
        (
            matching(
                {"payload": {"protocol": "ip", "field": "daddr"}},
                {"prefix": {"addr": "192.0.2.0", "len": 24}},
            ),
            Status.WARNING,
        ),
        (matching({"payload": {"protocol": "ip", "field": "daddr"}}, "192.0.2.1"), Status.WARNING),
        (matching({"payload": {"protocol": "ip", "field": "saddr"}}, "@lan", "!="), Status.WARNING),
        (matching({"payload": {"protocol": "ip", "field": "saddr"}}, "@bad"), Status.WARNING),
        (matching({"payload": {"protocol": "tcp", "field": "dport"}}, 22), Status.WARNING),
        (
            matching({"payload": {"protocol": "tcp", "field": "dport"}}, {"set": [22, 25]}),
            Status.WARNING,
        ),
        (matching({"payload": {"protocol": "tcp", "field": "dport"}}, 25), Status.OK),
        (matching({"payload": {"protocol": "ip", "field": "ttl"}}, 3, "<"), Status.OK),
    ],
)
def test_a_drop_of_some_packets_behind_an_accept_of_known_connections(
    on: object, status: Status
) -> None:
    known = [matching(STATE, ["established", "related"], "in"), ACCEPTED]
    port = matching({"payload": {"protocol": "tcp", "field": "dport"}}, 22)
    opens = [port, matching(STATE, "new", "in"), ACCEPTED]
    tables = nft_rules.Ruleset(nft(known, opens, [on, DROPPED])).tables()
    assert fate_of(list(path.walk(tables, 4)), "forward").status is status


OUT = {"meta": {"key": "oifname"}}
PROTOCOL = {"meta": {"key": "l4proto"}}
PORT = {"payload": {"protocol": "th", "field": "dport"}}
NET = {"prefix": {"addr": "192.0.2.0", "len": 24}}


def _joined(*parts: object) -> dict[str, object]:
    return {"concat": list(parts)}


@pytest.mark.parametrize(
    ("left", "right", "sign", "status"),
    [
        # As the same conditions one by one.
        ((NAME, ADDRESS), [("eth0", NET)], "==", Status.WARNING),
        ((NAME, ADDRESS), [("eth0", NET), ("eth1", NET)], "==", Status.WARNING),
        ((NAME, ADDRESS), [("eth0", "192.0.2.1")], "==", Status.OK),
        ((NAME, ADDRESS), [("eth7", NET)], "==", Status.OK),
        ((NAME, ADDRESS), "@bad", "==", Status.OK),
        ((NAME, ADDRESS), "@good", "!=", Status.WARNING),
        ((NAME, OUT, PROTOCOL), [("eth0", "eth2", "tcp")], "==", Status.WARNING),
        ((PROTOCOL, PORT), [("tcp", 25)], "==", Status.OK),
        ((NAME, {"payload": {"protocol": "ip", "field": "ttl"}}), [("eth0", 3)], "==", Status.OK),
    ],
)
def test_a_drop_by_a_concatenation_behind_an_accept_of_known_connections(
    left: tuple[object, ...], right: str | list[tuple[object, ...]], sign: str, status: Status
) -> None:
    named: object = right
    if not isinstance(right, str):
        named = {"set": [_joined(*each) for each in right]}
    inside = matching(NAME, {"set": ["eth0", "eth1"]})
    known = [inside, matching(STATE, "established", "in"), ACCEPTED]
    rule = [matching(_joined(*left), named, sign), DROPPED]
    mets = list(path.walk(nft_rules.Ruleset(nft(known, rule)).tables(), 4))
    assert fate_of(mets, "forward").status is status


PORTS = {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[22, 1]]}}
ALL = {**PORTS, "data": {"set": [[22, 1], ["*", 2]]}}
OTHERS = {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [["udp", 1]]}}
PRIORITY = {"meta": {"key": "priority"}}
MARK = {"meta": {"key": "mark"}}
ENTRY_MARK = {"ct": {"key": "mark"}}
SIZE = {"tcp option": {"name": "maxseg", "field": "size"}}
METER = {"key": ADDRESS, "stmt": {"limit": {"rate": 1, "inv": True}}, "name": "m"}


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        # Without a listener the rule ends.
        (
            [{"tproxy": {"port": 50080}}, ACCEPTED],
            [(Act.ELSEWHERE, Truth.DEPENDS), (Act.ACCEPT, Truth.DEPENDS)],
        ),
        ([{"queue": {"num": 3, "flags": "bypass"}}], [(Act.ELSEWHERE, Truth.DEPENDS)]),
        ([{"queue": {"num": 3, "flags": ["bypass"]}}], [(Act.ELSEWHERE, Truth.DEPENDS)]),
        ([{"meter": METER}, DROPPED], [(Act.DROP, Truth.DEPENDS)]),
        ([{"meter": {**METER, "key": OTHER_ADDRESS}}, DROPPED], []),
        ([{"meter": {**METER, "stmt": {"counter": None}}}, DROPPED], [(Act.DROP, Truth.YES)]),
        # What has no value for the packet ends the rule.
        ([_written(PRIORITY, {"map": PORTS}), ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([_written(ENTRY_MARK, {"map": PORTS}), ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([_written(PRIORITY, {"map": ALL}), ACCEPTED], [(Act.ACCEPT, Truth.YES)]),
        ([_written(PRIORITY, {"map": OTHERS}), ACCEPTED], []),
        ([_written(MARK, {"socket": {"key": "mark"}}), ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([_written(MARK, {"|": [SIZE, 1]}), ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([_written(SIZE, {"rt": {"key": "mtu"}}), ACCEPTED], [(Act.ACCEPT, Truth.YES)]),
        ([{"ct helper": {"map": PORTS}}, ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([{"ct helper": "ftp"}, ACCEPTED], [(Act.ACCEPT, Truth.YES)]),
        ([{"dup": {"addr": {"map": PORTS}}}, ACCEPTED], [(Act.ACCEPT, Truth.DEPENDS)]),
        ([{"synproxy": {"map": PORTS}}], [(Act.ELSEWHERE, Truth.DEPENDS)]),
        ([{"synproxy": None}], [(Act.ELSEWHERE, Truth.YES)]),
        # These go on.
        ([{"reset": {"tcp option": {"name": "sack-perm"}}}, DROPPED], [(Act.DROP, Truth.YES)]),
        (["add @m { ip saddr : tcp dport }", DROPPED], [(Act.DROP, Truth.YES)]),
        (["add @m { ip6 saddr : tcp dport }", DROPPED], []),
        ([{"reject": {"type": "icmp", "expr": "host-unreachable"}}], [(Act.REJECT, Truth.YES)]),
        ([{"reject": {"type": "icmpv6", "expr": "no-route"}}], []),
    ],
)
def test_statements_with_conditions_of_their_own(
    statements: list[object], found: list[tuple[Act, Truth]]
) -> None:
    rule = [matching(STATE, "invalid", "in"), *statements]
    mets = list(path.walk(nft_rules.Ruleset(nft(rule)).tables(), 4))
    assert decides(mets, "forward") == found


@pytest.mark.parametrize("value", [ENTRY_MARK, {"&": [ENTRY_MARK, 255]}])
def test_a_mark_that_packets_get_from_their_connection(value: object) -> None:
    """An INVALID packet gets none, and meets what takes packets without it."""
    rules = [
        [_written(MARK, value)],
        [matching(STATE, "new", "in"), _written(MARK, 7)],
        [matching(MARK, 7), ACCEPTED],
        [DROPPED],
    ]
    mets = list(path.walk(nft_rules.Ruleset(nft(*rules)).tables(), 4))
    check = fate_of(mets, "forward")
    assert check.status is Status.WARNING
    assert "dropped by default: `drop`" in check.what


def test_a_reject_for_one_family_is_followed_for_that_family() -> None:
    rule = [matching(STATE, "invalid", "in"), {"reject": {"type": "icmp"}}]
    tables = nft_rules.Ruleset(nft(rule)).tables()
    assert [decides(list(path.walk(tables, family)), "forward") for family in (4, 6)] == [
        [(Act.REJECT, Truth.YES)],
        [],
    ]
    reset = nft([matching(STATE, "invalid", "in"), {"reject": {"type": "tcp reset"}}])
    tables = nft_rules.Ruleset(reset).tables(protocol="udp")
    assert decides(list(path.walk(tables, 4)), "forward") == []


@pytest.mark.parametrize(
    ("flags", "dormant"),
    [
        ("dormant", True),
        (["dormant", "owner"], True),
        ("owner", False),
        (["persist"], False),
    ],
)
def test_the_chains_of_a_dormant_table_are_not_run(flags: object, *, dormant: bool) -> None:
    text = nft([{"notrack": None}, DROPPED], hook="prerouting", priority=-300)
    listed = json.loads(text)
    listed["nftables"][1]["table"]["flags"] = flags
    ruleset = nft_rules.Ruleset(json.dumps(listed))
    assert (ruleset.tables() == []) is dormant
    assert (ruleset.early() == []) is dormant
    bridge = nft_rules.Ruleset(json.dumps(listed).replace("inet", "bridge"))
    assert (bridge.bridged() == []) is dormant


@pytest.mark.parametrize("drops_first", [True, False])
def test_a_set_that_is_empty_at_the_moment(*, drops_first: bool) -> None:
    """The second INVALID packet of a sender is dropped."""
    rules = [
        [matching(ADDRESS, "@bad"), DROPPED],
        [
            matching(STATE, "invalid", "in"),
            {"set": {"op": "add", "elem": ADDRESS, "set": "@bad"}},
        ],
    ]
    where = {"family": "inet", "table": "t", "name": "bad"}
    text = nft(*(rules if drops_first else rules[::-1]), more=[{"set": where}])
    check = fate_of(list(path.walk(nft_rules.Ruleset(text).tables(), 4)), "forward")
    assert check.status is Status.WARNING
    assert "is accepted, or dropped by `ip saddr @bad drop`" in check.what


def test_a_set_that_is_empty_holds_no_state() -> None:
    rule = [matching(STATE, "@empty"), DROPPED]
    tables = nft_rules.Ruleset(nft(rule, more=SETS)).tables()
    assert decides(list(path.walk(tables, 4)), "forward") == []


def test_a_packet_that_is_untracked_late_is_not_invalid_any_more() -> None:
    notrack = [matching(STATE, "invalid", "in"), {"notrack": None}]
    drop = [matching(STATE, "invalid", "in"), DROPPED]
    first = nft_rules.Ruleset(nft(notrack, priority=-10)).tables()
    mets = list(path.walk(first, 4))
    check = fate_of(mets, "forward")
    assert check.status is Status.NOTE
    assert "accepted, or made UNTRACKED, and not followed further, by `" in check.what
    (unknown,) = foreign.checks(mets)
    assert unknown.status is Status.NOTE
    assert "a plain rule untracks INVALID packets in" in unknown.what
    later = nft_rules.Ruleset(nft(drop, table="u")).tables()
    early = nft_rules.Ruleset(nft(notrack, hook="prerouting", priority=0)).tables()
    for before in (first, early):
        mets = list(path.walk([*before, *later], 4))
        check = fate_of(mets, "forward")
        assert ", unless an earlier rule decides" in check.what
        assert decides(mets, "forward")[-1] == (Act.DROP, Truth.DEPENDS)


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local", "fib daddr . iif type"),
        ({"fib": {"result": "check", "flags": "saddr"}}, True, "fib saddr check exists"),
        ({"tcp option": {"name": "fastopen"}}, False, "tcp option fastopen missing"),
        ({"tcp option": {"name": "maxseg", "field": "size"}}, 9, "tcp option maxseg size 9"),
        ({"numgen": {"mode": "inc", "mod": 2, "offset": 9}}, 9, "numgen inc mod 2 offset 9"),
        ({"rt": {"key": "nexthop", "family": "ip"}}, "192.0.2.1", "rt nexthop ip 192.0.2.1"),
        ({"jhash": {"mod": 2, "expr": ADDRESS}}, 0, "jhash mod 2 ip saddr 0"),
        ({"payload": {"base": "th", "offset": 0, "len": 16}}, 80, "@th,0,16 80"),
    ],
)
def test_what_a_rule_depends_on_is_named(left: object, right: object, text: str) -> None:
    rule = [matching(STATE, "invalid", "in"), matching(left, right), DROPPED]
    check = fate_of(list(path.walk(nft_rules.Ruleset(nft(rule)).tables(), 4)), "forward")
    assert f"depends on: {text}" in check.what


def test_a_map_and_a_meter_in_words() -> None:
    chosen = {"map": {"key": NAME, "data": {"set": [["a", 1], ["b", {"drop": None}]]}}}
    marked = [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": chosen}}]
    (rule,) = nft_rules.Ruleset(nft(marked)).tables()[0].chains["c"]
    assert rule.text == "meta mark set iifname map { a : 1, b : drop }"
    (rule,) = nft_rules.Ruleset(nft([{"meter": METER}, DROPPED])).tables()[0].chains["c"]
    assert rule.text == "meter m drop"


def test_a_priority_that_is_no_number_is_refused() -> None:
    """Else whoever compares it would fail, outside of the reading."""
    chain = {"family": "inet", "table": "t", "name": "c", "hook": "input", "prio": {"a": 1}}
    with pytest.raises(TypeError, match="priority"):
        nft_rules.Ruleset(json.dumps({"nftables": [{"chain": chain}]}))
