# SPDX-License-Identifier: MIT
"""Events read back from untrusted files."""

import io
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.policy.default import default_model
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.report.page import page
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.eve import eve_octets
from nfq_guard.telemetry.events import AllowedUnrecorded, PacketJudged, all_fields
from nfq_guard.telemetry.journal import JournalRenderer
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import LINE_MAX_BYTES, EventReader, Unrecorded
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.result import result
from nfq_guard.whatif.trial import Trial
from tests.support.events import event
from tests.support.judgments import judgment, snapshot

EVENT: PacketJudged = packet_judged(
    judgment(flow=snapshot(), verdict=1),
    mode=Mode.DRY_RUN,
    queue_num=7,
    evidence=Evidence.BPF,
    when="2026-01-02T03:04:05.000006Z",
    count=3,
)


def line(**changes: object) -> bytes:
    return json.dumps(all_fields(EVENT) | changes).encode() + b"\n"


def read(octets: bytes) -> tuple[list[int], EventReader]:
    """The line numbers of the events, and the reader."""
    reader = EventReader()
    return [found.line for found in reader.read(io.BytesIO(octets))], reader


def test_an_event_survives() -> None:
    reader = EventReader()
    (found,) = reader.read(io.BytesIO(line()))
    names = EVENT.__struct_fields__
    assert [getattr(found.event, name) for name in names] == [
        getattr(EVENT, name) for name in names
    ]
    assert found.when.isoformat() == "2026-01-02T03:04:05.000006+00:00"
    assert (reader.skipped, reader.skipped_text()) == (0, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"breach": {"bound": "seq-over", "actual": 1, "limit": 2, "distance": 0}},
        {"breach": {"bound": "raced", "actual": 1, "limit": 2, "distance": 1}},
        {"breach": {"bound": "seq-over"}},
        {"breach": 7},
        {"timestamp": "9999-12-31T23:59:59.999999-23:59"},
        {"timestamp": "9999-01-01T00:00:00Z"},
        {"timestamp": "0001-01-01T00:00:00+23:59"},
        {"timestamp": "2026-01-02T03:04:05"},
        {"timestamp": "2026-01-02"},
        {"timestamp": "yesterday"},
        {"timestamp": 7},
        {"count": 0},
        {"count": -1},
        {"count": "many"},
        {"count": True},
        {"count": 2**53 + 1},
        {"count": 2**64},
        {"sport": -1},
        {"dport": 2**63},
        {"dport": 65_536},
        {"sport": 1.5},
        {"seq": 2**32},
        {"queue": -1},
        {"family": 5},
        {"family": 6},
        {"src": "10.0.0.1 "},
        {"src": "10.0.0.1%eth0"},
        {"src": "fd00::1"},
        {"proto": "256"},
        {"proto": "TCP"},
        {"hook": "NOWHERE"},
        {"tcp_flags": "SS"},
        {"state": "OPEN"},
        {"direction": "sideways"},
        {"reason": "boredom"},
        {"nat": None},
        {"mark": 2**32},
        {"status": -1},
        {"status": 2**32},
        {"status": ["confirmed"]},
        {"status": "assured"},
        {"event": 7},
        *(
            {"caused_by": {"timestamp": time, "reason": "seq-over", "rule": "x", "delay_us": 1}}
            for time in (
                "",
                "yesterday",
                "2026-01-02T03:04:05",
                "0001-01-01T00:00:00+23:59",
                "9999-01-01T00:00:00Z",
            )
        ),
    ],
)
def test_a_value_that_the_daemon_cannot_have_written(changes: dict[str, Any]) -> None:
    numbers, reader = read(line(**changes) + line())
    assert numbers == [2]
    assert (reader.skipped, reader.first_skipped, reader.others) == (1, 1, 0)
    assert reader.skipped_text() == "skipped 1 line that is not an event"


@pytest.mark.parametrize(
    "octets",
    [
        line().replace(b'"count": 3', b'"count":1e308'),
        line().replace(b'"count": 3', b'"count":NaN'),
        line().replace(b'"count": 3', b'"count":' + b"9" * 5000),
        b"[" * 60_000 + b"\n",
        b'{"event":"packet_judged","x":' + b"[" * 60_000 + b"\n",
        b'{"event":' + b"[" * 60_000 + b"\n",
        b"\xff\xfe\n",
        b'{"event":"\xff"}\n',
        b"null\n",
        b"{}\n",
        b'{"event":"packet_judged"}\n',
    ],
)
def test_a_line_that_is_not_an_event(octets: bytes) -> None:
    numbers, reader = read(octets + octets + line())
    assert numbers == [3]
    assert (reader.skipped, reader.others) == (2, 0)
    assert reader.skipped_text() == "skipped 2 lines that are not events"


def test_other_events_and_empty_lines() -> None:
    numbers, reader = read(b'{"event":"started"}\n\n  \n' + line())
    assert numbers == [4]
    assert (reader.lines, reader.others, reader.skipped) == (4, 1, 0)


def test_eve_json() -> None:
    reader = EventReader()
    damaged = eve_octets(EVENT).replace(b'"nfq_guard"', b'"other"')
    lines = [eve_octets(EVENT), eve_octets(AllowedUnrecorded(packets=5)), damaged]
    (found,) = reader.read(io.BytesIO(b"\n".join(lines)))
    assert found.event.src == EVENT.src
    assert (reader.others, reader.unrecorded.allowed, reader.skipped) == (1, 5, 1)


STAMP = b"2026-01-02T03:04:05.000006789Z "
POD = b"[pod/nfq-guard-dry-run-x7b9q/nfq-guard] "


def of_docker(octets: bytes) -> bytes:
    logged = {"log": octets.decode() + "\n", "stream": "stdout", "time": STAMP.decode().strip()}
    return json.dumps(logged, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "kept",
    [
        lambda octets: STAMP + b"stdout F " + octets,
        of_docker,
        lambda octets: STAMP + octets,
        lambda octets: POD + octets,
        lambda octets: POD + STAMP + octets,
        lambda octets: b"nfq-guard-1  | " + octets,
    ],
    ids=["CRI", "Docker", "timestamps", "prefix", "both", "compose"],
)
@pytest.mark.parametrize("eve", [False, True])
def test_log_of_a_container(kept: Callable[[bytes], bytes], eve: bool) -> None:
    """As the runtime keeps it on the node, and as `kubectl logs` prints it."""
    written = [EVENT, AllowedUnrecorded(packets=5)]
    encoded = [eve_octets(each) if eve else orjson.dumps(all_fields(each)) for each in written]
    reader = EventReader()
    lines = [kept(each.strip()) for each in [*encoded, b"Traceback (most recent call last):"]]
    (found,) = reader.read(io.BytesIO(b"\n".join(lines)))
    assert found.event.src == EVENT.src
    assert (reader.others, reader.unrecorded.allowed, reader.skipped) == (1, 5, 1)


def test_a_wrapped_line_that_is_damaged() -> None:
    half = orjson.dumps(all_fields(EVENT))[:90]
    lines = [of_docker(half), b'{"log":"', b'{"log":5}', b'{"log":"\\ud800"}', STAMP + half]
    lines.append(bytes(1000) + orjson.dumps(all_fields(EVENT)))
    numbers, reader = read(b"\n".join(lines))
    assert (numbers, reader.skipped) == ([], 6)


def test_a_journal_entry_without_a_mark() -> None:
    rendered = JournalRenderer()(None, "", {"event": EVENT, "at": ""}).decode()
    entry = {"__REALTIME_TIMESTAMP": "1767323045000000"}
    entry |= dict(field.split("=", 1) for field in rendered.splitlines())
    assert entry.pop("NFQ_MARK") == str(EVENT.mark)
    reader = EventReader()
    (found,) = reader.read(io.BytesIO(json.dumps(entry).encode() + b"\n"))
    assert (found.event.mark, reader.skipped) == (0, 0)


def test_a_last_line_without_an_end() -> None:
    numbers, reader = read(line() + line()[:-20])
    assert (numbers, reader.first_skipped) == ([1], 2)
    assert read(line().rstrip())[0] == [1]


@pytest.mark.parametrize("size", [LINE_MAX_BYTES - 1, LINE_MAX_BYTES, 3 * LINE_MAX_BYTES])
def test_a_line_that_is_too_long_is_one_line(size: int) -> None:
    numbers, reader = read(b"x" * size + b"\n" + line())
    assert numbers == [2]
    assert reader.skipped == 1


class Endless(io.RawIOBase):
    """A file of one line with many bytes, generated as it is read."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        size = min(self._left, len(buffer))
        buffer[:size] = b"x" * size
        self._left -= size
        return size


def test_a_line_of_500_megabytes_takes_no_memory() -> None:
    reader = EventReader()
    stream = io.BufferedReader(Endless(500_000_000), 1 << 20)
    tracemalloc.start()
    try:
        assert list(reader.read(stream)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert reader.skipped == 1


@given(
    st.dictionaries(
        st.sampled_from(sorted(all_fields(EVENT))),
        st.none()
        | st.integers()
        | st.text(max_size=8)
        | st.floats()
        | st.lists(st.integers(), max_size=2),
    )
)
def test_no_value_raises(changes: dict[str, object]) -> None:
    """Neither the reader nor any consumer of its events raises."""
    reader = EventReader()
    summary = Summary()
    trial = Trial([compile_policy(default_model())])
    for found in reader.read(io.BytesIO(line(**changes))):
        add_event(summary, found)
        for packets in recorded(found):
            trial.take(packets)
    trial.end()
    assert page(summary, title="t", trial=result(trial, "t", "events"))
    assert reader.lines == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 2, "first": "2026-11-23T02:00:00.000002Z"},
        {"count": 2, "first": "2026-11-01T02:00:00.000001Z"},
        {"count": 2, "first": "9999-12-31T23:59:59-23:00"},
        {"count": 2, "distances": [[1, 1]]},
        {"count": 2, "distances": [[0, 2]]},
        {"count": 2, "distances": [[1, 2]], "breach": None},
    ],
)
def test_folds_that_contradict_themselves_are_skipped(changes: dict[str, Any]) -> None:
    fields = orjson.loads(_fold()) | changes
    reader = EventReader()
    assert list(reader.read(io.BytesIO(orjson.dumps(fields)))) == []
    assert reader.skipped == 1


def _fold() -> bytes:
    span = {"first": "2026-11-23T01:59:57.000001Z", "distances": [[8000, 3], [9000, 1]]}
    return orjson.dumps(event(count=4, **span))


def test_a_fold_has_its_span_and_distances() -> None:
    (read,) = EventReader().read(io.BytesIO(_fold()))
    assert (read.when - read.first).total_seconds() == 3
    assert [
        (packets.judged.finding.breach.distance, packets.count, packets.alike)
        for packets in recorded(read)
        if packets.judged is not None and packets.judged.finding.breach is not None
    ] == [(8000, 3, 3), (9000, 1, 1)]
    summary = Summary()
    add_event(summary, read)
    bars = summary.timeline.bars(10)
    assert bars is not None
    assert [sum(heights) for heights in bars.heights] == [1, 1, 1, 1]


def test_what_a_recording_says_is_missing() -> None:
    lines = [
        {"event": "events_suppressed", "packets": 5},
        {"event": "kernel_dropped_packets", "since_last": 6},
        {"event": "offloaded", "offload_drops": 7},
        {"event": "log_lines_dropped", "lines": 8},
        {"event": "packets_shed", "packets": 9},
        {"event": "packets_unjudged", "unread": 10, "failed": 1},
        {"event": "packets_unrecorded", "packets": 12},
        {"event": "unserved_time", "unserved_s": 0.1},
        {"event": "unserved_time", "unserved_s": 1.2},
        {"event": "events_suppressed", "packets": -1},
        {"event": "unserved_time", "unserved_s": -1},
    ]
    reader = EventReader()
    assert list(reader.read(io.BytesIO(b"\n".join(map(orjson.dumps, lines))))) == []
    missing = reader.unrecorded
    assert (missing.suppressed, missing.kernel_dropped) == (5, 6)
    assert (missing.offloaded, missing.lost_lines, missing.shed) == (7, 8, 9)
    assert (missing.unjudged, missing.lost_judged, missing.unserved_s) == (11, 12, 1.3)
    assert missing.texts()[-1].startswith("1.3 s without a daemon")
    assert len(missing.texts()) == 8
    assert reader.skipped == 2


def test_gaps_of_one_packet() -> None:
    """In the words of one packet, line or second, and of several."""
    names = Unrecorded.__struct_fields__
    one = Unrecorded(**dict.fromkeys(names, 1)).texts()
    assert len(one) == len(names)
    assert not any(re.match(r"1 (packets|lines)|1 packet (have|were)", text) for text in one)
    assert "1 packet has no event: allowed without log_allowed" in one
    assert "1 packet passed unjudged: the queue was full, or its worker replaced" in one
    assert "1 line is lost: its packets are unknown" in one
    several = Unrecorded(**dict.fromkeys(names, 2)).texts()
    assert sum(re.match(r"2 (packets|lines) ", text) is not None for text in several) == 9
