# SPDX-License-Identifier: MIT
"""What a packet is in each field of a rule, as a number; -1 where it has no such thing."""

from typing import Final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import IPV4, IPV6, PROTO_TCP, Evidence, FlowSnapshot, Nat
from nfq_guard.policy.fields import EVIDENCES, NATS
from nfq_guard.policy.intervals import address_number, is_global, is_private
from nfq_guard.policy.spans import ABSENT
from nfq_guard.wire.packet import Datagram, Malformed, Packet, Queued, Segment

# Codes of the numbers, in three groups: of the flow, of the packet, and the rest.
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
_LEAK: Final = 17

# By the name of the field.
CODES: Final = {
    "nat": _NAT,
    "direction": _DIRECTION,
    "state": _STATE,
    "status": _STATUS,
    "evidence": _EVIDENCE,
    "ct_mark": _CT_MARK,
    "family": _FAMILY,
    "proto": _PROTO,
    "src": _SRC,
    "dst": _DST,
    "tcp_flags": _TCP_FLAGS,
    "payload": _PAYLOAD,
    "sport": _SPORT,
    "dport": _DPORT,
    "hook": _HOOK,
    "packet_mark": _PACKET_MARK,
    "distance": _DISTANCE,
    "leak": _LEAK,
}

_NAT_NUMBER: Final = {nat: number for number, nat in enumerate(NATS)}
_EVIDENCE_NUMBER: Final = {evidence: number for number, evidence in enumerate(EVIDENCES)}
_NO_NAT: Final = _NAT_NUMBER[Nat.UNKNOWN]
_NO_EVIDENCE: Final = _EVIDENCE_NUMBER[Evidence.NONE]
_UDP_HEADER: Final = 8


def number_of(
    code: int,
    queued: Queued,
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None,
    finding: Finding,
) -> int:
    """The number that `CODES` calls `code`."""
    if code <= _CT_MARK:
        return _of_flow(code, snapshot)
    if code <= _DST:
        return _of_header(code, packet)
    if code <= _DPORT:
        return _of_transport(code, packet)
    if code == _HOOK:
        return queued.hook
    if code == _PACKET_MARK:
        return queued.mark
    if code == _DISTANCE:
        breach = finding.breach
        return ABSENT if breach is None else breach.distance
    return 1 if leaks(packet, snapshot, finding) else 0


def _of_flow(code: int, snapshot: FlowSnapshot | None) -> int:
    if snapshot is None:
        # A flow that is not known has no translation that is known, and no evidence.
        return _NO_NAT if code == _NAT else _NO_EVIDENCE if code == _EVIDENCE else ABSENT
    if code == _NAT:
        return _NAT_NUMBER[snapshot.nat]
    if code == _DIRECTION:
        return snapshot.direction
    if code == _STATE:
        return snapshot.state if snapshot.original.proto == PROTO_TCP else ABSENT
    if code == _STATUS:
        status = snapshot.status
        # By position in `fields.STATUS_WORDS`: the bits 1, 2, 9 and 14.
        return status >> 1 & 3 | status >> 7 & 4 | status >> 11 & 8
    if code == _EVIDENCE:
        return _EVIDENCE_NUMBER[snapshot.evidence]
    return snapshot.mark


def _of_header(code: int, packet: Packet | Malformed) -> int:
    if code == _SRC:
        return address_number(packet.src)
    if code == _DST:
        return address_number(packet.dst)
    if code == _PROTO:
        return packet.proto or ABSENT
    if packet.family == IPV4:
        return 0
    return 1 if packet.family == IPV6 else ABSENT


def _of_transport(code: int, packet: Packet | Malformed) -> int:
    if isinstance(packet, Malformed):
        return ABSENT
    l4 = packet.l4
    if not isinstance(l4, Segment | Datagram):
        return ABSENT
    if code == _SPORT:
        return l4.sport
    if code == _DPORT:
        return l4.dport
    if isinstance(l4, Datagram):
        return ABSENT if code == _TCP_FLAGS else int(l4.length > _UDP_HEADER)
    return l4.flags if code == _TCP_FLAGS else int(l4.payload_len > 0)


def leaks(packet: Packet | Malformed, snapshot: FlowSnapshot | None, finding: Finding) -> bool:
    """Whether a private source goes to a global destination without a flow.

    Where the flow could not be looked up (reason `unsupported`) nothing is known to leak.
    """
    return (
        snapshot is None
        and isinstance(packet, Packet)
        and finding.reason is not Reason.UNSUPPORTED
        and is_private(packet.src)
        and is_global(packet.dst)
    )
