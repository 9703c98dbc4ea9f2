# SPDX-License-Identifier: MIT
"""The JSON Schema of the events, derived from their classes.

The keyword `unit` is the unit of a number, and `ecs` the field of the Elastic Common Schema that
takes the value.
"""

from inspect import cleandoc
from typing import Any, Final

import msgspec

from nfq_guard.telemetry.events import EVENTS, Event, PacketJudged, Totals, name_of
from nfq_guard.telemetry.metric_table import DAEMON_COUNTERS, QUEUE_COUNTERS

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/{name}"
_COUNTERS: Final = "counters"

Schema = dict[str, Any]


def event_schema() -> Schema:
    """The schema of one event. It allows further fields, which later versions may have."""
    refs, found = msgspec.json.schema_components(EVENTS, ref_template=_REF)
    for schema in found.values():
        schema["description"] = cleandoc(schema.get("description", ""))
    for event in EVENTS:
        if event is not PacketJudged:
            _complete(found[event.__name__], event)
    return {
        "$schema": _DRAFT,
        "title": "Events of nfq_guard",
        "description": "One event, which is one line of the log.",
        "oneOf": list(refs),
        "$defs": found,
    }


def _complete(schema: Schema, event: type[Event]) -> None:
    """Add what `events.all_fields` adds to the fields of a class."""
    fields = schema["properties"]
    if issubclass(event, Totals):
        del fields[_COUNTERS]
        schema["required"].remove(_COUNTERS)
        fields |= {
            metric.name: {"type": "integer", "minimum": 0, "description": metric.help}
            for metric in (*QUEUE_COUNTERS, *DAEMON_COUNTERS)
        }
    schema["title"] = name_of(event)
    schema["properties"] = {
        "event": fields.pop("event"),
        "timestamp": {
            "type": "string",
            "description": "When it was written: ISO 8601, UTC.",
            "ecs": "@timestamp",
        },
        **fields,
        "level": {"const": event.level, "description": "How serious it is.", "ecs": "log.level"},
    }
    schema["required"] += ["timestamp", "level"]
