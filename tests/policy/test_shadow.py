# SPDX-License-Identifier: MIT
"""The policy on trial reports where it differs, and changes nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.engine import Engine, Mode
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.default import default_model, default_policy
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policy.shadow import Difference, disagreement
from nfq_guard.policyfile import load_compiled
from nfq_guard.telemetry.events import ShadowDecision
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.wire.packet import Queued
from tests.support.policies import Case
from tests.support.segments import ACK, tcp_ipv4


def _policy(**rule: object) -> CompiledPolicy:
    table = {"default": "allow", "rule": [{"reason": "seq-over", "name": "new", **rule}]}
    return compile_policy(parse_policy(table, source="test"))


@pytest.mark.parametrize(
    ("acting", "says", "difference"),
    [
        (Decision(Action.DROP, "old"), {"action": "drop"}, None),
        (Decision(Action.DROP, "old"), {"action": "log"}, Difference.ONLY_ACTING_DROPS),
        (Decision(Action.LOG, "old"), {"action": "drop"}, Difference.ONLY_SHADOW_DROPS),
        (Decision(Action.LOG, "old"), {"action": "allow"}, Difference.OTHER),
        (Decision(Action.DROP, "old", 1), {"action": "drop"}, Difference.OTHER),
        (Decision(Action.DROP, "old", 1), {"action": "drop", "mark": 1}, None),
    ],
)
def test_disagreement(
    judge_case: Case,
    acting: Decision,
    says: dict[str, object],
    difference: Difference | None,
) -> None:
    told = disagreement(acting, _policy(**says).decide(*judge_case, 0.0))
    if told is None:
        assert difference is None
    else:
        assert (told.acting, told.shadow.rule, told.difference) == (acting, "new", difference)


class _NoFlows:
    evidence = Evidence.BPF

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        return [None] * len(tuples)


def test_shadow_is_replaced_with_its_policy() -> None:
    """The acting policy decides, the shadow is recorded, and a reload replaces both together."""
    octets = tcp_ipv4("10.0.0.1", "10.0.0.2", 1, 2, 3, 4, 0x04 | ACK, b"")
    batch = [Queued(octets, 0, "", "", 0, 0)]
    strict = load_compiled("preset:strict")
    engine = Engine(
        policy=compile_policy(default_model(), strict), flows=_NoFlows(), mode=Mode.ENFORCE
    )
    (judged,) = engine.judge(batch, now=0.0)
    assert judged.decision.action is Action.ALLOW
    assert judged.shadow is not None
    assert judged.shadow.difference is Difference.ONLY_SHADOW_DROPS
    event = packet_judged(judged, mode=Mode.ENFORCE, queue_num=0, evidence=Evidence.BPF, when="now")
    assert event.shadow == ShadowDecision("default", Action.DROP)
    engine.policy = default_policy()
    assert engine.judge(batch, now=0.0)[0].shadow is None
    engine.policy = compile_policy(default_model(), strict)
    assert engine.judge(batch, now=0.0)[0].shadow is not None


def test_mistakes_in_a_shadow_are_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The key is relative to the configuration; its mistakes are reported with all others."""
    path = tmp_path / "c.toml"
    path.write_text('[daemon]\nshadow = "s.toml"\n[policy]\ndefault = "dorp"\n')
    (tmp_path / "s.toml").write_text('[policy]\ndefault = "lgo"\n')
    assert main(["check", str(path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "policy.default: expected drop, log or allow, found 'dorp'" in first
    assert f"daemon.shadow ({tmp_path / 's.toml'}) policy.default: expected drop" in second
    path.write_text('[daemon]\nshadow = "preset:strict"\n')
    assert main(["check", str(path)]) == 0
