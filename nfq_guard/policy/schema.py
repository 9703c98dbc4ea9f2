# SPDX-License-Identifier: MIT
"""The JSON Schema of the table `[policy]`, from the same field table as the parser."""

from typing import Any, assert_never

from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELDS, LAST_MARK, Field, Kind
from nfq_guard.policy.model import (
    I_KNOW,
    LARGEST_COUNT,
    LAST_ACTIONS,
    LONGEST_COMMENT,
    LONGEST_WINDOW_S,
    NAME_PATTERN,
    RateKey,
)
from nfq_guard.policy.values import MARK_PATTERN, RANGE_PATTERN

Schema = dict[str, Any]


def policy_schema() -> Schema:
    """The schema of the table `[policy]`.

    The parser rejects everything that the schema rejects, and what a schema cannot express, such
    as duplicate names and files that cannot be read.
    """
    actions = {"enum": [str(action) for action in Action]}
    last_actions = {"enum": [str(action) for action in LAST_ACTIONS]}
    fields = {field.name: _field(field) for field in FIELDS}
    rate = _rate()
    return {
        "type": "object",
        "description": "What to do with INVALID packets: the first rule that matches.",
        "additionalProperties": False,
        "properties": {
            "include": {
                "description": "Policies whose rules follow those of this file:"
                " 'preset:NAME', or a file relative to this one.",
                **_one_or_more({"type": "string", "minLength": 1}),
            },
            "on_unknown": {
                "description": "What happens to a packet that no rule matched and that could not"
                " be judged. Without it: allow, or what an included policy says.",
                **last_actions,
            },
            "default": {
                "description": "What happens to any other packet that no rule matched. Required,"
                " unless an included policy says it.",
                **last_actions,
            },
            "i_know": {
                "description": "Required in a policy that lets no packet pass.",
                "const": I_KNOW,
            },
            "rule": {
                "description": "The rules, in order.",
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["action"],
                    "properties": {
                        "name": {
                            "description": "The rule's name in events and metrics; without one,"
                            " its position.",
                            "type": "string",
                            "pattern": f"^{NAME_PATTERN}$",
                        },
                        "comment": {
                            "description": "Free text.",
                            "type": "string",
                            "maxLength": LONGEST_COMMENT,
                        },
                        "action": {"description": "What to do with the packet.", **actions},
                        "mark": {
                            "description": "Packet mark to set with the verdict.",
                            "type": "integer",
                            "minimum": 0,
                            "maximum": LAST_MARK,
                        },
                        **fields,
                        "rate": {"description": "Match only beyond a rate.", **rate},
                        "not": {
                            "description": "The same keys, negated: match when none of the values"
                            " holds.",
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                **fields,
                                "rate": {"description": "Match only within a rate.", **rate},
                            },
                        },
                    },
                },
            },
        },
    }


def _field(field: Field) -> Schema:
    schema = _value(field)
    if field.kind is not Kind.SWITCH:
        schema = _one_or_more(schema)
    return {"description": field.says, **schema}


def _one_or_more(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "minItems": 1, "items": schema}]}


def _value(field: Field) -> Schema:
    match field.kind:
        case Kind.WORD | Kind.STATUS:
            # TOML writes `family = 4` as a number.
            numbers = [int(word) for word in field.words if word.isdecimal()]
            return {"enum": [*numbers, *field.words]}
        case Kind.NUMBER:
            number = {"type": "integer", "minimum": field.lowest, "maximum": field.highest}
            ranges = {"type": "string", "pattern": f"^({RANGE_PATTERN})$"}
            words = [{"enum": list(field.words)}] if field.words else []
            return {"anyOf": [number, ranges, *words]}
        case Kind.FLAGS:
            word = f"!?({'|'.join(field.words)})"
            return {"type": "string", "pattern": rf"^\s*{word}(\s+{word})*\s*$"}
        case Kind.NETWORK:
            return {"type": "string", "pattern": r"^[0-9a-fA-F.:]+(/[0-9.:a-fA-F]+)?$"}
        case Kind.PATTERN:
            return {"type": "string", "pattern": r"^[^/:\s]+$"}
        case Kind.MARK:
            mark = {"type": "integer", "minimum": 0, "maximum": LAST_MARK}
            bits = {"type": "string", "pattern": f"^{MARK_PATTERN}$"}
            return {"anyOf": [mark, bits]}
        case Kind.SWITCH:
            return {"type": "boolean"}
        case _:
            assert_never(field.kind)


def _rate() -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["over", "in_s", "by"],
        "properties": {
            "over": {
                "description": "Packets within the limit.",
                "type": "integer",
                "minimum": 1,
                "maximum": LARGEST_COUNT,
            },
            "in_s": {
                "description": "Length of the window in seconds.",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": LONGEST_WINDOW_S,
            },
            "by": {
                "description": "Whether packets are counted by flow, by source, or by segment:"
                " copies of the same one.",
                "enum": [str(key) for key in RateKey],
            },
        },
    }
