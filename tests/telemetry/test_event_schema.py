# SPDX-License-Identifier: MIT
"""The committed schema accepts every event, and refuses anything else."""

import json
from typing import Any

import jsonschema
import orjson
import pytest

from nfq_guard.telemetry.eve import OBJECT, eve_octets
from nfq_guard.telemetry.event_json import json_octets
from nfq_guard.telemetry.events import EVENTS, Event, name_of
from tests.support.event_examples import examples
from tests.support.reference import DIRECTORY

SCHEMA = json.loads((DIRECTORY / "events.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EXAMPLES = examples()


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert len(SCHEMA["oneOf"]) == len(EVENTS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: name_of(type(event)))
def test_every_event_fits(event: Event) -> None:
    VALIDATOR.validate(orjson.loads(json_octets(event)))
    VALIDATOR.validate(orjson.loads(eve_octets(event))[OBJECT])


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "nothing_happened"},
        {"queue": -1},
        {"sport": 65_536},
        {"reason": "boredom"},
        {"verdict": "perhaps"},
        {"breach": {"bound": "seq-over"}},
        {"count": 0},
        {"distances": [[1, 2, 3]]},
    ],
)
def test_a_value_that_no_event_has(changes: dict[str, Any]) -> None:
    event = orjson.loads(json_octets(EXAMPLES[1]))
    assert VALIDATOR.is_valid(event)
    assert not VALIDATOR.is_valid(event | changes)


@pytest.mark.parametrize("missing", ["event", "timestamp", "level", "queue"])
def test_a_field_that_is_always_there(missing: str) -> None:
    event = next(event for event in EXAMPLES if name_of(type(event)) == "worker_ended")
    fields = orjson.loads(json_octets(event))
    assert VALIDATOR.is_valid(fields)
    del fields[missing]
    assert not VALIDATOR.is_valid(fields)
