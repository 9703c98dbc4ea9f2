# SPDX-License-Identifier: MIT
"""The doctor in namespaces that others have put their rules into."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from netfilterqueue import NetfilterQueue

from nfq_guard.firewall import BOTH_FAMILIES, Backend
from tests.doctor.conftest import RULES, Patient

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
        ("istio.rules", "istio", "note", ("table mangle", "behind ours", "did not judge")),
    ],
)
def test_rules_of_others_are_known_by_their_looks(
    patient: Patient,
    backend: Backend,
    name: str,
    owner: str,
    status: str,
    words: tuple[str, ...],
) -> None:
    patient.load(backend, name)
    assert patient.command("rules", "install", "--backend", backend) == 0
    found = patient.foreign()
    assert found[owner]["status"] == status
    for word in (*words, f"{backend} table", "drops INVALID packets"):
        assert word in found[owner]["what"]


def test_istio_in_front_of_ours_makes_the_guard_moot(patient: Patient, backend: Backend) -> None:
    patient.command("rules", "install", "--backend", backend)
    for family in BOTH_FAMILIES:
        text = (RULES / "istio.rules").read_text(encoding="ascii")
        patient.restore(backend, family, text.replace("-A PREROUTING -m", "-I PREROUTING -m"))
    status, checks = patient.examine()
    assert status == 1
    by_id = {one["id"]: one for one in checks}
    assert by_id["foreign.istio"]["status"] == "problem"
    assert "the guard never sees them" in by_id["foreign.istio"]["what"]
    assert by_id["rules.ours"]["status"] == "problem"
    assert "jump-not-first" in by_id["rules.ours"]["what"]


def test_before_our_rules_are_there_istio_is_no_harm(patient: Patient, backend: Backend) -> None:
    patient.load(backend, "istio.rules")
    found = patient.foreign()
    assert found["istio"]["status"] == "note"
    assert "ours will come first" in found["istio"]["what"]


def test_the_same_priority_in_the_other_backend_is_left_to_chance(
    patient: Patient, backend: Backend
) -> None:
    patient.load(backend.other, "istio.rules")
    patient.command("rules", "install", "--backend", backend)
    assert patient.foreign()["istio"]["status"] == "warning"
    assert "left to chance" in patient.foreign()["istio"]["what"]


def test_a_drop_in_the_table_raw_is_a_problem_always(patient: Patient, backend: Backend) -> None:
    for family in BOTH_FAMILIES:
        drop = "*raw\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
        patient.restore(backend, family, drop)
    found = patient.foreign()["plain"]
    assert found["status"] == "problem"
    assert "every one counts as INVALID" in found["what"]


def test_a_drop_in_the_table_nat_has_no_effect(patient: Patient, backend: Backend) -> None:
    """That table may not drop outright, so the rule logs; INVALID never comes there anyhow."""
    for family in BOTH_FAMILIES:
        rule = "*nat\n-A OUTPUT -m conntrack --ctstate INVALID -j RETURN\nCOMMIT\n"
        patient.restore(backend, family, rule)
    assert "plain" not in patient.foreign()


def test_firewalld_in_nftables_own_language(patient: Patient) -> None:
    patient.ns.run("nft", "-f", str(RULES / "firewalld.nft"))
    found = patient.foreign()["firewalld"]
    assert found["status"] == "warning"
    for word in ("nftables table firewalld", "filter_INPUT and 1 more", "FORWARD/INPUT"):
        assert word in found["what"]


@pytest.mark.parametrize(
    ("priority", "status"),
    [("-250", "problem"), ("-180", "problem"), ("mangle", "warning"), ("0", "warning")],
)
def test_a_native_chain_is_judged_by_its_priority(
    patient: Patient, priority: str, status: str
) -> None:
    patient.command("rules", "install")
    patient.ns.run(
        "nft",
        f"table inet mine {{ chain c {{ type filter hook prerouting priority {priority}; "
        "ct state invalid,untracked jump d; }; chain d { counter drop; }; }",
    )
    assert patient.foreign()["plain"]["status"] == status


def test_our_own_native_table_is_known(patient: Patient) -> None:
    text = (RULES.parents[2] / "rules" / "nftables.nft").read_text(encoding="ascii")
    patient.ns.run("nft", "-f", "-", stdin=text.replace("queue flags bypass to 0", "counter"))
    patient.load(Backend.NFT, "istio.rules")
    _, checks = patient.examine()
    by_id = {one["id"]: one for one in checks}
    assert by_id["rules.ours"]["status"] == "ok"
    assert by_id["foreign.istio"]["status"] == "warning"
    patient.command("rules", "install")
    _, checks = patient.examine()
    assert "queued more than once" in next(o["what"] for o in checks if o["id"] == "rules.ours")


def test_a_healthy_namespace_has_no_problem(patient: Patient, backend: Backend) -> None:
    patient.command("rules", "install", "--backend", backend)
    status, checks = patient.examine()
    by_id = {one["id"]: one for one in checks}
    assert status == 0, checks
    assert by_id["rules.ours"]["what"].endswith(f"as they should be, in {backend}")
    assert by_id["foreign"]["status"] == "ok"
    assert by_id["evidence"]["status"] == "ok"
    assert by_id["table.fill"]["status"] == "ok"
    assert by_id["queue.owner"]["status"] == "note"


def test_what_a_sysctl_means_is_told(patient: Patient) -> None:
    patient.ns.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
    patient.ns.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)
    patient.ns.sysctl("netfilter.nf_conntrack_tcp_loose", 0)
    _, checks = patient.examine()
    by_id = {one["id"]: one for one in checks}
    assert by_id["sysctl.be_liberal"]["status"] == "warning"
    assert by_id["sysctl.loose"]["status"] == "note"


def test_it_changes_nothing(patient: Patient, backend: Backend) -> None:
    patient.load(backend, "kube-proxy.rules")
    patient.command("rules", "install", "--backend", backend)
    before = [patient.ns.run(f"iptables-{one}-save", "-c").stdout for one in Backend]
    patient.examine()
    after = [patient.ns.run(f"iptables-{one}-save", "-c").stdout for one in Backend]
    assert [_rules(text) for text in before] == [_rules(text) for text in after]


def _rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_text_for_people(patient: Patient) -> None:
    assert patient.command("doctor") == 0
    shown = patient.capsys.readouterr().out
    assert "note     rules.ours: our rules are not installed here\n         -> " in shown
    assert shown.splitlines()[-1].endswith("0 problem")


def test_without_privilege_it_says_what_it_could_not_see(patient: Patient) -> None:
    done = subprocess.run(
        patient.ns.argv(
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
    by_id = {one["id"]: one for one in checks}
    assert by_id["capabilities"]["status"] == "problem"
    assert by_id["foreign.unread"]["status"] == "note"
    assert by_id["rules.ours"]["status"] == "note"
    assert "cannot be seen" in by_id["rules.ours"]["what"]


@pytest.mark.parametrize(
    ("table", "chain", "hook", "status"),
    [
        ("filter", "input", "input priority 5", "warning"),
        ("mangle", "PREROUTING", "prerouting priority -160", "problem"),
    ],
    ids=["chain-beside-iptables", "table-hidden-from-iptables"],
)
def test_native_chains_in_tables_named_like_those_of_iptables(
    patient: Patient, table: str, chain: str, hook: str, status: str
) -> None:
    patient.ns.run(
        "nft",
        f"table ip {table} {{ set s {{ type ipv4_addr; }}; chain {chain} {{ type filter hook "
        f"{hook}; ip saddr @s drop; ct state invalid drop; }}; }}",
    )
    found = patient.foreign()["plain"]
    assert found["status"] == status
    assert f"nftables table {table}, chain {chain}" in found["what"]


def test_a_queue_of_somebody_else_is_a_problem(patient: Patient) -> None:
    with patient.ns.entered():
        queue = NetfilterQueue()
        queue.bind(0, lambda packet: packet.accept())
    try:
        status, checks = patient.examine()
    finally:
        queue.unbind()
    owner = next(one for one in checks if one["id"] == "queue.owner")
    assert status == 1
    assert owner["status"] == "problem"
    assert f"(pid {os.getpid()})" in owner["what"]


def test_a_running_guard_is_known_as_ours(patient: Patient) -> None:
    words = (sys.executable, "-m", "nfq_guard", "run", "--mode", "dry-run")
    guard = patient.ns.popen(*words, stderr=subprocess.DEVNULL)
    try:
        assert guard.stdout is not None
        while '"started"' not in guard.stdout.readline():
            assert guard.poll() is None
        status, checks = patient.examine()
    finally:
        guard.terminate()
        guard.communicate(timeout=10)
    by_id = {one["id"]: one for one in checks}
    assert status == 0, checks
    assert by_id["queue.owner"]["status"] == "ok"
    assert by_id["rules.ours"]["status"] == "ok"


def test_kernel_drop_looks_at_marks(patient: Patient, tmp_path: Path) -> None:
    file = tmp_path / "nfq-guard.toml"
    file.write_text('[daemon]\nmode = "enforce"\nfail_mode = "kernel-drop"\n', encoding="ascii")
    patient.ns.run("iptables", "-t", "mangle", "-A", "FORWARD", "-j", "MARK", "--set-mark", "7")
    patient.command("doctor", "--format", "json", "--config", str(file))
    checks = [json.loads(line) for line in patient.capsys.readouterr().out.splitlines()]
    assert next(one["status"] for one in checks if one["id"] == "rules.mark") == "warning"


def test_a_policy_that_keeps_the_guard_from_starting(patient: Patient, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[policy]\ndefault = "dorp"\nunknown = 1\n', encoding="ascii")
    assert patient.command("doctor", "--config", str(config), "--format", "json") == 1
    check = json.loads(patient.capsys.readouterr().out.splitlines()[0])
    assert (check["id"], check["status"]) == ("configuration", "problem")
    assert "policy.unknown" in check["what"]
    assert "1 more" in check["what"]
