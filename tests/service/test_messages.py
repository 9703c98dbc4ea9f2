# SPDX-License-Identifier: MIT
"""Messages between the daemon and its workers: arbitrary octets are accepted or refused."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.flow import IPV6, PROTO_TCP, Evidence, Hook
from nfq_guard.raw_rules import MOST_RULES, Field, RawAct, RawRule, Span
from nfq_guard.service.supervisor.messages import (
    Counted,
    DaemonChannel,
    Failed,
    Flows,
    Numbers,
    Prepared,
    Ready,
    RecordSocket,
    Refused,
    Report,
    SetMode,
    SetRawRules,
    Stop,
    daemon_channel,
    pair,
    worker_channel,
)

REPORTS: list[Report] = [
    Ready(
        socket_buffer_bytes=1 << 20,
        flags_refused=["gso"],
        evidence=Evidence.BPF,
        evidence_reason=None,
        notes=["a note"],
    ),
    Failed(problem="a problem", exit_status=75),
    Numbers(
        judged={"seq-over": {"drop": 3}},
        rules={"one": 3},
        counters={"packets": 3},
        gauges={"waiting": 0.5},
        evidence=Evidence.NONE,
        evidence_reason="none",
        histograms={"batch": [1, 2]},
        messages_refused=0,
        last_error={"event": "note"},
    ),
    Counted(),
    Prepared(reload=1, digest="abc"),
    Refused(reload=1, problem="a mistake"),
    Flows(dump=1, flows=[], complete=True),
]
ENCODED = [msgspec.msgpack.encode(one) for one in REPORTS]


class Ends:
    """The daemon's end of a channel, and octets sent in place of a worker."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.refused: list[str] = []
        self.channel: DaemonChannel = daemon_channel(ours, *[self.refused.append] * 2)
        self.worker = RecordSocket(theirs, self.refused.append)

    def take(self, record: bytes) -> list[Report]:
        """The messages received from one record."""
        self.refused.clear()
        self.worker.send(record)
        found = self.channel.receive()
        assert found is not None, "taken for the end of the worker"
        assert len(found) + len(self.refused) == 1
        return found


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.channel.close()
    made.worker.close()


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: type(one).__name__)
def test_a_report_arrives_as_it_was_sent(ends: Ends, report: Report) -> None:
    assert ends.take(msgspec.msgpack.encode(report)) == [report]


def test_an_order_is_no_report(ends: Ends) -> None:
    assert ends.take(msgspec.msgpack.encode(Stop())) == []
    ours, theirs = pair()
    refused: list[str] = []
    worker = worker_channel(theirs, refused.append, refused.append)
    daemon = daemon_channel(ours, refused.append, refused.append)
    order = SetMode(mode=Mode.ENFORCE, unjudged_mark=0)
    assert daemon.send(order)
    assert worker.receive() == [order]
    assert refused == []
    daemon.close()
    worker.close()


def test_a_message_without_room_is_reported() -> None:
    """Not one to a closed end: the end of a process has an event of its own."""
    ours, theirs = pair()
    unsent: list[str] = []
    daemon = daemon_channel(ours, unsent.append, unsent.append)
    order = SetMode(mode=Mode.ENFORCE, unjudged_mark=0)
    while daemon.send(order):
        assert unsent == []
    assert unsent == ["no room for a message 'set-mode': Resource temporarily unavailable"]
    unsent.clear()
    theirs.close()
    assert not daemon.send(order)
    assert unsent == []
    daemon.close()


def test_nesting_without_end_is_refused(ends: Ends) -> None:
    """A field of type object may have any content, nested as deep as the sender likes."""
    deep = b"\x91" * 50_000 + b"\xc0"
    whole = msgspec.msgpack.encode(REPORTS[2])
    place = whole.index(b"\xa5event") - 1
    assert ends.take(whole[:place] + b"\x81\xa1x" + deep) == []


@given(st.binary(min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_octets_are_taken_or_refused(ends: Ends, record: bytes) -> None:
    ends.take(record)


@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(1, 400),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_reports_are_taken_or_refused(
    ends: Ends, record: bytes, damage: list[tuple[int, int]], kept: int
) -> None:
    octets = bytearray(record)
    for at, value in damage:
        octets[at % len(octets)] = value
    ends.take(bytes(octets[:kept]))


def test_as_many_raw_rules_as_there_may_be() -> None:
    """One record has room for them."""
    ours, theirs = pair()
    none: list[str] = []
    ends = daemon_channel(ours, *[none.append] * 2), worker_channel(theirs, *[none.append] * 2)
    spans = (Span(Field.SRC, ((bytes(16), b"\xff" * 16),) * 15, negated=True),) * 2
    place = (IPV6, PROTO_TCP, Hook.OUTPUT, "raw")
    rule = RawRule("a rule " * 30, *place, RawAct.TRACKING, 7, spans, (("eth0", True),))
    order = SetRawRules(rules=(rule,) * (MOST_RULES + 12))
    assert ends[0].send(order)
    assert ends[1].receive() == [order]
    for end in ends:
        end.close()
