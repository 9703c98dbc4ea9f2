# SPDX-License-Identifier: MIT
"""The rules before conntrack, as read from what iptables-save and nft print."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.doctor import before_conntrack, collect
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.nft_rules import Ruleset
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse
from nfq_guard.flow import PROTO_ICMP, PROTO_SCTP, PROTO_TCP, Hook
from nfq_guard.raw_rules import UNKNOWN_ZONE, UNTRACKED, Field, RawAct, RawReading, RawRule, Span

QUEUES = (3, 4)


def of_iptables(*lines: str, family: Family = Family.IPV4, table: str = "raw") -> list[RawRule]:
    text = "\n".join(
        [f"*{table}", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":MORE - [0:0]", *lines]
    )
    saved = {(Backend.LEGACY, family): parse(f"{text}\nCOMMIT\n")}
    return list(before_conntrack.of(saved, (), QUEUES, []))


def of_nft(
    *rules: list[dict[str, Any]], prio: int = -300, hook: str = "prerouting"
) -> list[RawRule]:
    base = {"family": "ip", "table": "own"}
    items: list[dict[str, Any]] = [
        {"table": {"family": "ip", "name": "own"}},
        {"set": {**base, "name": "w", "type": "inet_service", "elem": [80, 443]}},
        {"chain": {**base, "name": "early", "hook": hook, "prio": prio, "type": "filter"}},
        *({"rule": {**base, "chain": "early", "expr": rule}} for rule in rules),
    ]
    return list(before_conntrack.of({}, [Ruleset(json.dumps({"nftables": items}))], QUEUES, []))


def tcp(rules: list[RawRule]) -> list[RawRule]:
    return [rule for rule in rules if rule.proto == PROTO_TCP]


def field(protocol: str, name: str, value: object, sign: str = "==") -> dict[str, Any]:
    left = {"payload": {"protocol": protocol, "field": name}}
    return {"match": {"left": left, "op": sign, "right": value}}


ZONE: dict[str, Any] = {"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}
DIRECTED: dict[str, Any] = {
    "mangle": {"key": {"ct": {"key": "zone", "dir": "original"}}, "value": 7}
}
NOTRACK: dict[str, Any] = {"notrack": None}


@pytest.mark.parametrize(
    ("target", "zone"),
    [
        ("-j NOTRACK", UNTRACKED),
        ("-j CT --notrack", UNTRACKED),
        ("-j CT --zone 7", 7),
        ("-j CT --zone-orig 7", 0),
        ("-j CT --zone-reply 7", 7),
        ("-j CT --zone mark", UNKNOWN_ZONE),
    ],
)
def test_targets(target: str, zone: int) -> None:
    (rule,) = tcp(of_iptables(f"-A PREROUTING -p tcp {target}"))
    assert (rule.act, rule.zone, rule.certain) == (RawAct.TRACKING, zone, True)
    assert (rule.family, rule.hook) == (4, Hook.PREROUTING)
    assert target in rule.text


def test_notrack_of_a_device_hides_its_packets() -> None:
    """It is met before the rules of raw, whatever its priority."""
    base = {"family": "netdev", "table": "d"}
    items = [
        {"chain": {**base, "name": "c", "hook": "ingress", "prio": 5, "type": "filter"}},
        {"rule": {**base, "chain": "c", "expr": [field("tcp", "sport", 443), NOTRACK]}},
    ]
    device = Ruleset(json.dumps({"nftables": items}))
    assert device.early() == [("netdev", "d")]
    raw = Ruleset(
        json.dumps(
            {
                "nftables": [
                    {"chain": {**item, "hook": "prerouting", "prio": -300, "type": "filter"}}
                    if "name" in item
                    else {"rule": item}
                    for item in (
                        {"family": "ip", "table": "o", "name": "p"},
                        {"family": "ip", "table": "o", "chain": "p", "expr": [ZONE]},
                    )
                ]
            }
        )
    )
    first, _ = tcp(list(before_conntrack.of({}, [raw, device], QUEUES, [])))[:2]
    assert (first.zone, first.hook, first.certain) == (UNTRACKED, Hook.PREROUTING, False)
    (said, *_) = before_conntrack.describe([first])
    assert "chain c) hides one direction of flows from conntrack (it may)" in said


@pytest.mark.parametrize("target", ["-j CT --helper ftp", "-j MARK --set-xmark 0x1/0x1", ""])
def test_targets_that_hide_nothing(target: str) -> None:
    assert of_iptables(f"-A PREROUTING {target}") == []


@pytest.mark.parametrize(
    ("words", "spans", "devices", "certain"),
    [
        ("-s 10.0.0.0/8", [Span(Field.SRC, ((b"\n\0\0\0", b"\n\xff\xff\xff"),))], [], True),
        (
            "! -d 0.0.0.9/32",
            [Span(Field.DST, ((b"\0\0\0\t", b"\0\0\0\t"),), negated=True)],
            [],
            True,
        ),
        (
            "-m iprange --src-range 0.0.0.1-0.0.0.9",
            [Span(Field.SRC, ((b"\0\0\0\1", b"\0\0\0\t"),))],
            [],
            True,
        ),
        ("-p tcp -m tcp --sport 80", [Span(Field.SPORT, ((b"\0P", b"\0P"),))], [], True),
        (
            "-p tcp -m multiport --dports 80,90:99",
            [Span(Field.DPORT, ((b"\0P", b"\0P"), (b"\0Z", b"\0c")))],
            [],
            True,
        ),
        ("-i eth+", [], [("eth+", False)], True),
        ("! -i eth0", [], [("eth0", True)], True),
        ("-m mark --mark 0x1", [], [], False),
        ("-m set --match-set those src", [], [], False),
    ],
)
def test_conditions(
    words: str, spans: list[Span], devices: list[tuple[str, bool]], *, certain: bool
) -> None:
    (rule,) = tcp(of_iptables(f"-A PREROUTING {words} -j CT --notrack"))
    assert (list(rule.spans), list(rule.devices)) == (spans, devices)
    assert rule.certain is certain


def test_conditions_of_nft() -> None:
    nets: dict[str, Any] = {
        "set": [
            "0.0.0.1",
            {"prefix": {"addr": "10.0.0.0", "len": 8}},
            {"range": ["0.0.0.4", "0.0.0.5"]},
        ]
    }
    (rule,) = tcp(of_nft([field("ip", "saddr", nets, "!="), NOTRACK]))
    one, four, five = (bytes((0, 0, 0, last)) for last in (1, 4, 5))
    within = ((one, one), (b"\n\0\0\0", b"\n\xff\xff\xff"), (four, five))
    assert (rule.spans, rule.certain) == ((Span(Field.SRC, within, negated=True),), True)
    (rule,) = tcp(of_nft([field("tcp", "dport", 80), ZONE], hook="output"))
    assert rule.spans == (Span(Field.DPORT, ((b"\0P", b"\0P"),)),)
    assert (rule.zone, rule.hook) == (7, Hook.OUTPUT)
    device: dict[str, Any] = {
        "match": {"left": {"meta": {"key": "iifname"}}, "op": "==", "right": "eth0"}
    }
    (rule,) = tcp(of_nft([device, DIRECTED]))
    assert (rule.devices, rule.zone) == ((("eth0", False),), 0)
    device["match"]["right"] = {"set": ["eth0", "eth1"]}
    (rule,) = tcp(of_nft([device, NOTRACK]))
    assert (rule.devices, rule.certain) == ((), False)


def test_a_verdict_map_of_nft() -> None:
    """Its last element covers more than one port."""
    pairs = [[80, {"accept": None}], ["*", {"drop": None}]]
    key = {"payload": {"protocol": "tcp", "field": "dport"}}
    first, last = tcp(of_nft([{"vmap": {"key": key, "data": {"set": pairs}}}]))
    assert (first.act, first.spans, first.certain) == (
        RawAct.END,
        (Span(Field.DPORT, ((b"\0P", b"\0P"),)),),
        True,
    )
    assert (last.spans, last.certain) == ((), False)


def test_zones_that_the_packet_decides() -> None:
    by_device = {"map": {"key": {"meta": {"key": "iif"}}, "data": {"set": [["eth0", 7]]}}}
    (rule,) = tcp(of_nft([{"mangle": {"key": {"ct": {"key": "zone"}}, "value": by_device}}]))
    assert rule.zone == UNKNOWN_ZONE
    assert of_nft([{"mangle": {"key": {"meta": {"key": "priority"}}, "value": 7}}]) == []


def test_an_accept_behind_a_zone_for_some_packets_ends_the_chain_for_these() -> None:
    key = {"payload": {"protocol": "tcp", "field": "dport"}}
    zone = {"map": {"key": key, "data": {"set": [[81, 3]]}}}
    written = {"mangle": {"key": {"ct": {"key": "zone"}}, "value": zone}}
    rules = tcp(of_nft([written, {"accept": None}], [NOTRACK]))
    some = (Span(Field.DPORT, ((b"\0Q", b"\0Q"),)),)
    assert [(rule.act, rule.spans) for rule in rules] == [
        (RawAct.TRACKING, some),
        (RawAct.END, some),
        (RawAct.TRACKING, ()),
    ]


@pytest.mark.parametrize(
    ("word", "protocols"),
    [
        ("-p icmp", [PROTO_ICMP]),
        ("-p sctp -m sctp --dport 5", [PROTO_SCTP]),
        ("-p udp", []),
        ("", [PROTO_TCP, PROTO_ICMP, PROTO_SCTP]),
    ],
)
def test_protocols(word: str, protocols: list[int]) -> None:
    """UDP is INVALID only for reasons that the packet itself shows."""
    rules = of_iptables(f"-A PREROUTING {word} -j NOTRACK")
    assert [rule.proto for rule in rules] == protocols


def test_protocols_of_nft_and_ipv6() -> None:
    for name in ("icmpv6", "ipv6-icmp"):
        text = json.dumps(
            {
                "nftables": [
                    {
                        "chain": {
                            "family": "inet", "table": "own", "name": "early", "type": "filter",
                            "hook": "prerouting", "prio": -300,
                        }
                    },
                    {
                        "rule": {
                            "family": "inet", "table": "own", "chain": "early",
                            "expr": [
                                {
                                    "match": {
                                        "left": {"meta": {"key": "l4proto"}},
                                        "op": "==",
                                        "right": name,
                                    }
                                },
                                NOTRACK,
                            ],
                        }
                    },
                ]
            }
        )  # fmt: skip
        found = before_conntrack.of({}, [Ruleset(text)], QUEUES, [])
        assert [(rule.family, rule.proto) for rule in found] == [(6, 58)]
    assert [rule.proto for rule in of_iptables("-A OUTPUT -j NOTRACK", family=Family.IPV6)] == [
        6, 58, 132,
    ]  # fmt: skip


def test_jumps_and_returns() -> None:
    (rule,) = tcp(of_iptables("-A PREROUTING -s 0.0.0.1 -j MORE", "-A MORE -j NOTRACK"))
    assert rule.spans == (Span(Field.SRC, ((b"\0\0\0\1",) * 2,)),)
    assert rule.certain
    # Whether a packet returned before is not followed.
    (rule,) = tcp(
        of_iptables("-A PREROUTING -j MORE", "-A MORE -s 0.0.0.1 -j RETURN", "-A MORE -j NOTRACK")
    )
    assert not rule.certain
    first, rule = tcp(of_iptables("-A PREROUTING -s 0.0.0.1 -j ACCEPT", "-A PREROUTING -j NOTRACK"))
    assert (first.act, rule.certain) == (RawAct.END, True)
    assert first.chain == rule.chain


IN_SET = "-m set --match-set w"
WEB = {"tcp dport @w": field("tcp", "dport", "@w"), "tcp sport @w": field("tcp", "sport", "@w")}


def pair(*names: str) -> dict[str, Any]:
    """A concatenation of an address and a port of one end."""
    parts = [{"payload": {"protocol": protocol, "field": name}} for protocol, name in
             zip(("ip", "tcp"), names, strict=True)]  # fmt: skip
    right = {"set": [{"concat": ["0.0.0.1", 80]}]}
    return {"match": {"left": {"concat": parts}, "op": "==", "right": right}}


@pytest.mark.parametrize(
    ("rules", "half"),
    [
        (("-p tcp --sport 80 -j ACCEPT", "-p tcp -j CT --notrack"), True),
        (("-i eth1 -j ACCEPT", "-p tcp -j CT --notrack"), True),
        (("-p tcp -m tcp ! --sport 80 -j CT --notrack",), True),
        (("-p tcp --dport 1:1024 -j CT --notrack", "-p tcp --sport 1:79 -j CT --notrack"), True),
        (("-j CT --zone mark",), True),
        (("-p tcp -m multiport --ports 80,443 -j CT --notrack",), False),
        (("-p tcp -m multiport ! --ports 80,443 -j CT --notrack",), False),
        ((f"{IN_SET} src -j CT --notrack",), True),
        ((f"{IN_SET} src -j NOTRACK", f"{IN_SET} dst -j NOTRACK"), False),
        ((f"{IN_SET} src -j NOTRACK", "-m set --match-set v dst -j NOTRACK"), True),
        ((f"{IN_SET} src,src -j NOTRACK", f"{IN_SET} dst,dst -j NOTRACK"), True),
        ((f"{IN_SET} src -j ACCEPT", "-j NOTRACK"), True),
        ((f"{IN_SET} src -j ACCEPT", f"{IN_SET} dst -j ACCEPT", "-j NOTRACK"), False),
        (("-m mark --mark 1 -j NOTRACK",), True),
    ],
)  # fmt: skip
def test_one_direction_of_iptables(rules: tuple[str, ...], *, half: bool) -> None:
    found = of_iptables(*(f"-A PREROUTING {rule}" for rule in rules))
    assert bool(before_conntrack.describe(found)) is half


@pytest.mark.parametrize(
    ("rules", "half"),
    [
        ([[field("tcp", "sport", 80), {"accept": None}], [NOTRACK]], True),
        ([[WEB["tcp dport @w"], NOTRACK]], True),
        ([[WEB["tcp dport @w"], NOTRACK], [WEB["tcp sport @w"], NOTRACK]], False),
        ([[pair("daddr", "dport"), NOTRACK]], True),
        ([[pair("daddr", "dport"), NOTRACK], [pair("saddr", "sport"), NOTRACK]], False),
        ([[pair("daddr", "dport"), NOTRACK], [pair("daddr", "sport"), NOTRACK]], True),
    ],
)
def test_one_direction_of_nft(rules: list[list[dict[str, Any]]], *, half: bool) -> None:
    assert bool(before_conntrack.describe(of_nft(*rules))) is half


@pytest.mark.parametrize("values", [(1, 1), (1, 2)])
def test_zones_of_a_map_may_differ(values: tuple[int, int]) -> None:
    data = {"set": [["eth0", values[0]], ["eth1", values[1]]]}
    by_device = {"map": {"key": {"meta": {"key": "iifname"}}, "data": data}}
    rules = of_nft([{"mangle": {"key": {"ct": {"key": "zone"}}, "value": by_device}}])
    assert {
        text.endswith("in another zone (it may)") for text in before_conntrack.describe(rules)
    } == {True}


def test_our_queue() -> None:
    invalid = "-m conntrack --ctstate INVALID -j NFQUEUE --queue-num"
    early, other = tcp(of_iptables(f"-A PREROUTING {invalid} 4", f"-A OUTPUT {invalid} 9"))
    assert (early.act, other.act) == (RawAct.QUEUE, RawAct.END)


def test_rules_for_syns_alone() -> None:
    """Those in front of SYNPROXY, which are one-sided on purpose."""
    words = "-p tcp -m tcp --dport 443 --tcp-flags FIN,SYN,RST,ACK SYN"
    (rule,) = of_iptables(f"-A PREROUTING {words} -j CT --notrack")
    assert (rule.opening, rule.certain) == (True, True)


@pytest.mark.parametrize(
    ("words", "opening"),
    [
        ("--tcp-flags FIN,SYN,RST,ACK SYN", True),
        ("--tcp-flags SYN,ACK SYN", True),
        ("--tcp-flags SYN SYN", True),
        ("! --tcp-flags FIN,SYN,RST,ACK SYN", False),
        ("--tcp-flags SYN,ACK SYN,ACK", False),
        ("--tcp-flags SYN,ACK ACK,SYN", False),
        ("--tcp-flags SYN,RST RST", False),
    ],
)
def test_flags_of_iptables(words: str, *, opening: bool) -> None:
    rules = of_iptables(f"-A PREROUTING -p tcp -m tcp {words} -j CT --notrack")
    assert {rule.opening for rule in rules} == {opening}
    assert (before_conntrack.describe(rules) == ()) is opening


@pytest.mark.parametrize(
    ("mask", "sign", "flags", "opening"),
    [
        (["fin", "syn", "rst", "ack"], "==", "syn", True),
        ({"|": ["syn", "ack"]}, "==", "syn", True),
        ("syn", "==", "syn", True),
        (None, "in", "syn", True),
        (None, "==", "syn", True),
        (None, "!=", "syn", False),
        (None, "!", "syn", False),
        (None, "in", "ack", False),
        (["fin", "syn", "rst", "ack"], "!=", "syn", False),
        (["syn", "ack"], "==", ["syn", "ack"], False),
    ],
)
def test_flags_of_nft(mask: object, sign: str, flags: object, *, opening: bool) -> None:
    """The recipe for SYNPROXY in nft's manual has no mask."""
    left: dict[str, Any] = {"payload": {"protocol": "tcp", "field": "flags"}}
    if mask is not None:
        left = {"&": [left, mask]}
    rules = of_nft([{"match": {"left": left, "op": sign, "right": flags}}, NOTRACK])
    assert {rule.opening for rule in rules} == {opening}
    assert (before_conntrack.describe(rules) == ()) is opening


def test_rules_behind_conntrack() -> None:
    assert of_iptables("-A PREROUTING -j DROP", table="mangle") == []
    assert of_nft([NOTRACK], prio=-150) == []
    assert of_nft([NOTRACK], hook="forward") == []


def test_the_check() -> None:
    half = of_iptables(
        "-A PREROUTING -s 0.0.0.1 -j NOTRACK", "-A OUTPUT -m mark --mark 1 -j CT --zone 3"
    )
    said = before_conntrack.describe(half)
    assert len(said) == 2
    assert said[0].endswith("hides one direction of flows from conntrack")
    assert said[1].endswith("their other direction is in another zone (it may)")
    reading = RawReading(tuple(half), said)
    checks = list(before_conntrack.checks(reading))
    assert [check.status for check in checks] == [Status.WARNING] * 2
    assert "treat the other direction" in checks[0].todo
    (fine,) = before_conntrack.checks(RawReading())
    assert (fine.id, fine.status) == ("tracking.half", Status.OK)
    queued = of_iptables("-A PREROUTING -j NFQUEUE --queue-num 3")
    assert "has not seen yet" in before_conntrack.describe(queued)[0]
    whole = of_iptables(
        "-A PREROUTING -s 0.0.0.1 -j NOTRACK", "-A PREROUTING -d 0.0.0.1 -j NOTRACK"
    )
    assert before_conntrack.describe(whole) == ()


@pytest.mark.parametrize(
    ("chain", "comment", "words"),
    [
        ("cali-PREROUTING", "cali:n", "bpfHostConntrackBypass"),
        ("CILIUM_PRE_raw", "cilium: proxy", "keep it"),
        ("MORE", "!fw3", "OpenWrt fw3 would put it back"),
    ],
)
def test_no_advice_removes_what_a_program_installs(chain: str, comment: str, words: str) -> None:
    rules = of_iptables(
        f":{chain} - [0:0]",
        f"-A PREROUTING -j {chain}",
        f'-A {chain} -s 0.0.0.1 -m comment --comment "{comment}" -j NOTRACK',
    )
    reading = RawReading(tuple(rules), before_conntrack.describe(rules))
    (check,) = before_conntrack.checks(reading)
    assert words in check.todo


def test_tables_to_list() -> None:
    chains = [
        {"family": "ip", "table": "raw", "name": "PREROUTING", "hook": "prerouting", "prio": -300},
        {"family": "inet", "table": "own", "name": "early", "hook": "output", "prio": -450},
        {"family": "inet", "table": "late", "name": "late", "hook": "output", "prio": 0},
        {"family": "ip", "table": "plain", "name": "plain"},
    ]
    ruleset = Ruleset(json.dumps({"nftables": [{"chain": chain} for chain in chains]}))
    assert ruleset.early() == [("inet", "own")]


def test_no_problem_is_hidden_by_the_check() -> None:
    (partly,) = before_conntrack.checks(RawReading(problems=("no permission",)))
    assert (partly.status, partly.what.endswith("as far as the rules could be read")) == (
        Status.OK,
        True,
    )


def test_a_table_that_cannot_be_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the other tables are read."""
    listings: dict[tuple[str, ...], list[dict[str, Any]]] = {("chains",): []}
    for name, match in (("odd", {"match": {"op": "=="}}), ("own", field("tcp", "sport", 80))):
        base = {"family": "ip", "table": name}
        chain = {**base, "name": "early", "hook": "prerouting", "prio": -300, "type": "filter"}
        listings["chains",].append({"chain": chain})
        listings["table", "ip", name] = [
            {"chain": chain},
            {"rule": {**base, "chain": "early", "expr": [match, NOTRACK]}},
        ]
    monkeypatch.setattr(
        collect, "listed_by_nft", lambda *what: json.dumps({"nftables": listings[what]})
    )
    reading = before_conntrack.read(QUEUES)
    assert {rule.text for rule in reading.rules if "table own" in rule.text}
    assert [text for text in reading.problems if text.startswith("nft list ruleset: ")]


def test_what_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether iptables-legacy has a raw table is unknown to a user who may not read its list."""
    for name in ("ip_tables_names", "ip6_tables_names"):
        (tmp_path / name).write_text("mangle\n", encoding="ascii")
    monkeypatch.setattr(collect, "NET", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _mode: tmp_path not in Path(path).parents)
    problems = before_conntrack.read(QUEUES).problems
    assert [text for text in problems if "ip_tables_names" in text]
    assert [text for text in problems if "ip6_tables_names" in text]
