# SPDX-License-Identifier: MIT
from typing import Any

import pytest

from nfq_guard.cli.top_view import Meter, Sort, View, key_of
from nfq_guard.service.status import RulesState, Status
from tests.support.status import daemon_status, queue_status, rules_status


def flow(port: int, packets: int, distance: int | None, last: str) -> dict[str, Any]:
    event = {
        "timestamp": f"2026-01-01T{last}.000000Z",
        "action": "drop",
        "verdict": "accept",
        "would": "drop",
        "reason": "seq-over" if distance else "no-entry",
        "breach": distance
        and {"bound": "seq-over", "actual": 100 + distance, "limit": 100, "distance": distance},
        "proto": "tcp",
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "sport": port,
        "dport": 80,
        "seq": 1,
        "ack": None,
        "tcp_flags": "A",
        "state": "ESTABLISHED",
        "nat": "dnat",
        "direction": "original",
        "evidence": "bpf",
        "rule": "translated",
    }
    return {
        "flow": {"proto": "tcp", "a": "10.0.0.1", "a_port": port, "b": "10.0.0.2", "b_port": 80},
        "first": event["timestamp"],
        "last": event["timestamp"],
        "packets": packets,
        "events": [event],
    }


def status(packets: int, **changes: object) -> Status:
    return daemon_status(
        queues=(queue_status(packets=packets),),
        reasons={"seq-over": {"drop": packets}} if packets else {},
        **changes,
    )


FLOWS = [
    flow(1001, 5, 40, "00:00:03"),
    flow(1002, 900, 7, "00:00:01"),
    flow(1003, 30, None, "00:00:02"),
]


@pytest.fixture
def view() -> View:
    made = View()
    made.take(status(900), [flow(1003, 10, None, "00:00:01"), *FLOWS[:2]], 100.0)
    made.take(status(935), FLOWS, 105.0)
    return made


def ports(view: View) -> list[int]:
    return [one["flow"]["a_port"] for one in view.flows()]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.LAST, [1001, 1003, 1002]),
        (Sort.PACKETS, [1002, 1003, 1001]),
        (Sort.RATE, [1003, 1001, 1002]),
        (Sort.DISTANCE, [1001, 1002, 1003]),
    ],
)
def test_orders(view: View, sort: Sort, order: list[int]) -> None:
    view.choice.sort = sort
    assert ports(view) == order


def test_sort_orders_cycle() -> None:
    sort = Sort.LAST
    for _ in Sort:
        sort = sort.next
    assert sort is Sort.LAST


def test_the_filter_matches_the_whole_line(view: View) -> None:
    view.choice.pattern = "NO-ENTRY"
    assert ports(view) == [1003]
    view.choice.pattern = ":1002"
    assert ports(view) == [1002]
    view.choice.pattern = "nothing has this"
    assert ports(view) == []
    assert view.lines(20)


def test_picture(view: View) -> None:
    text = [line for line, _ in view.lines(24)]
    assert len(text) == 24
    assert "dry-run" in text[0]
    assert "seq-over 935 (7.0/s)" in text[2]
    assert text[5].startswith(">00:00:03 would drop  seq-over")
    assert "10.0.0.1:1001 > 10.0.0.2:80" in text[5]
    assert "4.0" in text[6]
    assert text[-1].startswith("q quit")


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8])
def test_small_screens(view: View, height: int) -> None:
    for opened in (None, key_of(FLOWS[0])):
        view.choice.opened = opened
        assert len(view.lines(height)) <= height


def test_the_selection_stays_within_the_list(view: View) -> None:
    view.choice.selected = 99
    assert any(line.startswith(">00:00:01") for line, _ in view.lines(24))
    assert any(line.startswith(">00:00:01") for line, _ in view.lines(7))


def test_one_flow_alone(view: View) -> None:
    view.choice.opened = key_of(FLOWS[0])
    text = "\n".join(line for line, _ in view.lines(24))
    assert "seq-over: 140 is 40 bytes beyond 100" in text
    assert "enter back" in text
    view.take(status(936), FLOWS[1:], 106.0)
    assert "LAST" in "\n".join(line for line, _ in view.lines(24)), "a flow that is gone closes"


def test_problems_are_shown(view: View) -> None:
    rules = rules_status(RulesState.DIFFER, "missing-jump: IPv4")
    view.take(status(1, rules=rules), [], 107.0)
    assert any("missing-jump" in line for line, _ in view.lines(24))
    view.problem = "not running: there is no /run/x"
    assert any("not running" in line for line, _ in view.lines(24))


def test_a_restarted_counter_has_no_negative_rate() -> None:
    meter = Meter()
    meter.note({"x": 100}, 1.0)
    meter.note({"x": 3}, 2.0)
    assert meter.rate("x") is None
    meter.note({"x": 5}, 3.0)
    assert meter.rate("x") == 2
    meter.note({}, 4.0)
    assert meter.rate("x") is None
