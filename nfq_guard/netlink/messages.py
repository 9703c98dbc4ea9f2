# SPDX-License-Identifier: MIT
"""Builds and parses netfilter's netlink messages: headers, attributes and errors."""

import errno
import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLMSG_ERROR: Final = 2
HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
FAMILY_HEADER: Final = struct.Struct(">BBH")  # address family, version 0, resource id
_ERROR: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    """One request to a netfilter subsystem.

    Args:
        kind: Subsystem in the high byte, message type in the low one.
        flags: `NLM_F_*` besides NLM_F_REQUEST.
        sequence: Returned in the response.
        family: Address family.
        resource: Number of the queue or log group; the subsystem in a batch; else 0.
        body: Attributes.
    """
    length = HEADER.size + FAMILY_HEADER.size + len(body)
    return b"".join(
        (
            HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0),
            FAMILY_HEADER.pack(family, 0, resource),
            body,
        )
    )


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence and body of each message in `datagram`, up to a truncated one."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = HEADER.unpack_from(datagram, at)
        if length < HEADER.size or at + length > len(datagram):
            return
        yield kind, sequence, datagram[at + HEADER.size : at + length]
        at += length + 3 & ~3


def error_in(body: bytes) -> int:
    """The errno in the body of an NLMSG_ERROR message, 0 for an acknowledgement.

    A truncated message gives EBADMSG.
    """
    if len(body) < _ERROR.size:
        return errno.EBADMSG
    (code,) = _ERROR.unpack_from(body)
    return -int(code)


def attributes(octets: bytes) -> dict[int, bytes]:
    """Payloads by type, up to a truncated attribute; for a repeated type the last one."""
    return dict(_each(octets))


def elements(octets: bytes) -> Iterator[bytes]:
    """Payloads of a list, whose attributes all have one type, up to a truncated one."""
    return (payload for _, payload in _each(octets))


def _each(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size or at + length > len(octets):
            return
        yield kind & _TYPE_MASK, octets[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
