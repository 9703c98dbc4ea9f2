# SPDX-License-Identifier: MIT
"""Finding rules on INVALID packets in listings, and their order relative to ours."""

import json

import pytest

from nfq_guard.doctor import iptables_rules, marks, nft_rules
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.foreign import Effect, Order, checks, owner_of
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ("-m conntrack --ctstate INVALID -j DROP", True),
        ("-m conntrack --ctstate NEW,INVALID,UNTRACKED -j DROP", True),
        ("-m state --state INVALID -j DROP", True),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", True),
        ("-m conntrack ! --ctstate INVALID -j ACCEPT", False),
        ("-m conntrack --ctstate NEW -j DROP", False),
        ("-m comment --comment INVALID -j DROP", False),
        ("-j DROP", False),
    ],
)
def test_rules_that_match_invalid_packets(rule: str, matches: bool) -> None:
    assert iptables_rules.matches_invalid(rule) is matches


def test_owners_are_recognised_by_their_chains() -> None:
    assert owner_of(["KUBE-FORWARD"]).id == "kube-proxy"
    assert owner_of(["DROP", "cali-tw-eth0"]).id == "calico"
    assert owner_of(["ISTIO_DROP", "PREROUTING"]).id == "istio"
    assert owner_of(["ufw6-before-input"]).id == "ufw"
    assert owner_of(["filter_INPUT", "firewalld"]).id == "firewalld"
    assert owner_of(["DOCKER-USER"]).id == "docker"
    assert owner_of(["INPUT"]).id == "plain"


def _found(text: str, elsewhere: int | None = None) -> list[tuple[Order, Effect]]:
    rules = iptables_rules.find(parse(text), Backend.NFT, Family.IPV4, elsewhere=elsewhere)
    return [(rule.order, rule.effect) for rule in rules]


OURS = "-A PREROUTING -m conntrack --ctstate INVALID -j NFQ_GUARD\n"
THEIRS = "-A PREROUTING -m conntrack --ctstate INVALID -j DROP\n"
MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n"


def test_the_order_within_our_own_table() -> None:
    assert _found(MANGLE + OURS + THEIRS) == [(Order.SHADOWED, Effect.DROP)]
    assert _found(MANGLE + THEIRS + OURS) == [(Order.BEFORE, Effect.DROP)]
    assert _found(MANGLE + THEIRS) == [(Order.BEFORE, Effect.DROP)]
    assert _found(MANGLE + THEIRS, -150) == [(Order.TIED, Effect.DROP)]
    assert _found(MANGLE + THEIRS, -151) == [(Order.AFTER, Effect.DROP)]
    forward = THEIRS.replace("PREROUTING", "FORWARD")
    assert _found(MANGLE + forward + OURS) == [(Order.AFTER, Effect.DROP)]


def test_a_rule_is_placed_by_the_jump_that_leads_to_it() -> None:
    chain = "-A X -m conntrack --ctstate INVALID -j DROP\n"
    jump = "-A PREROUTING -j X\n"
    declared = f"{MANGLE}:X - [0:0]\n"
    assert _found(declared + jump + OURS + chain) == [(Order.BEFORE, Effect.DROP)]
    assert _found(declared + OURS + jump + chain) == [(Order.SHADOWED, Effect.DROP)]
    assert _found(declared + chain) == [], "no rule jumps to the chain"


def test_an_accept_before_ours_hides_the_packets_too() -> None:
    accept = THEIRS.replace("DROP", "ACCEPT")
    rules = iptables_rules.find(
        parse(MANGLE + accept + OURS), Backend.NFT, Family.IPV4, elsewhere=None
    )
    (check,) = checks(rules)
    assert check.status is Status.PROBLEM


def test_an_accept_in_another_table_hides_nothing() -> None:
    """With nft, sent packets are queued after filter, whose ACCEPT ends that table only."""
    text = "*filter\n:OUTPUT ACCEPT [0:0]\n" + THEIRS.replace("PREROUTING", "OUTPUT")
    for rule, order in ((text, Order.BEFORE), (text.replace("DROP", "ACCEPT"), Order.AFTER)):
        assert [found for found, _ in _found(rule)] == [order]


def test_a_jump_has_the_effect_of_its_chain() -> None:
    rule = "-A PREROUTING -m conntrack --ctstate INVALID -j X\n"
    declared = f"{MANGLE}:X - [0:0]\n:Y - [0:0]\n"
    log = "-A X -m limit --limit 1/sec -j DROP\n-A X -j LOG --log-prefix INVALID\n"
    assert _found(declared + OURS + rule + log) == [(Order.SHADOWED, Effect.LOG)]
    assert _found(
        declared + OURS + rule + log + "-A X -g Y\n-A Y -j REJECT --reject-with tcp-reset\n"
    ) == [(Order.SHADOWED, Effect.DROP)]
    loop = "-A X -j Y\n-A Y -j X\n"
    assert _found(declared + OURS + rule + loop) == [(Order.SHADOWED, Effect.LOG)]


def test_a_rule_in_the_nat_table_has_no_effect() -> None:
    text = "*nat\n:OUTPUT ACCEPT [0:0]\n" + THEIRS.replace("PREROUTING", "OUTPUT")
    rules = iptables_rules.find(parse(text), Backend.NFT, Family.IPV4, elsewhere=None)
    (check,) = checks(rules)
    assert (check.status, "no effect" in check.what) == (Status.NOTE, True)


def _nft(*rules: object, hook: str = "forward", priority: int = 0, table: str = "t") -> str:
    where = {"family": "inet", "table": table}
    base = {**where, "name": "c", "type": "filter", "hook": hook, "prio": priority}
    items: list[object] = [{"metainfo": {}}, {"table": {"family": "inet", "name": table}}]
    items += [{"chain": base}, {"chain": {**where, "name": "x"}}]
    items += [{"rule": {**where, "chain": "c", "expr": expr}} for expr in rules]
    items.append({"rule": {**where, "chain": "x", "expr": [{"counter": {}}, {"drop": None}]}})
    return json.dumps({"nftables": items})


def _state(right: object, operator: str = "in") -> dict[str, object]:
    return {"match": {"op": operator, "left": {"ct": {"key": "state"}}, "right": right}}


@pytest.mark.parametrize(
    ("expr", "effect"),
    [
        ([_state("invalid"), {"drop": None}], Effect.DROP),
        ([_state(["invalid", "untracked"]), {"jump": {"target": "x"}}], Effect.DROP),
        ([_state({"set": ["invalid", "new"]}), {"reject": None}], Effect.DROP),
        ([_state({"set": ["established", "related"]}, "!="), {"drop": None}], Effect.DROP),
        ([_state("invalid"), {"log": None}], Effect.LOG),
        ([_state("invalid"), {"accept": None}], Effect.LOG),
        ([_state("invalid", "!="), {"drop": None}], None),
        ([_state({"set": ["established"]}), {"accept": None}], None),
        ([{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}}], None),
        (
            [
                {
                    "vmap": {
                        "key": {"ct": {"key": "state"}},
                        "data": {"set": [["invalid", {"drop": None}]]},
                    }
                }
            ],
            Effect.DROP,
        ),
        (
            [
                {
                    "vmap": {
                        "key": {"ct": {"key": "state"}},
                        "data": {"set": [["new", {"drop": None}]]},
                    }
                }
            ],
            None,
        ),
        ([{"vmap": {"key": {"ct": {"key": "state"}}, "data": "@named"}}], None),
    ],
)
def test_nftables_rules(expr: list[object], effect: Effect | None) -> None:
    found = nft_rules.Ruleset(_nft(expr)).find()
    assert [rule.effect for rule in found] == ([] if effect is None else [effect])


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
    text = _nft([_state("invalid"), {"drop": None}], hook=hook, priority=priority)
    (rule,) = nft_rules.Ruleset(text).find()
    assert rule.order is order
    assert rule.hooks == (hook,)


def test_our_native_table_is_not_foreign() -> None:
    ruleset = nft_rules.Ruleset(_nft([_state("invalid"), {"drop": None}], table="nfq_guard"))
    assert ruleset.ours
    assert ruleset.find() == []


def test_flow_tables() -> None:
    text = json.dumps({"nftables": [{"flowtable": {"family": "ip", "table": "t", "name": "ft"}}]})
    ruleset = nft_rules.Ruleset(text)
    (check,) = nft_rules.flowtables(ruleset.flowtables)
    assert check.status is Status.NOTE
    assert list(nft_rules.flowtables([])) == []


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ("-j MARK --set-xmark 0x4000/0x4000", 0x4000),
        ("-j MARK --set-xmark 0x1/0xffffffff", 0xFFFFFFFF),
        ("-j MARK --set-mark 1", 0xFFFFFFFF),
        ("-j MARK --set-xmark 0x0/0x1000", 0x1000),
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", 0),
        ("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", 0xFF),
        ("-j CONNMARK --restore-mark", 0xFFFFFFFF),
        ("-j MARK --set-xmark nonsense/0x1", 1),
        ("-m mark --mark 0x1000/0x1000 -j DROP", 0),
    ],
)
def test_the_mark_bits_that_a_rule_writes(rule: str, bits: int) -> None:
    assert marks.touched(rule) == bits


def test_a_rule_that_writes_the_mark_of_judged_packets() -> None:
    text = "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j MARK --set-xmark 0x1/0xffffffff\n"
    (bad,) = marks.marks([parse(text), parse(text)], 0x1000)
    assert bad.status is Status.WARNING
    assert "mangle FORWARD" in bad.what
    assert "1 more" in bad.what
    (good,) = marks.marks([parse(text.replace("0xffffffff", "0xff"))], 0x1000)
    assert good.status is Status.OK
