# SPDX-License-Identifier: MIT
"""Numbers and addresses as text, and back."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard import names
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    PROTO_ICMP,
    PROTO_SCTP,
    PROTO_TCP,
    Direction,
    FlowTuple,
    Hook,
    TcpState,
)
from nfq_guard.wire.packet import ACK, FIN, SYN, Malformed, Packet
from tests.support.judgments import segment

ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
NUMBERS: list[tuple[Callable[[int], str], Callable[[str], int], int]] = [
    (names.protocol, names.protocol_number, 256),
    (names.hook, names.hook_number, 256),
    (names.tcp_flags, names.tcp_flag_bits, 256),
    (names.tcp_state, names.tcp_state_number, len(TcpState)),
]


@pytest.mark.parametrize(("to_text", "to_number", "count"), NUMBERS)
def test_every_number_survives_its_text(
    to_text: Callable[[int], str], to_number: Callable[[str], int], count: int
) -> None:
    texts = [to_text(number) for number in range(count)]
    assert [to_number(text) for text in texts] == list(range(count))
    assert len(set(texts)) == count


def test_names() -> None:
    assert [names.protocol(number) for number in (1, 6, 17, 47, 58, 132, 50)] == [
        "icmp", "tcp", "udp", "gre", "icmpv6", "sctp", "50",
    ]  # fmt: skip
    assert (names.hook(Hook.OUTPUT), names.hook(7)) == ("OUTPUT", "7")
    assert (names.tcp_flags(SYN | ACK), names.tcp_flags(FIN), names.tcp_flags(0)) == ("SA", "F", "")
    assert names.tcp_state(TcpState.SYN_SENT2) == "SYN_SENT2"
    assert names.flow_status(IPS_SEEN_REPLY | IPS_ASSURED | IPS_SRC_NAT) == (
        "seen-reply",
        "assured",
    )
    assert [names.direction(way) for way in Direction] == ["original", "reply"]
    assert [names.direction_number(names.direction(way)) for way in Direction] == [0, 1]


def test_a_number_with_its_noun() -> None:
    assert [names.counted(number, "flow") for number in (0, 1, 2, 12_345)] == [
        "0 flows", "1 flow", "2 flows", "12,345 flows",
    ]  # fmt: skip
    assert [names.bytes_of(number) for number in (1, 2000)] == ["1 byte", "2000 bytes"]


def test_a_text_that_a_terminal_shows() -> None:
    assert names.visible("eth0 ä") == "eth0 ä"
    assert names.visible("a\x1b[2J\u202eb\n") == "a\\x1b[2J\\u202eb\\n"


@pytest.mark.parametrize("text", ["plain", "déjà", "\x7f", "\x9b2J\x85\u202e\U000e0001é"])
def test_json_that_a_terminal_shows(text: str) -> None:
    shown = names.visible_json(f'["{text}",\n"x"]'.encode()).decode()
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert json.loads(shown) == [text, "x"]
    assert ("é" in shown) is ("é" in text)


def test_status_by_name() -> None:
    """Every name has its own bit, and a status survives conversion to names and back."""
    bits = [names.flow_status_bits((name,)) for name in names.STATUS_NAMES]
    assert [names.status_number(bit) for bit in bits] == [1, 2, 4, 8]
    assert [names.flow_status(bit) for bit in bits] == [(name,) for name in names.STATUS_NAMES]
    for number in range(16):
        status = sum(bit for position, bit in enumerate(bits) if number >> position & 1)
        assert names.flow_status_bits(names.flow_status(status)) == status


def test_numbers_that_have_a_name() -> None:
    """Another release may have written them: early daemons had no name for SCTP and GRE."""
    assert names.protocol_number("132") == PROTO_SCTP
    assert names.hook_number("3") == Hook.OUTPUT


@pytest.mark.parametrize(
    ("to_number", "text"),
    [
        (names.protocol_number, "TCP"),
        (names.protocol_number, "256"),
        (names.protocol_number, "-1"),
        (names.protocol_number, "٣"),
        (names.hook_number, ""),
        (names.hook_number, "1" * 5000),
        (names.tcp_flag_bits, "SS"),
        (names.tcp_flag_bits, "-"),
        (names.tcp_state_number, "OPEN"),
    ],
)
def test_text_that_names_nothing(to_number: Callable[[str], int], text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        to_number(text)


@given(packed=ADDRESSES, port=st.none() | st.integers(0, 0xFFFF))
def test_every_endpoint_survives_its_text(packed: bytes, port: int | None) -> None:
    text = names.address(packed)
    assert text is not None
    assert names.address_bytes(text) == packed
    endpoint = names.endpoint(text, port)
    if port is None and len(packed) == 16:
        endpoint = f"[{endpoint}]"
    assert names.endpoint_parts(endpoint) == (packed, port)


def test_endpoints() -> None:
    assert names.address(b"") is None
    assert names.endpoint("10.0.0.1", 0) == "10.0.0.1:0"
    assert names.endpoint("fd00::1", 80) == "[fd00::1]:80"
    assert names.endpoint("fd00::1", None) == "fd00::1"
    assert names.endpoint(None, None) == "?"
    assert names.endpoint(None, 80) == "?:80"
    assert names.endpoint_parts("10.0.0.1:*") == (bytes((10, 0, 0, 1)), None)
    assert names.endpoint_parts("[::1]") == (bytes(15) + b"\1", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:80",
        "10.0.0.1:65536",
        "10.0.0.1:x",
        "[::1]80",
        "[::1",
        "[::1]*",
        "[10.0.0.1]",
        "[10.0.0.1:80",
        "1.2.3",
        "fd00::1:80",
    ],
)
def test_text_that_is_not_an_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        names.endpoint_parts(text)


def test_ends_of_a_packet_and_of_a_flow() -> None:
    packet = segment()
    assert names.packet_ends(packet) == "10.0.0.1:40000 > 10.0.0.2:80"
    assert names.ports(Packet(4, packet.src, packet.dst, 47, 40, 20, 64, 0, False, None)) == (
        None,
        None,
    )
    assert names.packet_ends(Malformed("cut short")) == "? > ?"
    ends = (packet.src, packet.dst, 7, 8 << 8)
    assert names.tuple_ends(FlowTuple(PROTO_TCP, *ends)) == "10.0.0.1:7 > 10.0.0.2:2048"
    assert names.tuple_ends(FlowTuple(PROTO_ICMP, *ends)) == "10.0.0.1 > 10.0.0.2"


def test_flags_are_written_in_their_usual_order_and_read_in_any() -> None:
    """In the order of events of earlier versions, FIN first."""
    assert [names.tcp_flags(flags) for flags in (3, 0x12, 0x11, 0x14, 0)] == [
        "SF",
        "SA",
        "FA",
        "RA",
        "",
    ]
    assert names.tcp_flag_bits("FS") == names.tcp_flag_bits("SF") == 3
    for wrong in ("SS", "X", "s"):
        with pytest.raises(ValueError, match="SFRPAUEC"):
            names.tcp_flag_bits(wrong)
