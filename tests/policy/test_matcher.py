# SPDX-License-Identifier: MIT
"""The compiled policy against one that is read rule by rule."""

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.policy.axes import MOST_REMEMBERED
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.wire.packet import Queued
from tests.support.policies import Case, Interpreter, cases, tables


@given(table=tables(), asked=st.lists(cases(), min_size=1, max_size=8))
def test_compiled_and_interpreted_agree(table: dict[str, object], asked: list[Case]) -> None:
    model = parse_policy(table, source="test")
    policy = compile_policy(model)
    interpreter = Interpreter(table, model)
    for case in asked:
        decision = policy.decide(*case, 0.0)
        assert (decision.action, decision.rule) == interpreter.decide(case, 0.0)


@given(
    table=tables(with_rates=True),
    packets=st.lists(cases(), min_size=1, max_size=3),
    order=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.6, 5.0])), max_size=20
    ),
)
def test_they_agree_over_time(
    table: dict[str, object], packets: list[Case], order: list[tuple[int, float]]
) -> None:
    """Rates count the packets that meet the rest of their rule, and no others."""
    model = parse_policy(table, source="test")
    policy = compile_policy(model)
    interpreter = Interpreter(table, model)
    now = 100.0
    for number, pause in order:
        case = packets[number % len(packets)]
        now += pause
        decision = policy.decide(*case, now)
        assert (decision.action, decision.rule) == interpreter.decide(case, now)


def test_mark_goes_with_the_decision(judge_case: Case) -> None:
    table = {"default": "allow", "rule": [{"action": "log", "mark": 0x10}]}
    decision = compile_policy(parse_policy(table, source="test")).decide(*judge_case, 0.0)
    assert decision.mark == 0x10
    assert decision.rule == "rule[0]"


def test_memory_of_names_and_marks_is_bounded(judge_case: Case) -> None:
    """Whatever makes up marks or interfaces fills no memory, and gets the right answer."""
    table = {
        "default": "allow",
        "rule": [
            {"name": "mark", "packet_mark": "0x1/0x1", "action": "drop"},
            {"name": "name", "in": "veth*", "action": "log"},
        ],
    }
    policy = compile_policy(parse_policy(table, source="test"))
    _, packet, flow, finding = judge_case
    for number in range(2 * MOST_REMEMBERED + 2):
        queued = Queued(b"", 0, f"veth{number}", "", number, 0)
        decision = policy.decide(queued, packet, flow, finding, 0.0)
        assert decision.rule == ("mark" if number % 2 else "name")
    plan = policy._plans[finding.reason]
    assert len(plan.marks[0]._known) <= MOST_REMEMBERED
    assert len(plan.names[0]._known) <= MOST_REMEMBERED
