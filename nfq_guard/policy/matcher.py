# SPDX-License-Identifier: MIT
"""A policy made ready for the packet path."""

from collections.abc import Sequence
from typing import final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import FlowSnapshot
from nfq_guard.policy.axes import MarkAxis, NameAxis, SpanAxis
from nfq_guard.policy.decision import Decision
from nfq_guard.policy.facts import number_of
from nfq_guard.policy.fields import FIELD_BY_NAME, FIELDS, REASONS, Kind
from nfq_guard.policy.model import RULE_DEFAULT, RULE_ON_UNKNOWN, PolicyModel, Rule
from nfq_guard.policy.rates import RateLimit
from nfq_guard.policy.sets import allowed
from nfq_guard.policy.shadow import Shadow
from nfq_guard.policy.spans import holds
from nfq_guard.wire.packet import Malformed, Packet, Queued


@final
class _Plan:
    """What is left to ask once the reason is known.

    Attributes:
        everything: A bit for each rule that takes this reason.
        spans: The fields of numbers that these rules ask about.
        marks: The marks that they ask about.
        names: The interfaces that they ask about.
        decisions: What they say, in order.
        limits: Their rates, in the same order.
        last: The decision when none matches.
    """

    def __init__(
        self, rules: Sequence[Rule], limits: Sequence[RateLimit | None], last: Decision
    ) -> None:
        self.everything = (1 << len(rules)) - 1
        self.spans: list[SpanAxis] = []
        self.marks: list[MarkAxis] = []
        self.names: list[NameAxis] = []
        self.decisions = [Decision(rule.action, rule.name, rule.mark) for rule in rules]
        self.limits = list(limits)
        self.last = last
        for field in FIELDS:
            asked = [
                [condition for condition in rule.conditions if condition.field is field]
                for rule in rules
            ]
            if field.name == "reason" or not any(asked):
                continue
            if field.kind is Kind.PATTERN:
                self.names.append(NameAxis(field, asked))
            elif field.kind is Kind.MARK:
                self.marks.append(MarkAxis(field, asked))
            else:
                self.spans.append(SpanAxis(field, [allowed(rule, field) for rule in rules]))


@final
class CompiledPolicy:
    """Answers as the rules of a model read from top to bottom, at the cost of a few look-ups.

    Rules with a rate count packets, so an instance belongs to one stream of packets.

    Attributes:
        model: The rules.
        shadow: A policy on trial beside this one; whoever asks this one asks it too, so that both
            are swapped as one.
    """

    def __init__(self, model: PolicyModel, shadow: Shadow | None = None) -> None:
        """Make `model` ready."""
        self.model = model
        self.shadow = shadow
        limits = [None if rule.rate is None else RateLimit(rule.rate) for rule in model.rules]
        takes = [allowed(rule, FIELD_BY_NAME["reason"]) for rule in model.rules]
        self._plans: dict[Reason, _Plan] = {}
        # Reasons that the same rules take share one plan: most rules name no reason.
        made: dict[tuple[int, ...], _Plan] = {}
        for number, reason in enumerate(REASONS):
            live = tuple(index for index, spans in enumerate(takes) if holds(spans, number))
            rules = [model.rules[index] for index in live]
            own = [limits[index] for index in live]
            if reason is Reason.UNSUPPORTED:
                last = Decision(model.on_unknown, RULE_ON_UNKNOWN)
                self._plans[reason] = _Plan(rules, own, last)
                continue
            plan = made.get(live)
            if plan is None:
                plan = made[live] = _Plan(rules, own, Decision(model.default, RULE_DEFAULT))
            self._plans[reason] = plan

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
    ) -> Decision:
        """The first rule that matches; `now` in monotonic seconds is for rates."""
        plan = self._plans[finding.reason]
        live = plan.everything
        for spans in plan.spans:
            live &= spans.at(number_of(spans.code, queued, packet, snapshot, finding))
        for marks in plan.marks:
            live &= marks.at(number_of(marks.code, queued, packet, snapshot, finding))
        for names in plan.names:
            live &= names.at(queued.indev if names.incoming else queued.outdev)
        while live:
            lowest = live & -live
            index = lowest.bit_length() - 1
            limit = plan.limits[index]
            if limit is None or limit.matches(packet, now):
                return plan.decisions[index]
            live ^= lowest
        return plan.last


def compile_policy(model: PolicyModel, shadow: CompiledPolicy | None = None) -> CompiledPolicy:
    """Make `model` ready for the packet path, with another policy on trial beside it or without."""
    return CompiledPolicy(model, None if shadow is None else Shadow(shadow))
