# SPDX-License-Identifier: MIT
import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.nfqueue import netlink


def packet_message(*attributes: tuple[int, bytes]) -> bytes:
    """A packet message as the kernel lays it out: each attribute padded but the last."""
    body = bytes(20)
    for index, (kind, value) in enumerate(attributes):
        body += struct.pack("=HH", 4 + len(value), kind) + value
        if index < len(attributes) - 1:
            body += bytes(-len(value) % 4)
    return body


def test_verdict_ends_with_the_id() -> None:
    message = netlink.verdict(netlink.TYPE_VERDICT, 7, 1, None) + struct.pack("!I", 99)
    length, kind, flags = struct.unpack_from("=IHH", message)
    assert (length, kind, flags) == (len(message), 0x301, 1)
    assert message[20:] == struct.pack("=HH", 12, 2) + struct.pack("!II", 1, 99)


def test_verdict_with_a_mark_still_ends_with_the_id() -> None:
    message = netlink.verdict(netlink.TYPE_VERDICT_BATCH, 7, 0, 0x1000) + struct.pack("!I", 99)
    assert struct.unpack_from("=IH", message) == (len(message), 0x303)
    assert message[20:28] == struct.pack("=HH", 8, 3) + struct.pack("!I", 0x1000)
    assert message[28:] == struct.pack("=HH", 12, 2) + struct.pack("!II", 0, 99)


def test_queue_number_is_in_network_order() -> None:
    assert netlink.config_flags(0x0102, netlink.CONFIG_GSO)[18:20] == b"\x01\x02"


def test_skb_info_right_before_the_payload() -> None:
    message = packet_message((1, bytes(7)), (14, b"\0\0\0\4"), (10, b"E" * 42))
    assert netlink.skb_info(message, 42) == netlink.SKB_CHECKSUM_UNVERIFIED


def test_skb_info_elsewhere() -> None:
    """A kernel that puts something between still tells us."""
    message = packet_message((1, bytes(7)), (14, b"\0\0\0\3"), (21, bytes(4)), (10, b"E" * 42))
    assert netlink.skb_info(message, 42) == netlink.SKB_CHECKSUM_UNFINISHED | netlink.SKB_GSO


def test_no_skb_info() -> None:
    assert netlink.skb_info(packet_message((1, bytes(7)), (10, b"E" * 42)), 42) == 0


def test_hardware_address_that_looks_like_skb_info() -> None:
    """A sender may choose its address so; all it gets is what a packet without bits gets."""
    spoof = bytes.fromhex("0006000008000e00ffff0000")
    assert netlink.skb_info(packet_message((9, spoof), (10, b"E" * 42)), 42) == 0


def test_errors_are_told_from_packets() -> None:
    error = struct.pack("=IHHIIi", 36, 2, 0, 4, 0, -95) + bytes(16)
    assert netlink.error_of(error) == (95, 4)
    assert netlink.error_of(packet_message((10, b"E"))) is None


@given(st.binary(max_size=200), st.integers(0, 4000))
def test_any_octets_are_read(message: bytes, payload_len: int) -> None:
    assert 0 <= netlink.skb_info(message, payload_len) <= 255
    netlink.error_of(message)
