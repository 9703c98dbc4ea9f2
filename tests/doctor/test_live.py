# SPDX-License-Identifier: MIT
"""The doctor in namespaces with other programs' rules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from netfilterqueue import NetfilterQueue

from nfq_guard.doctor.table import fill
from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family
from tests.doctor.conftest import RULES, Host
from tests.support.queue import GuardProcess, wait_for

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    ("name", "owner", "status", "words"),
    [
        (
            "kube-proxy.rules",
            "kube-proxy",
            "warning",
            ("table filter", "KUBE-FORWARD", "hook FORWARD", "IPv4 and IPv6", "after ours"),
        ),
        ("calico.rules", "calico", "warning", ("table filter", "1 more", "hook FORWARD")),
        ("ufw.rules", "ufw", "warning", ("ufw-before-input", "hook INPUT", "after ours")),
        ("firewalld.rules", "firewalld", "warning", ("chain INPUT", "after ours")),
        ("istio.rules", "istio", "problem", ("table mangle", "before ours", "never sees them")),
    ],
)
def test_the_owners_of_other_rules_are_recognised(
    host: Host,
    backend: Backend,
    name: str,
    owner: str,
    status: str,
    words: tuple[str, ...],
) -> None:
    host.load(backend, name)
    assert host.command("rules", "install", "--backend", backend) == 0
    found = host.foreign()
    assert found[owner]["status"] == status
    for word in (*words, f"{backend} table", "drops INVALID packets"):
        assert word in found[owner]["what"]


def test_istios_drop_behind_our_jump_is_skipped(host: Host, backend: Backend) -> None:
    host.command("rules", "install", "--backend", backend)
    host.load(backend, "istio.rules")
    status, checks = host.examine()
    assert status == 1
    by_id = {check["id"]: check for check in checks}
    assert by_id["foreign.istio"]["status"] == "note"
    assert "queued packets skip it" in by_id["foreign.istio"]["what"]
    assert by_id["rules.ours"]["status"] == "problem"
    assert "jump-not-last" in by_id["rules.ours"]["what"]


def test_a_rule_that_takes_packets_away_from_us_is_a_warning(host: Host, backend: Backend) -> None:
    host.command("rules", "install", "--backend", backend)
    accept = "*mangle\n-I PREROUTING 1 -p tcp -j ACCEPT\nCOMMIT\n"
    host.restore(backend, Family.IPV4, accept)
    _, checks = host.examine()
    order = [check for check in checks if check["id"] == "rules.order"]
    assert [check["status"] for check in order] == ["warning"]
    assert "rule 1 `-p tcp -j ACCEPT` ends the chain" in order[0]["what"]


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ("-I PREROUTING 1 -m mark ! --mark 1/1 -j NFQUEUE --queue-num 5\n", "rule 1 `-m mark"),
        (":IPS -\n-I PREROUTING 1 -j IPS\n-A IPS -j NFQUEUE --queue-num 5\n", "in chain IPS: "),
    ],
)
def test_a_program_may_repeat_what_it_gets_before_us(
    host: Host, backend: Backend, rules: str, what: str
) -> None:
    """NF_REPEAT starts the base chain again (kernel.md 5), as Suricata's repeat mode has it."""
    host.command("rules", "install", "--backend", backend)
    host.restore(backend, Family.IPV4, f"*mangle\n{rules}COMMIT\n")
    _, checks = host.examine()
    (order,) = [check for check in checks if check["id"] == "rules.order"]
    assert what in order["what"]
    assert "the program on the queue accepts are not judged" in order["what"]
    assert "repeats (NF_REPEAT) are" in order["what"]


def test_a_program_that_gets_invalid_packets_before_us(host: Host, backend: Backend) -> None:
    host.command("rules", "install", "--backend", backend)
    rule = "-I PREROUTING 1 -m conntrack --ctstate INVALID -m mark ! --mark 1/1 -j NFQUEUE"
    host.restore(backend, Family.IPV4, f"*mangle\n{rule} --queue-num 5\nCOMMIT\n")
    found = host.foreign()["plain"]
    assert found["status"] == "problem"
    assert "the guard sees only those that the program on that queue passes on" in found["what"]


def test_istios_drop_is_a_problem_before_our_rules_are_installed(
    host: Host, backend: Backend
) -> None:
    host.load(backend, "istio.rules")
    found = host.foreign()
    assert found["istio"]["status"] == "problem"
    assert "the guard never sees them" in found["istio"]["what"]


def test_the_order_at_the_same_priority_in_the_other_backend_is_undefined(
    host: Host, backend: Backend
) -> None:
    host.load(backend.other, "istio.rules")
    host.command("rules", "install", "--backend", backend)
    assert host.foreign()["istio"]["status"] == "warning"
    assert "which of the two runs first is undefined" in host.foreign()["istio"]["what"]


def test_a_drop_in_the_raw_table_is_always_a_problem(host: Host, backend: Backend) -> None:
    for family in BOTH_FAMILIES:
        drop = "*raw\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
        host.restore(backend, family, drop)
    found = host.foreign()["plain"]
    assert found["status"] == "problem"
    assert "every packet matches as INVALID" in found["what"]


def test_a_rule_in_the_nat_table_is_not_reported(host: Host, backend: Backend) -> None:
    """The table refuses DROP, so the rule returns; INVALID packets never reach it."""
    for family in BOTH_FAMILIES:
        rule = "*nat\n-A OUTPUT -m conntrack --ctstate INVALID -j RETURN\nCOMMIT\n"
        host.restore(backend, family, rule)
    assert "plain" not in host.foreign()


def test_firewalld_with_native_nftables_rules(host: Host) -> None:
    host.ns.run("nft", "-f", str(RULES / "firewalld.nft"))
    found = host.foreign()["firewalld"]
    assert found["status"] == "warning"
    for word in ("nftables table firewalld", "filter_INPUT and 1 more", "FORWARD/INPUT"):
        assert word in found["what"]


@pytest.mark.parametrize(
    ("priority", "status"),
    [("-250", "problem"), ("-180", "problem"), ("mangle", "warning"), ("0", "warning")],
)
def test_a_native_chain_is_judged_by_its_priority(host: Host, priority: str, status: str) -> None:
    host.command("rules", "install")
    host.ns.run(
        "nft",
        f"table inet mine {{ chain c {{ type filter hook prerouting priority {priority}; "
        "ct state invalid,untracked jump d; }; chain d { counter drop; }; }",
    )
    assert host.foreign()["plain"]["status"] == status


def test_our_own_native_table_is_recognised(host: Host) -> None:
    text = (RULES.parents[2] / "rules" / "nftables.nft").read_text(encoding="ascii")
    host.ns.run("nft", "-f", "-", stdin=text.replace("queue num 0 bypass", "counter"))
    host.load(Backend.NFT, "istio.rules")
    _, checks = host.examine()
    by_id = {check["id"]: check for check in checks}
    assert by_id["rules.ours"]["status"] == "ok"
    assert by_id["foreign.istio"]["status"] == "problem"
    host.ns.run("nft", "flush", "chain", "inet", "nfq_guard", "judge")
    _, checks = host.examine()
    (ours,) = (check for check in checks if check["id"] == "rules.ours")
    assert (ours["status"], "missing-rule: nft inet nfq_guard judge" in ours["what"]) == (
        "problem",
        True,
    )
    host.command("rules", "install", "--backend", "nft")
    host.ns.run("nft", "-f", "-", stdin=text.replace("queue num 0 bypass", "counter"))
    _, checks = host.examine()
    (ours,) = (check for check in checks if check["id"] == "rules.ours")
    assert "queued more than once" in ours["what"]


def test_a_healthy_namespace_has_no_problem(host: Host, backend: Backend) -> None:
    host.command("rules", "install", "--backend", backend)
    status, checks = host.examine()
    by_id = {check["id"]: check for check in checks}
    assert status == 0, checks
    assert by_id["rules.ours"]["what"] == f"rules OK, in {backend}"
    assert by_id["foreign"]["status"] == "ok"
    assert by_id["evidence"]["status"] == "ok"
    assert by_id["table.fill"]["status"] == "ok"
    assert by_id["queue.owner"]["status"] == "note"


def test_the_limit_of_the_table_is_that_of_the_host(host: Host) -> None:
    """In any other namespace its sysctls cannot be written, as the advice says."""
    with host.ns.entered():
        for name in ("nf_conntrack_max", "nf_conntrack_buckets"):
            path = Path("/proc/sys/net/netfilter", name)
            with pytest.raises(PermissionError):
                path.write_text(path.read_text(encoding="ascii"), encoding="ascii")
    assert fill(10, 10).todo.endswith(", in the host's own network namespace")


def test_sysctls_of_the_namespace_are_reported(host: Host) -> None:
    host.ns.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
    host.ns.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)
    host.ns.sysctl("netfilter.nf_conntrack_tcp_loose", 0)
    _, checks = host.examine()
    by_id = {check["id"]: check for check in checks}
    assert by_id["sysctl.be_liberal"]["status"] == "warning"
    assert by_id["sysctl.loose"]["status"] == "note"


def test_it_changes_nothing(host: Host, backend: Backend) -> None:
    host.load(backend, "kube-proxy.rules")
    host.command("rules", "install", "--backend", backend)
    before = [host.ns.run(f"iptables-{one}-save", "-c").stdout for one in Backend]
    host.examine()
    after = [host.ns.run(f"iptables-{one}-save", "-c").stdout for one in Backend]
    assert [_rules(text) for text in before] == [_rules(text) for text in after]


def _rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_text_for_people(host: Host) -> None:
    assert host.command("doctor") == 0
    shown = host.capsys.readouterr().out
    assert "note     rules.ours: our rules are not installed here\n         -> " in shown
    assert shown.splitlines()[-1].endswith("0 problems")


def test_an_unprivileged_run_names_what_it_cannot_read(host: Host) -> None:
    done = subprocess.run(
        host.ns.argv(
            [
                *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
                *(sys.executable, "-m", "nfq_guard", "doctor", "--format", "json"),
            ]
        ),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    by_id = {check["id"]: check for check in checks}
    assert by_id["capabilities"]["status"] == "problem"
    assert by_id["foreign.unread"]["status"] == "note"
    assert by_id["rules.ours"]["status"] == "note"
    assert "cannot read" in by_id["rules.ours"]["what"]


@pytest.mark.parametrize(
    ("table", "chain", "hook", "status"),
    [
        ("filter", "input", "input priority 5", "warning"),
        ("mangle", "PREROUTING", "prerouting priority -160", "problem"),
    ],
    ids=["chain-beside-iptables", "table-hidden-from-iptables"],
)
def test_native_chains_in_tables_named_like_those_of_iptables(
    host: Host, table: str, chain: str, hook: str, status: str
) -> None:
    host.ns.run(
        "nft",
        f"table ip {table} {{ set s {{ type ipv4_addr; }}; chain {chain} {{ type filter hook "
        f"{hook}; ip saddr @s drop; ct state invalid drop; }}; }}",
    )
    found = host.foreign()["plain"]
    assert found["status"] == status
    assert f"nftables table {table}, chain {chain}" in found["what"]


@pytest.mark.parametrize("flag", ["", "flags dormant\n"])
def test_a_dormant_table_takes_nothing(host: Host, flag: str) -> None:
    """Nft 1.0.6 does not list this flag in its JSON."""
    host.ns.run(
        *("nft", "-f", "-"),
        stdin=f"table inet mine {{\n{flag}chain c {{ type filter hook forward priority 0; "
        "ct state invalid drop; }\nchain raw { type filter hook prerouting priority raw; "
        "tcp sport 80 notrack; }\n}\n",
    )
    _, checks = host.examine()
    status = {check["id"]: check["status"] for check in checks}
    expected = ("ok", "ok") if flag else ("warning", "warning")
    assert (status["fate.forward"], status["tracking.half"]) == expected
    assert ("foreign.plain" in status) is not bool(flag)


def test_a_dormant_table_of_iptables_runs_no_rule(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither one that takes INVALID packets, nor ours, which would queue them."""
    others = {
        "filter": "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "raw": "-A PREROUTING -p tcp --sport 80 -j CT --notrack",
    }
    for table, rule in others.items():
        host.ns.run("iptables-nft", "-t", table, *rule.split())
    assert host.command("rules", "install", "--backend", "nft") == 0
    awake = {"fate.forward", "foreign.plain", "tracking.half"}

    def bad() -> set[str]:
        _, checks = host.examine()
        found = {check["id"] for check in checks if check["status"] in {"warning", "problem"}}
        return found & {*awake, "rules.ours"}

    assert bad() == awake
    for table in ("filter", "raw", "mangle"):
        host.ns.run("nft", "add", "table", "ip", table, "{ flags dormant; }")
    assert bad() == {"rules.ours"}
    capsys.readouterr()
    for quiet in ([], ["--quiet"]):
        assert host.command("rules", "verify", "--backend", "nft", *quiet) == 1
        assert capsys.readouterr().out == (
            "dormant: IPv4 nft mangle: the kernel runs none of its rules, ours included\n"
        )
    for table in ("filter", "raw", "mangle"):
        host.ns.run("nft", "add", "table", "ip", table)
    assert host.command("rules", "verify", "--backend", "nft") == 0
    assert bad() == awake


@pytest.mark.parametrize(
    "native",
    ["ct state != { established, new } counter", "meta mark set 1"],
    ids=["one-table-hidden", "iptables-fails"],
)
def test_rules_of_iptables_that_only_nft_lists(host: Host, native: str) -> None:
    """A rule of nftables in its table can keep iptables-nft from listing it."""
    rules = (
        "*filter\n:FORWARD DROP [0:0]\n:ufw-before-forward - [0:0]\n"
        "-A FORWARD -j ufw-before-forward\n"
        "-A ufw-before-forward -m conntrack --ctstate ESTABLISHED -j ACCEPT\n"
        "-A FORWARD -p tcp -m conntrack --ctstate INVALID -j REJECT --reject-with tcp-reset\n"
        "COMMIT\n"
    )
    host.restore(Backend.NFT, Family.IPV4, rules)
    host.ns.run("nft", f"add rule ip filter FORWARD {native}")
    _, checks = host.examine()
    (fate,) = [
        check for check in checks if check["id"] == "fate.forward" and "(IPv4)" in check["what"]
    ]
    assert fate["status"] == "warning"
    assert (
        "dropped by default: `policy drop` (nftables table filter, chain FORWARD; ufw)"
        in (fate["what"])
    )
    assert "taken by a rule that cannot be followed" in fate["what"]
    unread = [check["what"] for check in checks if check["id"] == "foreign.unread"]
    assert any("-m conntrack, -j REJECT in table ip filter" in what for what in unread)


def test_a_queue_bound_by_another_process_is_a_problem(host: Host) -> None:
    with host.ns.entered():
        queue = NetfilterQueue()
        queue.bind(0, lambda packet: packet.accept())
    try:
        status, checks = host.examine()
    finally:
        queue.unbind()
    owner = next(check for check in checks if check["id"] == "queue.owner")
    assert status == 1
    assert owner["status"] == "problem"
    assert f"(pid {os.getpid()})" in owner["what"]


def test_the_queue_of_a_running_guard_is_ok(host: Host, tmp_path: Path) -> None:
    with GuardProcess(host.ns, tmp_path / "log", "--mode", "dry-run").ready():
        status, checks = host.examine()
    by_id = {check["id"]: check for check in checks}
    assert status == 0, checks
    assert by_id["queue.owner"]["status"] == "ok"
    assert by_id["rules.ours"]["status"] == "ok"


def test_kernel_drop_warns_of_rules_that_write_its_mark(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "nfq-guard.toml"
    file.write_text('[daemon]\nmode = "enforce"\nfail_mode = "kernel-drop"\n', encoding="ascii")
    host.ns.run("iptables", "-t", "mangle", "-A", "FORWARD", "-j", "MARK", "--set-mark", "7")
    host.command("doctor", "--format", "json", "--config", str(file))
    checks = [json.loads(line) for line in host.capsys.readouterr().out.splitlines()]
    assert next(check["status"] for check in checks if check["id"] == "rules.mark") == "warning"


def test_a_policy_that_prevents_the_guard_from_starting(host: Host, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[policy]\ndefault = "dorp"\nunknown = 1\n', encoding="ascii")
    assert host.command("doctor", "--config", str(config), "--format", "json") == 1
    check = json.loads(host.capsys.readouterr().out.splitlines()[0])
    assert (check["id"], check["status"]) == ("configuration", "problem")
    assert "policy.unknown" in check["what"]
    assert "1 more" in check["what"]


DENY = (
    "table inet mine { chain c { type filter hook forward priority 0; policy drop; "
    "ct state established accept; }; }"
)


def test_check_tells_what_the_host_does_with_allowed_packets(host: Host) -> None:
    assert host.command("check", "preset:default", "--host", "--strict") == 0
    assert "fate.forward: an allowed packet (IPv4 and IPv6) is accepted" in (
        host.capsys.readouterr().out
    )
    host.ns.run("nft", DENY)
    assert host.command("check", "preset:default", "--host", "--strict") == 1
    assert "dropped by default: `policy drop`" in host.capsys.readouterr().out
    assert host.command("check", "preset:default", "--host", "--format", "json") == 0
    (report,) = map(json.loads, host.capsys.readouterr().out.splitlines())
    fates = {check["id"]: check["status"] for check in report["host"]}
    assert (fates["fate.forward"], fates["fate.input"]) == ("warning", "ok")
    host.load(Backend.LEGACY, "synproxy.rules")
    for preset, status in (("strict", "problem"), ("default", "ok")):
        host.command("check", f"preset:{preset}", "--host", "--format", "json")
        (report,) = map(json.loads, host.capsys.readouterr().out.splitlines())
        found = {check["id"]: check["status"] for check in report["host"]}
        assert found["policy.synproxy"] == status


@pytest.mark.parametrize("rules", ["", "kube-proxy.rules"])
def test_check_and_doctor_say_the_same_of_the_host(host: Host, rules: str) -> None:
    if rules:
        host.load(Backend.LEGACY, rules)
    host.command("check", "preset:default", "--host", "--format", "json")
    (report,) = map(json.loads, host.capsys.readouterr().out.splitlines())
    _, checks = host.examine()
    assert report["host"] == [
        check for check in checks if check["id"].partition(".")[0] in {"foreign", "fate", "policy"}
    ]


@pytest.mark.parametrize("denied", [False, True])
def test_the_daemon_says_it_once_at_the_start(host: Host, tmp_path: Path, *, denied: bool) -> None:
    if denied:
        host.ns.run("nft", DENY)
    with GuardProcess(host.ns, tmp_path / "log", "--mode", "dry-run").ready() as guard:
        name = "host_takes" if denied else "host_accepts"
        wait_for(lambda: bool(guard.events(name)))
        (event,) = guard.events(name)
        assert event.get("fates", []) == (
            [
                "forward: an allowed packet (IPv4 and IPv6) is dropped by default: `policy drop` "
                "(nftables table mine, chain c)"
            ]
            if denied
            else []
        )
        assert guard.stop() == 0


def test_rules_that_cannot_be_read_are_said_in_the_event(host: Host, tmp_path: Path) -> None:
    """Here the output of nft is not a list of rules."""
    fake = tmp_path / "bin" / "nft"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho \'{"nftables": [{"rule": 1}]}\'\n', encoding="ascii")
    fake.chmod(0o755)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    log = tmp_path / "log"
    with GuardProcess(host.ns, log, "--mode", "dry-run", env=env).ready() as guard:
        wait_for(lambda: bool(guard.events("host_accepts")))
        (event,) = guard.events("host_accepts")
        assert "nft list ruleset" in event["unread"][0]
        assert guard.stop() == 0
