# SPDX-License-Identifier: MIT
"""SCTP associations as a capture shows them: whether it holds their whole handshake."""

from typing import Final, final

from nfq_guard.conntrack.table import CT_NEW
from nfq_guard.flow import FlowKey
from nfq_guard.wire.packet import Packet, SctpPacket, flow_key
from nfq_guard.wire.sctp import ABORT, INIT, INIT_ACK

_BOTH: Final = 2


@final
class Association:
    """What the capture shows of one association.

    Attributes:
        opened: Whether conntrack took its INIT.
        answered: Whether an INIT ACK or ABORT followed.
        addresses: The addresses that sent packets.
    """

    def __init__(self) -> None:
        """An association that nothing is known of."""
        self.opened = False
        self.answered = False
        self.addresses: tuple[bytes, ...] = ()

    @property
    def both_ways(self) -> bool:
        """Whether both ends sent packets."""
        return len(self.addresses) == _BOTH


@final
class Associations:
    """The associations of a capture; all are forgotten together when there are too many."""

    def __init__(self, capacity: int) -> None:
        """Hold at most `capacity` associations."""
        self._known: dict[FlowKey, Association] = {}
        self._capacity = capacity

    def take(self, packet: Packet, sctp: SctpPacket, code: int) -> None:
        """Take a packet into account.

        Args:
            packet: The packet.
            sctp: Its SCTP header and chunks.
            code: Its ctstate, a code of `conntrack.table`.
        """
        known = self._known
        key = flow_key(packet)
        association = known.get(key)
        if association is None:
            if len(known) >= self._capacity:
                known.clear()
            association = known[key] = Association()
        if packet.src not in association.addresses and not association.both_ways:
            association.addresses += (packet.src,)
        kind = sctp.chunks[0].type if sctp.chunks else -1
        if kind == INIT and code == CT_NEW:
            association.opened = True
            association.answered = False
        elif kind in (INIT_ACK, ABORT) and association.opened:
            association.answered = True

    def of(self, packet: Packet) -> Association | None:
        """The association of a packet that was taken."""
        return self._known.get(flow_key(packet))
