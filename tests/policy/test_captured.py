# SPDX-License-Identifier: MIT
"""The rules that ask what a capture does not show, and the note that names them."""

from typing import Any

import pytest

from nfq_guard.policy.captured import not_captured, not_captured_text
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.parse import parse_policy


def model(*rules: dict[str, Any]) -> PolicyModel:
    named = [{"name": f"r{number}", "action": "log", **rule} for number, rule in enumerate(rules)]
    last = {"default": "allow", "on_unknown": "allow"}
    return parse_policy({"rule": named, **last}, source="test")


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ({"sport": 1}, ()),
        ({"in": "eth0"}, ("in",)),
        ({"not": {"out": "eth0"}}, ("out",)),
        ({"packet_mark": "0x1", "ct_mark": "0x1"}, ("packet_mark", "ct_mark")),
        ({"evidence": "bpf"}, ("evidence",)),
        ({"evidence": "replay"}, ("evidence",)),
        ({"evidence": ["bpf", "replay"]}, ()),
        ({"evidence": "ctnetlink"}, ()),
    ],
)
def test_fields_that_a_capture_does_not_show(rule: dict[str, Any], fields: tuple[str, ...]) -> None:
    assert not_captured(model(rule)) == ({"r0": fields} if fields else {})


def test_the_note_names_the_first_rules() -> None:
    assert not_captured_text(model({"sport": 1})) == ""
    one = not_captured_text(model({"in": "eth0"}, {"sport": 1}))
    assert one == "a capture does not show what these rules of the policy ask: r0 (in)"
    many = not_captured_text(model(*({"in": f"eth{number}"} for number in range(7))))
    assert many.endswith("r3 (in), r4 (in) and 2 more")
