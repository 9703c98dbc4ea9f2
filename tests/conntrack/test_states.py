# SPDX-License-Identifier: MIT
"""The state table is total, and equals that of kernel.md 1.10."""

import itertools

import pytest

from nfq_guard.conntrack.states import (
    CLASS_ACK,
    CLASS_FIN,
    CLASS_NAMES,
    CLASS_NONE,
    CLASS_RST,
    CLASS_SYN,
    CLASS_SYNACK,
    FLAGS_PASS,
    MOVE_IGNORE,
    MOVE_INVALID,
    MOVES,
    SEGMENT_CLASS,
)
from nfq_guard.flow import Direction, TcpState

CELLS = list(itertools.product(Direction, range(len(CLASS_NAMES)), TcpState))


def test_table_is_total() -> None:
    """Every class of segment has a move from every state, in both directions."""
    known = {*map(int, TcpState), MOVE_INVALID, MOVE_IGNORE} - {0}
    assert {MOVES[way][kind][state] for way, kind, state in CELLS} == known
    assert [[len(row) for row in rows] for rows in MOVES] == [[len(TcpState)] * 6] * 2


def test_a_segment_without_control_flags_goes_nowhere() -> None:
    assert {MOVES[way][CLASS_NONE][state] for way in Direction for state in TcpState} == {
        MOVE_INVALID
    }


def test_only_syn_and_ack_open() -> None:
    opening = [
        (way, kind)
        for way, kind in itertools.product(Direction, range(6))
        if MOVES[way][kind][TcpState.NONE] != MOVE_INVALID
    ]
    assert opening == [(Direction.ORIGINAL, CLASS_SYN), (Direction.ORIGINAL, CLASS_ACK)]


def test_rst_closes_whatever_there_is() -> None:
    for way, state in itertools.product(Direction, list(TcpState)[1:]):
        if (way, state) != (Direction.ORIGINAL, TcpState.NONE):
            assert MOVES[way][CLASS_RST][state] == TcpState.CLOSE


def test_every_state_can_be_reached() -> None:
    reached = {0}
    while True:
        further = reached | {
            MOVES[way][kind][state]
            for way, kind, state in CELLS
            if state in reached and MOVES[way][kind][state] < MOVE_INVALID
        }
        if further == reached:
            break
        reached = further
    assert reached == set(map(int, TcpState))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0x02, CLASS_SYN),
        (0x12, CLASS_SYNACK),
        (0x11, CLASS_FIN),
        (0x01, CLASS_FIN),
        (0x10, CLASS_ACK),
        (0x18, CLASS_ACK),
        (0x04, CLASS_RST),
        (0x17, CLASS_RST),
        (0x00, CLASS_NONE),
        (0xE8, CLASS_NONE),
    ],
)
def test_classes(flags: int, kind: int) -> None:
    assert SEGMENT_CLASS[flags] == kind


def test_nine_combinations_pass() -> None:
    """Each with and without PSH, ECE and CWR."""
    assert sum(FLAGS_PASS) == 9 * 8
