# SPDX-License-Identifier: MIT
"""Rules that write the mark of unjudged packets, and networks that rules hide."""

import json

import pytest

from nfq_guard.doctor import collect, hidden, ipsets, marks, nft_rules, path
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.rule_model import ANY_MARK, Act, MarkWrite, Truth
from nfq_guard.firewall import Backend, FailMode, Native, Place, RulesSpec
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policyfile import load_compiled
from tests.support.listings import (
    ACCEPTED,
    DROPPED,
    FILTER,
    NAME,
    STATE,
    decides,
    fate_of,
    matching,
    nft,
    tables_of,
    walk,
)

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
        ("-j HMARK --hmark-tuple src --hmark-mod 8 --hmark-rnd 0x0", MarkWrite(0, 0, 7)),
        ("-j HMARK --hmark-tuple src --hmark-mod 2 --hmark-offset 0x1", MarkWrite(0, 0, 3)),
        ("-j HMARK --hmark-tuple src", ANY_MARK),
        ("-j SET --map-set marks src --map-mark", ANY_MARK),
        ("-j SET --map-set marks src --map-prio", None),
        # An INVALID packet has no entry whose mark could be restored.
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", None),
        ("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", None),
    ],
)
def test_how_iptables_writes_the_mark(rule: str, write: MarkWrite | None) -> None:
    (found,) = tables_of(f"{FILTER}-A FORWARD {rule}\n")[0].chains["FORWARD"]
    assert found.mark == write


KERNEL_DROP = RulesSpec(fail_mode=FailMode.KERNEL_DROP)
MARK = {"meta": {"key": "mark"}}


@pytest.mark.parametrize(
    ("value", "write"),
    [
        (1, MarkWrite(0, 1)),
        (MARK, MarkWrite(ALL, 0)),
        ({"|": [MARK, 0x10]}, MarkWrite(ALL & ~0x10, 0x10)),
        ({"&": [MARK, 0xFF]}, MarkWrite(0xFF, 0)),
        ({"^": [{"&": [MARK, 0xFF]}, 3]}, MarkWrite(0xFF, 3)),
        ({"|": [MARK, {"jhash": {}}]}, ANY_MARK),
        ({"jhash": {"mod": 2}}, MarkWrite(0, 0, 1)),
        ({"jhash": {"mod": 2, "offset": 256}}, MarkWrite(0, 256, 1)),
        ({"numgen": {"mode": "inc", "mod": 4, "offset": 6}}, MarkWrite(0, 0, 0xF)),
        ({"|": [{"symhash": {"mod": 2}}, 1]}, MarkWrite(0, 1)),
        ({"&": [{"symhash": {"mod": 4}}, 1]}, MarkWrite(0, 0, 1)),
        ({"^": [{"symhash": {"mod": 2}}, 5]}, MarkWrite(0, 4, 1)),
        ({"meta": {"key": "cpu"}}, ANY_MARK),
        ({"map": {"key": STATE, "data": {"set": [["new", 4], ["invalid", 5]]}}}, MarkWrite(0, 5)),
        # The rule ends where it reads the mark of the entry that is not there.
        ({"ct": {"key": "mark"}}, None),
        ({"|": [{"ct": {"key": "mark"}}, 1]}, None),
    ],
)
def test_how_nftables_writes_the_mark(value: object, write: MarkWrite | None) -> None:
    rule = [{"mangle": {"key": MARK, "value": value}}, DROPPED]
    tables = nft_rules.Ruleset(nft(rule)).tables()
    rules = tables[0].chains["c"]
    assert [each.mark for each in rules if each.mark is not None] == (
        [] if write is None else [write]
    )
    decided = decides(list(path.walk(tables, 4)), "forward")
    assert ((Act.DROP, Truth.YES) in decided) == (write is not None)


def test_other_keys_than_the_mark_are_not_followed() -> None:
    rule = [{"mangle": {"key": {"ct": {"key": "mark"}}, "value": MARK}}, DROPPED]
    tables = nft_rules.Ruleset(nft(rule)).tables()
    assert decides(list(path.walk(tables, 4)), "forward") == [(Act.DROP, Truth.YES)]


def test_rules_that_write_the_mark_of_unjudged_packets() -> None:
    def found(text: str) -> list[Check]:
        return list(marks.marks(walk(text), KERNEL_DROP, Backend.LEGACY))

    set_it = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
    rules = "-A FORWARD -j MARK --or-mark 0x1000\n-A FORWARD -i e -j MARK --or-mark 0x1001\n"
    (bad,) = found(set_it + rules)
    assert (bad.status, "may set" in bad.what) == (Status.WARNING, True)
    assert "and 1 more rule " in bad.what
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


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ("mangle PREROUTING -d 192.0.2.0/24 -j MARK --set-xmark 0x3f00/0x3f00", Status.WARNING),
        ("mangle OUTPUT -j MARK --set-mark 0x1e00", Status.WARNING),
        ("raw PREROUTING -j MARK --or-mark 0x1000", Status.WARNING),
        ("mangle PREROUTING -j MARK --set-xmark 0x100/0x3f00", Status.OK),
        ("mangle PREROUTING -m conntrack --ctstate NEW -j MARK --set-mark 0x1000", Status.OK),
        ("nat PREROUTING -j MARK --set-mark 0x1000", Status.OK),
    ],
)
def test_a_bit_that_is_set_before_ours_is_lost(rule: str, status: Status) -> None:
    table, chain, text = rule.split(" ", 2)
    listed = f"*{table}\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A {chain} {text}\n"
    (check,) = marks.marks(walk(listed), KERNEL_DROP, Backend.LEGACY)
    assert (check.status, "goes on without this bit" in check.what) == (
        status,
        status is Status.WARNING,
    )


def test_a_value_that_may_set_or_clear_the_bit() -> None:
    text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j MARK "
    for write in ("--xor-mark 0x1000", "--set-xmark 0x0/0xffffffff"):
        checks = list(marks.marks(walk(f"{text}{write}\n"), KERNEL_DROP, Backend.LEGACY))
        said = [word for check in checks for word in ("may set", "may clear") if word in check.what]
        assert said == (["may set", "may clear"] if "xor" in write else ["may clear"])


def test_the_bits_of_a_map_decide_the_direction() -> None:
    """None of its values has the bit, so the packet loses it."""
    data = {"set": [["tun0", 0x10], ["tun1", 0x20]]}
    rule = [{"mangle": {"key": MARK, "value": {"map": {"key": NAME, "data": data}}}}]
    listed = nft_rules.Ruleset(nft(rule, hook="prerouting", priority=-100))
    (check,) = marks.marks(path.walk(listed.tables(), 4), KERNEL_DROP, Backend.LEGACY)
    assert "may clear" in check.what


FALLBACK = "-m mark --mark 0x1000/0x1000 -j NFQ_GUARD_DROP"


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (f"-A FORWARD {FALLBACK}\n-A FORWARD -j MARK --set-mark 5", Status.OK),
        ("-A FORWARD -j MARK --set-mark 5", Status.OK),
        (f"-A FORWARD -j MARK --set-mark 5\n-A FORWARD {FALLBACK}", Status.WARNING),
        (f"-A FORWARD {FALLBACK}\n-A FORWARD -j X\n-A X -j MARK --set-mark 5", Status.OK),
        (f"-A INPUT -j X\n-A INPUT {FALLBACK}\n-A X -j MARK --set-mark 5", Status.WARNING),
    ],
)  # fmt: skip
def test_rules_behind_the_fallback_change_no_fate(rules: str, status: Status) -> None:
    text = f"{FILTER}:NFQ_GUARD_DROP - [0:0]\n:X - [0:0]\n{rules}\n-A NFQ_GUARD_DROP -j DROP\n"
    (check,) = marks.marks(walk(text), KERNEL_DROP, Backend.LEGACY)
    assert check.status is status


@pytest.mark.parametrize(
    ("hook", "priority", "place", "status"),
    [
        ("prerouting", -100, Backend.LEGACY, Status.WARNING),
        ("prerouting", -100, Backend.NFT, Status.WARNING),
        ("prerouting", -100, Native.NFTABLES, Status.OK),
        ("prerouting", -148, Native.NFTABLES, Status.WARNING),
        ("forward", 10, Backend.LEGACY, Status.OK),
        ("input", 0, Backend.LEGACY, Status.WARNING),
        ("input", -10, Backend.NFT, Status.WARNING),
        ("input", -10, Native.NFTABLES, Status.OK),
        ("output", -100, Backend.LEGACY, Status.WARNING),
        ("output", -100, Backend.NFT, Status.OK),
        ("output", 10, Backend.LEGACY, Status.OK),
        ("postrouting", 0, Backend.LEGACY, Status.OK),
    ],
)
def test_marks_count_between_the_queue_and_the_fallback(
    hook: str, priority: int, place: Place, status: Status
) -> None:
    write = [{"mangle": {"key": MARK, "value": 5}}]
    listed = nft_rules.Ruleset(nft(write, hook=hook, priority=priority))
    (check,) = marks.marks(path.walk(listed.tables(), 4), KERNEL_DROP, place)
    assert check.status is status


@pytest.mark.parametrize(
    ("line", "write"),
    [
        ("meta mark set 0x00000007", MarkWrite(0, 7)),
        ("meta mark set meta mark & 0x0000ff00 | 0x00030000", MarkWrite(0xFF00, 0x30000)),
        ("meta mark set meta mark ^ 0x00000005 accept", MarkWrite(ALL, 5)),
        ("ct state invalid meta mark set 0x00000007 return", MarkWrite(0, 7)),
        ("meta mark set 0x00000009 ct state new drop", MarkWrite(0, 9)),
        ("meta mark set jhash ip saddr mod 2 offset 256", ANY_MARK),
        ('meta mark set iifname map { "a" : 0x10, "b" : 32 } accept', MarkWrite(0, 0, 0x30)),
        ("meta mark set ip saddr map @m", ANY_MARK),
        ("tcp dport 5 jump {\n meta mark set 0x8\n}", MarkWrite(0, 8)),
        ("meta mark set 0x8 jump {\n accept\n}", MarkWrite(0, 8)),
        ("ct state new meta mark set 0x7", None),
        ("meta mark set ct mark & 0x000000ff", None),
        ("ct mark set meta mark", None),
        ("meta mark 0x00000005 accept", None),
        ('log prefix "meta mark set 0x5" accept', None),
        # Only the write of such a rule is translated.
        ("socket wildcard 1 meta mark set 0x9 accept", MarkWrite(0, 9)),
        ("socket wildcard 1 meta mark set meta mark & 0xff | 0x100", MarkWrite(0xFF, 0x100)),
        ('socket wildcard 1 meta mark set iifname map { "a" : 4, "b" : 5 }', MarkWrite(0, 4, 1)),
        ("socket wildcard 1 meta mark set jhash ip saddr mod 2", ANY_MARK),
        ("socket wildcard 1 meta mark set ct mark", None),
    ],
)  # fmt: skip
def test_writes_in_a_chain_without_a_name(line: str, write: MarkWrite | None) -> None:
    """Nft lists such a chain as text."""
    rule = [matching({"meta": {"key": "l4proto"}}, "tcp"), f"jump {{\n{line}\n}}"]
    tables = nft_rules.Ruleset(nft(rule, hook="prerouting", priority=-100)).tables()
    mets = [met for met in path.walk(tables, 4) if met.finding.rule.mark is not None]
    assert [met.finding.rule.mark for met in mets] == ([] if write is None else [write])
    *_, check = marks.marks(mets, KERNEL_DROP, Backend.LEGACY)
    assert (check.status is Status.WARNING) is (write is not None and write.clears(0x1000))


def test_a_write_to_the_mark_does_not_hide_the_verdict() -> None:
    rule = [matching(STATE, "invalid"), "jump {\nmeta mark set 0x00000007 drop\n}"]
    mets = list(path.walk(nft_rules.Ruleset(nft(rule)).tables(), 4))
    assert decides(mets, "forward") == [(Act.DROP, Truth.YES)]


def test_hidden_networks_are_found_in_the_hosts_own_rules() -> None:
    nat = (
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:POD - [0:0]\n"
        "-A POSTROUTING -s 10.88.0.0/16 ! -o cni0 -j MASQUERADE\n"
        "-A POSTROUTING -s 192.0.2.0/24 -j POD\n-A POD -j SNAT --to-source 203.0.113.9\n"
        "-A POSTROUTING -o wan0 -j MASQUERADE\n"
    )
    where = {"family": "inet", "table": "n"}
    base = {**where, "name": "c", "type": "nat", "hook": "postrouting", "prio": 100}
    source = matching(
        {"payload": {"protocol": "ip6", "field": "saddr"}},
        {"prefix": {"addr": "fd00::", "len": 8}},
    )
    rule = {**where, "chain": "c", "expr": [source, {"masquerade": None}]}
    native = nft_rules.Ruleset(json.dumps({"nftables": [{"chain": base}, {"rule": rule}]}))
    tables = [*tables_of(nat), *native.tables()]
    mets = [met for family in (4, 6) for met in path.walk(tables, family)]
    assert {str(network) for network in hidden.networks(mets)} == {
        "10.88.0.0/16",
        "192.0.2.0/24",
        "fd00::/8",
    }
    (leaks,) = hidden.checks(mets, load_compiled("preset:router"))
    assert "private IPv4 sources (`-o wan0 -j MASQUERADE`)" in leaks.what
    assert leaks.status is Status.NOTE
    assert "preset:no-leak" in leaks.todo
    assert "192.0.2.0/24, which is not private" in leaks.todo
    (leaks,) = hidden.checks(mets, load_compiled("preset:no-leak"))
    assert leaks.what.startswith("late RST and FIN of 192.0.2.0/24 leave untranslated")
    (held,) = hidden.checks(mets, load_compiled("preset:strict"))
    assert held.status is Status.OK
    assert list(hidden.checks([], load_compiled("preset:strict"))) == []


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("-o wan0 -j MASQUERADE", {"private IPv4 sources"}),
        ("-j MASQUERADE", {"private IPv4 sources"}),
        ("! -o lo -j MASQUERADE", {"private IPv4 sources"}),
        ("-p tcp -j SNAT --to-source 203.0.113.9", {"private IPv4 sources"}),
        ("! -s 10.1.0.0/16 ! -d 10.0.0.0/8 -o wan0 -j MASQUERADE", {"private IPv4 sources"}),
        ("! -s 192.168.0.0/16 -o wan0 -j MASQUERADE", set()),
        ("-d 10.0.0.0/8 -j MASQUERADE", set()),
        # As kube-proxy: only packets with its mark get there.
        ("-m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MASQUERADE", set()),
        ("-o wan0 -m mark --mark 0x1 -j MASQUERADE", set()),
        ("-o wan0 -j ACCEPT", set()),
        ("-s 10.1.0.0/16 -o wan0 -j SNAT --to-source 203.0.113.9", {"10.1.0.0/16"}),
        ("-m iprange --src-range 10.1.0.5-10.1.0.9 -j MASQUERADE", {"10.1.0.5-10.1.0.9"}),
    ],
)
def test_what_a_rule_hides(rule: str, found: set[str]) -> None:
    mets = walk(f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {rule}\n")
    said = list(hidden.checks(mets, load_compiled("preset:router")))
    every = ("private IPv4 sources", "10.1.0.0/16", "10.1.0.5-10.1.0.9")
    names = {name for name in every if said and f"{name} (`" in said[0].what}
    assert (bool(said), names) == (bool(found), found)
    held = hidden.checks(mets, load_compiled("preset:no-leak"))
    assert {check.status for check in held} <= {Status.OK}


@pytest.mark.parametrize("host", ["8.8.8.5", "255.255.255.255"])
def test_a_single_hidden_address(host: str) -> None:
    """The policy that the advice describes drops its RSTs."""
    mets = walk(f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s {host}/32 -j SNAT\n")
    rule = {"name": "own", "src": [host], "reason": "no-entry", "tcp_flags": "rst"}
    advised = parse_policy(
        {"default": "allow", "rule": [{**rule, "action": "drop"}]}, source="test"
    )
    (leaks,) = hidden.checks(mets, load_compiled("preset:router"))
    assert (leaks.status, f"for {host}/32" in leaks.todo) == (Status.NOTE, True)
    (held,) = hidden.checks(mets, compile_policy(advised))
    assert held.status is Status.OK


def test_sources_in_a_set_are_hidden_networks() -> None:
    left = {"payload": {"protocol": "ip", "field": "saddr"}}
    nets = [
        {"prefix": {"addr": addr, "len": size}}
        for addr, size in (("10.0.0.0", 8), ("172.16.0.0", 12))
    ]
    text = nft([matching(left, {"set": nets}), {"masquerade": None}], hook="postrouting")
    mets = list(path.walk(nft_rules.Ruleset(text.replace('"filter"', '"nat"')).tables(), 4))
    assert {str(network) for network in hidden.networks(mets)} == {"10.0.0.0/8", "172.16.0.0/12"}


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
LAN = {"set": {"family": "inet", "table": "t", "name": "lan", "elem": ["10.9.0.1", "10.9.0.2"]}}
MANY = {"set": [[f"10.7.0.{host}", "192.0.2.1"] for host in range(1, 12)]}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ([matching(SOURCE, "@lan"), {"masquerade": None}], "10.9.0.1, 10.9.0.2 leave"),
        (
            [{"snat": {"addr": {"map": {"key": SOURCE, "data": MANY}}}}],
            "10.7.0.7, 10.7.0.8 and 3 others leave",
        ),
    ],
)
def test_sources_of_a_named_set_and_of_a_map(rule: list[object], said: str) -> None:
    text = nft(rule, hook="postrouting", more=[LAN]).replace('"filter"', '"nat"')
    mets = list(path.walk(nft_rules.Ruleset(text).tables(), 4))
    (check,) = hidden.checks(mets, load_compiled("preset:router"))
    assert said in check.what
    assert "private IPv4 sources" not in check.what


def _pair(*parts: str) -> dict[str, object]:
    return {"concat": list(parts)}


OUT = {"meta": {"key": "oifname"}}
PAIRS = [_pair("10.1.0.1", "wan0"), _pair("10.2.0.1", "wan1")]
PAIR_SET = {"set": {"family": "inet", "table": "t", "name": "pairs", "elem": PAIRS}}


@pytest.mark.parametrize(
    ("fields", "right", "sign", "found"),
    [
        ([SOURCE, OUT], {"set": PAIRS}, "==", {"10.1.0.1/32", "10.2.0.1/32"}),
        ([SOURCE, OUT], "@pairs", "==", {"10.1.0.1/32", "10.2.0.1/32"}),
        ([OUT, SOURCE], {"set": [_pair("wan0", "10.1.0.1")]}, "==", {"10.1.0.1/32"}),
        ([SOURCE, OUT], _pair("10.1.0.1", "wan0"), "==", {"10.1.0.1/32"}),
        ([SOURCE, OUT], {"set": PAIRS}, "!=", set()),
        ([SOURCE, OUT], {"set": PAIRS[:1]}, "!=", set()),
        ([OUT, {"meta": {"key": "mark"}}], {"set": [_pair("wan0", "1")]}, "==", set()),
    ],
)
def test_sources_of_a_concatenation(
    fields: list[object], right: object, sign: str, found: set[str]
) -> None:
    rule: list[object] = [matching({"concat": fields}, right, sign), {"masquerade": None}]
    text = nft(rule, hook="postrouting", more=[PAIR_SET]).replace('"filter"', '"nat"')
    mets = list(path.walk(nft_rules.Ruleset(text).tables(), 4))
    assert {str(each.network) for each in hidden.networks(mets).values()} == found


def test_sources_of_an_ipset() -> None:
    mets = walk(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n"
        "-A POSTROUTING -m set --match-set pairs dst,src -j MASQUERADE\n"
        "-A POSTROUTING -m set ! --match-set other src -j MASQUERADE\n"
    )
    assert list(hidden.sets_of_sources(mets)) == ["pairs"]
    router = load_compiled("preset:router")
    (unread,) = hidden.checks(mets, router)
    assert "`ipset save` fails for pairs (`-m set --match-set pairs dst,src" in unread.what
    assert unread.status is Status.NOTE
    (leaks,) = hidden.checks(mets, router, {"pairs": ("192.0.2.1,10.1.0.0/16", "192.0.2.1")})
    assert leaks.what.startswith("late RST and FIN of 10.1.0.0/16 leave untranslated")
    excepted = "-m set ! --match-set inside dst -o wan0 -j MASQUERADE"
    mets = walk(f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {excepted}\n")
    (leaks,) = hidden.checks(mets, router)
    assert f"private IPv4 sources (`{excepted}`)" in leaks.what


def test_the_elements_that_ipset_saves() -> None:
    saved = (
        "create lan hash:net,iface family inet comment\nadd lan 10.8.0.0/16,eth0\n"
        'add lan 10.9.0.0/16,eth0 nomatch\nadd lan 10.7.0.0/16,eth0 timeout 9 comment "a b"\n'
    )
    assert ipsets.parse(saved) == ("10.8.0.0/16,eth0", "10.7.0.0/16,eth0")


def test_the_sets_of_a_list_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {
        "all": "create all list:set size 8\nadd all lan\nadd all six\n",
        "lan": "create lan hash:net family inet\nadd lan 10.8.0.0/16\n",
        "six": "create six hash:net family inet6\nadd six fd05::/16\n",
        "broken": "create broken list:set size 8\nadd broken gone\n",
    }
    monkeypatch.setattr(collect, "output", lambda *argv: saved.get(argv[-1]))
    assert ipsets.read(["lan", "all", "none", "broken"]) == {
        "lan": ("10.8.0.0/16",),
        "all": ("10.8.0.0/16", "fd05::/16"),
    }


def test_a_mark_that_a_map_gives_to_some_packets() -> None:
    data: dict[str, list[list[object]]] = {"set": [["eth0", 5]]}
    rule: list[object] = [{"mangle": {"key": MARK, "value": {"map": {"key": NAME, "data": data}}}}]
    (found,) = nft_rules.Ruleset(nft(rule)).tables()[0].chains["c"]
    assert (found.mark, found.when.truth) == (MarkWrite(0, 5), Truth.DEPENDS)
    data["set"].append(["eth1", 6])
    (found,) = nft_rules.Ruleset(nft(rule)).tables()[0].chains["c"]
    assert found.mark == MarkWrite(0, 4, 3)
    data["set"].append(["eth2", "eth2"])
    (found,) = nft_rules.Ruleset(nft(rule)).tables()[0].chains["c"]
    assert found.mark == ANY_MARK


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (("-j MARK --set-mark 5", "-m mark --mark 5 -j DROP"), Status.WARNING),
        (("-j MARK --set-mark 5", "-m mark --mark 0x5/0xff -j DROP"), Status.WARNING),
        (("-j MARK --set-mark 5", "-s 192.0.2.1 -m mark --mark 5 -j DROP"), Status.WARNING),
        (("-j MARK --set-mark 5", "-m mark ! --mark 5 -j DROP"), Status.OK),
        (("-j MARK --set-mark 5", "-m mark ! --mark 0/0xf -j DROP"), Status.WARNING),
        (("-j MARK --set-mark 5", "-m mark --mark 6 -j DROP"), Status.OK),
        # The other bits may have been set before.
        (("-j MARK --set-xmark 4/4", "-m mark --mark 5 -j DROP"), Status.WARNING),
        (("-j MARK --set-xmark 4/4", "-m mark --mark 3 -j DROP"), Status.OK),
        (
            ("-j MARK --or-mark 1", "-j MARK --or-mark 2", "-m mark --mark 3/3 -j DROP"),
            Status.WARNING,
        ),
    ],
)
def test_a_mark_of_invalid_packets_that_a_later_rule_tests(
    rules: tuple[str, ...], status: Status
) -> None:
    """A rule for a mark that only INVALID packets were given is a rule for INVALID packets."""
    *writes, test = rules
    text = FILTER + "".join(
        f"-A FORWARD -m conntrack --ctstate INVALID {write}\n" for write in writes
    )
    check = fate_of(walk(f"{text}-A FORWARD {test}\n"), "forward")
    assert check.status is status
    assert check.what.endswith("depends on: -s 192.0.2.1") is ("-s" in test)
    later = f"-A FORWARD -j MARK --set-mark 9\n-A FORWARD {test}\n"
    check = fate_of(walk(text + later), "forward")
    assert "dropped by `" not in check.what
    assert check.status is (Status.WARNING if "!" in test else Status.OK)


def test_a_mark_of_invalid_packets_that_leads_to_a_chain() -> None:
    text = (
        f"{FILTER}:MARKED - [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j MARK --set-mark 5\n"
        "-A FORWARD -m mark --mark 5 -j MARKED\n"
        "-A MARKED -p tcp -j REJECT --reject-with tcp-reset\n"
    )
    check = fate_of(walk(text), "forward")
    assert check.status is Status.PROBLEM
    assert "is reset by `-p tcp -j REJECT" in check.what


PAIR = {"concat": [MARK, NAME]}


@pytest.mark.parametrize(
    ("test", "caught"),
    [
        ([matching(MARK, 5), DROPPED], True),
        ([matching(MARK, 4), DROPPED], False),
        ([matching(MARK, 4, "!="), DROPPED], True),
        ([matching(MARK, 5, "!="), DROPPED], False),
        ([matching(MARK, {"set": [4, 5]}), DROPPED], True),
        ([matching(MARK, {"set": [4, 5]}, "!="), DROPPED], False),
        ([matching(MARK, {"set": [{"range": [4, 5]}]}), DROPPED], True),
        ([matching({"&": [MARK, 4]}, 4), DROPPED], True),
        ([matching({"&": [MARK, {"jhash": {}}]}, 4), DROPPED], True),
        ([matching({"fib": {"result": "oif", "flags": ["saddr", "mark"]}}, 1), DROPPED], True),
        ([matching(MARK, 4, ">"), DROPPED], True),
        ([matching(MARK, 5, ">"), DROPPED], False),
        ([matching(MARK, {"range": [4, 6]}), DROPPED], True),
        ([matching(MARK, {"range": [6, 9]}, "!="), DROPPED], True),
        ([matching(PAIR, {"set": [{"concat": [5, "eth0"]}]}), DROPPED], True),
        ([matching(PAIR, {"set": [{"concat": [4, "eth0"]}]}), DROPPED], False),
        ([matching(PAIR, {"set": [{"concat": [4, "eth0"]}]}, "!="), DROPPED], True),
        ([{"vmap": {"key": MARK, "data": {"set": [[1, ACCEPTED], ["*", DROPPED]]}}}], True),
        ([{"vmap": {"key": MARK, "data": {"set": [[5, ACCEPTED], ["*", DROPPED]]}}}], False),
        ([matching(MARK, 1, "<"), DROPPED], False),
        ([{"vmap": {"key": MARK, "data": {"set": [[4, ACCEPTED], [5, DROPPED]]}}}], True),
        ([{"vmap": {"key": MARK, "data": {"set": [[4, DROPPED], [5, ACCEPTED]]}}}], False),
    ],
)
def test_a_mark_of_invalid_packets_that_nftables_tests(test: list[object], *, caught: bool) -> None:
    write = [matching(STATE, "invalid", "in"), {"mangle": {"key": MARK, "value": 5}}]
    mets = list(path.walk(nft_rules.Ruleset(nft(write, test)).tables(), 4))
    assert fate_of(mets, "forward").status is (Status.WARNING if caught else Status.OK)


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (matching(MARK, 0x101), [(Act.DROP, Truth.DEPENDS)]),
        (matching({"&": [MARK, 0x300]}, 0x100), [(Act.DROP, Truth.YES)]),
        (matching(MARK, {"range": [0x100, 0x101]}), [(Act.DROP, Truth.YES)]),
        (matching(MARK, 0x102), []),
    ],
)
def test_a_hash_in_the_mark_of_invalid_packets(
    test: object, found: list[tuple[Act, Truth]]
) -> None:
    hashed = {"mangle": {"key": MARK, "value": {"jhash": {"mod": 2, "offset": 256}}}}
    rules = nft([matching(STATE, "invalid", "in"), hashed], [test, DROPPED])
    mets = list(path.walk(nft_rules.Ruleset(rules).tables(), 4))
    assert decides(mets, "forward") == found
    assert fate_of(mets, "forward").status is (Status.WARNING if found else Status.OK)


def test_a_named_map_may_be_filled() -> None:
    rule = [{"mangle": {"key": MARK, "value": {"map": {"key": NAME, "data": "@m"}}}}]
    (found,) = nft_rules.Ruleset(nft(rule)).tables()[0].chains["c"]
    assert (found.mark, found.when.truth) == (ANY_MARK, Truth.DEPENDS)


MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
OF_INVALID = "-m conntrack --ctstate INVALID -j MARK"
OF_KNOWN = "-m conntrack --ctstate RELATED,ESTABLISHED -j MARK"


@pytest.mark.parametrize(
    ("mangle", "rules", "words"),
    [
        # The packets of known connections are accepted by their mark, and the others dropped.
        (
            (f"PREROUTING {OF_KNOWN} --set-mark 1",),
            ("FORWARD -m mark --mark 1 -j ACCEPT", "FORWARD -j DROP"),
            "dropped by default: `-j DROP`",
        ),
        (
            (f"PREROUTING {OF_KNOWN} --set-xmark 4/4",),
            ("FORWARD -m mark ! --mark 4/4 -j DROP",),
            "is accepted, or dropped by `-m mark ! --mark 4/4 -j DROP`",
        ),
        (
            (f"PREROUTING {OF_INVALID} --set-mark 1",),
            ("FORWARD -m mark ! --mark 1 -j ACCEPT", "FORWARD -j DROP"),
            "is dropped by default: `-j DROP` (legacy table filter, chain FORWARD)",
        ),
        (
            ("PREROUTING -j CONNMARK --restore-mark",),
            ("FORWARD -m mark --mark 1 -j ACCEPT", "FORWARD -j DROP"),
            "dropped by default: `-j DROP`",
        ),
        # A packet of a connection gets its mark; an INVALID one keeps 0, with which it came.
        (
            ("PREROUTING -j CONNMARK --restore-mark",),
            ("FORWARD -m mark --mark 0 -j DROP",),
            "is accepted, or dropped by `-m mark --mark 0 -j DROP`",
        ),
        (
            ("PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",),
            ("FORWARD -m mark ! --mark 1/0xff -j DROP",),
            "is accepted, or dropped by `-m mark ! --mark 1/0xff -j DROP`",
        ),
        (
            ("PREROUTING -j CONNMARK --restore-mark",),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is accepted, unless a rule for other",
        ),
        (
            ("PREROUTING -j MARK --set-xmark 2/2", "PREROUTING -j CONNMARK --restore-mark"),
            ("FORWARD -m mark --mark 0 -j DROP",),
            "is accepted",
        ),
        (
            ("PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",),
            ("FORWARD -m mark --mark 0/0xff00 -j DROP",),
            "is accepted, unless a rule for other",
        ),
        # A write in INPUT or OUTPUT does not change what is forwarded.
        (
            (f"PREROUTING {OF_INVALID} --set-mark 1", "INPUT -j MARK --set-mark 0"),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is dropped by `-m mark --mark 1 -j DROP`",
        ),
        (
            (f"INPUT {OF_INVALID} --set-mark 1",),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is accepted, unless a rule for other",
        ),
        # It is cleared or overwritten again, for all packets or for some.
        (
            (f"PREROUTING {OF_INVALID} --set-xmark 1/1", "PREROUTING -j MARK --set-xmark 0/1"),
            ("FORWARD -m mark --mark 1/1 -j DROP",),
            "is accepted",
        ),
        (
            (
                f"PREROUTING {OF_INVALID} --set-mark 1",
                "FORWARD -j X",
                "X -s 192.0.2.0/24 -j RETURN",
                "X -j MARK --set-mark 0",
            ),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is accepted, or dropped by `-m mark --mark 1 -j DROP`",
        ),
        (
            (f"PREROUTING {OF_INVALID} --set-mark 1", "PREROUTING -i e -j MARK --set-mark 2"),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is accepted, or dropped by `-m mark --mark 1 -j DROP`",
        ),
        # The chain that sets it is for INVALID packets.
        (
            ("PREROUTING -m conntrack --ctstate INVALID -j X", "X -j MARK --set-mark 1"),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is dropped by `-m mark --mark 1 -j DROP`",
        ),
        (
            ("PREROUTING -m conntrack --ctstate INVALID -g X", "X -j MARK --set-mark 1"),
            ("FORWARD -m mark --mark 1 -j DROP",),
            "is dropped by `-m mark --mark 1 -j DROP`",
        ),
        # It is for all packets.
        (
            ("PREROUTING -j MARK --set-mark 1",),
            ("FORWARD -m mark --mark 2 -j DROP", "FORWARD -m mark ! --mark 1 -j DROP"),
            "is accepted",
        ),
    ],
)
def test_marks_on_the_way_of_both_packets(
    mangle: tuple[str, ...], rules: tuple[str, ...], words: str
) -> None:
    text = f"{MANGLE}:X - [0:0]\n" + "".join(f"-A {rule}\n" for rule in mangle)
    text += FILTER + "".join(f"-A {rule}\n" for rule in rules)
    assert words in fate_of(walk(text), "forward").what


def test_a_mark_of_another_hook_is_not_tested() -> None:
    text = f"{MANGLE}-A PREROUTING {OF_INVALID} --set-mark 1\n{FILTER}"
    check = fate_of(walk(f"{text}-A OUTPUT -m mark --mark 1 -j DROP\n"), "output")
    assert "dropped by `" not in check.what
    post = text.replace(":INPUT ACCEPT", ":POSTROUTING ACCEPT", 1)
    check = fate_of(
        walk(f"{post}*mangle\n-A POSTROUTING -m mark --mark 1 -j DROP\n"), "postrouting"
    )
    assert "is accepted, or dropped by `" in check.what, "it was forwarded, or sent by this host"


def test_a_chain_is_followed_for_a_few_marks_only() -> None:
    """For more of them nothing is known of the mark."""
    jumps = "".join(f"-A FORWARD -j MARK --set-mark {n}\n-A FORWARD -j X\n" for n in range(1, 12))
    text = f"{FILTER}:X - [0:0]\n{jumps}-A X -m mark --mark 11 -j DROP\n"
    assert decides(walk(text), "forward")[-1] == (Act.DROP, Truth.DEPENDS)
    few = text.replace("-A FORWARD -j MARK --set-mark 2\n-A FORWARD -j X\n", "", 1)
    for number in range(3, 9):
        few = few.replace(f"-A FORWARD -j MARK --set-mark {number}\n-A FORWARD -j X\n", "")
    assert decides(walk(few), "forward")[-1] == (Act.DROP, Truth.YES)
