# SPDX-License-Identifier: MIT
"""The conditions of a policy that a capture cannot meet as live packets do."""

from typing import Final

from nfq_guard.flow import Evidence
from nfq_guard.policy.fields import EVIDENCES, FIELD_BY_NAME, Field
from nfq_guard.policy.intervals import contains
from nfq_guard.policy.model import PolicyModel, Rule, allowed

_EVIDENCE: Final = FIELD_BY_NAME["evidence"]
# A replay has no value, or 0, in their place.
_NOT_CAPTURED: Final = tuple(
    FIELD_BY_NAME[name] for name in ("in", "out", "packet_mark", "ct_mark")
)
_BPF: Final = EVIDENCES.index(Evidence.BPF)
_REPLAY: Final = EVIDENCES.index(Evidence.REPLAY)
# Rules that a note names.
_MOST: Final = 5


def not_captured(model: PolicyModel) -> dict[str, tuple[str, ...]]:
    """The rules that may match otherwise in a replay than live, each with the fields for it.

    A replay has the window as the evidence `bpf` has it; only a rule that tells these apart counts.
    """
    found = {rule.name: tuple(field.name for field in _fields(rule)) for rule in model.rules}
    return {name: fields for name, fields in found.items() if fields}


def _fields(rule: Rule) -> list[Field]:
    named = {condition.field.name for condition in rule.conditions}
    fields = [field for field in _NOT_CAPTURED if field.name in named]
    numbers = allowed(rule, _EVIDENCE)
    if contains(numbers, _BPF) != contains(numbers, _REPLAY):
        fields.append(_EVIDENCE)
    return fields


def not_captured_text(model: PolicyModel) -> str:
    """A note of `not_captured`; empty without such a rule."""
    rules = not_captured(model)
    if not rules:
        return ""
    named = [f"{name} ({', '.join(fields)})" for name, fields in list(rules.items())[:_MOST]]
    more = f" and {len(rules) - _MOST} more" if len(rules) > _MOST else ""
    return f"a capture does not show what these rules of the policy ask: {', '.join(named)}{more}"
