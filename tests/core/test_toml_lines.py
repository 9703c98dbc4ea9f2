# SPDX-License-Identifier: MIT
"""The line of each key of a TOML file."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.toml_lines import line_of, lines_of

TEXT = '''\
top.dotted = "]"
"quoted key" = 'a # b'
list = [ # one, two
  "x", [3,
  4], { deep = true, 'er' = [
    5 ] },
]

[policy] # [[policy.rule]]
text = """
[policy]
x = 1 \\""" ""
"""
lines = \'\'\'
y = 1\'\'\'
when = 1979-05-27 07:32:00
  [[ policy . rule ]]
  not.reason = [ "a",
    "b" ]
[[policy.rule]]
action = "drop"
[policy.rule.not]
dport = 1
[policy.rule.rate]
over = 1
'''
LINES = {
    "top": 1,
    "top.dotted": 1,
    "quoted key": 2,
    "list": 3,
    "list[0]": 4,
    "list[1]": 4,
    "list[1][0]": 4,
    "list[1][1]": 5,
    "list[2]": 5,
    "list[2].deep": 5,
    "list[2].er": 5,
    "list[2].er[0]": 6,
    "policy": 9,
    "policy.text": 10,
    "policy.lines": 14,
    "policy.when": 16,
    "policy.rule": 17,
    "policy.rule[0]": 17,
    "policy.rule[0].not": 18,
    "policy.rule[0].not.reason": 18,
    "policy.rule[0].not.reason[0]": 18,
    "policy.rule[0].not.reason[1]": 19,
    "policy.rule[1]": 20,
    "policy.rule[1].action": 21,
    "policy.rule[1].not": 22,
    "policy.rule[1].not.dport": 23,
    "policy.rule[1].rate": 24,
    "policy.rule[1].rate.over": 25,
}


def test_each_key_and_element_has_its_line() -> None:
    tomllib.loads(TEXT)
    assert lines_of(TEXT) == LINES
    assert lines_of(TEXT.replace("\n", "\r\n")) == LINES


def test_a_key_that_the_file_lacks_has_the_line_around_it() -> None:
    lines = lines_of(TEXT)
    assert line_of("policy.default", lines) == 9
    assert line_of("policy.rule[1].reason[3]", lines) == 20
    assert line_of("daemon.queue", lines) == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("a = 1\nb", {"a": 1, "b": 2}),
        ("a = 1\n= 2", {"a": 1}),
        ("[a", {"a": 1}),
        ("[[a]", {"a": 1, "a[0]": 1}),
        ('a = [1, "', {"a": 1, "a[0]": 1, "a[1]": 1}),
        ("a = { b = 1", {"a": 1, "a.b": 1}),
        ("a =", {"a": 1}),
    ],
)
def test_a_text_that_is_not_toml_has_the_lines_up_to_the_fault(
    text: str, lines: dict[str, int]
) -> None:
    assert lines_of(text) == lines


VALUES = st.recursive(
    st.sampled_from(
        ["1", "true", '"x = 1"', "'[a]'", '"""\n[b]\nc = 1\n"""', "'''\n'\n'''", "-.5"]
    ),
    lambda values: st.one_of(
        st.lists(values, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]"),
        st.lists(values, max_size=2).map(
            lambda items: "{" + ", ".join(f"k{n} = {v}" for n, v in enumerate(items)) + "}"
        ),
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=6))
def test_a_key_after_any_value_has_its_own_line(values: list[str]) -> None:
    text = ""
    lines = {}
    for number, value in enumerate(values):
        lines[f"key{number}"] = text.count("\n") + 1
        text += f"key{number} = {value} # x\n"
    found = lines_of(text)
    assert {key: found[key] for key in lines} == lines


@given(st.text(alphabet="[]{}=.,#\"'\\\nab 1", max_size=40))
def test_any_text_has_an_end(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in lines_of(text).values())
