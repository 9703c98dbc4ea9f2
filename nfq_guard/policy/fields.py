# SPDX-License-Identifier: MIT
"""What a rule may ask of a packet: one table.

The parser, the compiler, the printed sentences, the JSON Schema and the table in
`rules/policy/README.md` all follow from it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from nfq_guard.finding import Reason
from nfq_guard.flow import (
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    Direction,
    Evidence,
    Hook,
    Nat,
    TcpState,
)
from nfq_guard.wire.packet import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG


class Kind(Enum):
    """How the values of a field are written."""

    WORD = "one of a few words"
    STATUS = "one of a few words, of which a flow can have several"
    NUMBER = "a whole number or a range such as 1024..65535"
    FLAGS = 'TCP flags that are set, with "!" those that are clear, such as "syn !ack"'
    NETWORK = "a network such as 10.0.0.0/8 or fd00::/8, or an address"
    PATTERN = 'the name of an interface, "*" for any letters and "?" for any one'
    MARK = 'a number, or bits under a mask such as "0x10/0xff"'
    SWITCH = "true or false"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One thing that a rule may name.

    Attributes:
        name: The key in the file.
        kind: How its values are written.
        says: What it is, for the table of keys and the schema.
        phrase: How a sentence begins that says it: "the reason".
        words: The words of `WORD` and `STATUS`, each standing for its position; the two
            sentences of a `SWITCH`, for false and for true; the names that a `NUMBER` may have.
        numbers: Of a `NUMBER` with names: what they stand for, in the same order.
        lowest: Smallest number that may be written.
        highest: Largest number that a packet can have here.
    """

    name: str
    kind: Kind
    says: str
    phrase: str
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    lowest: int = 0
    highest: int = 0


# Numbers of IPv6 addresses come after those of IPv4, so that one set can hold both.
IPV6_BASE: Final = 1 << 32
_LAST_ADDRESS: Final = IPV6_BASE + (1 << 128) - 1
_LAST_PORT: Final = 0xFFFF
LAST_MARK: Final = 0xFFFFFFFF
_LAST_DISTANCE: Final = 0x80000000

REASONS: Final = tuple(Reason)
NATS: Final = tuple(Nat)
EVIDENCES: Final = tuple(Evidence)
FAMILIES: Final = ("4", "6")
# By position in `status`; `facts` has the bits of `FlowSnapshot.status` that they stand for.
STATUS_WORDS: Final = ("seen-reply", "assured", "dying", "offload")
FLAG_WORDS: Final = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
FLAG_BITS: Final = (FIN, SYN, RST, PSH, ACK, URG, ECE, CWR)

FIELDS: Final = (
    Field(
        name="reason",
        kind=Kind.WORD,
        says="Why the packet is INVALID.",
        phrase="the reason",
        words=tuple(str(reason) for reason in REASONS),
        highest=len(REASONS) - 1,
    ),
    Field(
        name="distance",
        kind=Kind.NUMBER,
        says="Octets by which the packet is beyond the bound that it broke; only the five reasons"
        " with a bound have one.",
        phrase="the distance beyond the bound in octets",
        lowest=1,
        highest=_LAST_DISTANCE,
    ),
    Field(
        name="nat",
        kind=Kind.WORD,
        says="How this host translates the flow; `unknown` where no flow was found.",
        phrase="the translation of the flow",
        words=tuple(str(nat) for nat in NATS),
        highest=len(NATS) - 1,
    ),
    Field(
        name="direction",
        kind=Kind.WORD,
        says="Which way the packet goes in its flow.",
        phrase="the direction",
        words=tuple(direction.name.lower() for direction in Direction),
        highest=len(Direction) - 1,
    ),
    Field(
        name="state",
        kind=Kind.WORD,
        says="TCP state of the flow, as conntrack names it.",
        phrase="the TCP state of the flow",
        words=tuple(state.name for state in TcpState),
        highest=len(TcpState) - 1,
    ),
    Field(
        name="status",
        kind=Kind.STATUS,
        says="Status of the conntrack entry.",
        phrase="the status of the flow",
        words=STATUS_WORDS,
        highest=(1 << len(STATUS_WORDS)) - 1,
    ),
    Field(
        name="evidence",
        kind=Kind.WORD,
        says="Where the flow was read; `none` where no flow was found.",
        phrase="the evidence",
        words=tuple(str(evidence) for evidence in EVIDENCES),
        highest=len(EVIDENCES) - 1,
    ),
    Field(
        name="family",
        kind=Kind.WORD,
        says="IP version: 4 or 6.",
        phrase="the IP version",
        words=FAMILIES,
        highest=len(FAMILIES) - 1,
    ),
    Field(
        name="proto",
        kind=Kind.NUMBER,
        says="Transport protocol, by name or number.",
        phrase="the protocol",
        words=("tcp", "udp", "icmp", "icmpv6"),
        numbers=(PROTO_TCP, PROTO_UDP, PROTO_ICMP, PROTO_ICMPV6),
        lowest=1,
        highest=255,
    ),
    Field(
        name="tcp_flags",
        kind=Kind.FLAGS,
        says="TCP flags of the packet; flags that are not named may be either.",
        phrase="the set of TCP flags",
        words=FLAG_WORDS,
        numbers=FLAG_BITS,
        highest=255,
    ),
    Field(
        name="payload",
        kind=Kind.SWITCH,
        says="Whether the TCP segment or UDP datagram carries data.",
        phrase="it carries data",
        words=("it carries no data", "it carries data"),
        highest=1,
    ),
    Field(
        name="src",
        kind=Kind.NETWORK,
        says="Source address, as on the wire.",
        phrase="the source address",
        highest=_LAST_ADDRESS,
    ),
    Field(
        name="dst",
        kind=Kind.NETWORK,
        says="Destination address, as on the wire.",
        phrase="the destination address",
        highest=_LAST_ADDRESS,
    ),
    Field(
        name="sport",
        kind=Kind.NUMBER,
        says="Source port of TCP or UDP.",
        phrase="the source port",
        highest=_LAST_PORT,
    ),
    Field(
        name="dport",
        kind=Kind.NUMBER,
        says="Destination port of TCP or UDP.",
        phrase="the destination port",
        highest=_LAST_PORT,
    ),
    Field(
        name="in",
        kind=Kind.PATTERN,
        says="Interface that the packet came in by.",
        phrase="the incoming interface",
    ),
    Field(
        name="out",
        kind=Kind.PATTERN,
        says="Interface that the packet leaves by; known from FORWARD on.",
        phrase="the outgoing interface",
    ),
    Field(
        name="hook",
        kind=Kind.WORD,
        says="Netfilter hook at which the packet was queued.",
        phrase="the hook",
        words=tuple(hook.name for hook in Hook),
        highest=len(Hook) - 1,
    ),
    Field(
        name="packet_mark",
        kind=Kind.MARK,
        says="Mark of the packet when it was queued.",
        phrase="the packet mark",
        highest=LAST_MARK,
    ),
    Field(
        name="ct_mark",
        kind=Kind.MARK,
        says="Mark of the conntrack entry.",
        phrase="the conntrack mark",
        highest=LAST_MARK,
    ),
    Field(
        name="leak",
        kind=Kind.SWITCH,
        says="Whether a private source goes to a global destination and no flow was found: what a"
        " translation that is gone leaves behind.",
        phrase="it leaks a private address",
        words=("it leaks no private address", "it leaks a private address"),
        highest=1,
    ),
)
FIELD_BY_NAME: Final = {field.name: field for field in FIELDS}
