# SPDX-License-Identifier: MIT
"""How flows end: FIN, RST, timeouts, and packets after the end (kernel.md 1.5, 1.7, 1.9)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, TCP_TIMEOUTS_S, Sysctls
from nfq_guard.flow import IP_CT_TCP_FLAG_CLOSE_INIT
from tests.support.flow import Flow
from tests.support.trace import PLACES


def closed(flow: Flow) -> Flow:
    """Close an open flow from both ends; its state is TIME_WAIT then."""
    flow.passes(
        "> F. 1:1(0) ack 1 win 1000",
        "< . 1:1(0) ack 2 win 1000",
        "< F. 1:1(0) ack 2 win 1000",
        "> . 2:2(0) ack 2 win 1000",
    )
    return flow


def test_fin_by_fin(flow: Flow) -> None:
    flow.opened()
    for line, state, timeout_s in (
        ("> F. 1:1(0) ack 1 win 1000", "FIN_WAIT", 120),
        ("< . 1:1(0) ack 2 win 1000", "CLOSE_WAIT", 60),
        ("< F. 1:1(0) ack 2 win 1000", "LAST_ACK", 30),
        ("> . 2:2(0) ack 2 win 1000", "TIME_WAIT", 120),
    ):
        flow.passes(line)
        assert flow.state == state
        assert flow.timeout_s in (timeout_s, timeout_s - 1)
    assert flow.peer(">").flags & IP_CT_TCP_FLAG_CLOSE_INIT
    assert not flow.peer("<").flags & IP_CT_TCP_FLAG_CLOSE_INIT


def test_syn_in_time_wait_opens_the_next_flow(flow: Flow) -> None:
    closed(flow.opened())
    assert flow.see("> S 70000:70000(0) win 1000") == "NEW"
    assert flow.state == "SYN_SENT"


def test_syn_of_the_server_in_time_wait(flow: Flow) -> None:
    """The next flow may go the other way."""
    closed(flow.opened())
    assert flow.see("< S 70000:70000(0) win 1000") == "NEW"
    assert flow.snapshot
    assert flow.snapshot.direction == 1


def test_syn_after_a_rst_of_ones_own(flow: Flow) -> None:
    flow.opened()
    flow.passes("> R. 1:1(0) ack 1")
    assert flow.state == "CLOSE"
    assert flow.see("> S 70000:70000(0) win 1000") == "NEW"


def test_syn_after_a_rst_of_the_other_side(flow: Flow) -> None:
    """That RST may have been forged, so the SYN is ignored until its answer proves it right."""
    flow.opened()
    flow.passes("< R. 1:1(0) ack 1")
    assert flow.see("> S 70000:70000(0) win 1000") == "ESTABLISHED ignored state"


def test_challenge_ack_keeps_the_flow(flow: Flow) -> None:
    """A SYN in LAST_ACK is answered by an ACK, which does not close the flow then."""
    flow.opened()
    flow.passes("> F. 1:1(0) ack 1 win 1000", "< F. 1:1(0) ack 2 win 1000")
    assert flow.state == "LAST_ACK"
    assert flow.see("> S 9000:9000(0) win 1000") == "ESTABLISHED ignored state"
    assert flow.see("< . 2:2(0) ack 2 win 1000") == "ESTABLISHED ignored challenge-ack"
    assert flow.state == "LAST_ACK"
    flow.passes("< . 2:2(0) ack 2 win 1000")
    assert flow.state == "TIME_WAIT"


def test_exact_rst_closes(flow: Flow) -> None:
    flow.opened()
    flow.passes("< R 1:1(0)")
    assert flow.state == "CLOSE"
    assert flow.timeout_s in (9, 10)


def test_rst_inside_the_window_waits_for_a_challenge(flow: Flow) -> None:
    """RFC 5961: only the exact number closes; the entry is kept for ten seconds."""
    flow.opened()
    assert flow.see("< R 2:2(0)") == "ESTABLISHED"
    assert flow.state == "ESTABLISHED"
    assert flow.timeout_s in (9, 10)


def test_rst_right_after_ones_own_data_closes(flow: Flow) -> None:
    flow.opened()
    flow.passes("< . 1:101(100) ack 1 win 1000", "< R 101:101(0)")
    assert flow.state == "CLOSE"


def test_rst_below_what_was_acknowledged(flow: Flow) -> None:
    flow.opened()
    flow.passes("< P. 1:101(100) ack 1 win 1000", "> . 1:1(0) ack 101 win 1000")
    assert flow.see("< R 100:100(0)") == "INVALID rst-outside"
    assert flow.over_by == 1
    assert flow.state == "ESTABLISHED"


def test_liberal_does_not_help_a_rst(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow(sysctls=Sysctls(be_liberal=True)).opened()
    assert flow.see("< R 0:0(0)") == "INVALID rst-outside"


def test_rst_below_with_the_sysctl(make_flow: Callable[..., Flow]) -> None:
    """It goes to the window check instead, and does not close the flow."""
    flow = make_flow(sysctls=Sysctls(ignore_invalid_rst=True)).opened()
    assert flow.see("< R 0:0(0)") == "ESTABLISHED"
    assert flow.state == "ESTABLISHED"
    assert flow.see("< R 5000:5000(0)") == "INVALID seq-over"


def test_rst_above_the_window(flow: Flow) -> None:
    flow.opened()
    assert flow.see("< R 5000:5000(0)") == "INVALID seq-over"
    assert flow.see("< R 1002:1002(0)") == "ESTABLISHED ignored overshoot"
    assert flow.state == "ESTABLISHED"


def test_any_rst_closes_a_flow_that_is_closing(flow: Flow) -> None:
    flow.opened()
    flow.passes("> F. 1:1(0) ack 1 win 1000", "< R 500000:500000(0)")
    assert flow.state == "CLOSE"


def test_refused(flow: Flow) -> None:
    """An RST in answer to the SYN deletes the entry."""
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("< R. 0:0(0) ack 1 win 0") == "ESTABLISHED"
    assert flow.state == "gone"


def test_rst_of_a_half_open_flow(flow: Flow) -> None:
    """An RST of the client before any answer deletes the entry."""
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("> R 1:1(0)") == "NEW"
    assert flow.state == "gone"


def test_rst_with_number_zero_answers_the_syn(flow: Flow) -> None:
    """As in RFC 9293 3.10.7.1; conntrack takes `td_end` for its number."""
    flow.passes("> S 0:0(0) win 1000")
    flow.see("< . 77:77(0) ack 5 win 1000")
    numbers = f"{-flow.numbers[0]}:{-flow.numbers[0]}(0)"
    assert flow.see(f"> R {numbers}") == "ESTABLISHED"


def test_rst_with_number_zero_before_the_flow_is_settled(flow: Flow) -> None:
    """It is not checked against `td_maxack`, but against the window: 0 is below, above or in it."""
    flow.passes("> S 0:0(0) win 1000", "< S. 0:0(0) ack 1 win 1000", "> S. 0:0(0) ack 1 win 1000")
    begin = flow.numbers[1]
    assert (
        flow.see(f"< R. {-begin}:{-begin}(0) ack 1")
        == {
            PLACES["plain"][1]: "ESTABLISHED ignored seq-under",
            PLACES["across 2**31"][1]: "INVALID seq-over",
            PLACES["across 2**32"][1]: "ESTABLISHED",
        }[begin]
    )


def test_rst_acknowledges_an_ignored_syn(flow: Flow) -> None:
    flow.opened()
    flow.see("> S 90000:90000(0) win 2000")
    assert flow.see("< R. 0:0(0) ack 90001 win 0") == "ESTABLISHED"
    assert flow.state == "CLOSE"


def test_closing_out_of_the_window_from_both_sides(flow: Flow) -> None:
    """After an INVALID FIN and RST of both sides, the timeout is five minutes at most."""
    flow.opened()
    assert flow.see("> F. 900000:900000(0) ack 1 win 1000") == "INVALID seq-over"
    assert flow.timeout_s > 400_000
    assert flow.see("< R. 900000:900000(0) ack 1 win 1000") == "INVALID seq-over"
    assert flow.timeout_s in (299, 300)
    assert flow.see("< F. 900000:900000(0) ack 1 win 1000") == "INVALID seq-over"


def test_closing_out_of_the_window_leaves_short_timeouts(make_flow: Callable[..., Flow]) -> None:
    timeouts = (*TCP_TIMEOUTS_S[:3], 100, *TCP_TIMEOUTS_S[4:])
    flow = make_flow(sysctls=replace(DEFAULT_SYSCTLS, tcp_timeouts_s=timeouts)).opened()
    flow.see("> F. 900000:900000(0) ack 1 win 1000")
    flow.see("< R. 900000:900000(0) ack 1 win 1000")
    assert flow.timeout_s == 100


@pytest.mark.parametrize(("wait", "answer"), [("+9.9", "ESTABLISHED"), ("+10", "INVALID no-entry")])
def test_entries_expire(make_flow: Callable[..., Flow], wait: str, answer: str) -> None:
    """A late FIN is INVALID: the entry expires ten seconds after an RST."""
    flow = make_flow().opened()
    flow.passes("> R. 1:1(0) ack 1")
    assert flow.see(f"{wait} < F. 1:1(0) ack 1 win 1000") == answer


def test_without_timeouts(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow(sysctls=Sysctls(expires=False)).opened()
    flow.passes("> R. 1:1(0) ack 1", "+9999999 < F. 1:1(0) ack 1 win 1000")
