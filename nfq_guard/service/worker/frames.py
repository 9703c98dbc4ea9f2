# SPDX-License-Identifier: MIT
"""Converts judgments to frames of a capture, each with a comment on the finding."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from nfq_guard.engine import VERDICT_DROP, Judgment
from nfq_guard.flow import PROTO_TCP, Hook
from nfq_guard.glossary import finding_sentence
from nfq_guard.names import address, tcp_state
from nfq_guard.wire.packet import UDP_HEADER, Datagram, IcmpMessage, Malformed, Packet, Segment

_NS: Final = 1_000_000_000
_ICMP_HEADER: Final = 8
# For a packet whose headers cannot be read: the longest fixed IP header and a TCP header.
_UNREAD: Final = 60
_LEAVING: Final = frozenset({Hook.OUTPUT, Hook.POSTROUTING})
# Octets that an ICMP error quotes after the IP header: ports and sequence number (RFC 792).
_QUOTED: Final = 8

Batches = Iterable[tuple[float, list[Judgment]]]


class PacketRecord(msgspec.Struct, frozen=True):
    """One packet that was kept.

    Attributes:
        time_ns: When it was read, nanoseconds of the Unix epoch.
        interface: The incoming interface, or the outgoing one at a hook for leaving packets.
        wire_len: Octets of the whole packet.
        octets: The kept octets, IP header first; base64 in JSON.
        comment: Reason, numbers, flow, rule and verdict.
    """

    time_ns: int
    interface: str
    wire_len: int
    octets: bytes
    comment: str


def records(
    batches: Batches, epoch_ns: int, *, payload: bool, end: str | None = None
) -> Iterator[PacketRecord]:
    """The packets, the oldest first.

    Args:
        batches: From `PacketRing.batches`.
        epoch_ns: The Unix time at which the monotonic clock was 0.
        payload: Whether to include the payload, as far as the kernel copied it.
        end: Only packets with this address; None for all.
    """
    for read_at, judgments in batches:
        time_ns = epoch_ns + int(read_at * _NS)
        for place, judgment in enumerate(judgments):
            packet = judgment.packet
            if end is not None and end not in {address(packet.src), address(packet.dst)}:
                continue
            queued = judgment.queued
            octets = queued.octets
            leaves = queued.hook in _LEAVING
            yield PacketRecord(
                # Packets of a batch have the same time, and the order of the queue.
                time_ns=time_ns + place,
                interface=(queued.outdev if leaves else queued.indev) or queued.outdev,
                wire_len=packet.length if isinstance(packet, Packet) else len(octets),
                octets=octets if payload else octets[: headers_len(packet, octets)],
                comment=comment_of(judgment),
            )


def headers_len(packet: Packet | Malformed, octets: bytes) -> int:
    """Octets up to the payload; for an ICMP error, including the quoted headers."""
    if not isinstance(packet, Packet):
        return _UNREAD
    at = packet.l4_offset
    l4 = packet.l4
    if isinstance(l4, Segment):
        return at + (octets[at + 12] >> 4) * 4 if len(octets) > at + 12 else len(octets)
    if isinstance(l4, Datagram):
        return at + UDP_HEADER
    if isinstance(l4, IcmpMessage):
        at += _ICMP_HEADER
        if not l4.is_error or len(octets) <= at:
            return at
        inner = 40 if octets[at] >> 4 == 6 else (octets[at] & 0xF) * 4
        return at + inner + _QUOTED
    return at


def comment_of(judgment: Judgment) -> str:
    """The finding in one line."""
    finding = judgment.finding
    said = f"INVALID {finding.reason.value}"
    sentence = finding_sentence(finding)
    if sentence:
        said += f": {sentence}"
    snapshot = judgment.snapshot
    if snapshot is not None:
        state = tcp_state(snapshot.state) if snapshot.original.proto == PROTO_TCP else "known"
        said += f"; flow {state}, nat {snapshot.nat.value}"
    decision = judgment.decision
    drops = judgment.verdict == VERDICT_DROP
    verdict = "drop" if drops else "accept"
    would = " (in enforce: drop)" if decision.drops and not drops else ""
    return f"{said}; rule {decision.rule}: {decision.action.value}; verdict {verdict}{would}"
