# SPDX-License-Identifier: MIT
"""The packets that a rule with the action `heal` matches.

A heal disables conntrack's window check for one sender. It is therefore limited to segments that
break a bound of the window by a few bytes, in a flow that both ends have opened. These conditions
are part of every such rule, whether or not the file contains them: any other packet continues to
the next rule.
"""

from dataclasses import replace
from typing import Final

from nfq_guard.errors import Mistake
from nfq_guard.finding import BOUNDS, Reason
from nfq_guard.flow import TcpState
from nfq_guard.policy.fields import FIELD_BY_NAME
from nfq_guard.policy.intervals import covers
from nfq_guard.policy.model import Condition, Rule, condition_numbers
from nfq_guard.policy.values import one_of, parse_value

# Default maximum distance that a rule heals, in bytes.
HEAL_DISTANCE: Final = 65_535
# A closing flow needs its last segments as much as an established one.
HEALED_STATES: Final = (
    TcpState.ESTABLISHED,
    TcpState.FIN_WAIT,
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
)


def _condition(name: str, *words: str, negated: bool = False) -> Condition:
    field = FIELD_BY_NAME[name]
    values = tuple(parse_value(field, word) for word in words)
    return Condition(field=field, negated=negated, values=values)


_REASONS: Final = _condition(
    "reason", *(str(reason) for reason in Reason if reason in BOUNDS - {Reason.RST_OUTSIDE})
)
_STATE: Final = _condition("state", *(state.name for state in HEALED_STATES))
_STATUS: Final = _condition("status", "assured")
# The values that a rule may have at most to heal, each with the reason.
_EVIDENCE: Final = _condition("evidence", "bpf", "replay")
_LIMITS: Final = (
    (_REASONS, "only a segment outside of its window can be healed"),
    (_STATE, "only an open flow can be healed"),
    (_STATUS, "only an assured flow can be healed"),
    (_EVIDENCE, "other evidence has no window to measure with"),
)
# The values of a rule without the condition.
_DEFAULTS: Final = (
    _REASONS,
    _condition("distance", f"1..{HEAL_DISTANCE}"),
    _STATE,
    _STATUS,
    _EVIDENCE,
)
# The values that such a rule never matches.
_NEVER: Final = (
    _condition("status", "dying", "offload", negated=True),
    _condition("tcp_flags", "rst", "syn", negated=True),
)


def heal_mistakes(rule: Rule) -> list[Mistake]:
    """The conditions of `rule` that cannot be healed, as mistakes in its file."""
    found: list[Mistake] = []
    for condition in rule.conditions:
        for limit, why in _LIMITS:
            if (
                condition.field is limit.field
                and not condition.negated
                and not covers(condition_numbers(limit), condition_numbers(condition))
            ):
                most = one_of(tuple(value.text for value in limit.values))
                named = one_of(tuple(repr(value.text) for value in condition.values), "and")
                found.append(Mistake(f"{rule.key}.{limit.field.name}", f"{most}: {why}", named))
    return found


def with_heal_limits(rule: Rule) -> Rule:
    """`rule`, which heals, with all conditions that it must have."""
    conditions = list(rule.conditions)
    for wanted in _DEFAULTS:
        if not any(_same_key(condition, wanted) for condition in conditions):
            conditions.append(wanted)
    for wanted in _NEVER:
        own = next((condition for condition in conditions if _same_key(condition, wanted)), None)
        if own is None:
            conditions.append(wanted)
        else:
            more = tuple(value for value in wanted.values if value not in own.values)
            conditions[conditions.index(own)] = replace(own, values=own.values + more)
    return replace(rule, conditions=tuple(conditions))


def _same_key(one: Condition, other: Condition) -> bool:
    return one.field is other.field and one.negated == other.negated
