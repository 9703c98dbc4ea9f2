# SPDX-License-Identifier: MIT
"""A policy compiled for the packet path.

Rules are bits of a number, the first rule the lowest bit. For each field a bit-vector index maps
the packet's number or name to the rules whose conditions on that field it meets; the lowest bit
in the AND of all fields is the first rule that matches. A packet costs one look-up a field,
however many rules there are (the bit-vector scheme of Lakshman and Stiliadis, SIGCOMM 1998).
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import FlowSnapshot
from nfq_guard.policy.decision import Decision, Policy
from nfq_guard.policy.fields import FIELDS, REASON, REASONS, Field, Kind, name_of, number_of
from nfq_guard.policy.intervals import ABSENT, IntervalSet, contains, everything
from nfq_guard.policy.model import (
    RULE_DEFAULT,
    RULE_ON_UNKNOWN,
    Condition,
    MarkBits,
    Pattern,
    PolicyModel,
    Rule,
    allowed,
)
from nfq_guard.policy.rates import MOST_KEYS, MOST_KEYS_IN_ALL, RateLimit
from nfq_guard.wire.packet import Malformed, Packet, Queued

# Maximum number of names or marks that an index caches. A host has few of either; if a sender or a
# rule generates marks, the cache is emptied and filled again.
MOST_REMEMBERED: Final = 1024


@final
class IntervalIndex:
    """The index of a field whose conditions are interval sets: one binary search.

    Attributes:
        code: The field's, for `number_of`.
        depends_on: The field's.
        possible: The rules that some number meets, a bit each.
        certain: The rules that every number and its absence meet, a bit each.
        uncertain: The other rules.
    """

    def __init__(self, field: Field, sets: Sequence[IntervalSet]) -> None:
        """Divide the numbers at every bound; `sets` has the allowed numbers of each rule."""
        self.code = field.code
        self.depends_on = field.depends_on
        self.possible = bits_of([bool(numbers) for numbers in sets])
        whole = everything(field.highest)
        self.certain = bits_of([numbers == whole for numbers in sets])
        self.uncertain = bits_of([numbers != whole for numbers in sets])
        toggles: dict[int, int] = {}
        for number, numbers in enumerate(sets):
            for bound in numbers:
                toggles[bound] = toggles.get(bound, 0) ^ 1 << number
        self._bounds = sorted(toggles)
        self._pieces = [0]
        for bound in self._bounds:
            self._pieces.append(self._pieces[-1] ^ toggles[bound])

    def at(self, number: int) -> int:
        """The rules whose conditions `number` meets, a bit each."""
        return self._pieces[bisect_right(self._bounds, number)]


@final
class MarkIndex:
    """The index of a field of masked marks: every rule is tried once for each distinct mark.

    Attributes:
        code: The field's, for `number_of`.
        depends_on: The field's.
        certain: The rules without a condition on it, a bit each.
    """

    def __init__(self, field: Field, conditions: Sequence[Sequence[Condition]]) -> None:
        """Keep the conditions of each rule; a rule may have none."""
        self.code = field.code
        self.depends_on = field.depends_on
        self.certain = bits_of([not of_rule for of_rule in conditions])
        self._conditions = conditions
        self._known: dict[int, int] = {}

    def at(self, mark: int) -> int:
        """The rules whose conditions `mark` meets, a bit each."""
        rules = self._known.get(mark)
        if rules is None:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            rules = self._known[mark] = _met_by(self._conditions, "", mark)
        return rules


@final
class NameIndex:
    """The index of a field of interface names: every rule is tried once for each distinct name.

    Attributes:
        code: The field's, for `name_of`.
    """

    def __init__(self, field: Field, conditions: Sequence[Sequence[Condition]]) -> None:
        """Keep the conditions of each rule; a rule may have none."""
        self.code = field.code
        self._conditions = conditions
        self._known: dict[str, int] = {}

    def at(self, name: str) -> int:
        """The rules whose conditions `name` meets, a bit each."""
        rules = self._known.get(name)
        if rules is None:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            rules = self._known[name] = _met_by(self._conditions, name, ABSENT)
        return rules


@final
class Plan:
    """The rules that match packets of one reason, indexed by every other field they name.

    Attributes:
        everything: A bit for each rule.
        intervals: Indexes of the fields with interval sets that the rules name, those of most rules
            first: they leave the fewest rules to the others.
        marks: Indexes of the fields of masked marks that they name.
        names: Indexes of the fields of interface names that they name.
        decisions: One a rule, in order.
        limits: The rule's rate, in the same order.
        last: The decision when none matches.
    """

    def __init__(
        self, rules: Sequence[Rule], limits: Sequence[RateLimit | None], last: Decision
    ) -> None:
        self.everything = (1 << len(rules)) - 1
        self.intervals: list[IntervalIndex] = []
        self.marks: list[MarkIndex] = []
        self.names: list[NameIndex] = []
        self.decisions = [Decision(rule.action, rule.name, rule.mark) for rule in rules]
        self.limits = list(limits)
        self.last = last
        for field in FIELDS:
            conditions = [
                [condition for condition in rule.conditions if condition.field is field]
                for rule in rules
            ]
            if field is REASON or not any(conditions):
                continue
            if field.kind is Kind.PATTERN:
                self.names.append(NameIndex(field, conditions))
            elif field.kind is Kind.MARK:
                self.marks.append(MarkIndex(field, conditions))
            else:
                self.intervals.append(
                    IntervalIndex(field, [allowed(rule, field) for rule in rules])
                )
        self.intervals.sort(key=lambda index: -index.uncertain.bit_count())


@final
class CompiledPolicy:
    """Decides like the rules of a model from top to bottom, but with a few look-ups.

    Rules with a rate count packets, so an instance belongs to one stream of packets.

    Attributes:
        model: The rules.
        has_rates: Whether a decision may depend on the packets before it.
        plans: One for each reason; reasons that the same rules match share one.
        shadow: A policy on trial; a reload replaces both at once.
    """

    def __init__(self, model: PolicyModel, shadow: Policy | None = None) -> None:
        """Compile `model`."""
        self.model = model
        self.shadow = shadow
        self.has_rates = any(rule.rate is not None for rule in model.rules)
        rates = sum(rule.rate is not None for rule in model.rules)
        most_keys = min(MOST_KEYS, MOST_KEYS_IN_ALL // max(rates, 1))
        limits = [
            None if rule.rate is None else RateLimit(rule.rate, most_keys) for rule in model.rules
        ]
        reasons = [allowed(rule, REASON) for rule in model.rules]
        self.plans: dict[Reason, Plan] = {}
        shared: dict[tuple[int, ...], Plan] = {}
        for number, reason in enumerate(REASONS):
            live = tuple(
                index for index, numbers in enumerate(reasons) if contains(numbers, number)
            )
            rules = [model.rules[index] for index in live]
            own = [limits[index] for index in live]
            if reason is Reason.UNSUPPORTED:
                last = Decision(model.on_unknown, RULE_ON_UNKNOWN)
                self.plans[reason] = Plan(rules, own, last)
                continue
            plan = shared.get(live)
            if plan is None:
                plan = shared[live] = Plan(rules, own, Decision(model.default, RULE_DEFAULT))
            self.plans[reason] = plan

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
    ) -> Decision:
        """The decision of the first rule that matches; `now` in monotonic seconds is for rates."""
        plan = self.plans[finding.reason]
        live = self._live(plan, queued, packet, snapshot, finding)
        while live:
            lowest = live & -live
            index = lowest.bit_length() - 1
            limit = plan.limits[index]
            if limit is None or limit.matches(packet, now):
                return plan.decisions[index]
            live ^= lowest
        return plan.last

    def possible(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
    ) -> list[Decision]:
        """Every decision that the packet may get, whatever the state of the rates."""
        plan = self.plans[finding.reason]
        live = self._live(plan, queued, packet, snapshot, finding)
        found: list[Decision] = []
        while live:
            lowest = live & -live
            index = lowest.bit_length() - 1
            found.append(plan.decisions[index])
            if plan.limits[index] is None:
                return found
            live ^= lowest
        return [*found, plan.last]

    def decide_all(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
        count: int,
    ) -> list[tuple[Decision, int]]:
        """Decide about `count` packets like `packet`; returns the number for each decision."""
        plan = self.plans[finding.reason]
        live = self._live(plan, queued, packet, snapshot, finding)
        found: list[tuple[Decision, int]] = []
        while live and count:
            lowest = live & -live
            index = lowest.bit_length() - 1
            limit = plan.limits[index]
            matched = count if limit is None else limit.matches_of(packet, now, count)
            if matched:
                found.append((plan.decisions[index], matched))
                count -= matched
            live ^= lowest
        if count:
            found.append((plan.last, count))
        return found

    def _live(
        self,
        plan: Plan,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
    ) -> int:
        """The rules of `plan` whose conditions the packet meets, a bit each; rates aside."""
        live = plan.everything
        for interval in plan.intervals:
            if live & interval.uncertain:
                live &= interval.at(number_of(interval.code, queued, packet, snapshot, finding))
        for mark in plan.marks:
            live &= mark.at(number_of(mark.code, queued, packet, snapshot, finding))
        for name in plan.names:
            live &= name.at(name_of(name.code, queued))
        return live


def compile_policy(model: PolicyModel, shadow: CompiledPolicy | None = None) -> CompiledPolicy:
    """Compile `model`, with another policy on trial beside it or without."""
    return CompiledPolicy(model, shadow)


def bits_of(flags: Sequence[bool]) -> int:
    """A bit for each flag that is set, the first flag lowest."""
    return sum(1 << number for number, flag in enumerate(flags) if flag)


def matches_name(pattern: Pattern, name: str) -> bool:
    """Whether `name` matches `pattern`; the empty name, of no interface, never does."""
    parts = re.split(r"([*?])", pattern.text)
    body = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(rf"(?!$){body}", name, re.DOTALL) is not None


def matches_mark(wanted: MarkBits, mark: int) -> bool:
    """Whether `mark` has the wanted bits; `ABSENT` never does."""
    return mark >= 0 and mark & wanted.mask == wanted.bits


def _met_by(conditions: Sequence[Sequence[Condition]], name: str, mark: int) -> int:
    return bits_of([all(_meets(one, name, mark) for one in of_rule) for of_rule in conditions])


def _meets(condition: Condition, name: str, mark: int) -> bool:
    """Whether a name or a mark meets `condition`, which is about one of the two."""
    for value in condition.values:
        if isinstance(value, Pattern):
            found = matches_name(value, name)
        else:
            found = isinstance(value, MarkBits) and matches_mark(value, mark)
        if found:
            return not condition.negated
    return condition.negated
