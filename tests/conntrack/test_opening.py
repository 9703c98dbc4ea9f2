# SPDX-License-Identifier: MIT
"""How flows begin: with a whole handshake, half of one or none, or picked up (kernel.md 1.4)."""

from collections.abc import Callable

import pytest

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_ASSURED,
    IPS_SEEN_REPLY,
)
from tests.support.flow import Flow


def test_handshake(flow: Flow) -> None:
    assert flow.see("> S 0:0(0) win 1000") == "NEW"
    assert flow.state == "SYN_SENT"
    assert flow.see("< S. 0:0(0) ack 1 win 1000") == "ESTABLISHED"
    assert flow.state == "SYN_RECV"
    assert flow.snapshot
    assert flow.snapshot.status & (IPS_SEEN_REPLY | IPS_ASSURED) == IPS_SEEN_REPLY
    assert flow.see("> . 1:1(0) ack 1 win 1000") == "ESTABLISHED"
    assert flow.state == "ESTABLISHED"
    assert flow.snapshot.status & IPS_ASSURED


def test_syn_sent_again(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000", "> S 0:0(0) win 1000")
    assert flow.state == "SYN_SENT"


def test_syn_sent_again_does_not_keep_the_entry(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow()
    flow.passes("> S 0:0(0)", "+100 > S 0:0(0)")
    assert flow.timeout_s == 20


def test_new_syn_with_other_number(flow: Flow) -> None:
    """A later SYN re-initialises the half-open end."""
    flow.passes("> S 0:0(0) win 1000", "> S 5000:5000(0) win 2000 <sackOK>")
    assert flow.peer(">").td_maxwin == 2000
    assert flow.see("< S. 0:0(0) ack 5001 win 1000") == "ESTABLISHED"


def test_syn_ack_of_another_syn(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("< S. 0:0(0) ack 2 win 1000") == "INVALID ack-over"


def test_syn_ack_sent_again_with_other_number(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000", "< S. 0:0(0) ack 1 win 1000")
    assert flow.see("< S. 0:0(0) ack 1 win 1000") == "ESTABLISHED ignored state"


def test_data_in_the_syn(flow: Flow) -> None:
    flow.passes("> S 0:100(100) win 1000", "< S. 0:0(0) ack 101 win 1000")


def test_asymmetric_route(flow: Flow) -> None:
    """The SYN+ACK took another path, so the client's ACK does not fit the state."""
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("> . 1:1(0) ack 1 win 1000") == "INVALID bad-transition"


@pytest.mark.parametrize("flags", ["S.", "F.", "R", "R."])
def test_nothing_to_belong_to(flow: Flow, flags: str) -> None:
    assert flow.see(f"> {flags} 0:0(0) ack 1") == "INVALID no-entry"
    assert flow.state == "gone"


@pytest.mark.parametrize("flags", ["-", "F", "U", "SF", "SR", "RF", "RF.", "S.U", "RU", "FUP"])
def test_flags_that_mean_nothing(flow: Flow, flags: str) -> None:
    flow.opened()
    assert flow.see(f"> {flags} 1:1(0) ack 1") == "INVALID bad-flags"


@pytest.mark.parametrize("flags", [".P", ".U", ".E", ".W", ".PUEW"])
def test_flags_that_say_nothing(flow: Flow, flags: str) -> None:
    flow.opened()
    assert flow.see(f"> {flags} 1:1(0) ack 1 win 1000") == "ESTABLISHED"


def test_picked_up_in_the_middle(flow: Flow) -> None:
    """The window scales are unknown, so the window of neither side is enforced."""
    assert flow.see("> . 1:101(100) ack 1 win 10") == "NEW"
    assert flow.state == "ESTABLISHED"
    assert flow.peer("<").flags == IP_CT_TCP_FLAG_SACK_PERM | IP_CT_TCP_FLAG_BE_LIBERAL
    assert flow.timeout_s in (299, 300)
    assert flow.see("< . 1:1(0) ack 101 win 10") == "ESTABLISHED"
    assert flow.see("< P. 400000:400001(1) ack 101 win 10") == "ESTABLISHED"
    assert flow.see("> . 101:101(0) ack 900000 win 10") == "ESTABLISHED"


def test_keepalive_is_the_first_that_is_seen(flow: Flow) -> None:
    """A keepalive repeats the last byte; its answer shows the next sequence number."""
    flow.passes("> . 0:0(0) ack 1 win 1000", "< . 1:1(0) ack 1 win 1000")
    assert flow.see("> . 1:1(0) ack 1 win 1000") == "ESTABLISHED"


def test_not_picked_up(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow(sysctls=Sysctls(loose=False))
    assert flow.see("> . 1:101(100) ack 1 win 10") == "INVALID no-entry"
    assert flow.opened().state == "ESTABLISHED"


def test_simultaneous_open(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000", "< S 0:0(0) win 1000")
    assert flow.state == "SYN_SENT2"
    flow.passes("> S. 0:0(0) ack 1 win 1000")
    assert flow.state == "SYN_RECV"
    flow.passes("< . 1:1(0) ack 1 win 1000")
    assert flow.state == "ESTABLISHED"


def test_a_syn_of_the_other_end_does_not_extend_the_entry(make_flow: Callable[..., Flow]) -> None:
    flow = make_flow()
    flow.passes("> S 0:0(0) win 1000", "+50 < S 0:0(0) win 1000")
    assert (flow.state, flow.timeout_s) == ("SYN_SENT2", 70)
    flow.passes("+5 < S 0:0(0) win 1000")
    assert (flow.state, flow.timeout_s) == ("SYN_SENT2", 120)


def test_reply_ack_does_not_finish_a_plain_handshake(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000", "< S. 0:0(0) ack 1 win 1000", "< . 1:1(0) ack 1 win 1000")
    assert flow.state == "SYN_RECV"


def test_stale_server_answers_with_an_ack(flow: Flow) -> None:
    """A challenge ACK is ignored, and the RST that answers it passes (RFC 9293 3.5.1)."""
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("< . 700:700(0) ack 9000 win 1000") == "ESTABLISHED ignored state"
    assert flow.see("> R 9000:9000(0) win 0") == "ESTABLISHED"
    assert flow.state == "CLOSE"


def test_rst_that_the_challenge_did_not_ask_for(flow: Flow) -> None:
    flow.passes("> S 0:0(0) win 1000")
    flow.see("< . 700:700(0) ack 9000 win 1000")
    assert flow.see("> R 9001:9001(0) win 0") == "INVALID seq-over"


def test_resync_after_an_ignored_syn(flow: Flow) -> None:
    """A client that forgot the flow opens it again; the SYN+ACK proves that its SYN was right."""
    flow.opened()
    flow.passes("> P. 1:501(500) ack 1 win 1000")
    assert flow.see("> S 90000:90000(0) win 2000 <sackOK,wscale 3>") == "ESTABLISHED ignored state"
    assert flow.see("< S. 70000:70000(0) ack 90001 win 3000 <wscale 4>") == "ESTABLISHED"
    assert flow.state == "SYN_RECV"
    assert (flow.peer(">").td_scale, flow.peer("<").td_scale) == (3, 4)
    flow.passes("> . 90001:90001(0) ack 70001 win 2000")
    assert flow.state == "ESTABLISHED"


def test_ignored_syn_that_nobody_confirms(flow: Flow) -> None:
    flow.opened()
    flow.see("> S 90000:90000(0) win 2000")
    assert flow.see("< S. 70000:70000(0) ack 90002 win 3000") == "ESTABLISHED ignored state"
    flow.passes("> P. 1:501(500) ack 1 win 1000")


def test_simultaneous_open_after_a_wrong_syn_ack(flow: Flow) -> None:
    """The INVALID SYN+ACK initialised the answering side, which the SYN re-initialises."""
    flow.passes("> S 0:0(0) win 1000")
    assert flow.see("< S. 0:0(0) ack 9 win 1000") == "INVALID ack-over"
    assert flow.peer("<").td_maxwin == 1000
    flow.passes("< S 5000:5000(0) win 2000")
    assert flow.peer("<").td_maxwin == 2000
    assert flow.state == "SYN_SENT2"
