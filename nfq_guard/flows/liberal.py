# SPDX-License-Identifier: MIT
"""The flag BE_LIBERAL of single TCP flows, through ctnetlink (kernel.md 3)."""

import errno
import struct
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    Direction,
    FlowSnapshot,
    FlowTuple,
)
from nfq_guard.flows.ctnetlink import (
    ENTRY,
    GET,
    PROTOINFO,
    PROTOINFO_TCP,
    TCP_FLAGS,
    Netlink,
    request,
    snapshot_of,
)
from nfq_guard.netlink.connection import Connection, responses
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    NLM_F_ACK,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_in,
    nested,
)

_ID: Final = 12  # CTA_ID
_FLAGS_AND_MASK: Final = struct.Struct("BB")
# What the handshake settled.
_NEGOTIATED: Final = IP_CT_TCP_FLAG_WINDOW_SCALE | IP_CT_TCP_FLAG_SACK_PERM


@final
@dataclass(frozen=True, slots=True)
class LiberalFlow:
    """One entry.

    Attributes:
        snapshot: The entry without its window.
        identity: The kernel's id of the entry, and the options that both senders have negotiated.
            A later entry with the same tuple has another id, unless it reuses the memory. If it
            began in the middle of the connection, where the kernel makes both senders liberal, it
            lacks the window scales.
        liberal: The directions whose sender has the flag.
    """

    snapshot: FlowSnapshot
    identity: bytes
    liberal: frozenset[Direction]


@final
class LiberalFlag:
    """Reads and sets the flag in the network namespace of its creation; calls raise OSError."""

    def __init__(self, connection: Netlink | None = None) -> None:
        """Connect.

        Args:
            connection: Closed with this; a new one unless given.

        Raises:
            UnavailableError: The kernel has no netfilter netlink.
        """
        self._connection = connection or Connection()
        self._sequence = 0

    def read(self, wanted: FlowTuple, zone: int) -> LiberalFlow | None:
        """The entry of a tuple; None if it cannot be parsed, ENOENT without one."""
        body = self._ask(GET, 0, wanted, zone, b"")
        snapshot = snapshot_of(body, wanted)
        if snapshot is None:
            return None
        flags = snapshot.peer_flags or (0, 0)
        liberal = frozenset(
            direction for direction in Direction if flags[direction] & IP_CT_TCP_FLAG_BE_LIBERAL
        )
        identity = attributes(body[FAMILY_HEADER.size :]).get(_ID, b"")
        identity += bytes(bits & _NEGOTIATED for bits in flags)
        return LiberalFlow(snapshot, identity, liberal)

    def write(
        self, wanted: FlowTuple, zone: int, directions: frozenset[Direction], *, on: bool
    ) -> None:
        """Set or clear the flag of the senders of `directions`; ENOENT without the entry."""
        flags = _FLAGS_AND_MASK.pack(
            IP_CT_TCP_FLAG_BE_LIBERAL if on else 0, IP_CT_TCP_FLAG_BE_LIBERAL
        )
        tcp = (attribute(TCP_FLAGS[direction], flags) for direction in sorted(directions))
        self._ask(ENTRY, NLM_F_ACK, wanted, zone, nested(PROTOINFO, nested(PROTOINFO_TCP, *tcp)))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, kind: int, flags: int, wanted: FlowTuple, zone: int, more: bytes) -> bytes:
        """The body of the kernel's response: an entry, or empty for an acknowledgement.

        The kernel responds before `send` returns: a missing response was lost for lack of memory.
        """
        self._sequence = (self._sequence + 1) & 0x3FFFFFFF
        self._connection.send(request(kind, flags, self._sequence, wanted, zone, more))
        found: bytes | None = None
        code = errno.ENOBUFS
        for answer, sequence, body in responses(self._connection):
            if sequence != self._sequence:
                continue
            if answer == NLMSG_ERROR:
                code = error_in(body)
            elif answer == ENTRY:
                found, code = body, 0
        if code:
            raise OSError(code, errno.errorcode.get(code, str(code)))
        return found or b""
