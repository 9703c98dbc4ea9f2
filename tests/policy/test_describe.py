# SPDX-License-Identifier: MIT
"""Printed sentences say exactly what the policy says: they are parsed back."""

import re

import pytest
from hypothesis import given

from nfq_guard.policy.decision import Action
from nfq_guard.policy.describe import ACTION_WORDS, policy_sentences
from nfq_guard.policy.fields import FIELDS, Field, Kind
from nfq_guard.policy.model import Condition, PolicyModel, Rule
from nfq_guard.policy.parse import parse_policy
from nfq_guard.policy.values import parse_value
from tests.support.policies import tables

_RULE = re.compile(r"Rule (\S+): (.+?)(?:, with the mark (0x[0-9a-f]+),)? (?:when (.+)|always)\.")
_RATE = re.compile(
    r"it (comes after|is among) the first (?:(\d+) such packets|such packet) (.+) within (\S+) s"
)
_COUNTED = {
    "of the same flow": "flow",
    "from the same source": "source",
    "with the same segment": "segment",
}
_ACTIONS = {words: action for action, words in ACTION_WORDS.items()}


@pytest.mark.compiled
@given(table=tables(with_rates=True))
def test_sentences_parse_back(table: dict[str, object]) -> None:
    model = parse_policy(table, source="test")
    sentences = policy_sentences(model)
    for rule, sentence in zip(model.rules, sentences, strict=False):
        assert _read_back(sentence) == _essence(rule)
    assert _last_words(sentences[len(model.rules) :]) == (model.on_unknown, model.default)


def test_without_rules() -> None:
    model = PolicyModel(source="test", rules=(), on_unknown=Action.LOG, default=Action.ALLOW)
    assert policy_sentences(model) == [
        "Always and the packet could not be judged: let the packet pass and record it.",
        "Always: let the packet pass.",
    ]


def _essence(rule: Rule) -> object:
    """What a rule does, without the spelling of its values."""
    rate = rule.rate and (rule.rate.over, rule.rate.in_s, str(rule.rate.by), rule.rate.negated)
    return rule.name, rule.action, rule.mark, [_meaning(c) for c in rule.conditions], rate


def _meaning(condition: Condition) -> object:
    numbers = [re.sub(r"text='[^']*', ", "", repr(value)) for value in condition.values]
    # Of a pattern, the spelling is the meaning.
    return condition.field.name, condition.negated, numbers


def _read_back(sentence: str) -> object:
    found = _RULE.fullmatch(sentence)
    assert found is not None
    name, action, mark, when = found.groups()
    conditions: list[object] = []
    rate = None
    for clause in (when or "").split("; and "):
        told = _RATE.fullmatch(clause)
        if told:
            by = _COUNTED[told[3]]
            rate = (int(told[2] or 1), float(told[4]), by, told[1] == "is among")
        elif clause:
            conditions.append(_meaning(_condition(clause)))
    return name, _ACTIONS[action], int(mark, 16) if mark else None, conditions, rate


def _condition(clause: str) -> Condition:
    for field in FIELDS:
        if field.kind is Kind.SWITCH:
            plain = clause.removeprefix("it is not so that ")
            if plain in field.words:
                value = parse_value(field, plain == field.words[1])
                return Condition(field=field, negated=plain != clause, values=(value,))
        elif clause.startswith(f"{field.phrase} "):
            rest = clause.removeprefix(f"{field.phrase} ")
            if field.kind is Kind.FLAGS:
                rest = rest.replace("do not include ", "is not ").replace("include ", "is ")
            assert rest.startswith("is ")
            return _listed(field, rest.removeprefix("is "))
    raise AssertionError(clause)


def _listed(field: Field, rest: str) -> Condition:
    negated = rest.startswith(("not ", "neither "))
    words = re.split(", | or | nor ", rest.removeprefix("not ").removeprefix("neither "))
    values = tuple(parse_value(field, _spelled(field, word)) for word in words)
    return Condition(field=field, negated=negated, values=values)


def _spelled(field: Field, word: str) -> object:
    """A value of a sentence as a file spells it."""
    if field.kind is Kind.FLAGS:
        return word.replace("no ", "!").replace(" and ", " ")
    if field.kind is Kind.NUMBER and " " in word:
        if word.startswith("at least "):
            return word.removeprefix("at least ") + ".."
        if word.startswith("at most "):
            return ".." + word.removeprefix("at most ")
        return word.replace(" to ", "..")
    return int(word) if word.isdecimal() and field.kind is Kind.NUMBER else word


def _last_words(sentences: list[str]) -> tuple[Action, Action]:
    default = _ACTIONS[sentences[-1].rpartition(": ")[2].removesuffix(".")]
    if len(sentences) == 1:
        return default, default
    assert "could not be judged" in sentences[0]
    return _ACTIONS[sentences[0].rpartition(": ")[2].removesuffix(".")], default


def test_each_form_of_a_clause() -> None:
    rules: list[dict[str, object]] = [
        {"name": "one", "action": "drop", "dport": 443},
        {"name": "list", "action": "log", "dport": [80, "8000..8080", "..7", "60000.."]},
        {"name": "not", "action": "allow", "not": {"sport": 22}},
        {"name": "neither", "action": "allow", "not": {"sport": [22, 23]}},
        {"name": "flags", "action": "drop", "tcp_flags": "rst !ack"},
        {"name": "switch", "action": "drop", "payload": True},
        {"name": "no-switch", "action": "drop", "not": {"payload": True}},
        {"name": "rate", "action": "drop", "rate": {"over": 5, "in_s": 2, "by": "source"}},
        {
            "name": "first",
            "action": "log",
            "mark": 16,
            "not": {"rate": {"over": 5, "in_s": 2, "by": "flow"}},
        },
    ]
    table = {"default": "allow", "on_unknown": "log", "rule": rules}
    model = parse_policy(table, source="test")
    sentences = policy_sentences(model)
    assert len(sentences) == len(rules) + 2
    for rule, sentence in zip(model.rules, sentences, strict=False):
        assert _read_back(sentence) == _essence(rule)
