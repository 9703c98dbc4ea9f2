# SPDX-License-Identifier: MIT
"""Routing by a mark that INVALID packets do not get from their connection."""

import json
from collections.abc import Iterator

import pytest

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.doctor import collect, host_rules, nft_rules, routing
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.rule_model import Table
from nfq_guard.wire.packet import ACK, SYN
from tests.support.listings import STATE, matching, nft, tables_of
from tests.support.live import LiveConntrack
from tests.support.packets import tcp

MARK = {"meta": {"key": "mark"}}
RESTORED = {"mangle": {"key": MARK, "value": {"ct": {"key": "mark"}}}}
HEAD = "*mangle\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
RESTORE = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x3f00 --ctmask 0x3f00\n"
BY_MARK = {"priority": 2000, "src": "all", "fwmark": "0x200", "fwmask": "0x3f00", "table": "102"}
LOCAL = {"priority": 0, "src": "all", "table": "local"}


def checked(
    monkeypatch: pytest.MonkeyPatch, tables: list[Table], *rules: dict[str, object]
) -> list[Check]:
    monkeypatch.setattr(collect, "output", lambda *_: json.dumps([LOCAL, *rules]))
    return list(routing.checks(tables))


@pytest.mark.parametrize(
    ("rules", "rule", "found"),
    [
        (RESTORE, BY_MARK, True),
        (RESTORE, {**BY_MARK, "not": None}, True),
        (RESTORE, {"priority": 9, "fwmark": "0x200"}, True),
        (RESTORE, {**BY_MARK, "fwmark": "0x4000", "fwmask": "0x4000"}, False),
        (RESTORE, LOCAL, False),
        # Each packet gets the same bits afterwards.
        (f"{RESTORE}-A PREROUTING -j MARK --set-xmark 0x100/0x3f00\n", BY_MARK, False),
        # An INVALID packet gets these bits as well, by a rule of its own.
        ("-A PREROUTING -j MARK --set-xmark 0x200/0x3f00\n", BY_MARK, False),
        ("-A OUTPUT -j CONNMARK --restore-mark\n", BY_MARK, True),
        ("-A PREROUTING -j CONNMARK --save-mark\n", BY_MARK, False),
    ],
)
def test_marks_by_which_packets_are_routed(
    monkeypatch: pytest.MonkeyPatch, rules: str, rule: dict[str, object], *, found: bool
) -> None:
    checks = checked(monkeypatch, tables_of(HEAD + rules), rule)
    assert [check.status for check in checks] == [Status.NOTE] * found
    assert all("(`ip rule` " in check.what and "ct_mark" in check.todo for check in checks)


@pytest.mark.parametrize(
    ("hook", "kind", "found"),
    [("prerouting", "filter", True), ("output", "route", True), ("output", "filter", False)],
)
def test_only_a_chain_of_routes_has_packets_routed_again(
    monkeypatch: pytest.MonkeyPatch, hook: str, kind: str, *, found: bool
) -> None:
    text = nft([RESTORED], hook=hook, priority=-150).replace('"filter"', f'"{kind}"')
    checks = checked(monkeypatch, nft_rules.Ruleset(text).tables(), BY_MARK)
    assert bool(checks) is found


def test_a_mark_by_the_state_is_not_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = [matching(STATE, "established"), {"mangle": {"key": MARK, "value": 0x200}}]
    tables = nft_rules.Ruleset(nft(rule, hook="prerouting")).tables()
    (check,) = checked(monkeypatch, tables, BY_MARK, {**BY_MARK, "priority": 2001})
    assert "(IPv4 and IPv6)" in check.what
    assert "2000: fwmark 0x200/0x3f00 and 1 more rule)" in check.what
    assert "ct_mark" not in check.todo


@pytest.mark.parametrize("listed", [None, "", '[{"fwmark": "x"}]'])
def test_rules_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch, listed: str | None) -> None:
    monkeypatch.setattr(collect, "output", lambda *_: listed)
    assert list(routing.checks(tables_of(HEAD))) == []
    (check,) = routing.checks(tables_of(HEAD + RESTORE))
    assert (check.id, check.status) == ("routing.mark", Status.NOTE)
    assert "is not known" in check.what


@pytest.fixture
def live() -> Iterator[LiveConntrack]:
    with LiveConntrack(Sysctls()) as conntrack:
        yield conntrack


@pytest.mark.kernel
def test_an_invalid_packet_is_routed_without_the_mark_of_its_connection(
    live: LiveConntrack,
) -> None:
    """The route for the mark of the connection loses packets."""
    source, target = bytes((10, 0, 0, 2)), bytes((198, 51, 100, 9))
    live.space.run(
        "iptables-legacy-restore",
        stdin=f"*mangle\n{RESTORE}-A PREROUTING -j CONNMARK --set-xmark 0x200/0x3f00\nCOMMIT\n",
    )
    live.space.ip("route", "add", "blackhole", "default", "table", "102")
    live.space.ip("rule", "add", "fwmark", "0x200/0x3f00", "lookup", "102")
    syn = tcp(source, target, 40000, 80, SYN)
    assert live.send(syn) is not None
    assert live.send(syn) is None
    assert live.send(tcp(source, target, 40000, 80, ACK)) is not None
    (check,) = routing.checks(host_rules.read().tables)
    assert "behind PREROUTING (IPv4)" in check.what
