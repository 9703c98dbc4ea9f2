# SPDX-License-Identifier: MIT
"""Parses the tables of a TOML file into a `PolicyModel`, or into every mistake in it.

Indexes in key paths start at 0, as in `policy.rule[2].reason`. A rule without a name is named by
its position, `rule[2]`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, final

from nfq_guard.errors import ConfigError, Mistake, NfqGuardError
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELD_BY_NAME, LAST_MARK, Field, Kind
from nfq_guard.policy.healable import heal_mistakes, with_heal_limits
from nfq_guard.policy.lint import lets_nothing_pass
from nfq_guard.policy.model import (
    DEEPEST_INCLUDE,
    I_KNOW,
    LARGEST_COUNT,
    LAST_ACTIONS,
    LONGEST_COMMENT,
    LONGEST_WINDOW_S,
    MOST_RULES,
    NAME_PATTERN,
    POLICY_KEYS,
    RATE_KEYS,
    RESERVED_NAMES,
    RULE_KEYS,
    Condition,
    PolicyModel,
    Rate,
    RateKey,
    Rule,
    Value,
)
from nfq_guard.policy.values import (
    SUGGESTIONS_MAX,
    ValueProblem,
    one_of,
    parse_value,
    shown,
    suggestion,
)

_NAME: Final = re.compile(NAME_PATTERN)
_ACTIONS: Final = tuple(str(action) for action in Action)
_LAST_ACTIONS: Final = tuple(str(action) for action in LAST_ACTIONS)


class Includes(Protocol):
    """Loads the policies that `include` names."""

    def __call__(self, reference: str, within: str) -> tuple[str, Mapping[str, object]]:
        """Read one policy.

        Args:
            reference: As written in the file: `preset:NAME` or a path.
            within: Source of the including file.

        Returns:
            Its source, the same for every spelling of its path, and its policy table.

        Raises:
            NfqGuardError: It cannot be read; the message says why.
        """


@final
class NoIncludes:
    """Rejects every include."""

    def __call__(self, reference: str, within: str) -> tuple[str, Mapping[str, object]]:
        """Reject `reference`."""
        raise NfqGuardError(f"{within} cannot include {reference}: includes are not supported here")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of reading a policy: a model, or at least one mistake."""

    model: PolicyModel | None
    mistakes: tuple[Mistake, ...]


def parse_policy(
    table: object,
    *,
    source: str,
    includes: Includes | None = None,
) -> PolicyModel:
    """Parse the `[policy]` table of `source`; arguments as for `read_policy`.

    Raises:
        ConfigError: With every mistake.
    """
    reading = read_policy(table, source=source, includes=includes)
    if reading.model is None:
        raise ConfigError(source, reading.mistakes)
    return reading.model


def read_policy(
    table: object,
    *,
    source: str,
    includes: Includes | None = None,
) -> Reading:
    """Parse the `[policy]` table of `source` and collect its mistakes.

    Args:
        table: The table, as tomllib returns it.
        source: The file, as the operator named it.
        includes: Loads included policies; None rejects every include.
    """
    reader = _Reader(includes or NoIncludes())
    part = reader.read(table, source, (source,), "policy")
    mistakes = reader.mistakes
    if part.default is None and not part.default_is_wrong:
        reader.note(
            "policy.default",
            f"the action when no rule matches: {one_of(_LAST_ACTIONS)}",
            "nothing",
        )
    if len(part.rules) > MOST_RULES:
        reader.note("policy.rule", f"at most {MOST_RULES} rules", str(len(part.rules)))
    if mistakes or part.default is None:
        return Reading(model=None, mistakes=tuple(mistakes))
    model = PolicyModel(
        source=source,
        rules=tuple(part.rules),
        on_unknown=part.on_unknown or Action.ALLOW,
        default=part.default,
        i_know=part.i_know,
    )
    if lets_nothing_pass(model) and not model.i_know:
        reader.note(
            "policy.i_know",
            f'i_know = "{I_KNOW}" in this file, because this policy lets no packet pass',
            "nothing",
        )
        return Reading(model=None, mistakes=tuple(mistakes))
    return Reading(model=model, mistakes=())


@final
class _Part:
    """One file with everything it includes."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.on_unknown: Action | None = None
        self.default: Action | None = None
        self.default_is_wrong = False
        self.i_know = False


@final
class _Reader:
    """Parses tables and collects their mistakes."""

    def __init__(self, includes: Includes) -> None:
        self.mistakes: list[Mistake] = []
        self._includes = includes
        self._names: dict[str, str] = {}
        self._within = ""

    def note(self, key: str, expected: str, found: str) -> None:
        """Add a mistake; one in an included file names that file."""
        self.mistakes.append(Mistake(f"{self._within}{key}", expected, found))

    def read(self, table: object, source: str, trail: tuple[str, ...], key: str) -> _Part:
        """Parse the policy table of one file; `trail` has the files that led here by includes."""
        part = _Part()
        if not isinstance(table, Mapping):
            self.note(key, "a table", shown(table))
            part.default_is_wrong = True
            return part
        self._unknown_keys(table, POLICY_KEYS, key)
        if "on_unknown" in table:
            part.on_unknown = self._action(table["on_unknown"], f"{key}.on_unknown", _LAST_ACTIONS)
        if "default" in table:
            part.default = self._action(table["default"], f"{key}.default", _LAST_ACTIONS)
            part.default_is_wrong = part.default is None
        if "i_know" in table:
            part.i_know = table["i_know"] == I_KNOW
            if not part.i_know:
                self.note(f"{key}.i_know", f"'{I_KNOW}'", shown(table["i_know"]))
        rules = table.get("rule", [])
        if isinstance(rules, list):
            for index, rule in enumerate(rules):
                read = self._rule(rule, f"{key}.rule[{index}]", index, source, trail)
                if read is not None:
                    part.rules.append(read)
        else:
            self.note(f"{key}.rule", "an array of tables, [[policy.rule]]", shown(rules))
        if "include" in table:
            self._include(table["include"], trail, key, part)
        return part

    def _include(self, found: object, trail: tuple[str, ...], key: str, part: _Part) -> None:
        references = found if isinstance(found, list) else [found]
        if not references:
            self.note(f"{key}.include", "at least one policy", "an empty list")
        for index, reference in enumerate(references):
            where = f"{key}.include[{index}]" if isinstance(found, list) else f"{key}.include"
            if not isinstance(reference, str) or not reference:
                self.note(where, "a file, or a preset such as 'preset:default'", shown(reference))
                continue
            included = self._included(reference, trail, where)
            if included is None:
                part.default_is_wrong = True
                continue
            part.rules += included.rules
            part.on_unknown = part.on_unknown or included.on_unknown
            part.default = part.default or included.default
            part.default_is_wrong |= included.default_is_wrong

    def _included(self, reference: str, trail: tuple[str, ...], where: str) -> _Part | None:
        if len(trail) > DEEPEST_INCLUDE:
            self.note(where, f"at most {DEEPEST_INCLUDE} nested includes", reference)
            return None
        try:
            source, table = self._includes(reference, trail[-1])
        except ConfigError as error:
            for mistake in error.mistakes:
                place = f"{where} ({error.source}{': ' + mistake.key if mistake.key else ''})"
                self.note(place, mistake.expected, mistake.found)
            return None
        except NfqGuardError as error:
            self.note(where, "a readable policy", f"{reference!r}: {error}")
            return None
        if source in trail:
            circle = " -> ".join((*trail[trail.index(source) :], source))
            self.note(where, "no circular include", circle)
            return None
        outside = self._within
        self._within = f"({source}) "
        included = self.read(table, source, (*trail, source), "policy")
        self._within = outside
        return included

    def _unknown_keys(self, table: Mapping[str, object], known: tuple[str, ...], key: str) -> None:
        for name in table:
            if name not in known:
                few = len(self.mistakes) < SUGGESTIONS_MAX
                hint = _suggested_key(name, known) if few else ""
                self.note(
                    f"{key}.{name}", f"one of the keys {one_of(known)}", f"{shown(name)}{hint}"
                )

    def _action(self, found: object, key: str, words: tuple[str, ...]) -> Action | None:
        if isinstance(found, str) and found in words:
            return Action(found)
        self.note(key, one_of(words), shown(found) + suggestion(found, words))
        return None

    def _rule(
        self, table: object, key: str, index: int, source: str, trail: tuple[str, ...]
    ) -> Rule | None:
        if not isinstance(table, Mapping):
            self.note(key, "a table", shown(table))
            return None
        before = len(self.mistakes)
        self._unknown_keys(table, RULE_KEYS, key)
        unnamed = f"rule[{index}]" if len(trail) == 1 else f"{source}:rule[{index}]"
        name = self._name(table["name"], key) if "name" in table else unnamed
        comment = table.get("comment", "")
        if not isinstance(comment, str) or len(comment) > LONGEST_COMMENT:
            self.note(
                f"{key}.comment", f"a text of at most {LONGEST_COMMENT} characters", shown(comment)
            )
        if "action" in table:
            action = self._action(table["action"], f"{key}.action", _ACTIONS)
        else:
            self.note(f"{key}.action", one_of(_ACTIONS), "nothing")
            action = None
        mark = table.get("mark")
        if mark is not None and not _whole(mark, 0, LAST_MARK):
            self.note(f"{key}.mark", "a 32-bit number such as 0x10", shown(mark))
        conditions = self._conditions(table, key, negated=False)
        rate = self._rate(table["rate"], f"{key}.rate", negated=False) if "rate" in table else None
        if "not" in table:
            rate = self._nots(table["not"], f"{key}.not", conditions, rate)
        if len(self.mistakes) > before or action is None or not isinstance(comment, str):
            return None
        rule = Rule(
            name=name,
            key=key,
            source=source,
            action=action,
            mark=mark if isinstance(mark, int) else None,
            conditions=tuple(conditions),
            rate=rate,
            comment=comment,
        )
        return self._healing(rule) if action is Action.HEAL else rule

    def _healing(self, rule: Rule) -> Rule | None:
        mistakes = heal_mistakes(rule)
        for mistake in mistakes:
            self.note(mistake.key, mistake.expected, mistake.found)
        return None if mistakes else with_heal_limits(rule)

    def _nots(
        self, table: object, key: str, conditions: list[Condition], rate: Rate | None
    ) -> Rate | None:
        """Add the conditions of the table `not`; returns the rate of the rule."""
        if not isinstance(table, Mapping):
            self.note(key, "keys of a rule, such as not.reason", shown(table))
            return rate
        self._unknown_keys(table, ("rate", *FIELD_BY_NAME), key)
        conditions += self._conditions(table, key, negated=True)
        if "rate" not in table:
            return rate
        if rate is not None:
            self.note(f"{key}.rate", "one rate in a rule", "two")
            return rate
        return self._rate(table["rate"], f"{key}.rate", negated=True)

    def _name(self, found: object, key: str) -> str:
        where = f"{key}.name"
        if not isinstance(found, str) or _NAME.fullmatch(found) is None or found in RESERVED_NAMES:
            self.note(
                where,
                "a name of at most 64 letters, digits, '.', '_' and '-', other than "
                f"{', '.join(RESERVED_NAMES[:-1])} and {RESERVED_NAMES[-1]}",
                shown(found),
            )
            return ""
        here = f"{self._within}{key}"
        first = self._names.setdefault(found, here)
        if first != here:
            self.note(where, "a unique rule name", f"duplicate {found!r} (also {first})")
        return found

    def _conditions(
        self,
        table: Mapping[str, object],
        key: str,
        *,
        negated: bool,
    ) -> list[Condition]:
        conditions: list[Condition] = []
        for name, found in table.items():
            field = FIELD_BY_NAME.get(name)
            if field is not None:
                values = self._values(field, found, f"{key}.{name}")
                conditions.append(Condition(field=field, negated=negated, values=tuple(values)))
        return conditions

    def _values(self, field: Field, found: object, key: str) -> list[Value]:
        if field.kind is Kind.SWITCH or not isinstance(found, list):
            return list(self._value(field, found, key))
        if not found:
            self.note(key, "at least one value", "an empty list")
        values: list[Value] = []
        for index, item in enumerate(found):
            values += self._value(field, item, f"{key}[{index}]")
        return values

    def _value(self, field: Field, item: object, key: str) -> Iterable[Value]:
        try:
            return (parse_value(field, item),)
        except ValueProblem as problem:
            self.note(key, problem.expected, shown(item) + problem.hint)
            return ()

    def _rate(self, table: object, key: str, *, negated: bool) -> Rate | None:
        if not isinstance(table, Mapping):
            self.note(key, 'a table such as { over = 10, in_s = 60, by = "flow" }', shown(table))
            return None
        self._unknown_keys(table, RATE_KEYS, key)
        over = table.get("over")
        in_s = table.get("in_s")
        by = table.get("by")
        before = len(self.mistakes)
        if not _whole(over, 1, LARGEST_COUNT):
            self.note(
                f"{key}.over",
                f"a number of packets from 1 to {LARGEST_COUNT}",
                _shown_or_nothing(over),
            )
        seconds = in_s if isinstance(in_s, int | float) and not isinstance(in_s, bool) else 0
        if not 0 < seconds <= LONGEST_WINDOW_S:
            self.note(
                f"{key}.in_s",
                f"a number of seconds above 0 and up to {LONGEST_WINDOW_S}",
                _shown_or_nothing(in_s),
            )
        keys = tuple(str(known) for known in RateKey)
        if by not in keys:
            self.note(f"{key}.by", one_of(keys), _shown_or_nothing(by) + suggestion(by, keys))
        if len(self.mistakes) > before or not isinstance(over, int):
            return None
        return Rate(over=over, in_s=float(seconds), by=RateKey(str(by)), negated=negated)


def _whole(found: object, lowest: int, highest: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and lowest <= found <= highest


def _shown_or_nothing(found: object) -> str:
    return "nothing" if found is None else shown(found)


def _suggested_key(name: str, known: tuple[str, ...]) -> str:
    hint = suggestion(name, known)
    if hint or name.lower() not in _OTHER_WORDS:
        return hint
    meant = _OTHER_WORDS[name.lower()]
    return f" (did you mean {meant!r}?)" if meant in known else ""


# Names of the same keys in other tools.
_OTHER_WORDS: Final = {
    "source": "src",
    "saddr": "src",
    "destination": "dst",
    "daddr": "dst",
    "iif": "in",
    "iifname": "in",
    "oif": "out",
    "oifname": "out",
    "connmark": "ct_mark",
    "fwmark": "packet_mark",
    "match_mark": "packet_mark",
    "verdict": "action",
    "target": "action",
    "flags": "tcp_flags",
    "limit": "rate",
    "rules": "rule",
    "final": "default",
}
