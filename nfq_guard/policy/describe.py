# SPDX-License-Identifier: MIT
"""Describes a policy in plain sentences, one for each rule.

A sentence contains exactly the content of its rule; a test parses it back.
"""

from typing import Final

from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import Kind
from nfq_guard.policy.model import (
    Condition,
    Flags,
    Interval,
    PolicyModel,
    Rate,
    RateKey,
    Rule,
    Value,
)

ACTION_WORDS: Final = {
    Action.DROP: "drop the packet",
    Action.LOG: "let the packet pass and record it",
    Action.ALLOW: "let the packet pass",
    Action.HEAL: "drop the packet and end conntrack's window check of its sender in this flow",
}
_COUNTED: Final = {
    RateKey.FLOW: "of the same flow",
    RateKey.SOURCE: "from the same source",
    RateKey.SEGMENT: "with the same segment",
}
CLAUSE_BREAK: Final = "; and "


def policy_sentences(model: PolicyModel) -> list[str]:
    """A sentence for each rule, in order, followed by one for packets that no rule matches."""
    sentences = [rule_sentence(rule) for rule in model.rules]
    otherwise = "Where no rule matches" if model.rules else "Always"
    if model.on_unknown is not model.default:
        sentences.append(
            f"{otherwise} and the packet could not be judged: {ACTION_WORDS[model.on_unknown]}."
        )
    sentences.append(f"{otherwise}: {ACTION_WORDS[model.default]}.")
    return sentences


def rule_sentence(rule: Rule) -> str:
    """The sentence of one rule."""
    clauses = [_clause(condition) for condition in rule.conditions]
    if rule.rate is not None:
        clauses.append(_rate_clause(rule.rate))
    when = f"when {CLAUSE_BREAK.join(clauses)}" if clauses else "always"
    mark = "" if rule.mark is None else f", with the mark {rule.mark:#x},"
    return f"Rule {rule.name}: {ACTION_WORDS[rule.action]}{mark} {when}."


def _clause(condition: Condition) -> str:
    field = condition.field
    if field.kind is Kind.SWITCH:
        # A switch takes one value, not a list.
        value = condition.values[0]
        sentence = field.words[value.low] if isinstance(value, Interval) else field.phrase
        return f"it is not so that {sentence}" if condition.negated else sentence
    words = [_words(condition, value) for value in condition.values]
    # A value of flags matches whatever the flags are that it does not name.
    verb, no_verb = ("include", "do not include") if field.kind is Kind.FLAGS else ("is", "is not")
    if condition.negated:
        if len(words) == 1:
            return f"{field.phrase} {no_verb} {words[0]}"
        return f"{field.phrase} {verb} neither {', '.join(words[:-1])} nor {words[-1]}"
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    return f"{field.phrase} {verb} {listed}"


def _words(condition: Condition, value: Value) -> str:
    field = condition.field
    if isinstance(value, Flags):
        return " and ".join(
            f"no {word[1:]}" if word.startswith("!") else word for word in value.text.split()
        )
    if field.kind is Kind.NUMBER and isinstance(value, Interval) and ".." in value.text:
        low, _, high = value.text.partition("..")
        if low and high:
            return f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}"
    return value.text


def _rate_clause(rate: Rate) -> str:
    first = "the first such packet" if rate.over == 1 else f"the first {rate.over} such packets"
    limit = f"{first} {_COUNTED[rate.by]} within {rate.in_s:g} s"
    return f"it is among {limit}" if rate.negated else f"it comes after {limit}"
