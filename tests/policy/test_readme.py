# SPDX-License-Identifier: MIT
"""The table of keys in rules/policy/README.md is that of the code."""

import tomllib
from pathlib import Path

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.policy.fields import FIELDS, Field, Kind
from nfq_guard.policy.lint import cautions
from nfq_guard.policy.model import POLICY_KEYS, RATE_KEYS, RULE_KEYS
from nfq_guard.policyfile import preset_names, read_table

README = Path("rules/policy/README.md")


def _row(field: Field) -> str:
    values = {
        Kind.WORD: ", ".join(f"`{word}`" for word in field.words),
        Kind.STATUS: ", ".join(f"`{word}`" for word in field.words),
        Kind.NUMBER: f"{field.lowest} to {field.highest}, or a range",
        Kind.FLAGS: 'flags such as `"rst"`, `"syn !ack"`',
        Kind.NETWORK: "a network or an address",
        Kind.PATTERN: "a name; `*` for any letters, `?` for one",
        Kind.MARK: 'a number, or bits under a mask: `"0x10/0xff"`',
        Kind.SWITCH: "`true` or `false`",
    }[field.kind]
    if field.kind is Kind.NUMBER and field.words:
        values = ", ".join(f"`{word}`" for word in field.words) + ", or " + values
    return f"| `{field.name}` | {values} | {field.says} |"


def test_table_of_keys() -> None:
    text = README.read_text()
    for field in FIELDS:
        assert _row(field) in text.splitlines(), _row(field)


def test_every_other_key_is_explained() -> None:
    text = README.read_text()
    for key in (*POLICY_KEYS, *RULE_KEYS, *RATE_KEYS):
        assert f"`{key}`" in text, key


def test_every_preset_is_named() -> None:
    text = README.read_text()
    for name in preset_names():
        assert f"| `{name}` |" in text


def test_example_is_a_policy() -> None:
    example = README.read_text().split("```toml\n")[1].split("```")[0]
    model = read_table(tomllib.loads(example)["policy"], "README.md").model
    assert model is not None
    assert model.rules[0].name == "lab"
    assert cautions(model, KERNEL_6_1) == []
