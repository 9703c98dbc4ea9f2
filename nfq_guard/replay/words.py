# SPDX-License-Identifier: MIT
"""Short texts about packets and findings."""

from typing import Final, NamedTuple

from nfq_guard.capture.frame import frame_name
from nfq_guard.conntrack.entry import Key
from nfq_guard.conntrack.sctp_states import CHUNK_NAMES
from nfq_guard.finding import Breach, Finding
from nfq_guard.flow import PROTO_DCCP, PROTO_UDPLITE, Association, FlowTuple, SctpState
from nfq_guard.glossary import BOUND_WORDS
from nfq_guard.names import bytes_of, protocol, tcp_flags, tcp_state, tuple_ends
from nfq_guard.replay.doubt import Doubted
from nfq_guard.replay.stream import Doubt
from nfq_guard.wire.packet import (
    ACK,
    Datagram,
    GreHeader,
    IcmpMessage,
    Malformed,
    Packet,
    SctpPacket,
    Segment,
)

# Chunks of one packet that are named.
_CHUNKS_NAMED: Final = 3


def flag_letters(flags: int) -> str:
    """TCP flags by their letters; `-` for none."""
    return tcp_flags(flags) or "-"


def gist(packet: Packet | Malformed) -> str:
    """What a packet is, in a few words."""
    if isinstance(packet, Malformed):
        return packet.problem
    l4 = packet.l4
    if isinstance(l4, Segment):
        ack = f" ack {l4.ack}" if l4.flags & ACK else ""
        return f"{flag_letters(l4.flags):<2} seq {l4.seq}{ack} len {l4.payload_len}"
    if isinstance(l4, Datagram):
        return f"udp len {l4.length - 8}"
    if isinstance(l4, IcmpMessage):
        quoted = "" if l4.quoted is None else f" about {tuple_ends(l4.quoted)}"
        return f"{protocol(packet.proto)} type {l4.type} code {l4.code}{quoted}"
    if isinstance(l4, SctpPacket):
        return f"sctp tag {l4.tag:#010x} {_chunks(l4)}"
    if isinstance(l4, GreHeader) and l4.version == 1:
        return f"gre call {l4.call}"
    return protocol(packet.proto)


def direction_text(key: Key) -> str:
    """A direction of a flow as `source > destination`."""
    src, dst, ports, proto = key
    return tuple_ends(FlowTuple(proto, src, dst, ports >> 16, ports & 0xFFFF))


def _chunks(packet: SctpPacket) -> str:
    names = [CHUNK_NAMES[chunk.type] for chunk in packet.chunks[: _CHUNKS_NAMED + 1]]
    if len(names) > _CHUNKS_NAMED:
        names[_CHUNKS_NAMED] = "..."
    return ", ".join(names) or "without a chunk"


def state_name(state: int) -> str | None:
    """A TCP state of conntrack by its number; None for 0, no state."""
    return tcp_state(state) if state else None


def association_words(association: Association) -> list[str]:
    """The state of an SCTP association, and its verification tags as far as they are known."""
    words = [SctpState(association.state).name]
    words += [
        f"tag {tag:#010x} in the {direction} direction"
        for direction, tag in (
            ("original", association.tag_original),
            ("reply", association.tag_reply),
        )
        if tag
    ]
    return words


def breach_gist(breach: Breach) -> str:
    """The proof in short, next to `gist`, which has the number itself."""
    words = BOUND_WORDS[breach.bound]
    return f"{words.actual} {bytes_of(breach.distance)} {words.outside} {breach.limit}"


UNTRANSLATED: Final = "judged as untranslated: --assume-nat"
"""Printed next to a decision if the capture shows no translation and none is assumed."""

DOUBTS: Final = {
    Doubt.UNSEEN_DATA: "the capture lacks bytes of the flow, or may lack them",
    Doubt.UNSEEN_WINDOW: "its stream goes on here: the receiver may have offered more room in a "
    "frame that is not in the capture",
    Doubt.UNSEEN_HANDSHAKE: "the capture lacks a part of the handshake",
    Doubt.UNSEEN_REQUEST: "the packet that it answers is not in the capture, or behind it, or has "
    "other addresses or ports there",
    Doubt.OUT_OF_ORDER: "the frames of the capture are out of order",
    Doubt.SILENCE: "an answer came after a silence in which TCP would have repeated the question: "
    "the clock was set forward, or frames are missing",
    Doubt.FRAMES_MISSING: "frames of other flows are missing from the capture, possibly "
    "one that this packet answers",
    Doubt.CAPTURE_DROPS: "the capture reports dropped frames",
}


class Unmodelled(NamedTuple):
    """A protocol that some kernels follow with a tracker of its own, which the table lacks.

    Attributes:
        name: Its name.
        kernels: What kernels do with its packets.
    """

    name: str
    kernels: str


# Measured on 5.10, 6.1, 6.12, 6.18 and 7.3 (kernel.md 1.15).
UNMODELLED: Final = {
    PROTO_DCCP: Unmodelled(
        "DCCP",
        "kernels 5.10 to 6.12 call those that do not fit a connection's states INVALID; here, as "
        "since 6.18, every packet fits",
    ),
    PROTO_UDPLITE: Unmodelled(
        "UDP-Lite",
        "kernels 5.10 to 6.18 call even those with a correct checksum INVALID (bad checksum); "
        "here, as in 7.3, their checksum does not count",
    ),
}


_ACKNOWLEDGED: Final = "the peer acknowledged bytes that are not in the capture"
_RST_AHEAD: Final = (
    "the RST is ahead of its stream: bytes before it may be missing from the capture, as no later "
    "segment of its sender shows that it is stray"
)


def doubt_sentence(doubted: Doubted) -> str:
    """Why a finding is in doubt."""
    proof = doubted.proof
    sentence = DOUBTS[doubted.kind]
    if doubted.kind is Doubt.UNSEEN_DATA:
        sentence = _RST_AHEAD if proof is None else _ACKNOWLEDGED
    if proof is None:
        return sentence
    if proof.missing:
        missing = bytes_of(proof.missing)
        evidence = frame_name(proof.frame)
        return f"{sentence}: {missing} from sequence number {proof.start}, by {evidence}"
    return f"{sentence}: see {frame_name(proof.frame)}"


def doubt_gist(doubted: Doubted) -> str:
    """Why a finding is in doubt, in short."""
    proof = doubted.proof
    where = "" if proof is None else f" by {frame_name(proof.frame)}"
    return f"in doubt: {doubted.kind}{where}"


def gist_of(finding: Finding) -> str:
    """Why a packet is INVALID, in short; may be empty."""
    gist = "" if finding.breach is None else breach_gist(finding.breach)
    return ", ".join(filter(None, (gist, finding.detail)))
