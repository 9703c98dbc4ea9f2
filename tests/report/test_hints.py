# SPDX-License-Identifier: MIT
"""Hints at causes: each pattern is found, with its numbers, and nothing is found in its absence."""

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest

from nfq_guard.report.charts import timeline
from nfq_guard.report.hints import Hint, hints
from nfq_guard.report.page import page
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from tests.support.events import event, window


def at(second: float) -> str:
    return f"2026-11-23T02:{int(second) // 60:02}:{int(second) % 60:02}Z"


def summarise(events: Iterable[dict[str, Any]]) -> Summary:
    found = Summary()
    lines = b"\n".join(json.dumps(each).encode() for each in events)
    for read in EventReader().read(io.BytesIO(lines)):
        add_event(found, read)
    return found


def found(*events: dict[str, Any], doctor: Iterable[dict[str, str]] = ()) -> dict[str, Hint]:
    return {hint.cause: hint for hint in hints(summarise(events), tuple(doctor))}


def plain(number: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of an event
    """One of several packets that hint at nothing: three a flow, with numbers of their own."""
    return event(
        timestamp=at(number), seq=5000 + number, payload=100, dport=40000 + number // 3, **changes
    )


PLAIN = [plain(number) for number in range(30)]


def test_nothing_hints_at_nothing() -> None:
    assert found() == {}
    assert found(*PLAIN) == {}
    assert found(*PLAIN, doctor=[{"id": "receive.backlog", "status": "ok", "what": "fine"}]) == {}


def test_segments_that_come_again() -> None:
    again = [event(timestamp=at(number), seq=7000, payload=100) for number in range(12)]
    hint = found(*PLAIN, *again)["Late or repeated segments."]
    assert hint.evidence == (
        "11 of 42 segments outside the window carry a sequence number that an earlier one of their "
        "flow had: 11 with no timestamp to compare; 11 in the reply direction, "
        "11 in state ESTABLISHED; 8,000 to 8,000 bytes off."
    )
    assert found(*PLAIN, *again[:10]) == {}, "too few"


@pytest.mark.parametrize("zero", [0, (1 << 32) - 5])
def test_how_segments_came_again(zero: int) -> None:
    """By the clock of their sender, also where it wraps."""
    clocks = [5, 5, 5, 8, 8, 7, 9, 8, None, 9, 9, 10]
    again = [
        event(
            timestamp=at(number),
            seq=7000,
            payload=100,
            **({} if clock is None else {"tcp_timestamp": (zero + clock) % (1 << 32)}),
        )
        for number, clock in enumerate(clocks)
    ]
    hint = found(*again)["Late or repeated segments."]
    told = (
        "4 with the same timestamp, 3 with a later timestamp, 2 with an earlier timestamp, "
        "2 with no timestamp to compare"
    )
    assert told in hint.evidence


def test_a_number_of_the_other_direction_is_no_repetition() -> None:
    ends = {"src": "192.0.2.2", "dst": "10.244.0.2", "sport": 40000, "dport": 8080}
    there = [event(timestamp=at(number), seq=7000 + number, payload=1) for number in range(12)]
    back = [event(timestamp=at(number), seq=7000 + number, payload=1, direction="original", **ends)
            for number in range(12)]  # fmt: skip
    assert "Late or repeated segments." not in found(*there, *back)


def test_a_window_without_its_scale() -> None:
    far = {"bound": "seq-over", "actual": 99_000, "limit": 1, "distance": 98_999}
    beyond = [plain(number, breach=far, window=window()) for number in range(10)]
    hint = found(*beyond)["Conntrack does not know the real window."]
    assert hint.evidence.startswith("10 of 10 packets over bound I are over 65,535 bytes beyond")
    mixed = plain(9, breach=far, window=window(), count=20, distances=[[98_999, 10], [65_535, 10]])
    hint = found(mixed)["Conntrack does not know the real window."]
    assert hint.evidence.startswith("10 of 20 packets over bound I are over 65,535 bytes beyond")
    scaled = window(receiver_td_maxwin=1 << 20)
    assert found(*(plain(number, breach=far, window=scaled) for number in range(10))) == {}


def test_one_direction_alone() -> None:
    over = {"bound": "ack-over", "actual": 2, "limit": 1, "distance": 1}
    one_way = [plain(number, reason="ack-over", breach=over) for number in range(6)]
    half = [
        plain(number, reason="bad-transition", breach=None, state="SYN_SENT") for number in range(6)
    ]
    hint = found(*one_way, *half)["One direction takes another path."]
    assert "6 packets acknowledge data that was not seen, and 6 continue a" in hint.evidence


def test_flags_of_a_scanner() -> None:
    scan = [plain(number, reason="bad-flags", breach=None, tcp_flags="FS") for number in range(10)]
    assert found(*scan)["A scan."].evidence.startswith("10 packets have TCP flags")


def test_one_packet_a_flow() -> None:
    scan = [plain(3 * number, nat="none") for number in range(20)]
    hint = found(*scan)["A scan or a forged flood."]
    assert hint.evidence == "20 of 20 packets are the only one of their flow."


def test_ends_of_forgotten_connections() -> None:
    ends = [
        plain(number, reason="no-entry", breach=None, tcp_flags=flags, state=None)
        for number, flags in enumerate(["FA"] * 8 + ["R"] * 4 + ["SA"] * 5)
    ]
    hint = found(*ends)["Entries expire before their connections end."]
    assert hint.evidence.startswith("12 of 17 packets without an entry are a FIN or an RST")


def test_resets_of_a_known_cause_are_not_such_ends() -> None:
    cause = {"timestamp": at(0), "reason": "seq-over", "rule": "r", "delay_us": 1}
    resets = [
        plain(number, reason="no-entry", breach=None, tcp_flags="R", caused_by=cause)
        for number in range(20)
    ]
    assert found(*resets) == {}


def test_a_table_that_was_emptied() -> None:
    lost = [
        event(
            timestamp=at(600 + number / 10),
            dport=50000 + number,
            reason="no-entry",
            breach=None,
            tcp_flags="A",
            state=None,
            count=3,
            first=at(600 + number / 10),
        )
        for number in range(12)
    ]
    spread = [plain(second) for second in range(0, 1200, 10)]
    hint = found(*lost, *spread)["The table was emptied: a failover, a flush or a restart."]
    assert hint.evidence == (
        "12 of 12 flows without an entry were met first within 3 s of 2026-11-23 02:10:00 UTC."
    )
    before = [event(timestamp=at(number), dport=50000 + number) for number in range(12)]
    assert "The table was emptied: a failover, a flush or a restart." in found(
        *before, *lost, *spread
    )
    early = [each | {"timestamp": at(number / 10), "first": at(number / 10)}
             for number, each in enumerate(lost)]  # fmt: skip
    assert "The table was emptied: a failover, a flush or a restart." not in found(*early, *spread)
    slow = [each | {"timestamp": at(100 * number), "count": 1, "first": None}
            for number, each in enumerate(lost)]  # fmt: skip
    assert "The table was emptied: a failover, a flush or a restart." not in found(*slow, *spread)


@pytest.mark.parametrize(("places", "where"), [(1, "all by eth0"), (3, "by 3 interfaces")])
def test_damaged_packets(places: int, where: str) -> None:
    bad = [
        plain(number, reason="bad-checksum", breach=None, **{"in": f"eth{number % places}"})
        for number in range(12)
    ]
    (hint,) = found(*bad).values()
    assert hint.evidence == f"12 packets have a wrong checksum, {where}."


def test_a_burst_over_many_flows() -> None:
    calm = [plain(60 * number) for number in range(30)]
    burst = [
        event(timestamp=at(900), dport=60000 + number % 20, seq=number, payload=1)
        for number in range(300)
    ]
    hint = found(*calm, *burst)["The receiver is overloaded."]
    assert hint.evidence.startswith("301 packets of up to 21 flows came within 20 s, and 0")


def test_a_burst_of_one_flow_is_no_overload() -> None:
    """Although the recording has many flows besides."""
    calm = [plain(60 * number) for number in range(30)]
    burst = [
        event(timestamp=at(900), dport=60000, seq=9000 + number, payload=1) for number in range(300)
    ]
    assert "The receiver is overloaded." not in found(*calm, *burst)


def test_what_the_doctor_found() -> None:
    doctor = [
        {"id": "receive.backlog", "status": "warning", "what": "700 packets dropped"},
        {"id": "table.fill", "status": "problem", "what": "full"},
    ]
    hint = found(*PLAIN, doctor=doctor)["The receiver is overloaded."]
    assert hint.evidence == "the doctor found: 700 packets dropped."


def test_the_page_calls_them_hints() -> None:
    scan = [plain(number, reason="bad-flags", breach=None) for number in range(10)]
    html = page(summarise(scan), title="t")
    assert "Hints, not findings" in html
    assert "<dt>Perhaps: A scan.</dt>" in html
    assert "To confirm: Look at the sources" in html
    assert "Possible causes" not in page(summarise(PLAIN), title="t")


@pytest.mark.parametrize(("number", "unmarked"), [(100, False), (200, False), (250, True)])
def test_each_reset_is_marked_on_the_timeline(number: int, *, unmarked: bool) -> None:
    cause = {"timestamp": at(0), "reason": "seq-over", "rule": "r", "delay_us": 1}
    resets = [plain(4 * each, tcp_flags="R", caused_by=cause) for each in range(number)]
    chart = timeline(summarise(resets), days=False)
    assert chart is not None
    assert len(chart["marks"]) == min(number, 200)
    assert chart["unmarked"] is unmarked
    if not unmarked:
        assert float(chart["marks"][-1]) > 90
