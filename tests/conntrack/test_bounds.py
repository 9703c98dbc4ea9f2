# SPDX-License-Identifier: MIT
"""The four bounds of the window, and the one of an RST, with the numbers of one segment."""

from dataclasses import replace

import pytest

from nfq_guard.conntrack.bounds import rst_check, window_checks
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple, Peer, TcpState
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import ACK, RST, Segment

_WAY = FlowTuple(6, b"", b"", 0, 0)
SENDER = Peer(Seq(5000), Seq(6000), 2000, Seq(100), 0, 0)
RECEIVER = Peer(Seq(300), Seq(2300), 1000, Seq(5000), 0, 0)


def flow(
    peers: tuple[Peer, Peer] | None, state: int = int(TcpState.ESTABLISHED), direction: int = 0
) -> FlowSnapshot:
    return FlowSnapshot(Evidence.REPLAY, direction, _WAY, _WAY, 0, 0, 0, 0, state, peers)


def segment(seq: int, ack: int = 300, flags: int = ACK, payload: int = 10) -> Segment:
    return Segment(1, 2, Seq(seq), Seq(ack), flags, 0, payload, b"", 0)


@pytest.mark.parametrize("direction", [0, 1])
def test_the_four_bounds(direction: int) -> None:
    peers = (RECEIVER, SENDER) if direction else (SENDER, RECEIVER)
    checks = window_checks(segment(6001), flow(peers, direction=direction))
    assert [(check.bound, check.room, check.holds) for check in checks] == [
        (Reason.SEQ_OVER, -1, False),
        (Reason.SEQ_UNDER, 6011 - 4000, True),
        (Reason.ACK_OVER, 0, True),
        (Reason.ACK_UNDER, 66000, True),
    ]
    first = checks[0]
    assert (first.actual.name, first.actual.seq, first.actual.side) == ("seq", 6001, direction)
    assert (first.limit.name, first.limit.seq, first.span) == ("td_maxend", 6000, (6001, 6011))


def test_what_is_acknowledged_beside_the_ack_field() -> None:
    checks = window_checks(segment(5000), flow((SENDER, RECEIVER)), Seq(320))
    assert [(check.actual.name, check.room) for check in checks[2:]] == [
        ("sack", -20),
        ("sack", 66020),
    ]


def test_without_an_ack_all_that_was_sent_counts_as_acknowledged() -> None:
    checks = window_checks(segment(5000, ack=0, flags=RST), flow((SENDER, RECEIVER)))
    assert checks[2].actual.name == "td_end, in place of an ACK"
    assert checks[2].room == 0


def test_an_rst_of_0_stands_at_what_was_sent() -> None:
    state = int(TcpState.SYN_SENT)
    checks = window_checks(segment(0, flags=RST | ACK), flow((SENDER, RECEIVER), state))
    assert (checks[0].actual.seq, checks[0].room) == (5000, 1000)


def test_unknown_windows() -> None:
    silent = Peer(Seq(0), Seq(0), 0, Seq(0), 0, 0)
    assert window_checks(segment(1), flow(None)) == []
    assert window_checks(segment(1), flow((silent, RECEIVER))) == []
    bounds = [check.bound for check in window_checks(segment(1), flow((SENDER, silent)))]
    assert bounds == [Reason.SEQ_OVER, Reason.ACK_OVER, Reason.ACK_UNDER]


def test_the_bound_of_an_rst() -> None:
    assert rst_check(segment(1), flow(None)) is None
    check = rst_check(segment(4990, flags=RST), flow((SENDER, RECEIVER)))
    assert check is not None
    assert (check.bound, check.room, check.upper) == (Reason.RST_OUTSIDE, -10, False)
    assert not check.holds
    assert replace(check, room=0).holds
