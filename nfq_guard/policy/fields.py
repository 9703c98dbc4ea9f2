# SPDX-License-Identifier: MIT
"""The field table: the properties of a packet that a rule can match, one row a field.

Parser, matcher, lint, offload check, printed sentences, JSON Schema and the table of keys in
`rules/policy/README.md` follow from the table. A new field is a row in `FIELDS`, a code, and a
branch of `number_of` (or `name_of`) that takes its number (or name) from a packet.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from nfq_guard.finding import BOUNDS, Finding, Reason
from nfq_guard.flow import (
    IPV4,
    IPV6,
    PROTO_GRE,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_TCP,
    PROTO_UDP,
    Direction,
    Evidence,
    FlowSnapshot,
    Hook,
    Nat,
    TcpState,
)
from nfq_guard.names import STATUS_NAMES, protocol, status_number
from nfq_guard.policy.intervals import (
    ABSENT,
    IPV4_ADDRESSES,
    IPV6_ADDRESSES,
    LAST_ADDRESS,
    IntervalSet,
    address_number,
    from_intervals,
    is_global,
    is_private,
    present,
)
from nfq_guard.wire.packet import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    UDP_HEADER,
    URG,
    Datagram,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)


class Kind(Enum):
    """The syntax of a field's values."""

    WORD = "one of a few words"
    STATUS = "one of a few words, of which a flow can have several"
    NUMBER = "a whole number or a range such as 1024..65535"
    FLAGS = 'TCP flags that are set, with "!" those that are clear, such as "syn !ack"'
    NETWORK = "a network such as 10.0.0.0/8 or fd00::/8, or an address"
    PATTERN = 'the name of an interface, "*" for any letters and "?" for any one'
    MARK = 'a number, or bits under a mask such as "0x10/0xff"'
    SWITCH = "true or false"


class DependsOn(Enum):
    """The facts that a field depends on, for INVALID packets of one direction of a TCP flow.

    A truncated TCP header has no ports, flags or payload, and its flow is not looked up: fields
    that depend on any of these are absent.
    """

    KEY = "hook, interface and addresses: the same in every packet"
    PROTOCOL = "the protocol: the same in every packet unless its header is cut short"
    PORTS = "the ports: the same in every packet whose header is whole"
    ENTRY = "the translation, which does not change while the conntrack entry lives"
    WINDOW = "where the flow was read: the same in every packet once that has the window"
    PACKET = "the packet, or the state of its flow, which any packet may change"
    HOST = "other rules of the host, which may treat each packet differently"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A constraint: certain numbers in one field imply certain numbers in another.

    Attributes:
        numbers: The numbers of the row's own field.
        field: Name of the other field.
        others: The implied numbers of that field.
        otherwise: Why a rule with other numbers can never match.
    """

    numbers: IntervalSet
    field: str
    others: IntervalSet
    otherwise: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One row of the table.

    Attributes:
        name: The key in the file.
        kind: The syntax of its values.
        code: Selects how `number_of` or `name_of` extracts it from a packet.
        depends_on: The facts that determine its value.
        says: A description, for the table of keys and the schema.
        phrase: Its name in printed sentences: "the reason".
        words: For `WORD` and `STATUS` the words, each standing for its position; for a `SWITCH`
            two clauses, for false and for true; for a `NUMBER` the names of some numbers.
        numbers: For a `NUMBER` with names: the numbers that they stand for, in the same order.
        lowest: Smallest number that a file may contain.
        highest: Largest number that a packet can have here.
        needs: Constraints on other fields of a packet with this field.
    """

    name: str
    kind: Kind
    code: int
    depends_on: DependsOn
    says: str
    phrase: str
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    lowest: int = 0
    highest: int = 0
    needs: tuple[Need, ...] = ()

    @property
    def has_intervals(self) -> bool:
        """Whether its conditions are interval sets; those on names and masked marks are not."""
        return self.kind is not Kind.PATTERN and self.kind is not Kind.MARK


# Codes for `number_of`: of the flow, of the network header, of the transport header, the rest.
_NAT: Final = 0
_DIRECTION: Final = 1
_STATE: Final = 2
_STATUS: Final = 3
_EVIDENCE: Final = 4
_CT_MARK: Final = 5
_FAMILY: Final = 6
_PROTO: Final = 7
_SRC: Final = 8
_DST: Final = 9
_TCP_FLAGS: Final = 10
_PAYLOAD: Final = 11
_SPORT: Final = 12
_DPORT: Final = 13
_HOOK: Final = 14
_PACKET_MARK: Final = 15
_DISTANCE: Final = 16
_REASON: Final = 17
_LEAK: Final = 18
# Codes for `name_of`.
_IN: Final = 19
_OUT: Final = 20

LAST_MARK: Final = 0xFFFFFFFF
_LAST_PORT: Final = 0xFFFF
_LAST_DISTANCE: Final = 0x80000000

REASONS: Final = tuple(Reason)
NATS: Final = tuple(Nat)
EVIDENCES: Final = tuple(Evidence)
FAMILIES: Final = ("4", "6")
FLAG_WORDS: Final = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
FLAG_BITS: Final = (FIN, SYN, RST, PSH, ACK, URG, ECE, CWR)

_WITH_BOUND: Final = from_intervals(
    [(number, number) for number, reason in enumerate(REASONS) if reason in BOUNDS]
)
_NAMED_PROTOCOLS: Final = (
    PROTO_TCP,
    PROTO_UDP,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_GRE,
)
_TCP: Final = from_intervals([(PROTO_TCP, PROTO_TCP)])
_TCP_OR_UDP: Final = from_intervals([(PROTO_TCP, PROTO_TCP), (PROTO_UDP, PROTO_UDP)])
_WITH_PORTS: Final = from_intervals(
    [(PROTO_TCP, PROTO_TCP), (PROTO_UDP, PROTO_UDP), (PROTO_SCTP, PROTO_SCTP)]
)
_NEEDS_PORTS: Final = Need(
    numbers=present(_LAST_PORT),
    field="proto",
    others=_WITH_PORTS,
    otherwise="a packet of this protocol has no ports",
)
_FAMILY_4: Final = from_intervals([(0, 0)])
_FAMILY_6: Final = from_intervals([(1, 1)])


def _address_needs(name: str) -> tuple[Need, ...]:
    return (
        Need(
            numbers=IPV4_ADDRESSES,
            field="family",
            others=_FAMILY_4,
            otherwise=f"{name} has no network of family 6",
        ),
        Need(
            numbers=IPV6_ADDRESSES,
            field="family",
            others=_FAMILY_6,
            otherwise=f"{name} has no network of family 4",
        ),
    )


FIELDS: Final = (
    Field(
        name="reason",
        kind=Kind.WORD,
        code=_REASON,
        depends_on=DependsOn.PACKET,
        says="Why the packet is INVALID.",
        phrase="the reason",
        words=tuple(str(reason) for reason in REASONS),
        highest=len(REASONS) - 1,
    ),
    Field(
        name="distance",
        kind=Kind.NUMBER,
        code=_DISTANCE,
        depends_on=DependsOn.PACKET,
        says="Bytes by which the packet exceeds the bound that it broke; only the five reasons"
        " with a bound have one.",
        phrase="the distance beyond the bound in bytes",
        lowest=1,
        highest=_LAST_DISTANCE,
        needs=(
            Need(
                numbers=present(_LAST_DISTANCE),
                field="reason",
                others=_WITH_BOUND,
                otherwise="a packet of these reasons has no distance",
            ),
        ),
    ),
    Field(
        name="nat",
        kind=Kind.WORD,
        code=_NAT,
        depends_on=DependsOn.ENTRY,
        says="How this host translates the flow; `unknown` where no flow was found.",
        phrase="the translation of the flow",
        words=tuple(str(nat) for nat in NATS),
        highest=len(NATS) - 1,
    ),
    Field(
        name="direction",
        kind=Kind.WORD,
        code=_DIRECTION,
        depends_on=DependsOn.ENTRY,
        says="Direction of the packet within its flow.",
        phrase="the direction",
        words=tuple(direction.name.lower() for direction in Direction),
        highest=len(Direction) - 1,
    ),
    Field(
        name="state",
        kind=Kind.WORD,
        code=_STATE,
        depends_on=DependsOn.PACKET,
        says="TCP state of the flow, as conntrack names it.",
        phrase="the TCP state of the flow",
        words=tuple(state.name for state in TcpState),
        highest=len(TcpState) - 1,
    ),
    Field(
        name="status",
        kind=Kind.STATUS,
        code=_STATUS,
        depends_on=DependsOn.PACKET,
        says="Status of the conntrack entry.",
        phrase="the status of the flow",
        words=STATUS_NAMES,
        highest=(1 << len(STATUS_NAMES)) - 1,
    ),
    Field(
        name="evidence",
        kind=Kind.WORD,
        code=_EVIDENCE,
        depends_on=DependsOn.WINDOW,
        says="Where the flow was read; `none` where no flow was found.",
        phrase="the evidence",
        words=tuple(str(evidence) for evidence in EVIDENCES),
        highest=len(EVIDENCES) - 1,
    ),
    Field(
        name="family",
        kind=Kind.WORD,
        code=_FAMILY,
        depends_on=DependsOn.KEY,
        says="IP version: 4 or 6.",
        phrase="the IP version",
        words=FAMILIES,
        highest=len(FAMILIES) - 1,
    ),
    Field(
        name="proto",
        kind=Kind.NUMBER,
        code=_PROTO,
        depends_on=DependsOn.PROTOCOL,
        says="Transport protocol, by name or number.",
        phrase="the protocol",
        words=tuple(protocol(number) for number in _NAMED_PROTOCOLS),
        numbers=_NAMED_PROTOCOLS,
        lowest=1,
        highest=255,
    ),
    Field(
        name="tcp_flags",
        kind=Kind.FLAGS,
        code=_TCP_FLAGS,
        depends_on=DependsOn.PACKET,
        says="TCP flags of the packet; flags that are not named may be set or clear.",
        phrase="the TCP flags",
        words=FLAG_WORDS,
        numbers=FLAG_BITS,
        highest=255,
        needs=(
            Need(
                numbers=present(255),
                field="proto",
                others=_TCP,
                otherwise="a packet of this protocol has no TCP flags",
            ),
        ),
    ),
    Field(
        name="payload",
        kind=Kind.SWITCH,
        code=_PAYLOAD,
        depends_on=DependsOn.PACKET,
        says="Whether the TCP segment or UDP datagram carries data.",
        phrase="it carries data",
        words=("it carries no data", "it carries data"),
        highest=1,
        needs=(
            Need(
                numbers=present(1),
                field="proto",
                others=_TCP_OR_UDP,
                otherwise="payload is known for TCP and UDP only",
            ),
        ),
    ),
    Field(
        name="src",
        kind=Kind.NETWORK,
        code=_SRC,
        depends_on=DependsOn.KEY,
        says="Source address, as on the wire.",
        phrase="the source address",
        highest=LAST_ADDRESS,
        needs=_address_needs("src"),
    ),
    Field(
        name="dst",
        kind=Kind.NETWORK,
        code=_DST,
        depends_on=DependsOn.KEY,
        says="Destination address, as on the wire.",
        phrase="the destination address",
        highest=LAST_ADDRESS,
        needs=_address_needs("dst"),
    ),
    Field(
        name="sport",
        kind=Kind.NUMBER,
        code=_SPORT,
        depends_on=DependsOn.PORTS,
        says="Source port of TCP, UDP or SCTP.",
        phrase="the source port",
        highest=_LAST_PORT,
        needs=(_NEEDS_PORTS,),
    ),
    Field(
        name="dport",
        kind=Kind.NUMBER,
        code=_DPORT,
        depends_on=DependsOn.PORTS,
        says="Destination port of TCP, UDP or SCTP.",
        phrase="the destination port",
        highest=_LAST_PORT,
        needs=(_NEEDS_PORTS,),
    ),
    Field(
        name="in",
        kind=Kind.PATTERN,
        code=_IN,
        depends_on=DependsOn.KEY,
        says="Incoming interface.",
        phrase="the incoming interface",
    ),
    Field(
        name="out",
        kind=Kind.PATTERN,
        code=_OUT,
        depends_on=DependsOn.KEY,
        says="Outgoing interface; known from FORWARD on.",
        phrase="the outgoing interface",
    ),
    Field(
        name="hook",
        kind=Kind.WORD,
        code=_HOOK,
        depends_on=DependsOn.KEY,
        says="Netfilter hook at which the packet was queued.",
        phrase="the hook",
        words=tuple(hook.name for hook in Hook),
        highest=len(Hook) - 1,
    ),
    Field(
        name="packet_mark",
        kind=Kind.MARK,
        code=_PACKET_MARK,
        depends_on=DependsOn.HOST,
        says="Mark of the packet when it was queued.",
        phrase="the packet mark",
        highest=LAST_MARK,
    ),
    Field(
        name="ct_mark",
        kind=Kind.MARK,
        code=_CT_MARK,
        depends_on=DependsOn.PACKET,
        says="Mark of the conntrack entry.",
        phrase="the conntrack mark",
        highest=LAST_MARK,
    ),
    Field(
        name="leak",
        kind=Kind.SWITCH,
        code=_LEAK,
        depends_on=DependsOn.ENTRY,
        says="Whether a private source sends to a global destination and no flow was found, as"
        " after a translation has expired.",
        phrase="it leaks a private address",
        words=("it leaks no private address", "it leaks a private address"),
        highest=1,
    ),
)
FIELD_BY_NAME: Final = {field.name: field for field in FIELDS}
REASON: Final = FIELD_BY_NAME["reason"]

_EVIDENCE_NUMBER: Final = {evidence: number for number, evidence in enumerate(EVIDENCES)}
_REASON_NUMBER: Final = {reason: number for number, reason in enumerate(REASONS)}
_BPF: Final = Evidence.BPF
_BPF_NUMBER: Final = _EVIDENCE_NUMBER[_BPF]
_NO_NAT: Final = NATS.index(Nat.UNKNOWN)
_NO_EVIDENCE: Final = _EVIDENCE_NUMBER[Evidence.NONE]


def name_of(code: int, queued: Queued) -> str:
    """The interface to which a `PATTERN` field of this code applies; empty without one."""
    return queued.indev if code == _IN else queued.outdev


def number_of(
    code: int,
    queued: Queued,
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None,
    finding: Finding,
) -> int:
    """The number of a packet in the field of this code; `ABSENT` if it has none.

    A chain of comparisons, because mypyc compiles that best.
    """
    if code <= _CT_MARK:
        return _of_flow(code, snapshot)
    if code <= _DST:
        return _of_network_header(code, packet)
    if code <= _DPORT:
        return _of_transport_header(code, packet)
    if code == _HOOK:
        return queued.hook
    if code == _PACKET_MARK:
        return queued.mark
    if code == _DISTANCE:
        breach = finding.breach
        return ABSENT if breach is None else breach.distance
    if code == _REASON:
        return _REASON_NUMBER[finding.reason]
    return 1 if leaks(packet, snapshot, finding) else 0


def _of_flow(code: int, snapshot: FlowSnapshot | None) -> int:
    if snapshot is None:
        # Translation and evidence of an unknown flow have words of their own.
        return _NO_NAT if code == _NAT else _NO_EVIDENCE if code == _EVIDENCE else ABSENT
    if code == _NAT:
        # Bits 4 and 5: the first four of `NATS`, in their order. Hashing an enum costs more.
        return snapshot.status >> 4 & 3
    if code == _DIRECTION:
        return snapshot.direction
    if code == _STATE:
        return snapshot.state if snapshot.original.proto == PROTO_TCP else ABSENT
    if code == _STATUS:
        return status_number(snapshot.status)
    if code == _EVIDENCE:
        evidence = snapshot.evidence
        return _BPF_NUMBER if evidence is _BPF else _EVIDENCE_NUMBER[evidence]
    return snapshot.mark


def _of_network_header(code: int, packet: Packet | Malformed) -> int:
    if code == _SRC:
        return address_number(packet.src)
    if code == _DST:
        return address_number(packet.dst)
    if code == _PROTO:
        return packet.proto or ABSENT
    if packet.family == IPV4:
        return 0
    return 1 if packet.family == IPV6 else ABSENT


def _of_transport_header(code: int, packet: Packet | Malformed) -> int:
    if isinstance(packet, Malformed):
        return ABSENT
    l4 = packet.l4
    if not isinstance(l4, Segment | Datagram | SctpPacket):
        return ABSENT
    if code == _SPORT:
        return l4.sport
    if code == _DPORT:
        return l4.dport
    if isinstance(l4, SctpPacket):
        return ABSENT
    if isinstance(l4, Datagram):
        return ABSENT if code == _TCP_FLAGS else int(l4.length > UDP_HEADER)
    return l4.flags if code == _TCP_FLAGS else int(l4.payload_len > 0)


def leaks(packet: Packet | Malformed, snapshot: FlowSnapshot | None, finding: Finding) -> bool:
    """Whether a private source sends to a global destination without a flow.

    False if the flow could not be looked up (reason `unsupported`).
    """
    return (
        snapshot is None
        and isinstance(packet, Packet)
        and finding.reason is not Reason.UNSUPPORTED
        and is_private(packet.src)
        and is_global(packet.dst)
    )
