# SPDX-License-Identifier: MIT
"""One conntrack entry, and the results of the trackers for its packets."""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.flow import PROTO_TCP, Association, Evidence, FlowSnapshot, FlowTuple, Peer
from nfq_guard.seqno import Seq

# The result for a packet of a flow.
ACCEPT: Final = 0
IGNORE: Final = 1
INVALID: Final = 2
# Accepted, and the entry ends with it.
ACCEPT_LAST: Final = 3
# The entry is over; the packet opens the next one.
REOPEN: Final = 4

Key = tuple[bytes, bytes, int, int]


def key_of(src: bytes, dst: bytes, sport: int, dport: int, proto: int) -> Key:
    """The key of an entry in the flow table: one direction of a flow."""
    return (src, dst, sport << 16 | dport, proto)


def reverse(key: Key) -> Key:
    """The key of packets in the other direction."""
    src, dst, ports, proto = key
    return (dst, src, (ports & 0xFFFF) << 16 | ports >> 16, proto)


class Companion:
    """Base of the data that a replay keeps with an entry."""


@final
@dataclass(init=False, slots=True, eq=False)
class Entry:
    """A flow, changed in place by its tracker.

    Attributes:
        original: Key of the original direction.
        reply: Key of the reply direction.
        created: When its first packet was seen, seconds.
        expires: When it expires unless refreshed, seconds.
        status: `flow.IPS_*` bits.
        state: `flow.TcpState` number; 0 for other protocols.
        peers: Senders of the original and of the reply direction, changed in place; `NO_PEERS`
            for other protocols than TCP.
        association: The association of an SCTP flow, changed in place; None for other protocols.
        stream: Data of the replay for this flow; the tracker does not use it.
        gone: Whether the flow table has dropped it.
        last_dir: Direction of the last segment recorded. This and the fields below are as in
            `flow.FlowSnapshot`.
    """

    original: Key
    reply: Key
    created: float
    expires: float
    status: int
    state: int
    peers: tuple[Peer, Peer]
    association: Association | None
    stream: Companion | None
    gone: bool
    last_dir: int
    last_index: int
    last_seq: Seq
    last_ack: Seq
    last_end: Seq
    last_win: int
    last_wscale: int
    last_flags: int
    retrans: int

    def __init__(self, original: Key, reply: Key, now: float, peers: tuple[Peer, Peer]) -> None:
        self.original = original
        self.reply = reply
        self.created = now
        self.expires = now
        self.status = 0
        self.state = 0
        self.peers = peers
        self.association = None
        self.stream = None
        self.gone = False
        self.last_dir = 0
        self.last_index = 0
        self.last_seq = Seq(0)
        self.last_ack = Seq(0)
        self.last_end = Seq(0)
        self.last_win = 0
        self.last_wscale = 0
        self.last_flags = 0
        self.retrans = 0

    def snapshot(self, direction: int, now: float) -> FlowSnapshot:
        """The entry as a value, seen by a packet of `direction`."""
        peers = self.peers
        association = self.association
        return FlowSnapshot(
            Evidence.REPLAY,
            direction,
            _tuple_of(self.original),
            _tuple_of(self.reply),
            self.status,
            0,
            0,
            max(0, int(self.expires - now)),
            self.state,
            (_copy(peers[0]), _copy(peers[1])) if self.original[3] == PROTO_TCP else None,
            self.last_dir,
            self.last_index,
            self.last_seq,
            self.last_ack,
            self.last_end,
            self.last_win,
            self.last_wscale,
            self.last_flags,
            self.retrans,
            association=None if association is None else copied(association),
        )


def copied(association: Association) -> Association:
    """An independent copy."""
    return Association(
        association.state,
        association.tag_original,
        association.tag_reply,
        association.inits,
        association.heartbeat_failed,
        association.last_dir,
    )


def new_peer() -> Peer:
    """One end of a flow of which nothing is known."""
    return Peer(Seq(0), Seq(0), 0, Seq(0), 0, 0)


# Shared by all entries that have no window.
NO_PEERS: Final = (new_peer(), new_peer())


def _tuple_of(key: Key) -> FlowTuple:
    src, dst, ports, proto = key
    return FlowTuple(proto, src, dst, ports >> 16, ports & 0xFFFF)


def _copy(peer: Peer) -> Peer:
    return Peer(
        peer.td_end, peer.td_maxend, peer.td_maxwin, peer.td_maxack, peer.td_scale, peer.flags
    )
