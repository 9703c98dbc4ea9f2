"""The shadow says where it differs, and changes nothing."""

import pytest

from nfq_guard.policy.compiled import compile_policy
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policy.shadow import Shadow
from tests.support.policies import Case


def _shadow(**rule: object) -> Shadow:
    table = {"default": "allow", "rule": [{"reason": "seq-over", "name": "new", **rule}]}
    return Shadow(compile_policy(parse_policy(table, source="test")))


def _counts(shadow: Shadow) -> tuple[int, int, int, int]:
    return (
        shadow.agreed,
        shadow.only_acting_drops,
        shadow.only_shadow_drops,
        shadow.other_differences,
    )


@pytest.mark.parametrize(
    ("acting", "says", "counts"),
    [
        (Decision(Action.DROP, "old"), {"action": "drop"}, (1, 0, 0, 0)),
        (Decision(Action.DROP, "old"), {"action": "log"}, (0, 1, 0, 0)),
        (Decision(Action.HEAL, "old"), {"action": "log"}, (0, 1, 0, 0)),
        (Decision(Action.LOG, "old"), {"action": "drop"}, (0, 0, 1, 0)),
        (Decision(Action.LOG, "old"), {"action": "allow"}, (0, 0, 0, 1)),
        (Decision(Action.DROP, "old", 1), {"action": "drop"}, (0, 0, 0, 1)),
        (Decision(Action.DROP, "old", 1), {"action": "drop", "mark": 1}, (1, 0, 0, 0)),
    ],
)
def test_disagreement(
    judge_case: Case,
    acting: Decision,
    says: dict[str, object],
    counts: tuple[int, int, int, int],
) -> None:
    shadow = _shadow(**says)
    told = shadow.hold(*judge_case, 0.0, acting)
    assert _counts(shadow) == counts
    if told is None:
        assert counts[0] == 1
    else:
        assert (told.acting, told.shadow.rule) == (acting, "new")
        assert told.matters is bool(counts[1] or counts[2])
