# SPDX-License-Identifier: MIT
"""Which rules a packet can still reach, and whether any packet passes.

Sound, not complete: a rule that is called unreachable is, but one that only several fields
together make unreachable may be missed.
"""

from collections.abc import Iterable, Sequence
from typing import final

from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELD_BY_NAME, REASONS, Kind
from nfq_guard.policy.model import (
    RULE_DEFAULT,
    RULE_ON_UNKNOWN,
    Condition,
    Interval,
    PolicyModel,
    Rule,
)
from nfq_guard.policy.names import value_covers
from nfq_guard.policy.sets import SPAN_FIELDS, allowed
from nfq_guard.policy.spans import Spans, covers, everything, union


@final
class Shape:
    """What packets one rule takes, ready to be held against others.

    Attributes:
        rule: The rule.
        spans: The numbers that it allows, of the fields that it names.
        others: Its conditions on names and marks.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        named = {condition.field.name for condition in rule.conditions}
        self.spans: dict[str, Spans] = {
            field.name: allowed(rule, field) for field in SPAN_FIELDS if field.name in named
        }
        self.others = [
            condition
            for condition in rule.conditions
            if condition.field.kind in {Kind.PATTERN, Kind.MARK}
        ]

    def span(self, name: str) -> Spans:
        """The numbers of a field that the rule allows."""
        spans = self.spans.get(name)
        return everything(FIELD_BY_NAME[name].highest) if spans is None else spans

    @property
    def contradiction(self) -> str:
        """The field on which nothing can meet the rule; empty when there is none."""
        return next((name for name, spans in self.spans.items() if not spans), "")

    def misses(self, other: "Shape") -> list[str] | None:
        """The fields on which `other` takes packets that this rule does not, two at most.

        None when names, marks or a rate stand between them.
        """
        if self.rule.rate is not None:
            return None
        for condition in self.others:
            if not any(_implied(condition, known) for known in other.others):
                return None
        missing: list[str] = []
        for name, spans in self.spans.items():
            if not covers(spans, other.span(name)):
                missing.append(name)
                if len(missing) == 2:
                    break
        return missing


def shadowing(shape: Shape, earlier: Sequence[Shape]) -> tuple[Rule, ...]:
    """The earlier rules that together take every packet of `shape`; none: it can be reached."""
    partial: dict[str, list[Shape]] = {}
    for candidate in earlier:
        missing = candidate.misses(shape)
        if missing is None or len(missing) > 1:
            continue
        if not missing:
            return (candidate.rule,)
        partial.setdefault(missing[0], []).append(candidate)
    for name, candidates in partial.items():
        together: Spans = ()
        for candidate in candidates:
            together = union(together, candidate.span(name))
        if covers(together, shape.span(name)):
            return tuple(candidate.rule for candidate in candidates)
    return ()


def lets_nothing_pass(model: PolicyModel) -> bool:
    """Whether every packet would be dropped, as far as `shadowing` can tell."""
    shapes: list[Shape] = []
    for rule in (*model.rules, *_last_words(model)):
        shape = Shape(rule)
        passes = rule.action is Action.LOG or rule.action is Action.ALLOW
        if passes and not shape.contradiction and not shadowing(shape, shapes):
            return False
        shapes.append(shape)
    return True


def _last_words(model: PolicyModel) -> Iterable[Rule]:
    """`on_unknown` and `default` as the rules that they amount to."""
    field = FIELD_BY_NAME["reason"]
    position = REASONS.index(Reason.UNSUPPORTED)
    unsupported = Condition(
        field=field,
        negated=False,
        values=(Interval(text=str(Reason.UNSUPPORTED), low=position, high=position),),
    )
    source = model.source
    return (
        Rule(
            name=RULE_ON_UNKNOWN,
            key="policy.on_unknown",
            source=source,
            action=model.on_unknown,
            conditions=(unsupported,),
        ),
        Rule(name=RULE_DEFAULT, key="policy.default", source=source, action=model.default),
    )


def _implied(wanted: Condition, known: Condition) -> bool:
    """Whether a packet that meets `known` certainly meets `wanted`."""
    if wanted.field is not known.field or wanted.negated != known.negated:
        return False
    outer, inner = (known, wanted) if wanted.negated else (wanted, known)
    return all(any(value_covers(big, small) for big in outer.values) for small in inner.values)
