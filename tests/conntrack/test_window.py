# SPDX-License-Identifier: MIT
"""The window check: every bound met exactly and missed by one (kernel.md 1.6)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.window import has_ack, is_near, stands_at_td_end
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    Peer,
    TcpState,
)
from nfq_guard.seqno import seq as as_seq
from nfq_guard.wire.packet import ACK, RST, SYN, Segment
from tests.support.flow import Flow


def test_data_up_to_the_edge_of_the_window(flow: Flow) -> None:
    flow.opened()
    assert flow.see("> P. 1:1001(1000) ack 1 win 1000") == "ESTABLISHED"
    assert flow.see("> P. 1001:1002(1) ack 1 win 1000") == "ESTABLISHED"


def test_segment_beyond_the_window(flow: Flow) -> None:
    """Up to one receiver window beyond it is ignored, more is INVALID (bound I)."""
    flow.opened()
    assert flow.see("> P. 1002:2000(998) ack 1 win 1000") == "ESTABLISHED ignored overshoot"
    assert flow.see("> P. 1002:2000(998) ack 1 win 1000") == "ESTABLISHED ignored overshoot"
    assert flow.see("> P. 1002:2001(999) ack 1 win 1000") == "INVALID seq-over"
    assert flow.over_by == 1
    assert flow.see("> P. 5001:5002(1) ack 1 win 1000") == "INVALID seq-over"
    assert flow.over_by == 4000


def test_overshoot_counts_as_sent(flow: Flow) -> None:
    flow.opened()
    flow.see("> P. 1002:1500(498) ack 1 win 1000")
    assert flow.peer(">").flags & IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
    assert flow.see("< . 1:1(0) ack 1500 win 1000") == "ESTABLISHED"


def test_old_data_is_ignored(flow: Flow) -> None:
    """Bound II: a segment that ends more than a window back was acknowledged long ago."""
    flow.opened()
    flow.passes("> P. 1:1001(1000) ack 1 win 1000", "< . 1:1(0) ack 1001 win 1000")
    flow.passes("> P. 1001:2001(1000) ack 1 win 1000", "< . 1:1(0) ack 2001 win 1000")
    assert flow.see("> P. 501:1001(500) ack 1 win 1000") == "ESTABLISHED"
    assert flow.see("> P. 500:1000(500) ack 1 win 1000") == "ESTABLISHED ignored seq-under"
    assert flow.over_by == 1


def test_ack_of_data_nobody_sent(flow: Flow) -> None:
    """Bound III."""
    flow.opened()
    assert flow.see("< . 1:1(0) ack 1 win 1000") == "ESTABLISHED"
    assert flow.see("< . 1:1(0) ack 2 win 1000") == "INVALID ack-over"
    assert flow.over_by == 1


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (f"< . 1:1(0) ack {2**31 + 1} win 1000", "INVALID ack-over"),
        (f"< . {2**31 + 1001}:{2**31 + 1001}(0) ack 1 win 1000", "INVALID seq-over"),
        (f"< R {2**31 + 1}:{2**31 + 1}(0)", "INVALID rst-outside"),
    ],
)
def test_breach_half_the_circle_away(flow: Flow, line: str, seen: str) -> None:
    """A number that is both before and after its bound is 2**31 bytes beyond it."""
    flow.opened()
    flow.passes("< . 1:1(0) ack 1 win 1000")
    assert flow.see(line) == seen
    assert flow.over_by == 2**31


def test_late_ack_is_ignored(flow: Flow) -> None:
    """Bound IV: 66,000 bytes back, however small the windows are."""
    flow.opened()
    for at in range(1, 70_001, 1000):
        flow.passes(f"> P. {at}:{at + 1000}(1000) ack 1", f"< . 1:1(0) ack {at + 1000} win 1000")
    assert flow.see("< . 1:1(0) ack 4001 win 1000") == "ESTABLISHED"
    assert flow.see("< . 1:1(0) ack 4000 win 1000") == "ESTABLISHED ignored ack-under"
    assert flow.over_by == 1


def test_keepalives_pass(flow: Flow) -> None:
    flow.opened()
    assert flow.see("> . 0:0(0) ack 1 win 1000") == "ESTABLISHED"
    assert flow.see("> . 0:1(1) ack 1 win 1000") == "ESTABLISHED"
    assert flow.see("< . 1:1(0) ack 1 win 1000") == "ESTABLISHED"


def test_shut_window_takes_one_probe(flow: Flow) -> None:
    flow.opened()
    flow.passes("> P. 1:1001(1000) ack 1 win 1000", "< . 1:1(0) ack 1001 win 0")
    assert flow.see("> . 1001:1002(1) ack 1 win 1000") == "ESTABLISHED"
    assert flow.timeout_s in (299, 300)


def test_windows_are_scaled_when_both_sides_ask(flow: Flow) -> None:
    flow.opened(window_scale=7)
    assert flow.peer(">").td_scale == flow.peer("<").td_scale == 7
    assert flow.peer(">").td_maxwin == 128_000
    assert flow.see("> P. 60001:60011(10) ack 1 win 1000") == "ESTABLISHED"


def test_no_scale_unless_both_ask(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000 <sackOK,nop,wscale 7>", "< S. 0:0(0) ack 1 win 1000 <mss 99>")
    assert (flow.peer(">").td_scale, flow.peer("<").td_scale) == (0, 0)
    assert flow.peer(">").flags & IP_CT_TCP_FLAG_WINDOW_SCALE
    assert flow.see("> P. 60001:60011(10) ack 1 win 1000") == "INVALID seq-over"


def test_scale_above_14_is_14(flow: Flow) -> None:
    flow.opened(window_scale=200)
    assert flow.peer(">").td_scale == 14


def test_sack_acknowledges_when_it_was_offered(flow: Flow) -> None:
    """The highest right edge is checked against bound III like an ACK."""
    flow.opened(window_scale=0)
    assert flow.peer(">").flags & IP_CT_TCP_FLAG_SACK_PERM
    flow.passes("> P. 1:1001(1000) ack 1 win 1000")
    assert flow.see("< . 1:1(0) ack 1 win 9 <nop,nop,sack 501:1001>") == "ESTABLISHED"
    assert flow.peer("<").td_maxwin == 1009
    assert flow.see("< . 1:1(0) ack 1 win 9 <sack 1:2 900:1002>") == "INVALID ack-over"
    assert flow.over_by == 1


def test_sack_says_nothing_when_it_was_not_offered(flow: Flow) -> None:
    flow.opened()
    assert flow.see("< . 1:1(0) ack 1 win 1000 <nop,nop,sack 1:900000>") == "ESTABLISHED"


def test_sender_beyond_the_window_widens_it(flow: Flow) -> None:
    """Data that begins inside and ends outside shows that the window was larger."""
    flow.opened()
    flow.passes("> P. 501:1501(1000) ack 1 win 1000")
    assert flow.peer("<").td_maxwin == 1500


def test_segment_sent_again_is_counted(flow: Flow) -> None:
    """After three retransmissions the entry is kept for five minutes only."""
    flow.opened()
    line = "< . 1:1(0) ack 1 win 1000"
    for _ in range(3):
        flow.passes(line)
    assert flow.timeout_s in (299, 300)
    flow.passes("> . 1:1(0) ack 1 win 1000")
    assert flow.timeout_s > 400_000


def test_closing_outside_the_window_never_extends_the_entry(make_flow: Callable[..., Flow]) -> None:
    """It shortens one that lasts longer than one with unacknowledged data."""
    flow = make_flow().opened()
    assert flow.see("< F. 9000:9000(0) ack 1 win 1000") == "INVALID seq-over"
    flow.passes("> P. 1:2(1) ack 1 win 1000")
    assert flow.see("+50 < F. 9000:9000(0) ack 1 win 1000") == "INVALID seq-over"
    assert flow.see("> F. 9000:9000(0) ack 1 win 1000") == "INVALID seq-over"
    assert flow.timeout_s == 250


def test_unacknowledged_data_shorten_the_timeout(flow: Flow) -> None:
    flow.opened()
    flow.passes("> P. 1:2(1) ack 1 win 1000")
    assert flow.timeout_s in (299, 300)
    flow.passes("< . 1:1(0) ack 2 win 1000")
    assert flow.timeout_s > 400_000


@pytest.mark.parametrize(
    "line",
    [
        "> P. 1002:1500(498) ack 1 win 1000",
        "> P. 500000:500001(1) ack 1 win 1000",
        "< . 1:1(0) ack 70000 win 1000",
        "> . -5000:-5000(0) ack 1 win 1000",
    ],
)
def test_liberal(make_flow: Callable[..., Flow], line: str) -> None:
    """With be_liberal the window is not enforced, and only an overshoot moves a bound."""
    flow = make_flow(sysctls=Sysctls(be_liberal=True)).opened()
    before = flow.peer(">"), flow.peer("<")
    assert flow.see(line) == "ESTABLISHED"
    after = flow.peer(">"), flow.peer("<")
    assert (before == after) is ("1002" not in line)


def test_max_retrans(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow(sysctls=replace(DEFAULT_SYSCTLS, max_retrans=1)).opened()
    flow.passes("< . 1:1(0) ack 1 win 1000")
    assert flow.timeout_s == 300


@pytest.mark.parametrize(
    ("seq", "length", "ack", "near"),
    [
        # Up to a window of 1000 bytes beyond bound I, which is 11000, and not one more.
        (12_000, 0, 5000, True),
        (12_001, 0, 5000, False),
        # Bound II is 9000.
        (7990, 10, 5000, True),
        (7989, 10, 5000, False),
        # Bound III is 5000; beyond it `least` alone counts.
        (10_000, 0, 5008, True),
        (10_000, 0, 5009, False),
        # Bound IV is 66,000 below that.
        (10_000, 0, 5000 - 132_000, True),
        (10_000, 0, 5000 - 132_001, False),
    ],
)
def test_near_every_bound(seq: int, length: int, ack: int, near: bool) -> None:
    sender = Peer(as_seq(10_000), as_seq(11_000), 500, as_seq(0), 0, 0)
    receiver = Peer(as_seq(5000), as_seq(6000), 1000, as_seq(0), 0, 0)
    segment = Segment(1, 2, as_seq(seq), as_seq(ack), ACK, 100, length, b"", 0)
    assert is_near(segment, sender, receiver, 8) is near


@pytest.mark.parametrize(
    ("flags", "ack", "counts"),
    [(ACK, 0, True), (ACK | RST, 0, False), (ACK | RST, 1, True), (RST, 1, False), (SYN, 1, False)],
)
def test_an_ack_of_0_counts_except_in_an_rst(flags: int, ack: int, counts: bool) -> None:
    segment = Segment(1, 2, as_seq(7), as_seq(ack), flags, 100, 0, b"", 0)
    assert has_ack(segment) is counts


@pytest.mark.parametrize(
    ("seq", "flags", "state", "stands"),
    [
        (0, RST, TcpState.SYN_SENT, True),
        (1, RST, TcpState.SYN_SENT, False),
        (0, ACK, TcpState.SYN_SENT, False),
        (0, RST, TcpState.ESTABLISHED, False),
    ],
)
def test_an_rst_of_0_answers_a_syn(seq: int, flags: int, state: TcpState, stands: bool) -> None:
    segment = Segment(1, 2, as_seq(seq), as_seq(0), flags, 100, 0, b"", 0)
    assert stands_at_td_end(segment, state) is stands


def test_near_in_a_distance_beyond_the_window() -> None:
    sender = Peer(as_seq(10_000), as_seq(11_000), 500, as_seq(0), 0, 0)
    receiver = Peer(as_seq(5000), as_seq(6000), 1000, as_seq(0), 0, 0)
    segment = Segment(1, 2, as_seq(111_000), as_seq(105_000), ACK, 100, 0, b"", 0)
    assert is_near(segment, sender, receiver, 100_000)
    assert not is_near(segment, sender, receiver, 99_999)
