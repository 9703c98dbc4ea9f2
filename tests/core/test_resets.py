# SPDX-License-Identifier: MIT
"""An RST and the INVALID packet that it answers."""

import pytest

from nfq_guard.finding import Reason
from nfq_guard.resets import RESET_WITHIN_S, Passed, Resets
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import ACK, FIN, PSH, RST, SYN, Packet, Segment

CLIENT, SERVER = b"\x0a\0\0\1", b"\x0a\0\0\2"


def packet(
    there: bool, flags: int, seq: int, ack: int = 0, payload: int = 0, sport: int = 40000
) -> tuple[Packet, Segment]:
    """A packet of the client if `there`, else one of the server."""
    ports = (sport, 80) if there else (80, sport)
    segment = Segment(*ports, Seq(seq), Seq(ack), flags, 0, payload, b"", 0)
    ends = (CLIENT, SERVER) if there else (SERVER, CLIENT)
    return Packet(4, *ends, 6, 0, 0, 0, 0, False, segment), segment


def links(*stray: tuple[Packet, Segment], at: float = 10.0, most: int = 8) -> Resets:
    resets = Resets(most)
    for number, one in enumerate(stray, 1):
        resets.add(*one, Passed(at, Reason.SEQ_OVER, "window", number))
    return resets


STRAY = packet(False, ACK | PSH, 5_000, 900, 100)


@pytest.mark.parametrize("seq", [900, 0, (1 << 32) - 1])
def test_the_rst_has_the_number_that_was_acknowledged(seq: int) -> None:
    resets = links(packet(False, ACK, 5_000, seq, 100))
    found = resets.cause_of(*packet(True, RST, seq), now=10.001)
    assert found is not None
    assert (found.at, found.reason, found.rule, found.frame) == (10.0, "seq-over", "window", 1)
    assert resets.cause_of(*packet(True, RST, seq ^ 1), now=10.001) is None


@pytest.mark.parametrize(
    ("flags", "payload", "end"), [(0, 100, 5_100), (FIN, 0, 5_001), (SYN, 7, 5_008)]
)
def test_a_packet_without_an_ack_is_acknowledged(flags: int, payload: int, end: int) -> None:
    resets = links(packet(False, flags, 5_000, 0, payload))
    assert resets.cause_of(*packet(True, RST | ACK, 0, end), now=10) is not None
    assert resets.cause_of(*packet(True, RST | ACK, 0, end + 1), now=10) is None
    assert resets.cause_of(*packet(True, RST, 0), now=10) is None


def test_an_rst_with_an_ack_that_is_not_needed() -> None:
    assert links(STRAY).cause_of(*packet(True, RST | ACK, 900, 5_100), now=10) is not None


def test_what_is_no_answer() -> None:
    resets = links(STRAY)
    assert resets.cause_of(*packet(True, ACK, 900), now=10) is None
    assert resets.cause_of(*packet(False, RST, 900), now=10) is None, "the same direction"
    assert resets.cause_of(*packet(True, RST, 900, sport=40001), now=10) is None
    assert resets.cause_of(*packet(True, RST, 900), now=10 + RESET_WITHIN_S) is not None
    assert resets.cause_of(*packet(True, RST, 900), now=10.001 + RESET_WITHIN_S) is None


def test_an_rst_is_answered_by_nobody() -> None:
    resets = links(packet(False, RST | ACK, 5_000, 900))
    assert resets.cause_of(*packet(True, RST, 900), now=10) is None


def test_the_latest_of_its_kind_counts() -> None:
    found = links(STRAY, STRAY).cause_of(*packet(True, RST, 900), now=10)
    assert found is not None
    assert found.frame == 2


def test_the_number_is_bounded() -> None:
    resets = links(*(packet(False, ACK, 1, 900, 0, port) for port in range(1, 10)), most=8)
    assert resets.cause_of(*packet(True, RST, 900, sport=1), now=10) is None
    for port in range(2, 10):
        assert resets.cause_of(*packet(True, RST, 900, sport=port), now=10) is not None
