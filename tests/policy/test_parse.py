# SPDX-License-Identifier: MIT
"""The parser reports every mistake in a policy at once, each with its key path."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.errors import ConfigError, Mistake, NfqGuardError
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELD_BY_NAME
from nfq_guard.policy.model import DEEPEST_INCLUDE, MOST_RULES
from nfq_guard.policy.parse import parse_policy, read_policy
from nfq_guard.policy.values import suggestion
from tests.support.policies import tables


def _mistakes(table: object) -> list[str]:
    return [str(mistake) for mistake in read_policy(table, source="x").mistakes]


def _of_rule(**keys: object) -> list[str]:
    return _mistakes({"default": "allow", "rule": [{"action": "drop", **keys}]})


@pytest.mark.compiled
@given(table=tables(with_rates=True))
def test_valid_tables_have_no_mistakes(table: dict[str, object]) -> None:
    assert read_policy(table, source="x").mistakes == ()


def test_all_mistakes_at_once() -> None:
    table = {
        "defualt": "allow",
        "on_unknown": "dorp",
        "rule": [
            {"name": "a", "reason": ["seq-ovr", "raced"], "action": "drop"},
            {"name": "a", "sport": "1-80", "not": {"hook": "prerouting"}, "action": "allow"},
        ],
    }
    assert _mistakes(table) == [
        "policy.defualt: expected one of the keys include, on_unknown, default, i_know or rule,"
        " found 'defualt' (did you mean 'default'?)",
        "policy.on_unknown: expected drop, log or allow, found 'dorp' (did you mean 'drop'?)",
        "policy.rule[0].reason[0]: expected one of seq-over, ack-over, seq-under, ack-under,"
        " rst-outside, bad-transition, no-entry, bad-flags, bad-checksum, bad-tag, malformed,"
        " icmp-unrelated, icmp-mismatch, raced or unsupported, found 'seq-ovr'"
        " (did you mean 'seq-over'?)",
        "policy.rule[1].name: expected a unique rule name,"
        " found duplicate 'a' (also policy.rule[0])",
        "policy.rule[1].sport: expected a number from 0 to 65535, or a range such as"
        " '1024..65535', found '1-80' (did you mean '1..80'?)",
        "policy.rule[1].not.hook: expected one of PREROUTING, INPUT, FORWARD, OUTPUT or"
        " POSTROUTING, found 'prerouting' (did you mean 'PREROUTING'?)",
        "policy.default: expected the action when no rule matches: drop, log or allow,"
        " found nothing",
    ]


@pytest.mark.parametrize(
    ("key", "found", "said"),
    [
        ("reason", 7, "reason: expected one of seq-over"),
        ("reason", [], "reason: expected at least one value, found an empty list"),
        ("family", 5, "family: expected one of 4 or 6, found 5"),
        ("family", True, "family: expected one of 4 or 6, found true"),
        ("status", "assuerd", "(did you mean 'assured'?)"),
        ("distance", 0, "distance: expected a number from 1 to 2147483648"),
        ("distance", "9..1", "distance: expected"),
        ("distance", "..", "distance: expected"),
        ("distance", "10...20", "(did you mean '10..20'?)"),
        ("distance", 1.5, "found 1.5"),
        ("dport", 65536, "dport: expected a number from 0 to 65535"),
        ("dport", "1024:2048", "(did you mean '1024..2048'?)"),
        ("dport", -1, "found -1"),
        ("dport", True, "found true"),
        ("proto", "tpc", "proto: expected tcp, udp, icmp, icmpv6, sctp or gre, or a number from 1"),
        ("proto", "tpc", "(did you mean 'tcp'?)"),
        ("tcp_flags", "syn+ack", "expected some of fin, syn, rst, psh, ack, urg, ece or cwr"),
        ("tcp_flags", "SYN", "(did you mean 'syn'?)"),
        ("tcp_flags", " ", "tcp_flags: expected some of"),
        ("tcp_flags", 2, "tcp_flags: expected some of"),
        ("tcp_flags", "syn !syn", "expected each flag either set or clear, not both"),
        ("payload", "yes", "payload: expected true or false, found 'yes'"),
        ("payload", [True], "payload: expected true or false, found a list"),
        ("src", "10.0.0.1/8", "(did you mean '10.0.0.0/8'?)"),
        ("src", "10.0.0.0/33", "src: expected a network such as '10.0.0.0/8' or 'fd00::/8'"),
        ("src", "fe80::1%eth0", "src: expected a network"),
        ("src", 10, "src: expected a network"),
        ("src", {"a": 1}, "found a table"),
        ("in", "", "in: expected an interface name"),
        ("in", "a b", "in: expected an interface name"),
        ("in", "cali+", "(did you mean 'cali*'?)"),
        ("in", "a" * 16, "in: expected a name of at most 15 characters"),
        ("in", 1, "in: expected an interface name"),
        ("packet_mark", "0x1g", "packet_mark: expected a 32-bit number"),
        ("packet_mark", 1.5, "packet_mark: expected a 32-bit number"),
        ("packet_mark", True, "packet_mark: expected a 32-bit number"),
        ("packet_mark", -1, "packet_mark: expected a 32-bit number"),
        ("packet_mark", "0x1ffffffff", "packet_mark: expected a 32-bit number"),
        ("packet_mark", "1/0", "packet_mark: expected a 32-bit number"),
        ("ct_mark", "0x11/0x10", "ct_mark: expected bits within their mask"),
        ("mark", "0x10", "mark: expected a 32-bit number such as 0x10, found '0x10'"),
        ("mark", -1, "mark: expected a 32-bit number"),
        ("name", "default", "name: expected a name of at most 64"),
        ("name", "with blank", "name: expected a name of at most 64"),
        ("name", 5, "name: expected a name of at most 64"),
        ("comment", 5, "comment: expected a text of at most 500 characters, found 5"),
        ("comment", "a" * 501, "comment: expected a text of at most 500 characters"),
        (
            "evidence",
            "procfs",
            "expected one of bpf, kernel-log, ctnetlink, replay or none, found 'procfs'",
        ),
        ("action", "acept", "action: expected drop, log, allow or heal, found 'acept'"),
        ("action", 1, "action: expected drop, log, allow or heal, found 1"),
        ("resaon", "raced", "(did you mean 'reason'?)"),
        ("saddr", "10.0.0.0/8", "(did you mean 'src'?)"),
        ("frobnicate", 1, "found 'frobnicate'"),
        ("not", 5, "not: expected keys of a rule, such as not.reason, found 5"),
        ("not", {"action": "drop"}, "not.action: expected one of the keys rate, reason"),
        ("not", {"target": "drop"}, "not.target: expected one of the keys"),
        ("rate", 5, "rate: expected a table such as { over = 10,"),
        ("rate", {}, "rate.over: expected a number of packets from 1 to 1000000, found nothing"),
        ("rate", {}, "rate.in_s: expected a number of seconds above 0 and up to 3600"),
        ("rate", {}, "rate.by: expected flow, source or segment, found nothing"),
        ("rate", {"over": 0, "in_s": True, "by": "flwo"}, "(did you mean 'flow'?)"),
        (
            "rate",
            {"over": 0, "in_s": True, "by": "flwo"},
            "rate.over: expected a number of packets",
        ),
        (
            "rate",
            {"over": 0, "in_s": True, "by": "flwo"},
            "rate.in_s: expected a number of seconds",
        ),
        ("rate", {"over": 1, "in_s": 1, "by": "flow", "x": 1}, "rate.x: expected one of the keys"),
    ],
)
def test_wrong_key(key: str, found: object, said: str) -> None:
    assert any(said in mistake for mistake in _of_rule(**{key: found})), _of_rule(**{key: found})


def test_two_rates() -> None:
    rate = {"over": 1, "in_s": 1, "by": "flow"}
    assert _of_rule(rate=rate, **{"not": {"rate": rate}}) == [
        "policy.rule[0].not.rate: expected one rate in a rule, found two"
    ]


def test_rule_without_action() -> None:
    assert _mistakes({"default": "allow", "rule": [{}]}) == [
        "policy.rule[0].action: expected drop, log, allow or heal, found nothing"
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (5, ["policy: expected a table, found 5"]),
        (
            {"default": "allow", "rule": {}},
            ["policy.rule: expected an array of tables, [[policy.rule]], found a table"],
        ),
        (
            {"default": "allow", "rule": [5]},
            ["policy.rule[0]: expected a table, found 5"],
        ),
        (
            {"default": "heal"},
            ["policy.default: expected drop, log or allow, found 'heal'"],
        ),
        (
            {"default": "allow", "i_know": "yes"},
            ["policy.i_know: expected 'drops everything', found 'yes'"],
        ),
        (
            {"default": "drop", "on_unknown": "drop"},
            [
                'policy.i_know: expected i_know = "drops everything" in this file, because'
                " this policy lets no packet pass, found nothing"
            ],
        ),
        (
            {"default": "allow", "include": ["", 5]},
            [
                "policy.include[0]: expected a file, or a preset such as 'preset:default',"
                " found ''",
                "policy.include[1]: expected a file, or a preset such as 'preset:default', found 5",
            ],
        ),
        (
            {"include": "preset:default"},
            [
                "policy.include: expected a readable policy, found 'preset:default':"
                " x cannot include preset:default: includes are not supported here"
            ],
        ),
    ],
)
def test_wrong_table(table: object, said: list[str]) -> None:
    assert _mistakes(table) == said


def test_rules_are_bounded() -> None:
    table = {"default": "allow", "rule": [{"action": "log"}] * (MOST_RULES + 1)}
    assert _mistakes(table) == ["policy.rule: expected at most 1000 rules, found 1001"]


def test_long_values_are_cut() -> None:
    (mistake,) = _of_rule(reason="x" * 500)
    assert len(mistake) < 400


def test_error_carries_all_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy({"rule": [{}]}, source="file.toml")
    assert len(caught.value.mistakes) == 2
    assert str(caught.value).startswith("file.toml: policy.rule[0].action: expected")


def test_masks_in_decimal() -> None:
    table = {"default": "allow", "rule": [{"action": "log", "ct_mark": ["17/255", "0x10/0xff"]}]}
    assert parse_policy(table, source="x").rules[0].conditions[0].field is FIELD_BY_NAME["ct_mark"]


class _Shelf:
    """Includes from a dictionary of tables."""

    def __init__(self, shelf: Mapping[str, Mapping[str, object]]) -> None:
        self._shelf = shelf

    def __call__(self, reference: str, within: str) -> tuple[str, Mapping[str, object]]:
        if reference == "broken":
            raise ConfigError("broken.toml", [Mistake("1:2", "TOML", "rubbish")])
        if reference == "empty":
            raise ConfigError("empty.toml", [Mistake("", "a policy", "nothing")])
        if reference not in self._shelf:
            raise NfqGuardError(f"{within} has no {reference}")
        return reference, self._shelf[reference]


def _read(main: Mapping[str, object], **shelf: Mapping[str, object]) -> list[str]:
    reading = read_policy(main, source="main", includes=_Shelf(shelf))
    return [str(mistake) for mistake in reading.mistakes]


def test_included_rules_follow() -> None:
    """Own rules first; an action that the file lacks comes from the first include that has it."""
    main = {"include": ["a", "b"], "rule": [{"name": "own", "action": "log"}]}
    shelf = {
        "a": {"on_unknown": "log", "rule": [{"action": "drop"}]},
        "b": {"on_unknown": "drop", "default": "log", "rule": [{"name": "b", "action": "log"}]},
    }
    model = parse_policy(main, source="main", includes=_Shelf(shelf))
    assert [rule.name for rule in model.rules] == ["own", "a:rule[0]", "b"]
    assert [rule.source for rule in model.rules] == ["main", "a", "b"]
    assert (model.on_unknown, model.default) == (Action.LOG, Action.LOG)


def test_circular_include() -> None:
    said = _read({"include": "a"}, a={"include": "b"}, b={"include": "a"})
    assert said == ["(b) policy.include: expected no circular include, found a -> b -> a"]


def test_depth_of_includes_is_bounded() -> None:
    shelf = {f"f{n}": {"include": f"f{n + 1}"} for n in range(DEEPEST_INCLUDE + 2)}
    (said,) = _read({"include": "f0"}, **shelf)
    assert "at most 8 nested includes" in said


def test_mistakes_in_included_files_name_the_file() -> None:
    said = _read(
        {"include": ["broken", "empty", "none", "a"]},
        a={"default": "allow", "rule": [{"action": "no"}]},
    )
    assert said == [
        "policy.include[0] (broken.toml: 1:2): expected TOML, found rubbish",
        "policy.include[1] (empty.toml): expected a policy, found nothing",
        "policy.include[2]: expected a readable policy, found 'none': main has no none",
        "(a) policy.rule[0].action: expected drop, log, allow or heal, found 'no'",
    ]


def test_names_are_unique_over_files() -> None:
    said = _read(
        {"include": "a", "rule": [{"name": "n", "action": "drop"}]},
        a={"default": "allow", "rule": [{"name": "n", "action": "drop"}]},
    )
    assert said == [
        "(a) policy.rule[0].name: expected a unique rule name,"
        " found duplicate 'n' (also policy.rule[0])"
    ]


def test_i_know_is_not_inherited() -> None:
    """The operator's own file must confirm that everything is dropped."""
    shelf = {"s": {"i_know": "drops everything", "on_unknown": "drop", "default": "drop"}}
    (said,) = _read({"include": "s"}, **shelf)
    assert said.startswith('policy.i_know: expected i_know = "drops everything" in this file')


@given(
    table=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["rule", "default", "include", "not", "rate", *FIELD_BY_NAME]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=20,
    )
)
def test_any_table_is_read_or_rejected(table: object) -> None:
    reading = read_policy(table, source="x")
    assert (reading.model is None) is bool(reading.mistakes)


def test_another_word_is_no_slip() -> None:
    """Half of its letters are not enough for a suggestion."""
    assert suggestion("nonsense", ("zones", "mode")) == ""
    assert suggestion("mdoe", ("zones", "mode")) == " (did you mean 'mode'?)"
