# SPDX-License-Identifier: MIT
"""Parses the kernel's packet messages (kernel.md 5), attribute by attribute and by index.

When compiled, the whole walk costs less than one call of the library's accessor of one attribute.
"""

import os
import socket
import sys
from typing import Final, final

from nfq_guard.netlink.messages import NLMSG_ERROR
from nfq_guard.wire.packet import (
    CHECKSUM_GOOD,
    CHECKSUM_UNFINISHED,
    CHECKSUM_UNVERIFIED,
    Queued,
)

# Attributes follow the headers of netlink and of nfnetlink.
_ATTRIBUTES_AT: Final = 20
_PACKET_HEADER: Final = 1
_MARK: Final = 3
_TIMESTAMP: Final = 4
_INDEV: Final = 5
_OUTDEV: Final = 6
_PAYLOAD: Final = 10
_WHOLE_LENGTH: Final = 13
_SKB_INFO: Final = 14
# Bits of _SKB_INFO.
_SKB_CHECKSUM_UNFINISHED: Final = 1
_SKB_CHECKSUM_UNVERIFIED: Final = 4
# Offsets of the bytes of a 16-bit number in the byte order of this machine.
_LOW: Final = 0 if sys.byteorder == "little" else 1
_HIGH: Final = 1 - _LOW
# Offsets of the low half of a message's 32-bit length, and of its type.
_LENGTH_AT: Final = 0 if sys.byteorder == "little" else 2
_TYPE_AT: Final = 4
# Maximum number of cached names; a host that keeps creating interfaces uses ever new indexes.
_NAMES_MAX: Final = 4096

# `Queued.checksum` by the bits of _SKB_INFO; an unfinished checksum is never verified either.
_CHECKSUM: Final = tuple(
    CHECKSUM_UNFINISHED
    if bits & _SKB_CHECKSUM_UNFINISHED
    else CHECKSUM_UNVERIFIED
    if bits & _SKB_CHECKSUM_UNVERIFIED
    else CHECKSUM_GOOD
    for bits in range(256)
)


@final
class InterfaceNames:
    """Names of interfaces by index, cached until `forget`."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def of(self, index: int) -> str:
        """The name; empty for index 0, which means no interface."""
        if not index:
            return ""
        name = self._names.get(index)
        return name if name is not None else self._look_up(index)

    def forget(self) -> None:
        """Empty the cache: an interface may have been renamed."""
        self._names = {}

    def _look_up(self, index: int) -> str:
        if len(self._names) >= _NAMES_MAX:
            self.forget()
        try:
            # A name may contain any bytes, and must not break the log.
            octets = os.fsencode(socket.if_indextoname(index))
            name = octets.decode("utf-8", "backslashreplace")
        except (OSError, OverflowError):  # the interface is gone
            name = f"if{index}"
        self._names[index] = name
        return name


def length_of(messages: bytes, start: int) -> int:
    """Length of the message at `start`, from its header; no message of a queue exceeds 65,535."""
    at = start + _LENGTH_AT
    return messages[at + _LOW] | messages[at + _HIGH] << 8


def is_error(messages: bytes, start: int) -> bool:
    """Whether the message at `start` may be an error; the low byte of a packet's type is 0."""
    return messages[start + _TYPE_AT + _LOW] == NLMSG_ERROR


def stamp_of(messages: bytes, start: int, end: int) -> int:
    """When the kernel received the packet of a message, in microseconds of the Unix epoch.

    0 without a timestamp: the kernel takes one only while a program requests it, such as a capture.
    """
    at = start + _ATTRIBUTES_AT
    last = end - 20
    while at <= last:
        length = messages[at + _LOW] | messages[at + _HIGH] << 8
        if messages[at + 2 + _LOW] == _TIMESTAMP:
            # Seconds and microseconds of 64 bits each, whose high halves are 0 until 2106.
            return _number(messages, at + 4) * 1_000_000 + _number(messages, at + 12)
        at += max(length + 3 & ~3, 4)
    return 0


def packet_of(messages: bytes, start: int, end: int, names: InterfaceNames) -> tuple[int, Queued]:
    """The id and the packet of the message from `start` to `end`.

    Values of absent attributes are 0 or empty.
    """
    packet_id = hook = indev = outdev = mark = bits = wire_len = 0
    octets = b""
    at = start + _ATTRIBUTES_AT
    # No attribute that is read here is shorter than eight bytes with its padding.
    last = end - 8
    while at <= last:
        length = messages[at + _LOW] | messages[at + _HIGH] << 8
        kind = messages[at + 2 + _LOW]
        # Compiled code refuses a slice that ends before it begins.
        if kind == _PAYLOAD and length > 4:
            octets = messages[at + 4 : min(at + length, end)]
        elif kind == _PACKET_HEADER and at < last:
            packet_id = _number(messages, at)
            hook = messages[at + 10]
        elif kind == _INDEV:
            indev = _number(messages, at)
        elif kind == _OUTDEV:
            outdev = _number(messages, at)
        elif kind == _MARK:
            mark = _number(messages, at)
        elif kind == _WHOLE_LENGTH:
            wire_len = _number(messages, at)
        elif kind == _SKB_INFO:
            bits = messages[at + 7]
        at += max(length + 3 & ~3, 4)
    checksum = _CHECKSUM[bits]
    return packet_id, Queued(
        octets, hook, names.of(indev), names.of(outdev), mark, checksum, wire_len
    )


def _number(messages: bytes, at: int) -> int:
    """The value of the attribute at `at`: 32 bits in network order."""
    return (
        messages[at + 4] << 24 | messages[at + 5] << 16 | messages[at + 6] << 8 | messages[at + 7]
    )
