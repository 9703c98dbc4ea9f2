# SPDX-License-Identifier: MIT
import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.nfqueue import requests


def test_verdict_ends_with_the_id() -> None:
    message = requests.verdict(requests.TYPE_VERDICT, 7, 1, None) + struct.pack("!I", 99)
    length, kind, flags = struct.unpack_from("=IHH", message)
    assert (length, kind, flags) == (len(message), 0x301, 1)
    assert message[20:] == struct.pack("=HH", 12, 2) + struct.pack("!II", 1, 99)


def test_verdict_with_a_mark_still_ends_with_the_id() -> None:
    message = requests.verdict(requests.TYPE_VERDICT_BATCH, 7, 0, 0x1000) + struct.pack("!I", 99)
    assert struct.unpack_from("=IH", message) == (len(message), 0x303)
    assert message[20:28] == struct.pack("=HH", 8, 3) + struct.pack("!I", 0x1000)
    assert message[28:] == struct.pack("=HH", 12, 2) + struct.pack("!II", 0, 99)


def test_queue_number_is_in_network_order() -> None:
    assert requests.config_flags(0x0102, requests.CONFIG_GSO)[18:20] == b"\x01\x02"


def test_errors_are_told_from_packets() -> None:
    error = struct.pack("=IHHIIi", 36, 2, 0, 4, 0, -95) + bytes(16)
    assert requests.error_of(error) == (95, 4)
    assert requests.error_of(bytes(60)) is None


@given(st.binary(max_size=200))
def test_any_octets_are_read(message: bytes) -> None:
    requests.error_of(message)
