# SPDX-License-Identifier: MIT
"""The JSON Schema and the parser agree."""

import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from nfq_guard.cli.check import config_schema
from nfq_guard.policy.fields import FIELDS
from nfq_guard.policy.model import POLICY_KEYS, RATE_KEYS, RULE_KEYS
from nfq_guard.policy.parse import read_policy
from nfq_guard.policy.schema import policy_schema
from tests.support.policies import tables

VALIDATOR = Draft202012Validator(policy_schema())
CONFIG = Draft202012Validator(config_schema())

Table = dict[str, Any]


def _is_valid(table: object) -> bool:
    return not read_policy(table, source="x").mistakes


@pytest.mark.compiled
@given(table=tables(with_rates=True))
def test_schema_accepts_what_the_parser_accepts(table: Table) -> None:
    assert VALIDATOR.is_valid(table)


@pytest.mark.compiled
@given(table=tables(with_rates=True), data=st.data())
def test_parser_rejects_what_the_schema_rejects(table: Table, data: st.DataObject) -> None:
    """One value somewhere in the table is replaced by another."""
    holders: list[tuple[Any, Any]] = []
    table = deepcopy(table)

    def walk(value: object) -> None:
        keys = value.keys() if isinstance(value, dict) else []
        places = range(len(value)) if isinstance(value, list) else keys
        for place in places:
            holders.append((value, place))
            walk(value[place])  # type: ignore[index] # a list or a dictionary

    walk(table)
    holder, place = data.draw(st.sampled_from(holders))
    holder[place] = data.draw(
        st.sampled_from(["", "drop", "1..2", "..", "0x1/0x2", 5, -1, 1 << 40, True, [], [[]], {}])
        | st.text(max_size=5)
    )
    if not VALIDATOR.is_valid(table):
        assert not _is_valid(table)


def _rule(table: Table) -> Table:
    rule: Table = table["rule"][0]
    return rule


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.update(defualt="drop"),
        lambda table: table.update(default="heal"),
        lambda table: table.update(i_know="yes"),
        lambda table: _rule(table).update(resaon="raced"),
        lambda table: _rule(table).update(reason="seq-ovr"),
        lambda table: _rule(table).update(reason=[]),
        lambda table: _rule(table).pop("action"),
        lambda table: _rule(table).update(dport=65536),
        lambda table: table.update(include=[]),
        lambda table: _rule(table).update(dport="1-2"),
        lambda table: _rule(table).update(dport=".."),
        lambda table: _rule(table).update(dport="٣..٤"),
        lambda table: _rule(table).update(packet_mark="٣/٤"),
        lambda table: _rule(table).update(packet_mark="0x1/"),
        lambda table: _rule(table).update(family=5),
        lambda table: _rule(table).update(tcp_flags="syn+ack"),
        lambda table: _rule(table).update(src="all"),
        lambda table: _rule(table).update(name="default!"),
        lambda table: _rule(table).update(mark="0x1"),
        lambda table: _rule(table).update(payload="yes"),
        lambda table: _rule(table).update(rate={"over": 1, "in_s": 0, "by": "flow"}),
    ],
)
def test_schema_rejects(spoil: Callable[[Table], object]) -> None:
    """Mistakes that an editor with the schema points out."""
    table: Table = {"default": "allow", "rule": [{"action": "drop", "reason": "raced"}]}
    assert VALIDATOR.is_valid(table)
    spoil(table)
    assert not VALIDATOR.is_valid(table)
    assert not _is_valid(table)


@pytest.mark.parametrize("path", sorted(Path("rules/policy").glob("*.toml")), ids=str)
def test_presets_are_valid(path: Path) -> None:
    CONFIG.validate(tomllib.loads(path.read_text()))


def test_schema_covers_the_daemon() -> None:
    assert CONFIG.is_valid({"daemon": {"mode": "enforce", "zones": [0, 1]}})
    assert not CONFIG.is_valid({"daemon": {"mdoe": "enforce"}})
    assert not CONFIG.is_valid({"demon": {}})


def test_schema_has_all_keys() -> None:
    properties = policy_schema()["properties"]
    rule = properties["rule"]["items"]["properties"]
    assert set(properties) == set(POLICY_KEYS)
    assert set(rule) == set(RULE_KEYS)
    assert set(rule["rate"]["properties"]) == set(RATE_KEYS)
    assert set(rule["not"]["properties"]) == {"rate", *(field.name for field in FIELDS)}
