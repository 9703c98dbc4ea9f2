# SPDX-License-Identifier: MIT
"""A flow: its tuple, its state, its window, and how this host translates it.

Values on the packet path (`Peer`, `FlowSnapshot` and those of `wire.packet`) are dataclasses
with a written-out `__init__`: compiled, such a constructor takes 30 ns, that of a frozen dataclass
550. Their immutability is therefore not enforced. Only `conntrack` assigns to the attributes of a
`Peer`, and only to those of its own entries; a snapshot holds copies.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Literal, TypeAlias, final

from nfq_guard.seqno import Seq

IPV4: Final = 4
IPV6: Final = 6

PROTO_ICMP: Final = 1
PROTO_TCP: Final = 6
PROTO_UDP: Final = 17
PROTO_DCCP: Final = 33
PROTO_GRE: Final = 47
PROTO_ICMPV6: Final = 58
PROTO_SCTP: Final = 132
PROTO_UDPLITE: Final = 136


class Direction(IntEnum):
    """The direction of a packet in its flow, as in the conntrack entry (kernel.md 1.1)."""

    ORIGINAL = 0
    REPLY = 1


class Hook(IntEnum):
    """The netfilter hook at which a packet was queued."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class TcpState(IntEnum):
    """Conntrack's TCP states, by their numbers in the kernel's user interface."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class SctpState(IntEnum):
    """Conntrack's SCTP states, by their numbers in the kernel's user interface."""

    NONE = 0
    CLOSED = 1
    COOKIE_WAIT = 2
    COOKIE_ECHOED = 3
    ESTABLISHED = 4
    SHUTDOWN_SENT = 5
    SHUTDOWN_RECD = 6
    SHUTDOWN_ACK_SENT = 7
    HEARTBEAT_SENT = 8
    HEARTBEAT_ACKED = 9


class CtState(StrEnum):
    """What `-m conntrack --ctstate` matches."""

    NEW = "NEW"
    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    INVALID = "INVALID"
    UNTRACKED = "UNTRACKED"


class Nat(StrEnum):
    """How this host translates a flow."""

    NONE = "none"
    SNAT = "snat"
    DNAT = "dnat"
    BOTH = "both"
    UNKNOWN = "unknown"


_TRANSLATED: Final = frozenset({Nat.SNAT, Nat.DNAT, Nat.BOTH})


def escapes(verdict: str, nat: str, *, leak: bool) -> bool:
    """Whether an INVALID packet left untranslated though it should have been translated.

    Args:
        verdict: Its verdict, as in its event.
        nat: How the host translates its flow: a `Nat`, or as in its event.
        leak: Whether it has the source of a translated flow, and no flow.
    """
    return verdict == "accept" and (leak or nat in _TRANSLATED)


class Evidence(StrEnum):
    """The source of a flow's window, or its substitute.

    KERNEL_LOG: the entry without its window, and the reason from the kernel's log of the packet.
    """

    BPF = "bpf"
    KERNEL_LOG = "kernel-log"
    CTNETLINK = "ctnetlink"
    REPLAY = "replay"
    NONE = "none"


# The evidence that an operator can choose; `auto` is the best that the host offers.
EvidenceChoice = Literal["auto", "bpf", "kernel-log", "ctnetlink"]

# Bits of `FlowSnapshot.status`, by the kernel's names (nf_conntrack_common.h).
IPS_SEEN_REPLY: Final = 1 << 1
IPS_ASSURED: Final = 1 << 2
IPS_CONFIRMED: Final = 1 << 3
IPS_SRC_NAT: Final = 1 << 4
IPS_DST_NAT: Final = 1 << 5
# A conntrack helper has changed the length of its data, as that of FTP does with an address.
IPS_SEQ_ADJUST: Final = 1 << 6
IPS_DYING: Final = 1 << 9
IPS_OFFLOAD: Final = 1 << 14

# Bits of `Peer.flags` and `FlowSnapshot.last_flags`, by the kernel's names (kernel.md 1.1).
IP_CT_TCP_FLAG_WINDOW_SCALE: Final = 0x01
IP_CT_TCP_FLAG_SACK_PERM: Final = 0x02
IP_CT_TCP_FLAG_CLOSE_INIT: Final = 0x04
IP_CT_TCP_FLAG_BE_LIBERAL: Final = 0x08
IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED: Final = 0x10
IP_CT_TCP_FLAG_MAXACK_SET: Final = 0x20
IP_CT_EXP_CHALLENGE_ACK: Final = 0x40
IP_CT_TCP_SIMULTANEOUS_OPEN: Final = 0x80

_NAT_BY_STATUS: Final = (Nat.NONE, Nat.SNAT, Nat.DNAT, Nat.BOTH)
# The bits of `FlowSnapshot.status` that say so; `Nat.UNKNOWN` has none.
NAT_STATUS: Final = {nat: number << 4 for number, nat in enumerate(_NAT_BY_STATUS)}


@final
@dataclass(init=False, slots=True)
class FlowTuple:
    """The key of a lookup: one direction of a flow, as on the wire there.

    Attributes:
        proto: IP protocol number.
        src: Source address, 4 or 16 octets.
        dst: Destination address, as long as `src`.
        sport: Source port; for ICMP the identifier.
        dport: Destination port; for ICMP `type << 8 | code`.
    """

    proto: int
    src: bytes
    dst: bytes
    sport: int
    dport: int

    def __init__(self, proto: int, src: bytes, dst: bytes, sport: int, dport: int) -> None:
        self.proto = proto
        self.src = src
        self.dst = dst
        self.sport = sport
        self.dport = dport


# One flow in both directions: protocol, the lower end's address, the higher end's, their ports.
FlowKey = tuple[int, bytes, bytes, int, int]


def key_of_ends(proto: int, src: bytes, dst: bytes, sport: int, dport: int) -> FlowKey:
    """The key of a flow, from a packet of either direction."""
    if src < dst or (src == dst and sport <= dport):
        return proto, src, dst, sport, dport
    return proto, dst, src, dport, sport


# By protocol: each type of ICMP request, and the type of its reply (kernel.md 2).
_ICMP_REPLIES: Final = {
    PROTO_ICMP: {8: 0, 13: 14, 15: 16, 17: 18},
    PROTO_ICMPV6: {128: 129, 139: 140},
}
_ICMP_COUNTERPARTS: Final = {
    proto: {**replies, **{reply: request for request, reply in replies.items()}}
    for proto, replies in _ICMP_REPLIES.items()
}


def is_icmp_request(proto: int, kind: int) -> bool:
    """Whether an ICMP message of this type opens a flow."""
    return kind in _ICMP_REPLIES[proto]


def icmp_counterpart(proto: int, kind: int) -> int | None:
    """The reply type of an ICMP request, or the request type of a reply; None for other types."""
    return _ICMP_COUNTERPARTS[proto].get(kind)


def answering(sent: FlowTuple) -> FlowTuple:
    """The tuple of the reply without translation: both ends swapped.

    For ICMP the identifier stays and a request becomes its reply; a type without a counterpart
    stays too, and conntrack has no flow for it.
    """
    if sent.proto not in _ICMP_COUNTERPARTS:
        return FlowTuple(sent.proto, sent.dst, sent.src, sent.dport, sent.sport)
    kind = sent.dport >> 8
    counterpart = icmp_counterpart(sent.proto, kind)
    reply = (kind if counterpart is None else counterpart) << 8 | sent.dport & 0xFF
    return FlowTuple(sent.proto, sent.dst, sent.src, sent.sport, reply)


@final
@dataclass(init=False, slots=True)
class Peer:
    """The state of one end of a TCP flow (kernel.md 1.1).

    Attributes:
        td_end: Highest sequence number sent, plus one for SYN and FIN.
        td_maxend: Rightmost sequence number the other end agreed to take.
        td_maxwin: Largest window offered, in bytes, already scaled; 0: not seen yet.
        td_maxack: Highest acknowledgement sent; valid with `IP_CT_TCP_FLAG_MAXACK_SET`.
        td_scale: Shift of the windows that it offers, 0 to 14.
        flags: `IP_CT_*` bits.
    """

    td_end: Seq
    td_maxend: Seq
    td_maxwin: int
    td_maxack: Seq
    td_scale: int
    flags: int

    def __init__(
        self, td_end: Seq, td_maxend: Seq, td_maxwin: int, td_maxack: Seq, td_scale: int, flags: int
    ) -> None:
        self.td_end = td_end
        self.td_maxend = td_maxend
        self.td_maxwin = td_maxwin
        self.td_maxack = td_maxack
        self.td_scale = td_scale
        self.flags = flags


@final
@dataclass(init=False, slots=True)
class Association:
    """Conntrack's state of one SCTP association (kernel.md 1.14).

    Attributes:
        state: `SctpState` number.
        tag_original: The verification tag that packets of the original direction carry; 0: unknown.
        tag_reply: The same for the reply direction.
        inits: Bit 0: an INIT of the original direction counts; bit 1: one of the reply direction.
            This and what follows is not in the kernel's user interface.
        heartbeat_failed: Whether the last HEARTBEAT carried another tag.
        last_dir: Direction of that HEARTBEAT.
    """

    state: int
    tag_original: int
    tag_reply: int
    inits: int
    heartbeat_failed: bool
    last_dir: int

    def __init__(
        self,
        state: int = 0,
        tag_original: int = 0,
        tag_reply: int = 0,
        inits: int = 0,
        heartbeat_failed: bool = False,  # noqa: FBT001, FBT002 - as the values of the packet path
        last_dir: int = 0,
    ) -> None:
        self.state = state
        self.tag_original = tag_original
        self.tag_reply = tag_reply
        self.inits = inits
        self.heartbeat_failed = heartbeat_failed
        self.last_dir = last_dir

    def tag(self, direction: int) -> int:
        """The verification tag that packets of `direction` carry; 0: unknown."""
        return self.tag_reply if direction else self.tag_original

    def learn_tag(self, direction: int, tag: int) -> None:
        """Take `tag` as the one that packets of `direction` carry."""
        if direction:
            self.tag_reply = tag
        else:
            self.tag_original = tag


@final
@dataclass(init=False, slots=True)
class SeqShift:
    """How conntrack shifts the sequence numbers of one sender, for a helper or for SYNPROXY.

    Attributes:
        correction_pos: The number up to which `offset_before` is added, and then `offset_after`.
        offset_before: Added to earlier numbers, modulo 2**32.
        offset_after: Added to later ones.
    """

    correction_pos: Seq
    offset_before: int
    offset_after: int

    def __init__(self, correction_pos: Seq, offset_before: int, offset_after: int) -> None:
        self.correction_pos = correction_pos
        self.offset_before = offset_before
        self.offset_after = offset_after


@final
@dataclass(init=False, slots=True)
class FlowSnapshot:
    """One conntrack entry at the time of a packet's lookup.

    Attributes:
        evidence: The source of the snapshot.
        direction: Direction of the packet that was looked up; 0 original, 1 reply.
        original: Tuple of the original direction.
        reply: Tuple of the reply direction; differs from the mirrored `original` under NAT.
        status: `IPS_*` bits.
        mark: Conntrack mark.
        zone: Conntrack zone.
        timeout_s: Seconds until the entry expires.
        state: `TcpState` number; 0 for other protocols.
        peers: The senders of the original and of the reply direction; None where no window was
            read: of another protocol than TCP, or from evidence that has none.
        last_dir: Direction of the last packet that conntrack recorded.
        last_index: Its class (`conntrack.states`).
        last_seq: Its sequence number.
        last_ack: Its acknowledgement number.
        last_end: Its `end`.
        last_win: Its window field, 16 bits, unscaled.
        last_wscale: Window shift of an ignored SYN.
        last_flags: `IP_CT_*` bits of an ignored SYN.
        retrans: How often the same segment was seen again.
        peer_flags: `IP_CT_*` bits of the senders of both directions, from evidence that has them
            without the window; else None.
        association: The association of an SCTP flow; None for other protocols.
        shifts: The shifts of the senders of both directions, with `IPS_SEQ_ADJUST` where they could
            be read; else None. `conntrack.window.as_sender_counts` has applied them to `peers`
            before the packet is judged.
    """

    evidence: Evidence
    direction: int
    original: FlowTuple
    reply: FlowTuple
    status: int
    mark: int
    zone: int
    timeout_s: int
    state: int
    peers: tuple[Peer, Peer] | None
    last_dir: int
    last_index: int
    last_seq: Seq
    last_ack: Seq
    last_end: Seq
    last_win: int
    last_wscale: int
    last_flags: int
    retrans: int
    peer_flags: tuple[int, int] | None
    association: Association | None
    shifts: tuple[SeqShift, SeqShift] | None

    def __init__(
        self,
        evidence: Evidence,
        direction: int,
        original: FlowTuple,
        reply: FlowTuple,
        status: int,
        mark: int,
        zone: int,
        timeout_s: int,
        state: int,
        peers: tuple[Peer, Peer] | None,
        last_dir: int = 0,
        last_index: int = 0,
        last_seq: Seq = Seq(0),  # noqa: B008 - a NewType is the identity
        last_ack: Seq = Seq(0),  # noqa: B008 - as above
        last_end: Seq = Seq(0),  # noqa: B008 - as above
        last_win: int = 0,
        last_wscale: int = 0,
        last_flags: int = 0,
        retrans: int = 0,
        peer_flags: tuple[int, int] | None = None,
        association: Association | None = None,
        shifts: tuple[SeqShift, SeqShift] | None = None,
    ) -> None:
        self.evidence = evidence
        self.direction = direction
        self.original = original
        self.reply = reply
        self.status = status
        self.mark = mark
        self.zone = zone
        self.timeout_s = timeout_s
        self.state = state
        self.peers = peers
        self.last_dir = last_dir
        self.last_index = last_index
        self.last_seq = last_seq
        self.last_ack = last_ack
        self.last_end = last_end
        self.last_win = last_win
        self.last_wscale = last_wscale
        self.last_flags = last_flags
        self.retrans = retrans
        self.peer_flags = peer_flags
        self.association = association
        self.shifts = shifts

    @property
    def nat(self) -> Nat:
        """How the host translates this flow, from the status bits."""
        return _NAT_BY_STATUS[self.status >> 4 & 3]


@final
@dataclass(init=False, slots=True)
class LookupFailed:
    """A failed lookup; it proves nothing about the flow.

    Attributes:
        code: The errno; never ENOENT, which means "no entry".
    """

    code: int

    def __init__(self, code: int) -> None:
        self.code = code


# The result of the lookup of one tuple; None if conntrack has no entry.
LookupResult: TypeAlias = FlowSnapshot | LookupFailed | None
