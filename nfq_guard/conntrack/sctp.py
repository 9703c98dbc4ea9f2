# SPDX-License-Identifier: MIT
"""The SCTP tracker: how a packet is treated, and how it changes its association (kernel.md 1.14).

A diagnosis runs the same code on a copy of the kernel's state of the association.
"""

from typing import Final, final

from nfq_guard.conntrack.details import (
    EMPTY_CHUNK,
    INIT_CUT,
    NO_CHUNK,
    NOT_ALONE,
    NOT_FIRST,
    OTHER_INIT,
    OTHER_TAG,
    SCTP_TRANSITIONS,
    SCTP_WITHOUT_ENTRY,
)
from nfq_guard.conntrack.entry import ACCEPT, INVALID
from nfq_guard.conntrack.sctp_states import MOVE_INVALID, SCTP_MOVES
from nfq_guard.finding import Reason
from nfq_guard.flow import Association, SctpState
from nfq_guard.wire.packet import Chunk, SctpPacket
from nfq_guard.wire.sctp import (
    ABORT,
    COOKIE_ACK,
    COOKIE_ECHO,
    DATA,
    HEARTBEAT,
    HEARTBEAT_ACK,
    INIT,
    INIT_ACK,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
    T_BIT,
)

_NONE: Final = int(SctpState.NONE)
_CLOSED: Final = int(SctpState.CLOSED)
_COOKIE_ECHOED: Final = int(SctpState.COOKIE_ECHOED)
_ESTABLISHED: Final = int(SctpState.ESTABLISHED)
_HEARTBEAT_SENT: Final = int(SctpState.HEARTBEAT_SENT)

# Chunks that stand alone in their packet, and those that come first in it (RFC 9260 6.10).
_ALONE: Final = (INIT, INIT_ACK, SHUTDOWN_COMPLETE)
_FIRST: Final = (COOKIE_ECHO, COOKIE_ACK)
# For a packet with one of these, the tag of its direction is not checked as a whole.
_TAGGED_BY_CHUNK: Final = frozenset(
    {INIT, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN_ACK, COOKIE_ECHO, SHUTDOWN_COMPLETE}
)
# A packet with one of these opens no entry.
_NEVER_OPEN: Final = frozenset({ABORT, COOKIE_ACK, SHUTDOWN_COMPLETE})


def problem_of(packet: SctpPacket) -> str:
    """The problem with the order or length of chunks, a fixed phrase; empty if none."""
    alone = False
    for place, chunk in enumerate(packet.chunks):
        kind = chunk.type
        alone = alone or kind in _ALONE
        if chunk.length == 0:
            return EMPTY_CHUNK
        if place and alone:
            return NOT_ALONE
        if place and kind in _FIRST:
            return NOT_FIRST
    return ""


@final
class SctpTracker:
    """Follows the packets of any number of associations.

    Attributes:
        reason: Why the last INVALID packet is INVALID.
        detail: A fixed phrase with more detail; may be empty.
        refreshes: Whether the last accepted packet extends the life of its entry.
        assures: Whether it makes its entry ASSURED.
    """

    def __init__(self) -> None:
        """Follow packets."""
        self.reason = Reason.MALFORMED
        self.detail = ""
        self.refreshes = True
        self.assures = False

    def open(self, packet: SctpPacket) -> Association | None:
        """The association that a packet opens, after the packet; None if it opens none.

        `reason` says why it opens none.
        """
        association = Association()
        for chunk in packet.chunks:
            kind = chunk.type
            if kind in _NEVER_OPEN or SCTP_MOVES[0][kind][_NONE] == _NONE:
                self._refuse(Reason.NO_ENTRY, SCTP_WITHOUT_ENTRY[kind])
                return None
            if kind == INIT:
                association.tag_reply = chunk.initiate_tag
            elif kind == SHUTDOWN_ACK:
                association.tag_reply = packet.tag
            elif kind == HEARTBEAT:
                association.tag_original = packet.tag
        if self._take(association, packet, 0, True) == ACCEPT:  # noqa: FBT003 - as `_take`
            return association
        if self.reason is Reason.BAD_TAG and packet.chunks[0].type != INIT:
            # There is no association yet whose tag could be compared.
            self._refuse(Reason.NO_ENTRY, SCTP_WITHOUT_ENTRY[packet.chunks[0].type])
        return None

    def follow(self, association: Association, packet: SctpPacket, direction: int) -> int:
        """Judge one packet of `association` and take it into account.

        Args:
            association: The association.
            packet: With chunks in an order that passes `problem_of`.
            direction: 0 original, 1 reply.

        Returns:
            `ACCEPT` or `INVALID` (`reason` says why).
        """
        return self._take(association, packet, direction, False)  # noqa: FBT003 - as `_take`

    def _take(
        self,
        association: Association,
        packet: SctpPacket,
        direction: int,
        fresh: bool,  # noqa: FBT001 - positional on the packet path
    ) -> int:
        self.refreshes = True
        self.assures = False
        chunks = packet.chunks
        if not chunks:
            return self._refuse(Reason.MALFORMED, NO_CHUNK)
        kinds = {chunk.type for chunk in chunks}
        has_data = DATA in kinds
        tag = packet.tag
        if kinds.isdisjoint(_TAGGED_BY_CHUNK) and tag != association.tag(direction):
            return self._refuse(Reason.BAD_TAG, OTHER_TAG)
        for chunk in chunks:
            kind = chunk.type
            if not _has_tag(association, chunk, tag, direction):
                return self._refuse(Reason.BAD_TAG, OTHER_TAG)
            if kind in (HEARTBEAT, HEARTBEAT_ACK):
                if not self._probe(association, kind, tag, direction, has_data):
                    return self._refuse(Reason.BAD_TAG, OTHER_TAG)
                if not self.refreshes:
                    continue
            elif kind == COOKIE_ACK:
                association.inits = 0
            state = association.state
            move = SCTP_MOVES[direction][kind][state]
            if move == MOVE_INVALID:
                return self._refuse(Reason.BAD_TRANSITION, SCTP_TRANSITIONS[direction][kind][state])
            if kind in (INIT, INIT_ACK) and (
                self._initiate(association, chunk, direction, fresh) == INVALID
            ):
                return INVALID
            association.state = move
            if move == _ESTABLISHED and (
                state == _COOKIE_ECHOED or (state == _HEARTBEAT_SENT and direction == 1)
            ):
                self.assures = True
        return ACCEPT

    def _probe(
        self,
        association: Association,
        kind: int,
        tag: int,
        direction: int,
        has_data: bool,  # noqa: FBT001 - positional on the packet path
    ) -> bool:
        """Take a heartbeat into account; whether it may carry `tag`.

        That is how an end learns the tags after a new path or a restart.
        """
        known = association.tag(direction)
        if known == 0:
            association.learn_tag(direction, tag)
        elif known != tag:
            if has_data:
                return False
            if kind == HEARTBEAT:
                if not self.refreshes:
                    return False  # the second of this packet
                association.heartbeat_failed = True
                association.last_dir = direction
                self.refreshes = False
            elif association.heartbeat_failed and association.last_dir != direction:
                association.heartbeat_failed = False
                association.learn_tag(direction, tag)
                association.learn_tag(1 - direction, 0)
            else:
                return False
        else:
            association.heartbeat_failed = False
        return True

    def _initiate(
        self,
        association: Association,
        chunk: Chunk,
        direction: int,
        fresh: bool,  # noqa: FBT001 - positional on the packet path
    ) -> int:
        """Learn the tag of an INIT or INIT ACK, unless it contradicts a known one."""
        if chunk.initiate_tag < 0:
            return self._refuse(Reason.MALFORMED, INIT_CUT)
        other = 1 - direction
        mine = association.inits >> direction & 1
        theirs = association.inits >> other & 1
        known = association.tag(other)
        if chunk.type == INIT:
            if fresh or known != chunk.initiate_tag:
                if mine and theirs:
                    association.inits &= ~(1 << other)
                association.inits |= 1 << direction
            if association.state == _CLOSED and not fresh:
                self.refreshes = False
        elif known != chunk.initiate_tag and ((not theirs and known != 0) or (mine and theirs)):
            return self._refuse(Reason.BAD_TAG, OTHER_INIT)
        association.learn_tag(other, chunk.initiate_tag)
        return ACCEPT

    def _refuse(self, reason: Reason, detail: str) -> int:
        self.reason = reason
        self.detail = detail
        return INVALID


def _has_tag(association: Association, chunk: Chunk, tag: int, direction: int) -> bool:
    """Whether the packet's tag is one that this chunk may carry (RFC 9260 8.5.1)."""
    kind = chunk.type
    if kind == INIT:
        return tag == 0
    if kind == COOKIE_ECHO:
        return tag == association.tag(direction)
    if kind in (ABORT, SHUTDOWN_COMPLETE):
        if chunk.flags & T_BIT:
            return tag == association.tag(1 - direction)
        return tag == association.tag(direction)
    return True
