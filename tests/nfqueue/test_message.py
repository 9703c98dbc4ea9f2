# SPDX-License-Identifier: MIT
import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.nfqueue.message import InterfaceNames, packet_of, stamp_of
from nfq_guard.wire.packet import (
    CHECKSUM_GOOD,
    CHECKSUM_UNFINISHED,
    CHECKSUM_UNVERIFIED,
    Queued,
)

HEADER = (1, struct.pack("!IHB", 99, 0x0800, 3))
PAYLOAD = (10, b"E" * 42)


def message_of(*attributes: tuple[int, bytes]) -> bytes:
    """A packet message as the kernel lays it out: each attribute padded but the last."""
    body = bytes(20)
    for index, (kind, value) in enumerate(attributes):
        body += struct.pack("=HH", 4 + len(value), kind) + value
        if index < len(attributes) - 1:
            body += bytes(-len(value) % 4)
    return body


def alone(message: bytes) -> tuple[int, Queued]:
    return packet_of(message, 0, len(message), InterfaceNames())


def read(*attributes: tuple[int, bytes]) -> Queued:
    return alone(message_of(*attributes))[1]


def test_every_attribute_of_a_message() -> None:
    message = message_of(
        HEADER,
        (3, struct.pack("!I", 0xABCD0001)),
        (5, struct.pack("!I", 1)),
        (14, bytes(4)),
        PAYLOAD,
    )
    assert alone(message) == (
        99,
        Queued(b"E" * 42, 3, "lo", "", 0xABCD0001, CHECKSUM_GOOD),
    )


def test_the_length_of_a_packet_whose_tail_is_not_copied() -> None:
    assert read(HEADER, (13, struct.pack("!I", 100_052)), PAYLOAD).wire_len == 100_052
    assert read(HEADER, PAYLOAD).wire_len == 0


def test_the_length_of_a_payload_that_is_padded() -> None:
    """The length is 43, although padding and another attribute follow."""
    assert read(HEADER, (10, b"E" * 43), (14, b"\0\0\0\4")).octets == b"E" * 43


def test_a_payload_shorter_than_its_own_header() -> None:
    """No kernel sends such a message."""
    whole = message_of(HEADER, PAYLOAD)
    at = len(message_of(HEADER)) + 1  # padded, as it is not the last
    assert struct.unpack_from("=HH", whole, at) == (46, 10)
    damaged = whole[:at] + struct.pack("=H", 2) + whole[at + 2 :]
    assert alone(damaged) == (99, Queued(b"", 3, "", "", 0, CHECKSUM_GOOD))


def test_checksum_state() -> None:
    assert read(HEADER, (14, b"\0\0\0\4"), PAYLOAD).checksum == CHECKSUM_UNVERIFIED
    assert read(HEADER, (14, b"\0\0\0\7"), PAYLOAD).checksum == CHECKSUM_UNFINISHED
    assert read(HEADER, PAYLOAD).checksum == CHECKSUM_GOOD


def test_hardware_address_that_looks_like_skb_info() -> None:
    """A sender may forge such an address; the packet counts as one without SKB_INFO."""
    spoof = bytes.fromhex("0006000008000e00ffff0000")
    assert read(HEADER, (9, spoof), PAYLOAD).checksum == CHECKSUM_GOOD


def test_interface_that_is_gone() -> None:
    assert read(HEADER, (6, struct.pack("!I", 0x7FFFFFFF)), PAYLOAD).outdev == "if2147483647"


def test_no_more_names_than_a_bound() -> None:
    """Creating and removing interfaces all day does not grow the cache."""
    names = InterfaceNames()
    for index in range(1 << 30, (1 << 30) + 5000):
        names.of(index)
    assert names.of(1) == "lo"


@given(st.binary(max_size=200))
def test_any_octets_are_read(message: bytes) -> None:
    packet_id, queued = alone(message)
    assert 0 <= packet_id < 1 << 32
    assert len(queued.octets) <= len(message)


def test_the_time_of_a_packet() -> None:
    """Microseconds; 0 where the kernel took none, or the attribute is cut."""
    stamp = (4, struct.pack("!QQ", 1_700_000_000, 123_456))
    message = message_of(HEADER, (5, struct.pack("!I", 1)), stamp, PAYLOAD)
    assert stamp_of(message, 0, len(message)) == 1_700_000_000_123_456
    without = message_of(HEADER, PAYLOAD)
    assert stamp_of(without, 0, len(without)) == 0
    cut = message_of(HEADER, stamp)[:-1]
    assert stamp_of(cut, 0, len(cut)) == 0


@given(st.binary(max_size=80))
def test_the_time_in_any_octets(octets: bytes) -> None:
    message = bytes(20) + octets
    assert stamp_of(message, 0, len(message)) >= 0
