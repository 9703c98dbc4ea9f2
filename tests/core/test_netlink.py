# SPDX-License-Identifier: MIT
"""Netlink messages: whole, truncated and arbitrary."""

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.netlink.messages import (
    HEADER,
    attribute,
    attributes,
    error_in,
    message,
    messages,
    nested,
)


def test_attributes_nest_and_are_padded() -> None:
    octets = nested(1, attribute(2, b"x"), attribute(3, b"four")) + attribute(4, b"")
    assert len(octets) % 4 == 0
    outer = attributes(octets)
    assert attributes(outer[1]) == {2: b"x", 3: b"four"}
    assert outer[4] == b""


def test_messages_of_one_datagram() -> None:
    one = message(0x101, 0, 7, 2, 0, attribute(1, b"abc"))
    other = message(0x102, 0, 8, 10, 5, b"")
    found = list(messages(one + other))
    assert [(kind, sequence) for kind, sequence, _ in found] == [(0x101, 7), (0x102, 8)]
    assert found[0][2] == one[HEADER.size :]
    assert list(messages(one + other[:-1])) == found[:1]


def test_errors() -> None:
    """A body that is cut short must not read as success."""
    assert error_in(struct.pack("=i", -errno.EPERM) + bytes(16)) == errno.EPERM
    assert error_in(bytes(4)) == 0
    assert error_in(bytes(3)) == errno.EBADMSG


@given(st.binary(max_size=200))
def test_any_octets_end(octets: bytes) -> None:
    """A truncated attribute or one with a wrong length ends the walk, without a result."""
    for payload in attributes(octets).values():
        assert payload in octets
    for _, _, body in messages(octets):
        assert body in octets


def test_attribute_cut_short_ends_the_walk() -> None:
    whole = attribute(1, b"abcd")
    assert attributes(whole + struct.pack("=HH", 3, 2)) == {1: b"abcd"}
    assert attributes(whole + struct.pack("=HH", 12, 2) + b"abc") == {1: b"abcd"}
