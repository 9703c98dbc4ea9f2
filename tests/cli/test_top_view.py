# SPDX-License-Identifier: MIT
from typing import Any

import msgspec
import pytest

from nfq_guard.cli.top_detail import window_lines
from nfq_guard.cli.top_flow import key_of, reasons_text
from nfq_guard.cli.top_layout import Line
from nfq_guard.cli.top_rates import Meter
from nfq_guard.cli.top_view import Sort, View
from nfq_guard.finding import Reason
from nfq_guard.service.status import RulesState, Status
from nfq_guard.telemetry.palette import Style
from tests.support.events import event, window
from tests.support.status import daemon_status, queue_status, rules_status
from tests.support.top import FOLDER, at, flow, flows, pictures, text, view


def one(
    port: int,
    packets: int,
    distance: int | None,
    second: int,
    **changes: Any,  # noqa: ANN401 - any field of an event
) -> dict[str, Any]:
    breach = distance and {"bound": "seq-over", "actual": 1, "limit": 1, "distance": distance}
    reason = "seq-over" if distance else "no-entry"
    made = event(
        timestamp=at(second), src="10.0.0.1", dst="10.0.0.2", sport=port, dport=80, nat="none",
        breach=breach, reason=reason, **changes,
    )  # fmt: skip
    return flow(made, reasons={reason: packets}, first=at(0))


def status(packets: int, second: int = 0, **changes: object) -> Status:
    return daemon_status(
        queues=(queue_status(packets=packets),),
        reasons={"seq-over": {"drop": packets}} if packets else {},
        uptime_s=float(second),
        **changes,
    )


FLOWS = [one(1001, 5, 40, 3), one(1002, 900, 7, 1), one(1003, 30, None, 2)]


@pytest.fixture
def three() -> View:
    made = View()
    made.take(status(900), [one(1003, 10, None, 1), *FLOWS[:2]], 100.0)
    made.take(status(935), FLOWS, 105.0)
    return made


def ports(view: View) -> list[int]:
    return [found["flow"]["a_port"] for found in view.flows()]


def styles(lines: list[Line], text: str) -> set[Style]:
    """The styles of all pieces that contain a text."""
    return {
        style for line in lines for piece in line if text in piece.text for style in piece.styles
    }


def test_all_rates_are_over_one_time(three: View) -> None:
    """35 packets in 5 s, whatever the daemon's own figure is, which is over another time."""
    shown = text(three.lines(24, 80))
    assert "7.0 packets/s" in shown
    assert "queue 0 serving: 7.0/s" in shown
    assert "seq-over 935 (7.0/s)" in shown
    first = View()
    first.take(status(900), FLOWS, 100.0)
    assert "2.0 packets/s" in text(first.lines(24, 80))


@pytest.mark.parametrize("name", pictures())
def test_pictures(name: str) -> None:
    """`python -m tests.support.top` writes them anew."""
    assert pictures()[name] == (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", range(20, 301, 7))
@pytest.mark.parametrize("height", [1, 2, 3, 6, 12, 24, 60])
def test_every_size(width: int, height: int) -> None:
    for opened in (False, True):
        for helping in (False, True):
            shown = view()
            shown.choice.helping = helping
            shown.choice.selected = 3
            if opened:
                shown.choice.opened = key_of(shown.flows()[0])
            lines = shown.lines(height, width)
            assert len(lines) <= height
            assert all(sum(len(piece.text) for piece in line) <= width for line in lines)


def test_a_flow_is_whole_at_80_columns() -> None:
    shown = text(view().lines(24, 80))
    for end in (
        "tcp 255.255.255.254:65535 > 255.255.255.253:65534",
        "[2001:db8:ffff:ffff:ffff:ffff:ffff:fff1]:50123",
        "[2001:db8:ffff:ffff:ffff:ffff:ffff:fff2]:40000",
    ):
        assert end in shown


def test_ascii_alone() -> None:
    shown = text(view(unicode=False).lines(24, 80))
    assert shown.isascii()
    assert "@@@@@@@@@ at most 30" in shown


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.LAST, [1001, 1003, 1002]),
        (Sort.PACKETS, [1002, 1003, 1001]),
        (Sort.RATE, [1003, 1001, 1002]),
        (Sort.DISTANCE, [1001, 1002, 1003]),
        (Sort.RESETS, [1001, 1002, 1003]),
    ],
)
def test_orders(three: View, sort: Sort, order: list[int]) -> None:
    three.choice.sort = sort
    assert ports(three) == order


def test_the_column_of_the_order_is_marked(three: View) -> None:
    three.choice.sort = Sort.RATE
    lines = three.lines(24, 120)
    assert "RATEv" in text(lines)
    assert styles(lines, "RATE") == {Style.BOLD, Style.CYAN}
    assert styles(lines, "FLOW") == {Style.BOLD}


def test_sort_orders_cycle() -> None:
    sort = Sort.LAST
    for _ in Sort:
        sort = sort.next
    assert sort is Sort.LAST


def test_the_filter_matches_the_whole_line(three: View) -> None:
    three.choice.pattern = "NO-ENTRY"
    assert ports(three) == [1003]
    three.choice.pattern = ":1002"
    assert ports(three) == [1002]
    three.choice.pattern = "nothing has this"
    assert ports(three) == []
    assert "only 'nothing has this'" in text(three.lines(20, 120))


def test_the_keys_at_the_foot(three: View) -> None:
    three.choice.paused = True
    assert text(three.lines(24, 120)).splitlines()[-1].startswith("PAUSED   q quit")
    three.choice.typing = True
    three.choice.pattern = "10."
    assert "only flows with: 10._" in text(three.lines(24, 120))


def test_reasons_are_those_of_all_packets() -> None:
    """Not the one of the last event, which here is the rarest."""
    shown = View()
    found = one(1, 1, None, 5)
    found["reasons"] = {"no-entry": 1, "seq-over": 199}
    shown.take(status(200), [found], 1.0)
    assert "seq-over 99%" in text(shown.lines(24, 80))


def test_the_packet_stands_before_the_reset_that_answers_it() -> None:
    answered = flow(event(), reasons={"no-entry": 3, "seq-over": 3}, resets=3)
    assert reasons_text(answered) == "seq-over 50%, no-entry 50%"


def test_colour_marks_what_differs() -> None:
    """Where every flow is dropped, none is coloured for it."""
    shown = View()
    dropped = {"mode": "enforce", "verdict": "drop"}
    same = [one(port, 9, 7, 1, **dropped) for port in (1, 2, 3)]
    shown.take(status(27), same, 1.0)
    assert styles(shown.lines(24, 160), "drop ") == set()
    other = one(4, 9, 7, 1, action="log", would="accept")
    shown.take(status(36), [*same, other], 2.0)
    lines = shown.lines(24, 160)
    assert styles(lines, "log ") == {Style.YELLOW}
    assert styles(lines, "drop ") == set()


def test_what_escaped_is_red() -> None:
    shown = View()
    escaped = flow(event(timestamp=at(1)))
    shown.take(status(2), [escaped, one(1, 1, 7, 1)], 1.0)
    lines = shown.lines(24, 160)
    assert styles(lines, "10.244.0.2:8080 >") == {Style.RED}
    assert styles(lines, "10.0.0.1:1 >") == set()


def test_resets_are_shown() -> None:
    lines = view().lines(24, 160)
    assert "1 reset answered an INVALID packet that had got through" in text(lines)
    shown = view()
    (reset,) = (found for found in shown.flows() if found["resets"])
    shown.choice.opened = key_of(reset)
    assert "1 RST answered a packet of this flow" in text(shown.lines(30, 160))


def test_rates_are_right_from_the_second_response_on() -> None:
    """Also of a flow that was not there at the first."""
    shown = View()
    shown.take(status(0, 10), [one(6, 1, None, 10)], 10.0)
    new = flow(event(timestamp=at(11)), reasons={"seq-over": 44}, first=at(11))
    old = one(5, 1000, 7, 11)
    shown.take(status(44, 11), [new, old], 11.0)
    lines = text(shown.lines(24, 80)).splitlines()
    assert "44   44.0" in next(line for line in lines if "10.244" in line)
    assert "1000      -" in next(line for line in lines if ":5 >" in line)
    assert any("seq-over 44 (44.0/s)" in line for line in lines)


def test_a_clock_that_was_set_makes_no_flow_new() -> None:
    """By 50 minutes since the start; the first response had no room for the older flow."""
    shown = View()
    shown.take(status(0, 10), [one(6, 1, None, 3010)], 10.0)
    old = flow(event(timestamp=at(3011)), reasons={"seq-over": 900}, first=at(3000))
    shown.take(status(900, 11), [old], 11.0)
    lines = text(shown.lines(24, 80)).splitlines()
    assert "900      -" in next(line for line in lines if "10.244" in line)


def test_all_flows_are_new_after_a_response_without_any() -> None:
    shown = View()
    shown.take(status(0, 10), [], 10.0)
    shown.take(status(44, 11), [flow(event(timestamp=at(3)), reasons={"seq-over": 44})], 11.0)
    assert "44   44.0" in text(shown.lines(24, 80))


def test_the_selection_stays_within_the_list(three: View) -> None:
    three.choice.selected = 99
    for height in (24, 7):
        assert ">tcp 10.0.0.1:1001" in text(three.lines(height, 80))


def test_one_flow_alone(three: View) -> None:
    three.choice.opened = key_of(FLOWS[0])
    assert "enter back" in text(three.lines(24, 80))
    assert "seq-over: data beyond the window" in text(three.lines(24, 80))
    three.take(status(936), FLOWS[1:], 106.0)
    assert "REASONS" in text(three.lines(24, 80)), "a flow that is gone closes"


def test_the_detail_has_hints() -> None:
    """From the events of the flow alone; an event of a daemon of another version gives none."""
    events = [event(timestamp=at(second), payload=100, count=6) for second in range(13)]
    opened = flow(*events)
    shown = View()
    shown.take(status(78), [opened], 1.0)
    shown.choice.opened = key_of(opened)
    screen = " ".join(text(shown.lines(40, 120)).split())
    assert "hint: Late or repeated segments. 12 of 13 segments outside the window carry" in screen
    for each in opened["events"]:
        each["seq"] = "of another version"
    assert "hint:" not in text(shown.lines(40, 120))


def test_the_detail_has_both_windows_and_the_number_lines() -> None:
    (shown,) = (
        "\n".join(line for line, _ in window_lines(each, 100)) for each in (event(window=window()),)
    )
    assert "sender   sent up to 500, may send up to 1000, offered 29200" in shown
    assert "broken by 8000 bytes" in shown
    broken = [line for line, is_broken in window_lines(event(window=window()), 100) if is_broken]
    assert broken[0].startswith("I   Does it begin where the receiver has offered room?")


def test_a_window_of_another_version_is_left_out() -> None:
    assert list(window_lines(event(window={"sender_td_end": 1}), 80)) == []
    assert list(window_lines(event(src="nowhere", window=window()), 80)) == []
    assert list(window_lines(event(), 80)) == []


def test_healed_flows_are_shown() -> None:
    healed = msgspec.structs.replace(queue_status(), healed_flows=2)
    fresh = View()
    fresh.take(daemon_status(queues=(healed,)), [], 107.0)
    shown = text(fresh.lines(24, 80))
    assert "in total, 2 flows healed, 0 waiting\n" in shown
    assert "at most 0 an update" not in shown, "there is no second update yet"
    fresh.take(daemon_status(queues=(healed,)), [], 108.0)
    assert "at most 0 an update" in text(fresh.lines(24, 80))


def test_reasons_that_do_not_fit_are_counted() -> None:
    fresh = View()
    reasons = {str(reason): {"drop": 1000} for reason in Reason}
    fresh.take(daemon_status(reasons=reasons), [], 107.0)
    for width in (20, 80, 140, 300):
        shown = text(fresh.lines(24, width))
        named = sum(f"{reason} 1000 (" in shown for reason in reasons)
        others = f"and {len(reasons) - named} more"
        assert (others in shown) == (1 < named < len(reasons))


def test_a_low_screen_is_for_the_opened_flow_and_for_problems() -> None:
    made = view()
    made.choice.opened = key_of(flows(0)[0])
    made.problem = "the daemon is not running"
    shown = text(made.lines(24, 80))
    assert "in total" not in shown
    assert "the daemon is not running" in shown
    assert "in total" in text(made.lines(40, 80))


def test_problems_are_shown(three: View) -> None:
    rules = rules_status(RulesState.DIFFER, "missing-jump: IPv4")
    three.take(status(1, rules=rules), [], 107.0)
    assert "missing-jump" in text(three.lines(24, 80))
    three.problem = "not running: there is no /run/x"
    assert "not running" in text(three.lines(24, 80))
    assert "waiting for the daemon" in text(View().lines(24, 80))


def test_many_queues_and_none_dropped() -> None:
    shown = View()
    queues = tuple(queue_status(number, packets=1) for number in range(6))
    shown.take(daemon_status(queues=queues), [], 1.0)
    assert "and 2 more queues" in text(shown.lines(24, 80))
    assert "no INVALID packet so far" in text(shown.lines(24, 80))


def test_a_restarted_counter_has_no_negative_rate() -> None:
    meter = Meter()
    meter.note({"x": 100}, 1.0)
    meter.note({"x": 3}, 2.0)
    assert meter.rate("x") is None
    meter.note({"x": 5}, 3.0)
    assert meter.rate("x") == 2
    meter.note({}, 4.0)
    assert meter.rate("x") is None
