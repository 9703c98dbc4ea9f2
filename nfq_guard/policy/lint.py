# SPDX-License-Identifier: MIT
"""Reachability: finds rules that no packet can match, and policies that let nothing pass.

Sound but incomplete: there are no false positives, but rules that only a combination of fields
makes unreachable may be missed.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence, EvidenceChoice
from nfq_guard.policy.fields import EVIDENCES, FIELD_BY_NAME, FIELDS, REASON, REASONS, Field
from nfq_guard.policy.intervals import (
    IntervalSet,
    complement,
    contains,
    covers,
    everything,
    intersection,
    union,
)
from nfq_guard.policy.matcher import matches_name
from nfq_guard.policy.model import (
    RULE_DEFAULT,
    RULE_ON_UNKNOWN,
    Condition,
    Interval,
    MarkBits,
    Pattern,
    PolicyModel,
    Rule,
    Value,
    allowed,
)
from nfq_guard.policy.values import one_of

# The evidence of a daemon if the setting `evidence` excludes the window.
_WITHOUT_WINDOW: Final = {
    "kernel-log": (Evidence.KERNEL_LOG, Evidence.CTNETLINK, Evidence.NONE),
    "ctnetlink": (Evidence.CTNETLINK, Evidence.NONE),
}


class Caution(NamedTuple):
    """A warning of `check` about one rule, or one setting of the daemon.

    Attributes:
        key: Path of the rule or setting, such as `policy.rule[2]`.
        source: File or preset that contains it.
        rule: Name of the rule; empty for a setting.
        text: The warning, without a full stop.
    """

    key: str
    source: str
    rule: str
    text: str

    def __str__(self) -> str:
        """As `check` prints it, after the name of the file."""
        return f"{self.key}{f' ({self.rule})' if self.rule else ''}: {self.text}"


def cautions(
    model: PolicyModel, kernel: KernelRules, choice: EvidenceChoice = "auto"
) -> list[Caution]:
    """The rules of `model` that can never match, in order.

    Args:
        model: The policy.
        kernel: The rules of the kernel.
        choice: The setting `evidence`. It is compared with the rules of the file only, because
            presets serve every setting.
    """
    found: list[Caution] = []
    earlier: list[Reach] = []
    for rule in model.rules:
        reach = Reach(rule)
        why = _never(reach, earlier, kernel)
        if not why and rule.source == model.source:
            why = _never_read(reach, choice)
        if why:
            text = f"can never match: {why}"
            found.append(Caution(rule.key, rule.source, rule.name, text))
        earlier.append(reach)
    return found


def lets_nothing_pass(model: PolicyModel) -> bool:
    """Whether every packet would be dropped, as far as `shadowing` can determine."""
    earlier: list[Reach] = []
    for rule in (*model.rules, *_final_rules(model)):
        reach = Reach(rule)
        if not rule.action.drops and not reach.contradiction and not shadowing(reach, earlier):
            return False
        earlier.append(reach)
    return True


def impossible_reasons(kernel: KernelRules) -> frozenset[Reason]:
    """Reasons that kernels like `kernel` never have."""
    if kernel.old_segments_pass:
        return frozenset({Reason.SEQ_UNDER, Reason.ACK_UNDER})
    return frozenset()


@final
class Reach:
    """The packets that one rule can match, in a form that can be compared with other rules.

    Attributes:
        rule: The rule.
        numbers: The numbers that it allows, for each of its fields with interval sets.
        others: Its conditions on names and marks.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        named = {condition.field.name for condition in rule.conditions}
        self.numbers: dict[str, IntervalSet] = {
            field.name: allowed(rule, field)
            for field in FIELDS
            if field.has_intervals and field.name in named
        }
        self.others = [
            condition for condition in rule.conditions if not condition.field.has_intervals
        ]

    def allowed(self, name: str) -> IntervalSet:
        """The numbers of the field `name` that the rule allows."""
        numbers = self.numbers.get(name)
        return everything(FIELD_BY_NAME[name].highest) if numbers is None else numbers

    @property
    def contradiction(self) -> str:
        """A field of which the rule allows no number; empty without one."""
        return next((name for name, numbers in self.numbers.items() if not numbers), "")

    def not_covered(self, other: "Reach") -> list[str] | None:
        """The fields on which `other` matches packets that this rule does not, two at most.

        None if names, marks or a rate decide instead.
        """
        if self.rule.rate is not None:
            return None
        for condition in self.others:
            if not any(_implied(condition, known) for known in other.others):
                return None
        missing: list[str] = []
        for name, numbers in self.numbers.items():
            if not covers(numbers, other.allowed(name)):
                missing.append(name)
                if len(missing) == 2:
                    break
        return missing


def shadowing(reach: Reach, earlier: Sequence[Reach]) -> tuple[Rule, ...]:
    """The earlier rules that together match every packet of `reach`; empty if it is reachable."""
    partial: dict[str, list[Reach]] = {}
    for candidate in earlier:
        missing = candidate.not_covered(reach)
        if missing is None or len(missing) > 1:
            continue
        if not missing:
            return (candidate.rule,)
        partial.setdefault(missing[0], []).append(candidate)
    for name, candidates in partial.items():
        together: IntervalSet = ()
        for candidate in candidates:
            together = union(together, candidate.allowed(name))
        if covers(together, reach.allowed(name)):
            return tuple(candidate.rule for candidate in candidates)
    return ()


def value_covers(outer: Value, inner: Value) -> bool:
    """Whether a name or mark that `inner` matches certainly matches `outer` too."""
    if isinstance(outer, MarkBits) and isinstance(inner, MarkBits):
        return not outer.mask & ~inner.mask and inner.bits & outer.mask == outer.bits
    if isinstance(outer, Pattern) and isinstance(inner, Pattern):
        if outer.text == inner.text:
            return True
        if "*" not in inner.text and "?" not in inner.text:
            return matches_name(outer, inner.text)
        prefix = outer.text[:-1]
        return (
            outer.text.endswith("*")
            and "*" not in prefix
            and "?" not in prefix
            and inner.text.startswith(prefix)
        )
    return False


def _never(reach: Reach, earlier: list[Reach], kernel: KernelRules) -> str:
    """Why no packet reaches the rule; empty if one may."""
    if reach.contradiction:
        return f"its conditions on {reach.contradiction} contradict each other"
    for field in FIELDS:
        unmet = _unmet_need(reach, field)
        if unmet:
            return unmet
    rules = shadowing(reach, earlier)
    # A rule of an included policy that rules of the including file cover is replaced on purpose.
    if rules and all(rule.source == reach.rule.source for rule in rules):
        names = tuple(f"{rule.key} ({rule.name})" for rule in rules)
        verb = "matches" if len(rules) == 1 else "match"
        return f"{one_of(names, 'and')} already {verb} all its packets"
    impossible = impossible_reasons(kernel)
    possible = [number for number, reason in enumerate(REASONS) if reason not in impossible]
    if not any(contains(reach.allowed(REASON.name), number) for number in possible):
        return f"kernels like {kernel.name} never report these reasons"
    return ""


def _never_read(reach: Reach, choice: EvidenceChoice) -> str:
    """Why the daemon never has the evidence that the rule requires; empty if it may."""
    there = _WITHOUT_WINDOW.get(choice)
    if there is None:
        return ""
    if any(contains(reach.allowed("evidence"), EVIDENCES.index(evidence)) for evidence in there):
        return ""
    return f"the setting daemon.evidence is {choice!r}, with which no window is read"


def _unmet_need(reach: Reach, field: Field) -> str:
    """Why no packet meets the rule's condition on `field` and its constraints."""
    numbers = reach.allowed(field.name)
    why = ""
    for need in field.needs:
        if not intersection(reach.allowed(need.field), need.others):
            numbers = intersection(numbers, complement(need.numbers, field.highest))
            why = why or need.otherwise
    return "" if numbers else why


def _final_rules(model: PolicyModel) -> Iterable[Rule]:
    """`on_unknown` and `default` in the form of rules."""
    position = REASONS.index(Reason.UNSUPPORTED)
    unsupported = Condition(
        field=REASON,
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
