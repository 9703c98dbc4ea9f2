# SPDX-License-Identifier: MIT
"""Which SYN a SYN+ACK with another tuple answers."""

import pytest

from nfq_guard.conntrack.entry import Key, key_of, reverse
from nfq_guard.flow import PROTO_TCP
from nfq_guard.replay.halves import Halves
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, RST, SYN, Segment


def key(port: int) -> Key:
    return key_of(b"\n\0\0\1", b"\n\0\0\2", port, 80, PROTO_TCP)


def segment(number: int, ack: int, flags: int) -> Segment:
    return Segment(1, 2, seq(number), seq(ack), flags, 100, 0, b"", 0)


def opened(*numbers: int) -> Halves:
    found = Halves()
    for port, number in enumerate(numbers):
        assert found.opening_of(segment(number, 0, SYN), key(port)) is None
    return found


def answered(found: Halves, ack: int, flags: int = SYN | ACK) -> Key | None:
    return found.opening_of(segment(7, ack, flags), key(9))


def test_the_number_tells() -> None:
    found = opened(70_000, 80_000, 0xFFFFFFFF)
    assert answered(found, 80_001) == key(1)
    assert answered(found, 0) == key(2)
    assert answered(found, 80_002) is None
    assert answered(found, 80_001, SYN | ACK | RST) is None
    assert answered(found, 80_001, RST | ACK) is None, "not the RST that refuses a SYN"
    assert found.opening_of(segment(0, 80_001, RST | ACK), key(9)) == key(1)
    assert found.opening_of(segment(0, 80_001, RST), key(9)) is None


def test_a_small_number_does_not() -> None:
    assert answered(opened(1), 2) is None


def test_a_syn_that_comes_again() -> None:
    found = opened(70_000)
    found.opening_of(segment(70_000, 0, SYN), key(0))
    assert answered(found, 70_001) == key(0)


def test_two_flows_with_one_number() -> None:
    found = opened(70_000, 70_000)
    assert answered(found, 70_001) is None
    found.opening_of(segment(70_000, 0, SYN), key(1))
    assert answered(found, 70_001) is None


def test_the_oldest_is_forgotten() -> None:
    found = Halves(most=2)
    for port, number in enumerate((70_000, 80_000, 90_000)):
        found.opening_of(segment(number, 0, SYN), key(port))
    assert [answered(found, number) for number in (70_001, 80_001)] == [None, key(1)]


def half(found: Halves, number: int, ack: int, way: Key) -> Key | None:
    return found.half_of(Segment(1, 2, seq(number), seq(ack), ACK, 100, 10, b"", 0), way)


def far(port: int) -> Key:
    """A direction that shares no end with those of `key`."""
    return key_of(b"\n\0\0\7", b"\n\0\0\x08", 443, port, PROTO_TCP)


NEAR = key_of(b"\n\0\0\x09", b"\n\0\0\1", 443, 7, PROTO_TCP)


@pytest.mark.parametrize("other", [NEAR, far(1)])
def test_two_answers_to_a_half(other: Key) -> None:
    """One may be a segment with a damaged address, also if they share an end."""
    found = Halves()
    assert half(found, 70_000, 90_000, key(7)) is None
    assert half(found, 90_000, 70_010, other) is None
    assert half(found, 90_000, 70_010, other) is None, "the same answer"
    half(found, 70_010, 90_010, key(7))
    assert half(found, 90_011, 70_020, other) is None
    assert half(found, 90_010, 70_021, other) is None
    assert half(found, 90_010, 70_020, key(7)) is None
    assert half(found, 90_010, 70_020, other) == key(7)


def test_small_numbers_are_no_answer() -> None:
    found = Halves()
    half(found, 70_000, 9, key(7))
    assert half(found, 9, 70_010, NEAR) is None


def test_the_oldest_segment_is_forgotten() -> None:
    found = Halves(most=2)
    for number in (70_000, 80_000):
        half(found, number, 90_000, key(7))
    half(found, 90_000, 80_010, far(1))
    assert half(found, 90_000, 70_010, NEAR) is None


OPENING, ANSWER = key(7), NEAR
"""A SYN, and a SYN+ACK from another address."""


def joined(most: int = 16) -> Halves:
    found = Halves(most)
    found.join(OPENING, ANSWER)
    return found


def went_on(
    found: Halves, way: Key, flags: int = ACK, *, ack: int = 90_001, known: Key | None = None
) -> Key | None:
    return found.refuted_by(segment(70_001, ack, flags), way, known)


@pytest.mark.parametrize("went", [(), (OPENING,), (ANSWER,), (ANSWER, ANSWER)])
@pytest.mark.parametrize("way", [reverse(OPENING), reverse(ANSWER)])
def test_a_join_that_the_tuple_of_one_end_refutes(went: tuple[Key, ...], way: Key) -> None:
    found = joined()
    for one in went:
        assert went_on(found, one) is None
    assert went_on(found, way, RST) is None, "it answers a packet that escaped"
    assert went_on(found, far(1)) is None
    assert went_on(found, way) == OPENING
    assert not found.watches


def test_a_join_that_both_ends_confirm() -> None:
    found = joined()
    assert went_on(found, ANSWER, SYN | ACK) is None, "it comes again"
    assert went_on(found, OPENING) is None
    assert found.watches
    assert went_on(found, ANSWER) is None
    assert not found.watches


@pytest.mark.parametrize("way", [reverse(OPENING), reverse(ANSWER)])
def test_a_join_is_not_refuted_by_another_flow_with_its_tuple(way: Key) -> None:
    """Each has it on its side of the host."""
    found = joined()
    for number, opening in ((80_000, far(1)), (70_000, OPENING)):
        found.opening_of(segment(number, 0, SYN), opening)
    assert went_on(found, way, SYN) is None
    assert went_on(found, way, SYN | ACK, ack=80_001) is None
    assert went_on(found, way, known=far(1)) is None
    assert went_on(found, way, SYN | ACK, ack=70_001) == OPENING, "the answer to the same SYN"


def test_joins_are_forgotten_together() -> None:
    found = joined(most=4)
    found.join(far(1), far(2))
    assert went_on(found, reverse(OPENING)) is None
    assert went_on(found, reverse(far(2))) == far(1)


def test_likely_halves_are_forgotten_together() -> None:
    found = Halves(most=2)
    for port in (1, 2, 3):
        half(found, 70_000, 90_000, key(7))
        half(found, 90_000, 70_010, far(port))
    half(found, 70_010, 90_010, key(7))
    assert half(found, 90_010, 70_020, far(3)) is None
