# SPDX-License-Identifier: MIT
"""Each preset decides as its file says."""

from pathlib import Path

import pytest

from nfq_guard.doctor import synproxy
from nfq_guard.doctor.check import Status
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import (
    IPS_DST_NAT,
    IPS_SRC_NAT,
    PROTO_TCP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
)
from nfq_guard.policy.default import default_model, default_policy
from nfq_guard.policyfile import load_compiled, load_policy, preset_names
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Packet, Segment
from tests.support.policies import Case

PRESETS = ("default", "heal", "istio", "kube-proxy", "no-leak", "observe", "router", "strict")


def test_presets_are_shipped() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_begins_with_purpose_and_risk(name: str) -> None:
    text = (Path("rules/policy") / f"{name}.toml").read_text()
    head = text.split("[policy]")[0]
    assert text.startswith(f"# {name}: for ")
    assert "Risk: " in head


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_policy(name: str) -> None:
    assert load_policy(f"preset:{name}").source == f"preset:{name}"


def test_default_in_code_is_the_file() -> None:
    """The default in code equals the file that gives its reasons."""
    assert default_model() == load_policy("preset:default")


def test_default_policy_is_ready(judge_case: Case) -> None:
    assert default_policy().decide(*judge_case, 0.0).rule == "window"


def _flow(status: int) -> FlowSnapshot:
    way = FlowTuple(PROTO_TCP, b"\n\0\0\1", b"\n\0\0\2", 40000, 80)
    return FlowSnapshot(Evidence.BPF, 0, way, way, status, 0, 0, 60, 3, None)


def _decides(preset: str, case: Case, reason: Reason, flow: FlowSnapshot | None) -> str:
    queued, packet, _, _ = case
    policy = load_compiled(f"preset:{preset}")
    return str(policy.decide(queued, packet, flow, Finding(reason), 0.0).action)


@pytest.mark.parametrize("reason", Reason)
def test_default_drops_what_would_escape_translation(judge_case: Case, reason: Reason) -> None:
    """An INVALID packet of a translated flow is dropped, whatever the reason."""
    for status in (IPS_SRC_NAT, IPS_DST_NAT, IPS_SRC_NAT | IPS_DST_NAT):
        assert _decides("default", judge_case, reason, _flow(status)) == "drop"
        assert _decides("router", judge_case, reason, _flow(status)) == "drop"


@pytest.mark.parametrize("reason", Reason)
def test_default_leaves_other_flows_alone(judge_case: Case, reason: Reason) -> None:
    """Only packets that no receiver accepts are dropped; those that cannot be judged pass."""
    broken = {Reason.BAD_FLAGS, Reason.BAD_CHECKSUM, Reason.MALFORMED}
    expected = "drop" if reason in broken else "allow"
    assert _decides("default", judge_case, reason, _flow(0)) == expected
    assert _decides("default", judge_case, reason, None) == expected


@pytest.mark.parametrize("reason", Reason)
def test_default_has_a_rule_for_every_reason(judge_case: Case, reason: Reason) -> None:
    """No packet reaches `default`; only those that cannot be judged reach `on_unknown`."""
    queued, packet, _, _ = judge_case
    rule = default_policy().decide(queued, packet, None, Finding(reason), 0.0).rule
    assert (rule == "on-unknown") is (reason is Reason.UNSUPPORTED)
    assert rule != "default"


@pytest.mark.parametrize("reason", Reason)
def test_observe_and_strict_have_no_exception(judge_case: Case, reason: Reason) -> None:
    for flow in (None, _flow(0), _flow(IPS_DST_NAT)):
        assert _decides("observe", judge_case, reason, flow) == "log"
        assert _decides("strict", judge_case, reason, flow) == "drop"


def test_router_records_leaks(judge_case: Case) -> None:
    """A private source, a global destination, and no flow: at most ten a minute."""
    queued, packet, _, _ = judge_case
    assert isinstance(packet, Packet)
    packet.dst = bytes([8, 8, 8, 8])
    policy = load_compiled("preset:router")
    late = [
        policy.decide(queued, packet, None, Finding(Reason.NO_ENTRY), float(second)).rule
        for second in range(12)
    ]
    assert late == ["leak"] * 10 + ["default"] * 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_that_break_synproxy_say_so(name: str) -> None:
    """SYNPROXY opens a flow when it sees an ACK that belongs to none."""
    checks = list(synproxy.checks(load_compiled(f"preset:{name}")))
    text = (Path("rules/policy") / f"{name}.toml").read_text()
    assert {check.status for check in checks} == {
        Status.PROBLEM if "# Breaks SYNPROXY" in text else Status.OK
    }


def test_the_advice_on_synproxy_lets_it_work(tmp_path: Path) -> None:
    rules = (
        ("answers", 'tcp_flags = "syn ack"', "sport"),
        ("handshakes", 'tcp_flags = "ack !syn !rst !fin"', "dport"),
    )
    lines = ['[policy]\ninclude = "preset:strict"\ni_know = "drops everything"\n']
    lines += [
        f'[[policy.rule]]\nname = "{name}"\nreason = "no-entry"\n{flags}\n{port} = 443\n'
        'action = "allow"\n'
        for name, flags, port in rules
    ]
    file = tmp_path / "policy.toml"
    file.write_text("".join(lines), encoding="ascii")
    todos = [check.todo for check in synproxy.checks(load_compiled("preset:strict"))]
    for (_, flags, port), todo in zip(rules, todos, strict=True):
        assert flags.replace(" = ", " ") in todo
        assert port in todo
    (check,) = synproxy.checks(load_compiled(str(file)))
    assert check.status is Status.OK


@pytest.mark.parametrize(
    ("flags", "src", "dst", "action"),
    [
        (RST, (10, 88, 0, 8), (198, 51, 100, 10), "drop"),
        (RST | ACK, (100, 64, 1, 8), (198, 51, 100, 10), "drop"),
        (FIN | ACK, (172, 31, 9, 9), (198, 51, 100, 10), "drop"),
        (SYN | ACK, (10, 88, 0, 8), (198, 51, 100, 10), "allow"),
        (RST, (192, 0, 2, 8), (198, 51, 100, 10), "allow"),
        (RST, (10, 88, 0, 8), (192, 168, 1, 1), "allow"),
    ],
)
def test_no_leak_drops_late_ends_with_a_private_source(
    judge_case: Case,
    flags: int,
    src: tuple[int, ...],
    dst: tuple[int, ...],
    action: str,
) -> None:
    _, packet, _, _ = judge_case
    assert isinstance(packet, Packet)
    assert isinstance(packet.l4, Segment)
    packet.src, packet.dst, packet.l4.flags = bytes(src), bytes(dst), flags
    assert _decides("no-leak", judge_case, Reason.NO_ENTRY, None) == action
    assert _decides("no-leak", judge_case, Reason.RST_OUTSIDE, _flow(0)) == "allow"
