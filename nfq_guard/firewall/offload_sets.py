# SPDX-License-Identifier: MIT
"""Adds flows to the sets of our nftables table by netlink.

This needs CAP_NET_ADMIN but not root, and no program: 25 us for one flow, 4 us for each further one
in the same message. The kernel applies a message whole or not at all.
"""

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.firewall.nft_query import FAMILY_INET, NFTABLES
from nfq_guard.firewall.offload import COUNTER, SETS, TABLE, set_name
from nfq_guard.flow import Hook
from nfq_guard.netlink.connection import Connection
from nfq_guard.netlink.messages import (
    NLM_F_ACK,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_in,
    message,
    nested,
)

# From the kernel's user interface (linux/netfilter/nfnetlink.h, nf_tables.h).
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NEW_ELEMENTS: Final = NFTABLES << 8 | 12
_DELETE_ELEMENTS: Final = NFTABLES << 8 | 14
_NEW_OBJECT: Final = NFTABLES << 8 | 18
_RESET_OBJECT: Final = NFTABLES << 8 | 21
_NLM_F_CREATE: Final = 0x400
_ELEMENTS_TABLE: Final = 1
_ELEMENTS_SET: Final = 2
_ELEMENTS: Final = 3
_ONE: Final = 1
_KEY: Final = 1
_TIMEOUT: Final = 4
_VALUE: Final = 1
_OBJECT_TABLE: Final = 1
_OBJECT_NAME: Final = 2
_OBJECT_TYPE: Final = 3
_OBJECT_DATA: Final = 4
_COUNTER_PACKETS: Final = 2
_COUNTER_TYPE: Final = struct.pack(">I", 1)

_TABLE_NAME: Final = TABLE.encode() + b"\0"
_HOOKS: Final = {Hook.PREROUTING: "prerouting", Hook.OUTPUT: "output"}
_INTERFACE: Final = struct.Struct("=I")
_PORTS: Final = struct.Struct(">HxxHxx")
_MILLISECONDS: Final = struct.Struct(">Q")
# Elements in one message; the attribute that holds them ends at 64 KB.
MOST_IN_ONE: Final = 128


@final
@dataclass(frozen=True, slots=True)
class OneWay:
    """One direction of a TCP flow, at one hook.

    Attributes:
        hook: `Hook.PREROUTING` or `Hook.OUTPUT`.
        interface: Name of the interface by which its packets arrive or leave.
        src: Source address, 4 or 16 octets.
        dst: Destination address, of the same length.
        sport: Source port.
        dport: Destination port.
    """

    hook: int
    interface: str
    src: bytes
    dst: bytes
    sport: int
    dport: int


@final
class OffloadSets:
    """The sets in the network namespace of the creator; the table may appear and vanish."""

    def __init__(self) -> None:
        """Connect to the kernel.

        Raises:
            UnavailableError: The kernel has no netfilter netlink.
        """
        self._connection = Connection()
        self._sequence = 0

    def add(self, flows: Sequence[tuple[OneWay, float]]) -> None:
        """Drop the INVALID packets of flows, each for its number of seconds; all flows or none.

        A flow whose interface no longer exists is skipped.

        Args:
            flows: At most `MOST_IN_ONE` flows.

        Raises:
            OSError: ENOENT: no table of ours; ENFILE: a set is full; EPERM: CAP_NET_ADMIN is
                missing.
        """
        by_set: dict[str, list[bytes]] = {}
        for flow, seconds in flows:
            family = 4 if len(flow.src) == 4 else 6
            try:
                index = socket.if_nametoindex(flow.interface)
            except OSError:
                continue
            key = _INTERFACE.pack(index) + flow.src + flow.dst + _PORTS.pack(flow.sport, flow.dport)
            timeout = _MILLISECONDS.pack(max(1, int(seconds * 1000)))
            element = nested(
                _ONE,
                nested(_KEY, attribute(_VALUE, key)),
                attribute(_TIMEOUT, timeout),
            )
            name = set_name(_HOOKS[Hook(flow.hook)], family)
            by_set.setdefault(name, []).append(element)
        self._change(
            [
                (_NEW_ELEMENTS, _NLM_F_CREATE, _of_set(name) + nested(_ELEMENTS, *elements))
                for name, elements in by_set.items()
            ]
        )

    def clear(self) -> None:
        """Empty all sets at once.

        Raises:
            OSError: As `add`.
        """
        self._change([(_DELETE_ELEMENTS, 0, _of_set(name)) for name in SETS])

    def take_dropped(self) -> int:
        """Packets that the kernel dropped since the last call of any process.

        Raises:
            OSError: As `add`.
        """
        self._sequence += 1
        body = (
            attribute(_OBJECT_TABLE, _TABLE_NAME)
            + attribute(_OBJECT_NAME, COUNTER.encode() + b"\0")
            + attribute(_OBJECT_TYPE, _COUNTER_TYPE)
        )
        self._connection.send(message(_RESET_OBJECT, 0, self._sequence, FAMILY_INET, 0, body))
        for kind, content in self._answers():
            if kind == NLMSG_ERROR:
                _raise(content)
            elif kind == _NEW_OBJECT:
                data = attributes(attributes(content[4:]).get(_OBJECT_DATA, b""))
                return int.from_bytes(data.get(_COUNTER_PACKETS, b""), "big")
        raise OSError(errno.EPROTO, "the kernel did not answer")

    def close(self) -> None:
        """Close the connection; elements stay in the sets until they time out."""
        self._connection.close()

    def _change(self, changes: list[tuple[int, int, bytes]]) -> None:
        self._sequence += 1
        number = self._sequence
        parts = [message(_BATCH_BEGIN, 0, number, 0, NFTABLES, b"")]
        parts += [
            message(kind, flags | NLM_F_ACK, number, FAMILY_INET, 0, body)
            for kind, flags, body in changes
        ]
        parts.append(message(_BATCH_END, 0, number, 0, NFTABLES, b""))
        self._connection.send(b"".join(parts))
        for kind, content in self._answers():
            if kind == NLMSG_ERROR:
                _raise(content)

    def _answers(self) -> list[tuple[int, bytes]]:
        """The kernel's responses to the last message; earlier responses are skipped."""
        found: list[tuple[int, bytes]] = []
        while (received := self._connection.receive()) is not None:
            found += [
                (kind, content) for kind, number, content in received if number == self._sequence
            ]
        return found


def _of_set(name: str) -> bytes:
    return attribute(_ELEMENTS_TABLE, _TABLE_NAME) + attribute(_ELEMENTS_SET, name.encode() + b"\0")


def _raise(content: bytes) -> None:
    """Raise the error in a response, if there is one."""
    code = error_in(content)
    if code:
        raise OSError(code, os.strerror(code))
