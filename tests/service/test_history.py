# SPDX-License-Identifier: MIT
"""Flows and their last events, in bounded memory."""

import msgspec
import orjson

from nfq_guard import names
from nfq_guard.engine import Mode
from nfq_guard.finding import Reason
from nfq_guard.flow import PROTO_TCP, Evidence, key_of_ends
from nfq_guard.service.worker.history import History, Pending
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.packet_event import packet_judged
from tests.support.judgments import judgment


def event(sport: int, second: int = 0, *, reply: bool = False, count: int = 1) -> PacketJudged:
    ends = {"src": "10.0.0.1", "sport": sport, "dst": "10.0.0.2", "dport": 80}
    if reply:
        ends = {"src": "10.0.0.2", "sport": 80, "dst": "10.0.0.1", "dport": sport}
    made = packet_judged(
        judgment(),
        mode=Mode.ENFORCE,
        queue_num=7,
        evidence=Evidence.BPF,
        when=f"2026-01-01T00:00:{second:02}",
        count=count,
    )
    return msgspec.structs.replace(made, **ends)


def add(history: History, made: PacketJudged, at: float = 0.0) -> None:
    src, dst = names.address_bytes(made.src or ""), names.address_bytes(made.dst or "")
    key = key_of_ends(PROTO_TCP, src, dst, made.sport or 0, made.dport or 0)
    history.add(key, made, at)


def test_both_directions_are_one_flow() -> None:
    history = History()
    add(history, event(1, 1))
    add(history, event(1, 2, reply=True, count=5))
    (flow,) = history.flows(None, 10)
    assert flow["packets"] == 6
    assert (flow["first"], flow["last"]) == ("2026-01-01T00:00:01", "2026-01-01T00:00:02")
    ends = flow["flow"]
    assert ends == {"proto": "tcp", "a": "10.0.0.1", "a_port": 1, "b": "10.0.0.2", "b_port": 80}


def test_a_flood_evicts_the_flow_seen_longest_ago() -> None:
    history = History(flows_max=2)
    for sport in (1, 2, 1, 3):
        add(history, event(sport))
    assert [
        orjson.loads(orjson.dumps(flow))["flow"]["a_port"] for flow in history.flows(None, 9)
    ] == [3, 1]


def test_a_flow_keeps_its_last_events() -> None:
    history = History()
    for second in range(20):
        add(history, event(1, second))
    (flow,) = orjson.loads(orjson.dumps(history.flows(None, 9)))
    assert [one["timestamp"][-2:] for one in flow["events"]] == [f"{n}" for n in range(12, 20)]


def test_flows_of_one_address_and_a_limit() -> None:
    history = History()
    for sport in range(5):
        add(history, event(sport))
    assert len(history.flows("10.0.0.2", 3)) == 3
    assert history.flows("10.0.0.9", 3) == []


def test_packets_without_an_event_yet_count() -> None:
    """Their events are up to `log_interval_s` late; `top` shows their rate at once."""
    history = History()
    add(history, event(1, 1))
    add(history, event(2, 2))
    key = key_of_ends(PROTO_TCP, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 1, 80)
    other = key_of_ends(PROTO_TCP, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 9, 80)
    later = "2026-01-01T00:00:09"
    pending = [
        Pending(key, Reason.SEQ_OVER, 40, later, 0, 9.0),
        Pending(key, Reason.NO_ENTRY, 2, later, 2, 9.0),
        Pending(other, Reason.SEQ_OVER, 7, later, 0, 9.0),
    ]
    first, second = history.flows(None, 10, pending)
    assert (first["flow"]["a_port"], first["packets"], first["last"]) == (1, 43, later)
    assert (first["reasons"], first["resets"]) == ({"seq-over": 41, "no-entry": 2}, 2)
    assert second["packets"] == 1
    assert len(history.flows(None, 1, pending)) == 1


def test_the_order_does_not_depend_on_the_wall_clock() -> None:
    """It was set back between the two events; an event of packets counted together is late."""
    history = History()
    add(history, event(1, 50), 10.0)
    add(history, event(2, 20), 11.0)
    add(history, event(1, 45), 9.0)
    second, first = history.seen(None, 10)
    assert (second.at, second.record["flow"]["a_port"], second.record["last"][-2:]) == (11, 2, "20")
    assert (first.at, first.record["flow"]["a_port"], first.record["last"][-2:]) == (10, 1, "50")
    key = key_of_ends(PROTO_TCP, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 1, 80)
    pending = [Pending(key, Reason.SEQ_OVER, 1, "2026-01-01T00:00:21", 0, 12.0)]
    (newest,) = history.flows(None, 1, pending)
    assert (newest["flow"]["a_port"], newest["last"][-2:]) == (1, "21")
