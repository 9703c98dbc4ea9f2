# SPDX-License-Identifier: MIT
"""From judgments to events and back: a policy decides the same on both."""

import io
from typing import Any

import orjson
from hypothesis import assume, given
from hypothesis import strategies as st

from nfq_guard.engine import VERDICT_ACCEPT, Judgment, Mode
from nfq_guard.flow import Evidence
from nfq_guard.names import flow_status, status_number
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.telemetry.events import all_fields
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.recorded import Recorded
from tests.support.policies import Case, diagnosed_cases, tables

WHEN = "2026-01-02T03:04:05.678901Z"


def _event(case: Case, **changes: object) -> bytes:
    queued, packet, snapshot, finding = case
    decision = Decision(Action.LOG, "default")
    judgment = Judgment(queued, packet, snapshot, finding, decision, VERDICT_ACCEPT)
    event = packet_judged(
        judgment, mode=Mode.DRY_RUN, queue_num=0, evidence=Evidence.BPF, when=WHEN
    )
    return orjson.dumps(all_fields(event) | changes)


def _read(*lines: bytes) -> tuple[list[Recorded], EventReader]:
    reader = EventReader()
    packets = [
        packet for read in reader.read(io.BytesIO(b"\n".join(lines))) for packet in recorded(read)
    ]
    return packets, reader


@given(case=diagnosed_cases(), table=tables())
def test_a_policy_cannot_tell_an_event_from_its_packet(
    case: Case, table: dict[str, object]
) -> None:
    queued, packet, snapshot, finding = case
    policy = compile_policy(parse_policy(table, source="test"))
    (read,), reader = _read(_event(case))
    assert reader.skipped == 0
    assert read.judged is not None
    asked = read.judged
    again = policy.decide(asked.queued, read.packet, asked.snapshot, asked.finding, 0.0)
    assert again == policy.decide(queued, packet, snapshot, finding, 0.0)


def test_fields_of_the_recording(judge_case: Case) -> None:
    (first, second), _ = _read(_event(judge_case, count=7), _event(judge_case, verdict="drop"))
    assert (first.number, first.count, first.passed) == (1, 7, True)
    assert (second.number, second.count, second.passed) == (2, 1, False)
    assert first.time_s == second.time_s


@given(line=st.binary(max_size=40))
def test_lines_that_are_not_events_are_counted(line: bytes) -> None:
    assume(b"\n" not in line and line.strip())
    packets, events = _read(b"", line)
    assert packets == []
    assert (events.skipped, events.first_skipped) == (1, 2)


def test_other_events_are_skipped(judge_case: Case) -> None:
    packets, events = _read(b'{"event":"started"}', _event(judge_case))
    assert len(packets) == 1
    assert (events.others, events.skipped) == (1, 0)


def test_older_events_have_the_bits_of_the_status(judge_case: Case) -> None:
    """They are read as what today's daemon writes."""
    for bits in range(0, 1 << 15, 0x1F):
        reader = EventReader()
        lines = [
            _event(judge_case, direction="reply", status=status)
            for status in (bits, list(flow_status(bits)))
        ]
        old, new = reader.read(io.BytesIO(b"\n".join(lines)))
        assert old.event == new.event, bits
        (packet,) = recorded(old)
        assert packet.judged is not None
        assert packet.judged.snapshot is not None
        assert status_number(packet.judged.snapshot.status) == status_number(bits)


def test_older_events_without_marks_and_status(judge_case: Case) -> None:
    fields: dict[str, Any] = orjson.loads(_event(judge_case))
    for name in ("mark", "status", "ct_mark"):
        del fields[name]
    fields |= {"direction": "reply", "nat": "snat", "state": "ESTABLISHED", "hook": "7"}
    (packet,), _ = _read(orjson.dumps(fields))
    assert packet.judged is not None
    assert packet.judged.snapshot is not None
    assert packet.judged.snapshot.nat == "snat"
    assert packet.judged.queued.hook == 7
