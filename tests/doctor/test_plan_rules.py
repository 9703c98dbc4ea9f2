# SPDX-License-Identifier: MIT
"""A plan's commands remove rules for INVALID packets, and nothing else."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.doctor import host_rules, iptables_rules, nft_rules
from nfq_guard.doctor.plan_rules import Moves, rule_moves
from nfq_guard.doctor.rule_model import Table
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse
from tests.support.live import LiveConntrack
from tests.support.segments import ACK, SYN, checksum, tcp_ipv4

INVALID, NEW = CTSTATES.index("INVALID"), CTSTATES.index("NEW")
NAMED = "-m conntrack --ctstate INVALID"
RESET = "REJECT --reject-with tcp-reset"


def rules(text: str, *, policy: str = "ACCEPT") -> list[Table]:
    """Rules in chains of iptables, as `TABLE CHAIN RULE`; words for states in braces."""
    tables: dict[str, list[str]] = {}
    for line in text.split(";"):
        table, _, rest = line.partition(" ")
        states = rest.replace("{invalid}", NAMED).replace("{state}", "-m conntrack --ctstate")
        tables.setdefault(table, []).append(states)
    saved = ""
    for name, lines in tables.items():
        chains = dict.fromkeys(line.split()[0] for line in lines)
        built_in = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT")
        kinds = {each: policy if each in built_in else "-" for each in chains}
        saved += f"*{name}\n" + "".join(f":{each} {kinds[each]} [0:0]\n" for each in chains)
        saved += "".join(f"-A {line}\n" for line in lines) + "COMMIT\n"
    return iptables_rules.tables(parse(saved), Backend.LEGACY, Family.IPV4)


def native(*expressions: Sequence[Any], chains: dict[str, Sequence[Any]] | None = None) -> Any:  # noqa: ANN401 - JSON
    """Rules of a chain in FORWARD with handles from 10 on, and of other chains."""
    listed = {"family": "inet", "table": "fw"}
    base = {"hook": "forward", "prio": 0, "type": "filter"}
    items: list[Any] = [{"chain": {**listed, "name": "c", **base}}]
    for name, expr in (chains or {}).items():
        items += [
            {"chain": {**listed, "name": name}},
            {"rule": {**listed, "chain": name, "handle": 5, "expr": expr}},
        ]
    items += [
        {"rule": {**listed, "chain": "c", "handle": handle, "expr": expr}}
        for handle, expr in enumerate(expressions, 10)
    ]
    return nft_rules.Ruleset(json.dumps({"nftables": items})).tables()


def state(*states: str, op: str = "in") -> dict[str, Any]:
    right = states[0] if len(states) == 1 else list(states)
    return {"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": right}}


def vmap(**verdicts: str) -> dict[str, Any]:
    pairs = [[name, {verdict: None}] for name, verdict in verdicts.items()]
    return {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": pairs}}}


DROP: dict[str, Any] = {"drop": None}


def stage(tables: Sequence[Table], name: str) -> tuple[str, list[str]]:
    """The words of a stage, and its commands."""
    steps = [step for moves in rule_moves(tables) for step in getattr(moves, name)]
    return "\n".join(step.what for step in steps), [each for s in steps for each in s.commands]


@pytest.mark.parametrize(
    "text",
    [
        "filter FORWARD -i eth0 {state} INVALID,NEW -j DROP",
        "filter FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
        "filter FORWARD {state} INVALID,NEW -j X;filter X -j DROP",
        "mangle FORWARD {invalid} -j MARK --set-xmark 0x1/0xffffffff;"
        "filter FORWARD -m mark --mark 0x1 -j DROP",
        "filter FORWARD {invalid} -j DROP;filter FORWARD {invalid} -j DROP",
        "filter FORWARD -m recent --set --name bad {invalid} -j DROP",
        "filter FORWARD {invalid} -j X;filter X -m recent --set --name bad;filter X -j DROP",
    ],
)
def test_a_rule_that_takes_other_packets_as_well_is_words(text: str) -> None:
    words, commands = stage(rules(text), "over")
    assert "No command is safe" in words
    assert not commands
    assert not stage(rules(text), "back")[1]


@pytest.mark.parametrize(
    "tables",
    [
        native([vmap(established="accept", invalid="drop")]),
        native([state("invalid", "untracked"), DROP]),
        native([state("invalid", op="!="), {"accept": None}], [state("new", "invalid"), DROP]),
        native([state("@s"), DROP]),
        native(
            [{"mangle": {"key": {"meta": {"key": "priority"}}, "value": 1}}, state("invalid"), DROP]
        ),
        native([{"counter": None}, "jump {\nct state invalid drop\n}"]),
    ],
)
def test_a_native_rule_that_does_more_is_words(tables: list[Table]) -> None:
    assert not stage(tables, "over")[1]


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        ("filter FORWARD {invalid} -j DROP", ["FORWARD {invalid} -j DROP"]),
        ("filter FORWARD -i eth0 {invalid} -j DROP", ["FORWARD -i eth0 {invalid} -j DROP"]),
        ("filter FORWARD -j X;filter X {invalid} -j DROP", ["X {invalid} -j DROP"]),
        (
            "filter FORWARD {invalid} -j X;filter FORWARD -s 192.0.2.66/32 -j X;filter X -j DROP",
            ["FORWARD {invalid} -j X"],
        ),
        (
            "filter INPUT {invalid} -j X;filter FORWARD {invalid} -j X;filter X -j DROP",
            ["INPUT {invalid} -j X", "FORWARD {invalid} -j X"],
        ),
        (
            "filter FORWARD {invalid} -j Y;filter Y -j X;filter Y {invalid} -j X;filter X -j DROP",
            ["FORWARD {invalid} -j Y", "Y {invalid} -j X"],
        ),
        (
            f"filter FORWARD {{invalid}} -j DROP;filter FORWARD -p tcp {{invalid}} -j {RESET}",
            ["FORWARD {invalid} -j DROP", f"FORWARD -p tcp {{invalid}} -j {RESET}"],
        ),
    ],
)
def test_the_rule_for_invalid_packets_is_removed(text: str, removed: list[str]) -> None:
    """It may be the jump to a chain that other packets reach as well, or a rule behind another."""
    words, commands = stage(rules(text), "over")
    assert "the policy decides instead" in words
    expected = [f"iptables-legacy -w -t filter -D {each}" for each in removed]
    assert sorted(commands) == sorted(each.replace("{invalid}", NAMED) for each in expected)


def test_the_whole_native_rule_is_for_invalid_packets() -> None:
    """Its chain is saved once, before both rules go."""
    for tables, handles in (
        (native([state("invalid"), DROP]), ["10"]),
        (native([vmap(invalid="drop")]), ["10"]),
        (native([{"counter": None}, state("invalid"), DROP]), ["10"]),
        (native([state("invalid"), {"jump": {"target": "x"}}], chains={"x": [DROP]}), ["10"]),
        (native([state("invalid"), "jump {\ntcp dport 22 accept\ndrop\n}"]), ["10"]),
        (native([state("invalid"), DROP], [state("invalid"), {"reject": None}]), ["10", "11"]),
    ):
        (command,) = stage(tables, "over")[1]
        assert re.findall(r"delete rule inet fw c handle (\d+)", command) == handles
        assert command.count("nft list chain inet fw c;") == 1


@pytest.mark.parametrize(
    ("text", "policy", "behind"),
    [
        (
            "filter FORWARD {invalid} -j DROP;filter FORWARD -j KUBE-FORWARD;"
            "filter KUBE-FORWARD {invalid} -j DROP",
            "ACCEPT",
            "INVALID -j DROP` behind it drops all others",
        ),
        (
            "filter FORWARD {state} RELATED,ESTABLISHED -j ACCEPT;"
            f"filter FORWARD {{invalid}} -j DROP;filter FORWARD -p tcp {{invalid}} -j {RESET}",
            "DROP",
            "tcp-reset` behind it resets all others; the RST ends the connection",
        ),
        (
            "filter FORWARD {invalid} -j DROP;filter FORWARD {state} RELATED,ESTABLISHED -j ACCEPT;"
            f"filter FORWARD -i eth0 -p tcp -j {RESET}",
            "ACCEPT",
            "behind it resets all others",
        ),
        (
            "mangle FORWARD {invalid} -j DROP;"
            f"filter FORWARD -p tcp {{state}} INVALID,NEW -j {RESET}",
            "ACCEPT",
            "behind it resets all others",
        ),
    ],
)
def test_a_rule_before_another_that_stays_is_words(text: str, policy: str, behind: str) -> None:
    words, commands = stage(rules(text, policy=policy), "over")
    assert behind in words
    assert not commands


def test_a_program_behind_an_own_rule_is_named() -> None:
    text = (
        "filter FORWARD {invalid} -j DROP;filter FORWARD -j KUBE-FORWARD;"
        "filter KUBE-FORWARD {invalid} -j DROP"
    )
    assert "the rule of kube-proxy: keep it" in stage(rules(text), "over")[0]


def test_a_rule_that_takes_some_packets_behind_it_is_told() -> None:
    text = "filter FORWARD {invalid} -j DROP;filter FORWARD -i eth0 {state} INVALID,NEW -j DROP"
    words, commands = stage(rules(text), "over")
    assert "except for what others take: `-i eth0 -m conntrack --ctstate INVALID,NEW" in words
    assert commands == [f"iptables-legacy -w -t filter -D FORWARD {NAMED} -j DROP"]


@pytest.mark.parametrize(
    "text",
    [
        "mangle PREROUTING {invalid} -j X;mangle X -j LOG;mangle X -j DROP",
        "mangle PREROUTING -i eth0 -j X;mangle X {invalid} -j DROP",
        "mangle PREROUTING -i eth0 -j ACCEPT;mangle PREROUTING {invalid} -j DROP",
        "raw PREROUTING -s 192.0.2.66/32 {invalid} -j DROP",
        "raw PREROUTING -m recent --rcheck --name bad -j DROP;"
        "filter INPUT {invalid} -m recent --set --name bad",
    ],
)
def test_a_rule_before_the_guard_is_moved_only_with_all_its_conditions(text: str) -> None:
    words, commands = stage(rules(text), "beside")
    assert "by hand" in words
    assert not commands


def test_a_moved_rule_is_told_from_one_of_the_host() -> None:
    text = "mangle PREROUTING {invalid} -j DROP;filter INPUT {invalid} -j DROP"
    moved = f"-m comment --comment nfq-guard-moved {NAMED} -j DROP"
    (command,) = stage(rules(text), "beside")[1]
    assert f"-I INPUT 1 {moved} && " in command
    assert command.endswith(f" && iptables-legacy -w -t mangle -D PREROUTING {NAMED} -j DROP")
    undone = [each for each in stage(rules(text), "back")[1] if "-D INPUT" in each]
    assert [moved in each for each in undone] == [True]


@pytest.mark.parametrize("where", ["PREROUTING {invalid} -j DROP", "PREROUTING -j X"])
def test_a_rule_before_the_guard_stays_moved_before_a_default_deny(where: str) -> None:
    chain = ";mangle X {invalid} -j DROP" if where.endswith("X") else ""
    tables = [
        *rules(f"mangle {where}{chain}"),
        *rules("filter FORWARD {state} RELATED,ESTABLISHED -j ACCEPT", policy="DROP"),
    ]
    assert len(stage(tables, "beside")[1]) == 1
    words, commands = stage(tables, "over")
    assert "the moved rule" in words
    assert "`policy drop` behind it drops all others" in words
    assert not commands


def packet(src: str, sport: int, dport: int, seq: int, flags: int) -> bytes:
    """A segment from one side, with the sum of its header."""
    octets = tcp_ipv4(src, "10.0.1.1", sport, dport, seq, 2, flags, b"")
    return octets[:10] + checksum(octets[:20]).to_bytes(2, "big") + octets[12:]


STRAY = packet("10.0.0.1", 40000, 80, 1 << 30, ACK)
SYN_IN = packet("10.0.0.2", 40001, 9999, 1, SYN)
BANNED = packet("192.0.2.66", 40002, 80, 1, SYN)


def restore(*lines: str) -> str:
    return "iptables-legacy-restore --noflush <<'END'\n" + "\n".join([*lines, "COMMIT", "END"])


def nft(*lines: str) -> str:
    return "nft -f - <<'END'\ntable inet f {\n" + "\n".join([*lines, "}", "END"])


IN_FORWARD = "chain c { type filter hook forward priority 0;"
DROPPED = None
LIVE: dict[str, tuple[str, list[tuple[bytes, int | None, int | None]]]] = {
    "new": (
        restore("*filter", "-A FORWARD -i in0 -m conntrack --ctstate NEW,INVALID -j DROP"),
        [(SYN_IN, DROPPED, DROPPED)],
    ),
    "all but known": (
        restore("*filter", "-A FORWARD -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP"),
        [(SYN_IN, DROPPED, DROPPED)],
    ),
    "vmap": (
        nft(
            "chain chk { tcp dport != 22 drop; }",
            f"{IN_FORWARD} ct state vmap {{",
            "established : accept, invalid : drop, new : jump chk }",
            "}",
        ),
        [(SYN_IN, DROPPED, DROPPED)],
    ),
    "shared chain": (
        restore(
            "*filter",
            ":LOGDROP -",
            f"-A FORWARD {NAMED} -j LOGDROP",
            "-A FORWARD -s 192.0.2.66 -j LOGDROP",
            "-A LOGDROP -j DROP",
        ),
        [(BANNED, DROPPED, DROPPED), (STRAY, DROPPED, INVALID)],
    ),
    "shared native chain": (
        nft(
            "chain bad { counter drop; }",
            f"{IN_FORWARD} ct state invalid jump bad; ip saddr 192.0.2.66 jump bad; }}",
        ),
        [(BANNED, DROPPED, DROPPED), (STRAY, DROPPED, INVALID)],
    ),
    "unnamed chain": (
        nft(IN_FORWARD, "ct state invalid jump {", "tcp dport 22 accept", "drop", "}", "}"),
        [(STRAY, DROPPED, INVALID)],
    ),
    "two in one chain": (
        nft(
            "map m { type inet_service : verdict; elements = { 80 : drop, 81 : drop } }",
            f"{IN_FORWARD} ct state invalid tcp dport vmap @m; tcp dport 9 accept",
            "ct state invalid counter drop",
            "}",
        ),
        [(STRAY, DROPPED, INVALID)],
    ),
    "a quoted comment": (
        restore(
            "*filter",
            rf"""-A FORWARD {NAMED} -m comment --comment "it\'s a \"\\q\"" -j DROP""",
        ),
        [(STRAY, DROPPED, INVALID)],
    ),
    "a reset behind": (
        restore("*filter", f"-A FORWARD {NAMED} -j DROP", f"-A FORWARD -p tcp {NAMED} -j {RESET}"),
        [(STRAY, DROPPED, INVALID)],
    ),
    "before the guard": (
        restore(
            "*mangle",
            ":BADPKT -",
            f"-A PREROUTING {NAMED} -j BADPKT",
            "-A BADPKT -j DROP",
        ),
        [(SYN_IN, NEW, NEW), (STRAY, DROPPED, INVALID)],
    ),
}


@pytest.mark.kernel
@pytest.mark.parametrize("name", LIVE)
def test_a_followed_plan_changes_the_fate_of_invalid_packets_only(
    tmp_path: Path, name: str
) -> None:
    """Stage by stage, without the guard, and back to the same rules."""
    loading, probes = LIVE[name]

    def run(command: str) -> str:
        done = subprocess.run(
            live.space.argv(["sh", "-ec", command]),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def follow(moves: Sequence[Moves], name: str) -> None:
        for step in (step for each in moves for step in getattr(each, name)):
            for command in step.commands:
                run(command)

    def listed() -> str:
        text = run("iptables-legacy-save; nft list table inet f 2>/dev/null || true")
        return re.sub(r"(?m)^[#:].*\n|packets \d+ bytes \d+", "", text)

    def fates() -> list[int | None]:
        run("conntrack -F 2>/dev/null")
        return [live.send(octets) for octets, _, _ in probes]

    with LiveConntrack(Sysctls(loose=False), reads_log=False) as live:
        run(loading)
        before = listed()
        started = [fate for _, fate, _ in probes]
        assert fates() == started
        moves = list(rule_moves(host_rules.read().tables))
        follow(moves, "beside")
        assert fates() == started
        follow(moves, "over")
        assert fates() == [fate for _, _, fate in probes]
        for _ in range(2):
            follow(moves, "back")
            assert listed() == before
        assert fates() == started
