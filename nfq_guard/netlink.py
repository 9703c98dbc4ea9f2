# SPDX-License-Identifier: MIT
"""Netfilter's netlink messages, as far as we speak them: headers and attributes; no socket."""

import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLMSG_ERROR: Final = 2
HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
FAMILY_HEADER: Final = struct.Struct(">BBH")  # address family, version 0, resource id
ERROR: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four octets."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    """One request to a netfilter subsystem; `resource` is the queue or group where it has one."""
    length = HEADER.size + FAMILY_HEADER.size + len(body)
    return b"".join(
        (
            HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0),
            FAMILY_HEADER.pack(family, 0, resource),
            body,
        )
    )


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence and body of each message in `datagram`; what is cut short ends it."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = HEADER.unpack_from(datagram, at)
        if length < HEADER.size or at + length > len(datagram):
            return
        yield kind, sequence, datagram[at + HEADER.size : at + length]
        at += length + 3 & ~3


def attributes(octets: bytes) -> dict[int, bytes]:
    """Payloads by attribute type; of a repeated one the last, and what is cut short ends it."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size or at + length > len(octets):
            break
        found[kind & _TYPE_MASK] = octets[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found
