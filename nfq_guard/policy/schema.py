# SPDX-License-Identifier: MIT
"""The JSON Schema of the table `[policy]`, from the same table of fields as the parser."""

from typing import Any, Final, assert_never

from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FAMILIES, FIELDS, LAST_MARK, Field, Kind
from nfq_guard.policy.keys import (
    LARGEST_COUNT,
    LONGEST_COMMENT,
    LONGEST_WINDOW_S,
    NAME_PATTERN,
)
from nfq_guard.policy.model import I_KNOW, RateKey

Schema = dict[str, Any]

_NUMBER_OR_MARK: Final = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,12})"


def policy_schema() -> Schema:
    """The schema of the table `[policy]`.

    Whatever it refuses the parser refuses too; the parser alone knows what no schema can say,
    such as names that are taken, and files that cannot be read.
    """
    actions = {"enum": [str(action) for action in Action]}
    fields = {field.name: _field(field) for field in FIELDS}
    rate = _rate()
    return {
        "type": "object",
        "description": "What to do with INVALID packets: the first rule that matches.",
        "additionalProperties": False,
        "properties": {
            "include": {
                "description": "Policies whose rules follow the own ones:"
                " 'preset:NAME', or a file relative to this one.",
                **_one_or_more({"type": "string", "minLength": 1}),
            },
            "on_unknown": {
                "description": "What happens to a packet that no rule matched and that could not"
                " be judged. Without it: allow, or what an included policy says.",
                **actions,
            },
            "default": {
                "description": "What happens to any other packet that no rule matched. Required,"
                " unless an included policy says it.",
                **actions,
            },
            "i_know": {
                "description": "Needed in a policy that lets no packet pass.",
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
                            "description": "As events and metrics carry it; without one the rule"
                            " is called by its place.",
                            "type": "string",
                            "pattern": f"^{NAME_PATTERN}$",
                        },
                        "comment": {
                            "description": "Your own words.",
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
                        "rate": {"description": "Match beyond a rate only.", **rate},
                        "not": {
                            "description": "The same keys: match when none of the values holds.",
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                **fields,
                                "rate": {"description": "Match within a rate only.", **rate},
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
            if field.words == FAMILIES:
                return {"enum": [*(int(word) for word in FAMILIES), *FAMILIES]}
            return {"enum": list(field.words)}
        case Kind.NUMBER:
            number = {"type": "integer", "minimum": field.lowest, "maximum": field.highest}
            spans = r"^([0-9]{1,12}\.\.([0-9]{1,12})?|\.\.[0-9]{1,12})$"
            words = [{"enum": list(field.words)}] if field.words else []
            return {"anyOf": [number, {"type": "string", "pattern": spans}, *words]}
        case Kind.FLAGS:
            word = f"!?({'|'.join(field.words)})"
            return {"type": "string", "pattern": rf"^\s*{word}(\s+{word})*\s*$"}
        case Kind.NETWORK:
            return {"type": "string", "pattern": r"^[0-9a-fA-F.:]+(/[0-9.:a-fA-F]+)?$"}
        case Kind.PATTERN:
            return {"type": "string", "pattern": r"^[^/:\s]+$"}
        case Kind.MARK:
            mark = {"type": "integer", "minimum": 0, "maximum": LAST_MARK}
            bits = {"type": "string", "pattern": rf"^{_NUMBER_OR_MARK}(/{_NUMBER_OR_MARK})?$"}
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
                "description": "Packets that are within the limit.",
                "type": "integer",
                "minimum": 1,
                "maximum": LARGEST_COUNT,
            },
            "in_s": {
                "description": "The window in seconds.",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": LONGEST_WINDOW_S,
            },
            "by": {"description": "What is counted.", "enum": [str(key) for key in RateKey]},
        },
    }
