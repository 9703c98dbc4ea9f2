# SPDX-License-Identifier: MIT
"""Rules of others that lead to the guard's own queue do what rules of ours do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.cli import main
from nfq_guard.doctor import foreign, own_queue, path
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.nft_rules import Ruleset
from nfq_guard.doctor.ours import ours, valid_packets
from nfq_guard.doctor.rule_model import Table
from nfq_guard.firewall import Backend
from nfq_guard.lab.netns import Namespace
from tests.support.listings import STATE, fate_of, nft, tables_of

MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n:USERS - [0:0]\n"
INVALID = "-m conntrack --ctstate INVALID"
QUEUE = f"-A PREROUTING {INVALID} -j NFQUEUE --queue-num 7 --queue-bypass\n"
DROP = f"-A PREROUTING {INVALID} -j DROP\n"


def adopted(tables: list[Table], queues: range = range(7, 8)) -> list[str]:
    return list(own_queue.adopt(tables, queues).places)


def test_it_is_no_rule_that_takes_packets_from_the_guard() -> None:
    tables = tables_of(MANGLE + QUEUE)
    assert adopted(tables) == [
        f"`{INVALID} -j NFQUEUE --queue-num 7 --queue-bypass` (legacy table mangle, chain "
        "PREROUTING, IPv4)"
    ]
    mets = list(path.walk(tables, 4))
    assert list(foreign.checks(mets)) == []
    check = fate_of(mets, "prerouting")
    assert (check.status, check.what.endswith(" is accepted")) == (Status.OK, True)


@pytest.mark.parametrize(
    ("rules", "order"),
    [(DROP + QUEUE, path.Order.BEFORE), (QUEUE + DROP, path.Order.SHADOWED)],
)
def test_other_rules_are_before_or_behind_it(rules: str, order: path.Order) -> None:
    tables = tables_of(MANGLE + rules)
    adopted(tables)
    (met,) = path.walk(tables, 4)
    assert met.order is order


def test_a_rule_in_a_chain_of_others() -> None:
    user = f"-A PREROUTING -j USERS\n-A USERS {INVALID} -j NFQUEUE --queue-num 7\n"
    tables = tables_of(MANGLE + user)
    (found,) = adopted(tables)
    assert "chain USERS" in found
    assert fate_of(list(path.walk(tables, 4)), "prerouting").status is Status.OK


def test_a_rule_before_conntrack_is_no_place_of_ours() -> None:
    """It would queue every packet; the rules behind it keep their order."""
    raw = tables_of("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + QUEUE)
    tables = raw + tables_of(MANGLE + DROP)
    assert adopted(tables) == []
    mets = list(path.walk(tables, 4))
    assert [met.order for met in mets] == [path.Order.UNTRACKED, path.Order.BEFORE]
    (check, *_) = foreign.checks(mets)
    assert (check.status, "no packet is tracked" in check.what) == (Status.PROBLEM, True)


@pytest.mark.parametrize(
    ("target", "queues", "ours"),
    [
        ("NFQUEUE --queue-num 7", range(7, 8), True),
        ("NFQUEUE --queue-num 7", range(6, 9), True),
        ("NFQUEUE --queue-num 8", range(7, 8), False),
        ("NFQUEUE", range(1), True),
        ("NFQUEUE --queue-balance 4:7", range(4, 8), True),
        ("NFQUEUE --queue-balance 4:7", range(7, 8), False),
        ("TPROXY --on-port 7", range(7, 8), False),
    ],
)
def test_queues_of_iptables(target: str, queues: range, *, ours: bool) -> None:
    tables = tables_of(f"{MANGLE}-A PREROUTING {INVALID} -j {target}\n")
    assert bool(adopted(tables, queues)) is ours


@pytest.mark.parametrize(
    ("number", "ours"),
    [(7, True), (8, False), ({"range": [6, 8]}, False), ({"range": [7, 7]}, True)],
)
def test_queues_of_nft(number: object, *, ours: bool) -> None:
    statements: list[Any] = [STATE, {"queue": {"num": number, "flags": ["bypass"]}}]
    assert bool(adopted(Ruleset(nft(statements)).tables(frozenset()))) is ours


@pytest.mark.parametrize(
    ("places", "others", "by_others", "status", "says"),
    [
        ([], ["`one`"], True, Status.OK, "by `one`, not by rules of ours"),
        ([], ["`one`", "`two`"], False, Status.NOTE, "by `one` and 1 more"),
        ([], [], True, Status.NOTE, 'the setting `rules` = "none" leaves to others'),
        ([], [], False, Status.NOTE, "our rules are not installed here"),
        (["nft"], ["`one`"], False, Status.WARNING, "may be judged twice"),
    ],
)
def test_who_installs_the_rules(
    places: list[str], others: list[str], status: Status, says: str, *, by_others: bool
) -> None:
    to_us = own_queue.ToUs(tuple(others), in_prerouting=True)
    check = ours(places, [], others=to_us, by_others=by_others)
    assert (check.status, says in check.what) == (status, True)


@pytest.mark.parametrize("chain", ["FORWARD", "INPUT"])
def test_a_rule_that_misses_packets(chain: str) -> None:
    text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
    tables = tables_of(text + QUEUE.replace("PREROUTING", chain))
    found = own_queue.adopt(tables, range(7, 8))
    assert (len(found.places), found.in_prerouting) == (1, False)
    check = ours([], [], others=found, by_others=True)
    assert (check.status, "none in PREROUTING" in check.what) == (Status.WARNING, True)


FORWARD = "*filter\n:FORWARD ACCEPT [0:0]\n:USERS - [0:0]\n"


@pytest.mark.parametrize(
    ("rules", "valid"),
    [
        ("-A FORWARD -j NFQUEUE --queue-num 7", 1),
        ("-A FORWARD -p udp -j NFQUEUE --queue-balance 6:9", 1),
        ("-A FORWARD -j NFQUEUE --queue-balance 8:9", 0),
        ("-A FORWARD -m conntrack --ctstate NEW -j NFQUEUE --queue-num 7", 1),
        ("-A FORWARD -j USERS\n-A USERS -j NFQUEUE --queue-num 7", 1),
        ("-A FORWARD -j USERS\n-A USERS -j USERS\n-A FORWARD -j NFQUEUE --queue-num 7", 1),
        (f"-A FORWARD {INVALID} -j NFQUEUE --queue-num 7", 0),
        (f"-A FORWARD {INVALID} -j USERS\n-A USERS -j NFQUEUE --queue-num 7", 0),
        ("-A FORWARD -m conntrack ! --ctstate NEW,ESTABLISHED -j NFQUEUE --queue-num 7", 0),
        ("-A FORWARD -m conntrack ! --ctstate INVALID -j ACCEPT\n-A FORWARD -j NFQUEUE", 0),
        ("-A USERS -j NFQUEUE --queue-num 7", 0),
    ],
)
def test_a_rule_that_hands_valid_packets_to_us(rules: str, valid: int) -> None:
    """Most likely it is for another program, with a queue that is ours."""
    found = own_queue.adopt(tables_of(f"{FORWARD}{rules}\n"), {0, 7, *range(100, 102)})
    assert len(found.valid) == valid
    checks = list(valid_packets(found))
    assert [(check.id, check.status) for check in checks] == [
        ("queue.valid", Status.PROBLEM)
    ] * valid
    if valid:  # its other advice would be to keep that rule alone
        assert ours(["nft"], [], others=found).status is Status.OK


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("target", ["--queue-num 7", "--queue-balance 5:7", "--queue-balance 8:9"])
def test_a_queue_shared_with_another_program(
    namespace: Callable[[str], Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: Backend,
    target: str,
) -> None:
    host = namespace("shared")
    words = (f"iptables-{backend}", "-A", "FORWARD", "-p", "udp", "-j", "NFQUEUE")
    host.run(*words, *target.split(), "--queue-bypass")
    config = tmp_path / "c.toml"
    config.write_text("[daemon]\nqueue = 7\n")
    with host.entered():
        main(["doctor", "--format", "json", "--config", str(config)])
        doctor = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [one for one in doctor if one["id"] == "queue.valid"]
    assert [one["status"] for one in found] == ["problem"] * ("7" in target)


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend))
def test_on_a_host(
    namespace: Callable[[str], Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: Backend,
) -> None:
    """`doctor`, and `check --host`, of a host whose own rules hand packets to the guard."""
    host = namespace("own")
    for program in (f"iptables-{backend}", f"ip6tables-{backend}"):
        words = (program, "-t", "mangle", "-A", "PREROUTING", *INVALID.split())
        host.run(*words, "-j", "NFQUEUE", "--queue-num", "7", "--queue-bypass")
    config = tmp_path / "c.toml"
    config.write_text('[daemon]\nqueue = 7\nrules = "none"\n')
    with host.entered():
        main(["doctor", "--format", "json", "--config", str(config)])
        doctor = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        main(["check", "--host", str(config), "--format", "json"])
        checked = json.loads(capsys.readouterr().out)["host"]
        assert main(["doctor", "--plan", "--config", str(config)]) == 0
    assert "NFQUEUE" not in capsys.readouterr().out, "a plan leaves the rule"
    (found,) = (check for check in doctor if check["id"] == "rules.ours")
    assert (found["status"], f"({backend} table mangle" in found["what"]) == ("ok", True)
    for checks in (doctor, checked):
        named = [one for one in checks if one["id"].startswith(("foreign", "fate"))]
        assert len(named) > 5
        assert {one["status"] for one in named} == {"ok"}
