# SPDX-License-Identifier: MIT
import errno
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence
from nfq_guard.telemetry.console import Console, wants_colour
from nfq_guard.telemetry.events import EventLog, packet_fields, timestamp
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Malformed
from tests.support.judgments import ALLOW_REST, judgment, snapshot

# Others read them by these names; `mark`, `status` and `ct_mark` are what a policy asks besides.
FIELDS = """
    event timestamp mode queue hook in out mark family proto src dst sport dport tcp_flags seq ack
    payload reason breach state nat evidence direction status ct_mark rule action verdict would
""".split()  # noqa: SIM905 - thirty quoted words would hide the list


def log(path: Path, *, console: bool = False, colour: bool = False) -> tuple[EventLog, LineSink]:
    sink = LineSink(path)
    return EventLog(sink, Console(colour=colour) if console else None), sink


def fields_of(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - what `judgment` takes
    return packet_fields(
        judgment(**changes),
        mode=Mode.DRY_RUN,
        queue_num=7,
        evidence=Evidence.BPF,
        when="2026-01-02T03:04:05.000006Z",
    )


def written(path: Path) -> dict[str, Any]:
    (line,) = path.read_bytes().splitlines()
    found: dict[str, Any] = orjson.loads(line)
    return found


def test_packet_judged(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.packet(fields_of(flow=snapshot(), verdict=1), 1)
    sink.close(0)
    assert written(tmp_path / "log") == {
        "event": "packet_judged",
        "timestamp": "2026-01-02T03:04:05.000006Z",
        "mode": "dry-run",
        "queue": 7,
        "hook": "PREROUTING",
        "in": "eth0",
        "out": "",
        "mark": 0,
        "family": 4,
        "proto": "tcp",
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "sport": 40000,
        "dport": 80,
        "tcp_flags": "PA",
        "seq": 5000,
        "ack": 9000,
        "payload": 100,
        "reason": "seq-over",
        "breach": {"bound": "seq-over", "actual": 5000, "limit": 4900, "distance": 100},
        "state": "ESTABLISHED",
        "nat": "dnat",
        "evidence": "bpf",
        "direction": "original",
        "status": 0x26,
        "ct_mark": 0,
        "rule": "translated",
        "action": "drop",
        "verdict": "accept",
        "would": "drop",
    }


def test_a_failed_lookup_is_no_evidence() -> None:
    """Although lookups are by BPF; the field is there only then."""
    fields = fields_of(flow=None, reason=Reason.UNSUPPORTED, lookup_error=errno.EINVAL)
    assert (fields["evidence"], fields["lookup_error"]) == (Evidence.NONE, "EINVAL")
    assert "lookup_error" not in fields_of(flow=None)


@pytest.mark.parametrize("count", [1, 17])
def test_fields_are_those_of_the_schema(tmp_path: Path, count: int) -> None:
    events, sink = log(tmp_path / "log")
    events.packet(fields_of(), count)
    sink.close(0)
    assert list(written(tmp_path / "log")) == FIELDS + ["count"] * (count > 1)


def test_unknown_flow() -> None:
    found = fields_of(reason=Reason.NO_ENTRY)
    assert (found["state"], found["nat"], found["direction"]) == (None, "unknown", None)
    assert (found["breach"], found["evidence"]) == (None, "bpf")


def test_broken_packet() -> None:
    found = fields_of(packet=Malformed("cut short"), reason=Reason.MALFORMED)
    assert (found["src"], found["dst"], found["seq"], found["proto"]) == (None, None, None, "0")


def test_timestamp_is_utc() -> None:
    when = datetime.fromisoformat(timestamp())
    assert when.utcoffset() is not None
    assert timestamp().endswith("Z")


@given(st.binary(max_size=120))
def test_any_packet_makes_an_event(octets: bytes) -> None:
    found = fields_of(packet=decode(octets))
    assert set(found) == set(FIELDS) - {"event"}
    orjson.dumps(found)


def test_notes_have_a_level(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.warning("kernel_dropped_packets", queue=7)
    sink.close(0)
    found = written(tmp_path / "log")
    assert (found["event"], found["level"], found["queue"]) == (
        "kernel_dropped_packets",
        "warning",
        7,
    )


def test_lines_for_people(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log", console=True)
    events.packet(fields_of(flow=snapshot(), verdict=1), 3)
    events.packet(fields_of(decision=ALLOW_REST, verdict=1, reason=Reason.NO_ENTRY), 1)
    events.info("started", queue=7)
    sink.close(0)
    first, second, third = (tmp_path / "log").read_text().splitlines()
    assert first == (
        "03:04:05.000 would drop seq-over              10.0.0.1:40000 > 10.0.0.2:80           "
        "tcp PA  nat=dnat ESTABLISHED PREROUTING eth0>- rule=translated"
        "  5000 is 100 beyond 4900  x3"
    )
    assert first.index("10.0.0.1") == second.index("10.0.0.1")
    assert " allow " in second
    assert third.endswith("started        queue=7")
    assert "\x1b" not in first + second + third


def test_colours(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log", console=True, colour=True)
    events.packet(fields_of(), 1)
    sink.close(0)
    assert "\x1b[31mdrop" in (tmp_path / "log").read_text()


def test_no_colours_in_a_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        assert not wants_colour(file.fileno())
