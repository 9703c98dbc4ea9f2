# SPDX-License-Identifier: MIT
"""The results of decoding: a `Packet` whose fields are valid, or a `Malformed`.

The docstring of `nfq_guard.flow` gives the reason for dataclasses with a written-out `__init__`.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias, final

from nfq_guard.flow import (
    PROTO_ICMP,
    PROTO_ICMPV6,
    FlowKey,
    FlowTuple,
    answering,
    key_of_ends,
)
from nfq_guard.seqno import Seq

# TCP flags, by their bit in octet 13 of the header (RFC 9293 3.1).
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80


@final
@dataclass(init=False, slots=True)
class Segment:
    """One TCP segment, header checked against its length.

    Attributes:
        sport: Source port.
        dport: Destination port.
        seq: Sequence number of the first byte, or of the SYN.
        ack: The acknowledgement field; valid only with `ACK` in `flags`, but conntrack reads it in
            some RSTs without.
        flags: The eight flag bits.
        window: The window field, 16 bits, unscaled.
        payload_len: Bytes of data on the wire, from the IP header.
        options: The undecoded option octets, as far as captured (`wire.tcp.parse_options`).
        checksum: The checksum field.
    """

    sport: int
    dport: int
    seq: Seq
    ack: Seq
    flags: int
    window: int
    payload_len: int
    options: bytes
    checksum: int

    def __init__(
        self,
        sport: int,
        dport: int,
        seq: Seq,
        ack: Seq,
        flags: int,
        window: int,
        payload_len: int,
        options: bytes,
        checksum: int,
    ) -> None:
        self.sport = sport
        self.dport = dport
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.payload_len = payload_len
        self.options = options
        self.checksum = checksum

    @property
    def end(self) -> Seq:
        """First sequence number after this segment; SYN and FIN take one each."""
        flags = self.flags
        return Seq((self.seq + self.payload_len + (flags >> 1 & 1) + (flags & 1)) & 0xFFFFFFFF)


UDP_HEADER: Final = 8
"""The length of a UDP header, in bytes."""


@final
@dataclass(init=False, slots=True)
class Datagram:
    """One UDP header.

    Attributes:
        sport: Source port.
        dport: Destination port.
        length: The length field, at least 8 and at most what the IP header leaves.
        checksum: The checksum field; 0 in IPv4 means none was computed.
    """

    sport: int
    dport: int
    length: int
    checksum: int

    def __init__(self, sport: int, dport: int, length: int, checksum: int) -> None:
        self.sport = sport
        self.dport = dport
        self.length = length
        self.checksum = checksum


@final
@dataclass(init=False, slots=True)
class IcmpMessage:
    """One ICMP or ICMPv6 header, with the packet that an error quotes.

    Attributes:
        type: Message type.
        code: Message code.
        identifier: Identifier of echo, timestamp and information messages; else 0.
        checksum: The checksum field.
        is_error: Whether conntrack relates it to a flow by the packet it quotes (kernel.md 2).
        quoted: The tuple of that packet as it was sent, in the opposite direction of the error;
            None if too little is quoted. A quoted ICMP message has its identifier as `sport` and
            `type << 8 | code` as `dport`.
    """

    type: int
    code: int
    identifier: int
    checksum: int
    is_error: bool
    quoted: FlowTuple | None

    def __init__(
        self,
        type: int,  # noqa: A002 - RFC 792 calls it so
        code: int,
        identifier: int,
        checksum: int,
        is_error: bool,  # noqa: FBT001 - positional on the packet path
        quoted: FlowTuple | None,
    ) -> None:
        self.type = type
        self.code = code
        self.identifier = identifier
        self.checksum = checksum
        self.is_error = is_error
        self.quoted = quoted


@final
@dataclass(init=False, slots=True)
class Chunk:
    """The header of one SCTP chunk (RFC 9260 3.2).

    Attributes:
        type: Type of chunk (`wire.sctp`).
        flags: The eight flag bits; their meaning depends on the type.
        length: The length field, which counts the header but no padding; 0 to 3 in a broken one.
        initiate_tag: Initiate tag of INIT and INIT ACK; -1 in other chunks, and if it is absent.
    """

    type: int
    flags: int
    length: int
    initiate_tag: int

    def __init__(
        self,
        type: int,  # noqa: A002 - RFC 9260 calls it so
        flags: int,
        length: int,
        initiate_tag: int,
    ) -> None:
        self.type = type
        self.flags = flags
        self.length = length
        self.initiate_tag = initiate_tag


@final
@dataclass(init=False, slots=True)
class SctpPacket:
    """One SCTP common header, and the headers of its chunks.

    Attributes:
        sport: Source port.
        dport: Destination port.
        tag: The verification tag.
        checksum: The checksum field.
        chunks: The chunks in order, up to one of length 0, and as far as captured.
        whole: Whether the capture holds the headers of all chunks.
    """

    sport: int
    dport: int
    tag: int
    checksum: int
    chunks: tuple[Chunk, ...]
    whole: bool

    def __init__(
        self,
        sport: int,
        dport: int,
        tag: int,
        checksum: int,
        chunks: tuple[Chunk, ...],
        whole: bool,  # noqa: FBT001 - positional on the packet path
    ) -> None:
        self.sport = sport
        self.dport = dport
        self.tag = tag
        self.checksum = checksum
        self.chunks = chunks
        self.whole = whole


@final
@dataclass(init=False, slots=True)
class GreHeader:
    """One GRE header, as far as conntrack reads it.

    Attributes:
        version: 0, or 1 for PPTP.
        call: The call identifier of version 1, chosen by the receiver; else 0.
    """

    version: int
    call: int

    def __init__(self, version: int, call: int) -> None:
        self.version = version
        self.call = call


# The transport header of a packet; None for other protocols and for later fragments.
Transport: TypeAlias = Segment | Datagram | IcmpMessage | SctpPacket | GreHeader | None


@final
@dataclass(init=False, slots=True)
class Packet:
    """One IP packet with its transport header.

    Attributes:
        family: `flow.IPV4` or `flow.IPV6`.
        src: Source address, 4 or 16 octets.
        dst: Destination address.
        proto: IP protocol number of the transport header, after IPv6 extension headers.
        length: Octets of the whole packet on the wire, from the IP header.
        l4_offset: Offset of the transport header in the captured octets.
        hop_limit: TTL or hop limit.
        fragment_offset: Fragment offset in octets; not 0 in a fragment without a transport header.
        more_fragments: Whether further fragments follow.
        l4: The transport header; None for other protocols and for later fragments.
    """

    family: int
    src: bytes
    dst: bytes
    proto: int
    length: int
    l4_offset: int
    hop_limit: int
    fragment_offset: int
    more_fragments: bool
    l4: Transport

    def __init__(
        self,
        family: int,
        src: bytes,
        dst: bytes,
        proto: int,
        length: int,
        l4_offset: int,
        hop_limit: int,
        fragment_offset: int,
        more_fragments: bool,  # noqa: FBT001 - positional on the packet path
        l4: Transport,
    ) -> None:
        self.family = family
        self.src = src
        self.dst = dst
        self.proto = proto
        self.length = length
        self.l4_offset = l4_offset
        self.hop_limit = hop_limit
        self.fragment_offset = fragment_offset
        self.more_fragments = more_fragments
        self.l4 = l4


@final
@dataclass(init=False, slots=True)
class Malformed:
    """A packet whose headers contradict themselves or end too early.

    Attributes:
        problem: A fixed phrase such as "TCP header longer than the segment".
        family: 4, 6, or 0 if not even that can be read.
        src: Source address as far as it could be read, else empty.
        dst: Destination address as far as it could be read, else empty.
        proto: Transport protocol as far as it could be read, else 0.
        snapped: Whether the capture ends too early, not the packet.
    """

    problem: str
    family: int
    src: bytes
    dst: bytes
    proto: int
    snapped: bool

    def __init__(
        self,
        problem: str,
        family: int = 0,
        src: bytes = b"",
        dst: bytes = b"",
        proto: int = 0,
        snapped: bool = False,  # noqa: FBT001, FBT002 - as the other values of the packet path
    ) -> None:
        self.problem = problem
        self.family = family
        self.src = src
        self.dst = dst
        self.proto = proto
        self.snapped = snapped


# A tuple of classes: a union would be created for each packet.
_WITH_PORTS: Final = (Segment, Datagram, SctpPacket)
_ICMP: Final = (PROTO_ICMP, PROTO_ICMPV6)


def tuple_of(packet: Packet) -> FlowTuple | None:
    """The tuple by which conntrack finds the flow of `packet`; None if it has none.

    For an ICMP error that is the tuple of a reply to the quoted packet (kernel.md 2). GRE has its
    call identifier in place of the destination port.
    """
    l4 = packet.l4
    if isinstance(l4, _WITH_PORTS):
        return FlowTuple(packet.proto, packet.src, packet.dst, l4.sport, l4.dport)
    if isinstance(l4, IcmpMessage):
        quoted = l4.quoted
        if quoted is not None:
            return answering(quoted)
        if not l4.is_error:
            return FlowTuple(
                packet.proto, packet.src, packet.dst, l4.identifier, l4.type << 8 | l4.code
            )
    if isinstance(l4, GreHeader):
        return FlowTuple(packet.proto, packet.src, packet.dst, 0, l4.call)
    return None


def flow_key(packet: Packet | Malformed) -> FlowKey:
    """The key of a flow, the same for both directions.

    An ICMP error belongs to the flow that it quotes. Without ports, all packets of a protocol
    between two addresses are one flow: the sender chooses the identifier of an ICMP query, which
    must not help a flood to evade a rate limit.
    """
    if isinstance(packet, Packet):
        l4 = packet.l4
        if isinstance(l4, _WITH_PORTS):
            return key_of_ends(packet.proto, packet.src, packet.dst, l4.sport, l4.dport)
        if isinstance(l4, IcmpMessage):
            quoted = l4.quoted
            if quoted is not None:
                if quoted.proto in _ICMP:  # it has an identifier and a type in place of ports
                    return key_of_ends(quoted.proto, quoted.src, quoted.dst, 0, 0)
                return key_of_ends(quoted.proto, quoted.src, quoted.dst, quoted.sport, quoted.dport)
    return key_of_ends(packet.proto, packet.src, packet.dst, 0, 0)


# The kernel's information on the checksum of a queued packet (NFQA_SKB_INFO, kernel.md 5).
CHECKSUM_GOOD: Final = 0
CHECKSUM_UNFINISHED: Final = 1
CHECKSUM_UNVERIFIED: Final = 2


@final
@dataclass(init=False, slots=True)
class Queued:
    """One packet as queued.

    Attributes:
        octets: The octets, IP header first; the tail may be missing; `Packet.length` is the whole
            length.
        hook: `flow.Hook` number.
        indev: Name of the incoming interface, or empty.
        outdev: Name of the outgoing interface, or empty.
        mark: Packet mark.
        checksum: `CHECKSUM_GOOD`, `CHECKSUM_UNFINISHED` if the NIC has yet to compute it, or
            `CHECKSUM_UNVERIFIED` if it was not verified.
        wire_len: Length of the whole packet if the tail is missing, else 0.
    """

    octets: bytes
    hook: int
    indev: str
    outdev: str
    mark: int
    checksum: int
    wire_len: int

    def __init__(
        self,
        octets: bytes,
        hook: int,
        indev: str,
        outdev: str,
        mark: int,
        checksum: int,
        wire_len: int = 0,
    ) -> None:
        self.octets = octets
        self.hook = hook
        self.indev = indev
        self.outdev = outdev
        self.mark = mark
        self.checksum = checksum
        self.wire_len = wire_len
