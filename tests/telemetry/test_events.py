# SPDX-License-Identifier: MIT
import errno
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.finding import BOUNDS, Reason
from nfq_guard.flow import Evidence, Peer
from nfq_guard.names import STATUS_NAMES
from nfq_guard.seqno import Seq
from nfq_guard.telemetry.console import Console, wants_colour
from nfq_guard.telemetry.event_fields import describe
from nfq_guard.telemetry.events import (
    EVENTS,
    Event,
    EventsSuppressed,
    FlowWindow,
    JudgingFailed,
    PacketJudged,
    Pod,
    RulesInstalled,
    Stopped,
    all_fields,
    name_of,
    timestamp,
)
from nfq_guard.telemetry.log import EventLog, Output
from nfq_guard.telemetry.packet_event import packet_judged, with_pods
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Malformed, SctpPacket, Segment
from tests.support.judgments import ALLOW_REST, CLIENT, SERVER, judgment, segment, snapshot

# The names and their order are an interface.
FIELDS = """
    event timestamp mode queue hook in out mark family proto src dst sport dport tcp_flags seq ack
    payload reason breach state nat evidence direction status ct_mark rule action verdict would
""".split()  # noqa: SIM905 - thirty quoted words would hide the list


def log(path: Path, *, console: bool = False, colour: bool = False) -> tuple[EventLog, LineSink]:
    sink = LineSink(path)
    return EventLog([Output(sink, Console(colour=colour))] if console else sink), sink


def event_of(*, count: int = 1, **changes: Any) -> PacketJudged:  # noqa: ANN401 - what `judgment` takes
    return packet_judged(
        judgment(**changes),
        mode=Mode.DRY_RUN,
        queue_num=7,
        evidence=Evidence.BPF,
        when="2026-01-02T03:04:05.000006Z",
        count=count,
    )


def written(path: Path) -> dict[str, Any]:
    (line,) = path.read_bytes().splitlines()
    found: dict[str, Any] = orjson.loads(line)
    return found


def test_packet_judged(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.emit(event_of(flow=snapshot(), verdict=1))
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
        "status": ["seen-reply", "assured"],
        "ct_mark": 0,
        "rule": "translated",
        "action": "drop",
        "verdict": "accept",
        "would": "drop",
        "community_id": "1:3k1SoWXs/FltHw2aBCgUTgbDQF4=",
    }


@pytest.mark.parametrize("direction", [0, 1])
def test_the_window_of_a_flow(direction: int) -> None:
    """Fields by role, so that a reader does not need the direction; for window reasons alone."""
    one = Peer(Seq(10), Seq(11), 12, Seq(13), 0, 0)
    other = Peer(Seq(20), Seq(21), 22, Seq(23), 0, 0)
    flow = snapshot()
    flow.direction = direction
    flow.peers = (other, one) if direction else (one, other)
    assert event_of(flow=flow).window == FlowWindow(10, 11, 12, 13, 20, 21, 22, 23, 9000)
    assert event_of(flow=flow, reason=Reason.BAD_TRANSITION).window is None
    assert event_of(flow=flow, reason=Reason.RACED).window is not None
    assert event_of(flow=snapshot()).window is None


def test_the_clock_of_a_segment() -> None:
    packet = segment()
    assert event_of(packet=packet).tcp_timestamp is None
    assert isinstance(packet.l4, Segment)
    packet.l4.options = b"\x01\x01\x08\x0a" + bytes((0, 0, 1, 2)) + bytes(4)
    assert event_of(packet=packet).tcp_timestamp == 258


def test_pods_of_both_ends() -> None:
    """An end that is no pod has no field, and an event without pods stays the same."""
    judged = judgment(packet=segment(src=CLIENT, dst=SERVER))
    plain = event_of(packet=segment(src=CLIENT, dst=SERVER))
    cart, shop = Pod("shop", "cart-0", "c0"), Pod("shop", "front-1", "f1")
    assert with_pods(plain, judged, {b"\x0a\0\0\x63": cart}) is plain
    one = with_pods(plain, judged, {CLIENT: cart})
    assert (one.src_pod, one.dst_pod) == (cart, None)
    assert all_fields(one) == all_fields(plain) | {
        "src_pod": {"namespace": "shop", "name": "cart-0", "container": "c0"}
    }
    both = with_pods(plain, judged, {CLIENT: cart, SERVER: shop})
    assert (both.src_pod, both.dst_pod) == (cart, shop)
    malformed = judgment(packet=Malformed("truncated"))
    assert with_pods(plain, malformed, {CLIENT: cart}) is plain


def test_failed_lookup_leaves_no_evidence() -> None:
    """The evidence is `none`; only an event whose lookup failed has `lookup_error`."""
    event = event_of(flow=None, reason=Reason.UNSUPPORTED, lookup_error=errno.EINVAL)
    assert (event.evidence, event.lookup_error) == (Evidence.NONE, "EINVAL")
    assert all_fields(event)["lookup_error"] == "EINVAL"
    assert "lookup_error" not in all_fields(event_of(flow=None))


@pytest.mark.parametrize("count", [1, 17])
def test_fields_are_those_of_the_schema(tmp_path: Path, count: int) -> None:
    events, sink = log(tmp_path / "log")
    events.emit(event_of(count=count))
    sink.close(0)
    assert list(written(tmp_path / "log")) == [
        *FIELDS,
        *["count"] * (count > 1),
        "community_id",
    ]


def test_unknown_flow() -> None:
    found = event_of(reason=Reason.NO_ENTRY)
    assert (found.state, found.nat, found.direction) == (None, "unknown", None)
    assert (found.breach, found.evidence) == (None, "bpf")


def test_a_packet_of_sctp() -> None:
    packet = segment()
    packet.proto, packet.l4 = 132, SctpPacket(5000, 2905, 1, 2, (), whole=True)
    event = event_of(packet=packet)
    assert (event.proto, event.sport, event.dport, event.state) == ("sctp", 5000, 2905, None)


def test_malformed_packet() -> None:
    found = event_of(packet=Malformed("cut short"), reason=Reason.MALFORMED)
    assert (found.src, found.dst, found.seq, found.proto) == (None, None, None, "0")


def test_timestamp_is_utc() -> None:
    when = datetime.fromisoformat(timestamp())
    assert when.utcoffset() is not None
    assert timestamp().endswith("Z")


@given(st.binary(max_size=120))
def test_any_packet_makes_an_event(octets: bytes) -> None:
    event = event_of(packet=decode(octets))
    line = msgspec.json.encode(event)
    assert set(orjson.loads(line)) - {"leak", "community_id"} == set(FIELDS)
    assert ("leak" in orjson.loads(line)) == event.leak
    assert msgspec.json.decode(line, type=PacketJudged) == event


def test_other_events_have_a_level(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.emit(EventsSuppressed(packets=7))
    sink.close(0)
    found = written(tmp_path / "log")
    assert list(found) == ["event", "timestamp", "packets", "level"]
    assert (found["event"], found["packets"], found["level"]) == ("events_suppressed", 7, "warning")


def test_console_lines(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log", console=True)
    events.emit(event_of(flow=snapshot(), verdict=1, count=3))
    events.emit(event_of(decision=ALLOW_REST, verdict=1, reason=Reason.NO_ENTRY))
    events.emit(EventsSuppressed(packets=7))
    sink.close(0)
    first, second, third = (tmp_path / "log").read_text().splitlines()
    assert first == (
        "2026-01-02 03:04:05.000 "
        "would drop seq-over              10.0.0.1:40000 > 10.0.0.2:80           "
        "tcp PA  nat=dnat ESTABLISHED PREROUTING eth0>- rule=translated"
        "  5000 is 100 beyond 4900  x3"
    )
    assert first.index("10.0.0.1") == second.index("10.0.0.1")
    assert " allow " in second
    assert third.endswith("warning    events_suppressed packets=7")
    assert "\x1b" not in first + second + third


def test_the_console_writes_lists_and_tables_as_words(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log", console=True)
    events.emit(RulesInstalled(done=["IPv4 nft: installed", "IPv6 nft: installed"], notes=[]))
    events.emit(
        Stopped(
            queues=[0],
            reasons={"seq-over": 2, "raced": 0},
            actions={},
            rules={"window": 0},
            counters={"reloads": 0, "judged": 2},
        )
    )
    sink.close(0)
    installed, stopped = (tmp_path / "log").read_text().splitlines()
    assert installed.endswith("rules_installed done=IPv4 nft: installed; IPv6 nft: installed")
    assert stopped.endswith("queues=0 reasons=seq-over 2 rules=none judged=2")


def test_colours(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log", console=True, colour=True)
    events.emit(event_of())
    sink.close(0)
    assert "\x1b[31mdrop" in (tmp_path / "log").read_text()


def test_no_colours_in_a_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        assert not wants_colour(file.fileno())


def test_every_event_is_documented() -> None:
    """Each event and each of its fields has a description; no two events share a name."""
    assert len({name_of(event) for event in EVENTS}) == len(EVENTS)
    for event in EVENTS:
        assert event.__doc__
        fields = list(describe(event))
        for field in (*fields, *(part for outer in fields for part in outer.parts)):
            assert field.description.endswith("."), (event, field)


def test_every_class_of_event_is_listed() -> None:
    """Every class with a name of its own is in EVENTS, and every class in EVENTS has one."""
    found: list[type[Event]] = []
    classes: list[type[Event]] = [Event]
    while classes:
        subclasses = classes.pop().__subclasses__()
        classes += subclasses
        found += [one for one in subclasses if one.__module__ == "nfq_guard.telemetry.events"]
    # A class whose tag is its own name, the default, only has fields for its subclasses.
    assert {event for event in found if name_of(event) != event.__name__} == set(EVENTS)


def test_fields_of_the_reference() -> None:
    fields = {field.name: field for field in describe(PacketJudged)}
    assert list(fields) == [
        *FIELDS[1:],
        "shadow",
        "lookup_error",
        "count",
        "first",
        "distances",
        "leak",
        "window",
        "caused_by",
        "tcp_timestamp",
        "community_id",
        "src_pod",
        "dst_pod",
        "hidden_half",
    ]
    assert fields["in"].values == ()
    assert fields["sport"].nullable
    assert not fields["mark"].nullable
    assert [name for name, field in fields.items() if field.optional] == [
        "shadow",
        "lookup_error",
        "count",
        "first",
        "distances",
        "leak",
        "window",
        "caused_by",
        "tcp_timestamp",
        "community_id",
        "src_pod",
        "dst_pod",
        "hidden_half",
    ]
    assert set(fields["verdict"].values) == {"drop", "accept"}
    assert set(fields["status"].values) == set(STATUS_NAMES)
    parts = {part.name: part for part in fields["breach"].parts}
    assert parts["distance"].unit == "bytes"
    assert set(parts["bound"].values) == set(BOUNDS)
    assert [field.name for field in describe(Stopped) if field.flattened] == ["counters"]


def test_counters_are_fields_of_their_own(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.emit(
        Stopped(queues=[7], reasons={}, actions={"drop": 1}, rules={}, counters={"packets": 1})
    )
    sink.close(0)
    found = written(tmp_path / "log")
    assert list(found) == [
        "event", "timestamp", "queues", "reasons", "actions", "rules", "packets", "level",
    ]  # fmt: skip
    assert (found["packets"], found["level"]) == (1, "info")


def test_the_last_error_is_remembered(tmp_path: Path) -> None:
    events, sink = log(tmp_path / "log")
    events.emit(EventsSuppressed(packets=7))
    assert events.last_error is None
    events.emit(JudgingFailed(queue=7, problem="p", where="w", hook=0, octets="00", traceback=""))
    sink.close(0)
    assert events.last_error is not None
    assert list(events.last_error) == [
        "at", "event", "queue", "problem", "where", "hook", "octets", "traceback",
    ]  # fmt: skip
    assert events.last_error["event"] == "judging_failed"
