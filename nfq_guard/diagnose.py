# SPDX-License-Identifier: MIT
"""Finds why conntrack called a packet INVALID, from the packet and its flow (kernel.md 1.13).

The flow is looked up after the kernel has decided, but an INVALID packet does not change the
window, so the first bound that the packet breaks is the kernel's reason. If no bound is broken any
more, other packets of the flow arrived in between: `raced`.
"""

from collections.abc import Callable
from typing import Final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.details import (
    AFTER_A_SYN,
    ENTRY_GONE,
    FAR_REDIRECT,
    ICMP_TYPE_ABOVE,
    MOVED_ON,
    NO_DIAGNOSIS,
    NO_LOOKUP,
    NO_STATE,
    NO_TRANSPORT,
    NO_WINDOW,
    NOT_ALL_CHUNKS,
    NOT_LOGGED,
    NOT_REQUESTED,
    ONLY_SILENT,
    OTHER_ADDRESSES,
    QUOTES_ENTRY,
    QUOTES_NO_ENTRY,
    QUOTES_OTHER_SENDER,
    SHIFTED,
    SHORT_QUOTE,
    STATE_MOVED_ON,
    TRANSITIONS,
    UNCHECKED,
    WITHOUT_ENTRY,
)
from nfq_guard.conntrack.entry import INVALID, copied
from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.conntrack.log_text import Logged
from nfq_guard.conntrack.sctp import SctpTracker, problem_of
from nfq_guard.conntrack.states import (
    CLASS_ACK,
    CLASS_RST,
    CLASS_SYN,
    FLAGS_PASS,
    MOVE_INVALID,
    MOVES,
    SEGMENT_CLASS,
)
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.finding import BOUNDS, Breach, Finding, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_SEQ_ADJUST,
    IPV4,
    PROTO_UDPLITE,
    Evidence,
    FlowSnapshot,
    Hook,
    Peer,
    SctpState,
    TcpState,
    is_icmp_request,
)
from nfq_guard.seqno import Seq, add, distance
from nfq_guard.wire.checksum import checksum_ok, may_be_right_for_receiver
from nfq_guard.wire.icmp import LAST_TYPE_V4, REDIRECT_V6, comes_from_link
from nfq_guard.wire.packet import (
    CHECKSUM_UNVERIFIED,
    Datagram,
    IcmpMessage,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)
from nfq_guard.wire.tcp import highest_acknowledged

_PREROUTING: Final = int(Hook.PREROUTING)
_OF_ACK: Final = frozenset({Reason.ACK_OVER, Reason.ACK_UNDER})
# Older kernels have a further state, which was not measured.
_LAST_SCTP_STATE: Final = int(SctpState.HEARTBEAT_SENT)


def diagnose(
    queued: Queued,
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None,
    evidence: Evidence,
    kernel: KernelRules,
    sysctls: Sysctls,
) -> Finding:
    """Name the reason, and prove it.

    Args:
        queued: The packet as queued: its hook and checksum state decide whether the checksum is
            verified, which conntrack does only in PREROUTING.
        packet: The decoded packet.
        snapshot: Its flow; for an ICMP error the flow of the quoted packet.
        evidence: The source of the snapshot; with NONE a missing snapshot proves nothing.
        kernel: The conntrack rules of the kernel that called the packet INVALID.
        sysctls: The sysctls of that kernel; `loose`, `ignore_invalid_rst` and `checksum` are
            used here.
    """
    if isinstance(packet, Malformed):
        reason = Reason.UNSUPPORTED if packet.snapped else Reason.MALFORMED
        return Finding(reason, None, packet.problem)
    if packet.l4 is None:
        return Finding(Reason.UNSUPPORTED, None, _unsupported(packet))
    if queued.checksum == CHECKSUM_UNVERIFIED and queued.hook == _PREROUTING and sysctls.checksum:
        # Conntrack verified it before it looked at the flow, whatever the packet's length.
        damaged = _damaged(packet, queued.octets)
        if damaged is not None:
            return damaged
    return _cause(packet, snapshot, evidence, kernel, sysctls)


def _damaged(packet: Packet, octets: bytes) -> Finding | None:
    """The finding on a wrong checksum; None if it is correct or not verified.

    If a packet was not copied whole, the kernel's report decides: it does not report a checksum as
    unverified after it was found correct (kernel.md 5).
    """
    whole = len(octets) >= packet.length
    if whole and checksum_ok(packet, octets) is not False:
        return None
    l4 = packet.l4
    if isinstance(l4, Datagram) and l4.checksum == 0:
        return None
    if may_be_right_for_receiver(packet, octets):
        return Finding(Reason.UNSUPPORTED, None, OTHER_ADDRESSES)
    if whole:
        return Finding(Reason.BAD_CHECKSUM)
    return Finding(Reason.BAD_CHECKSUM, None, UNCHECKED)


def _cause(
    packet: Packet,
    snapshot: FlowSnapshot | None,
    evidence: Evidence,
    kernel: KernelRules,
    sysctls: Sysctls,
) -> Finding:
    """The first cause that the headers and the flow show."""
    l4 = packet.l4
    if isinstance(l4, Segment):
        if not FLAGS_PASS[l4.flags]:
            return Finding(Reason.BAD_FLAGS)
        if evidence is Evidence.NONE:
            return Finding(Reason.UNSUPPORTED, None, NO_LOOKUP)
        if snapshot is None:
            return _without_entry(l4, sysctls.loose)
        return _diagnose_segment(l4, snapshot, kernel, sysctls)
    if isinstance(l4, SctpPacket):
        problem = problem_of(l4)
        if problem:
            return Finding(Reason.MALFORMED, None, problem)
    if evidence is Evidence.NONE:
        return Finding(Reason.UNSUPPORTED, None, NO_LOOKUP)
    if isinstance(l4, IcmpMessage):
        return _diagnose_icmp(packet, l4, snapshot)
    if isinstance(l4, SctpPacket):
        return _diagnose_sctp(l4, snapshot)
    return Finding(Reason.RACED, None, ENTRY_GONE)


def diagnose_logged(
    queued: Queued,
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None,
    evidence: Evidence,
    kernel: KernelRules,
    sysctls: Sysctls,
    text: Logged | None,
    silent: Callable[[], frozenset[Reason]],
) -> Finding:
    """Name the reason from the kernel's log of the packet, for evidence without a window.

    Args:
        queued: As for `diagnose`, like the next five.
        packet: The packet.
        snapshot: Its flow.
        evidence: The source of the snapshot.
        kernel: The conntrack rules of the kernel.
        sysctls: The sysctls of the kernel.
        text: The kernel's text; None if there is none.
        silent: Returns the reasons that the kernel does not log; none while a missing text
            proves nothing.
    """
    finding = diagnose(queued, packet, snapshot, evidence, kernel, sysctls)
    if text is not None:
        reason = text.reason
        if reason is None:
            return finding
        if reason is Reason.BAD_CHECKSUM and (
            _is_of_udplite(packet) or finding.detail == OTHER_ADDRESSES
        ):
            # Conntrack computes these checksums wrongly (kernel.md 1.15 and 2).
            return finding
        return _as_logged(finding, packet, snapshot, text, reason)
    if finding.reason is Reason.RACED or finding.detail == NO_WINDOW:
        silent_cause = _silent_cause(packet, sysctls.loose, silent())
        if silent_cause is not None:
            return silent_cause
    if finding.detail == NO_WINDOW:
        return Finding(Reason.UNSUPPORTED, None, NOT_LOGGED)
    return finding


def _is_of_udplite(packet: Packet | Malformed) -> bool:
    return isinstance(packet, Packet) and packet.proto == PROTO_UDPLITE


def _as_logged(
    finding: Finding,
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None,
    text: Logged,
    reason: Reason,
) -> Finding:
    """The finding from the kernel's text, with our own detail if the two agree."""
    if text.transition is not None:
        direction, kind, state = text.transition
        return Finding(reason, None, TRANSITIONS[direction][kind][state])
    if reason in BOUNDS:
        l4 = packet.l4 if isinstance(packet, Packet) else None
        breach = _logged_breach(l4, snapshot, text, reason) if isinstance(l4, Segment) else None
        return Finding(reason, breach)
    return finding if finding.reason is reason else Finding(reason)


def _logged_breach(
    segment: Segment, snapshot: FlowSnapshot | None, text: Logged, reason: Reason
) -> Breach | None:
    """The breach from the number in the text; None without one, or if the segment is within.

    Without its entry, whose sequence numbers conntrack may shift, a segment may appear within it.
    """
    if text.excess is not None:
        limit = add(segment.end, 1 - text.excess)
    elif text.limit is not None:
        limit = text.limit
        if reason is Reason.ACK_OVER and snapshot is not None:
            limit = add(limit, window.ack_shift(snapshot, segment.ack))
    else:
        return None
    if reason is Reason.SEQ_OVER:
        # Without its entry a segment with number 0 may be at `td_end` too.
        state = int(TcpState.SYN_SENT) if snapshot is None else snapshot.state
        if window.stands_at_td_end(segment, state):
            return None
        actual = segment.seq
    elif reason is Reason.ACK_OVER:
        actual = _acknowledged(segment, snapshot, limit)
    else:
        return None
    beyond = distance(actual, limit)
    return Breach(reason, actual, limit, beyond) if beyond > 0 else None


def _acknowledged(segment: Segment, snapshot: FlowSnapshot | None, limit: Seq) -> Seq:
    """The number that conntrack compared: SACK counts if the other side permitted it."""
    flags = None if snapshot is None else snapshot.peer_flags
    if snapshot is not None and flags is not None:
        counts = flags[1 - snapshot.direction] & IP_CT_TCP_FLAG_SACK_PERM != 0
    else:
        # The entry is gone. If the ACK field is within the bound, it was not what broke it.
        counts = distance(segment.ack, limit) <= 0
    return highest_acknowledged(segment.options, segment.ack) if counts else segment.ack


def _silent_cause(
    packet: Packet | Malformed,
    loose: bool,  # noqa: FBT001 - as `_without_entry`
    silent: frozenset[Reason],
) -> Finding | None:
    """The finding on a packet without a text, if an unlogged reason is possible.

    An entry that was found is then newer than the packet.
    """
    if not silent or isinstance(packet, Malformed):
        return None
    l4 = packet.l4
    if isinstance(l4, Segment):
        kind = SEGMENT_CLASS[l4.flags]
        if kind == CLASS_ACK:
            possible = not loose
        else:
            possible = kind != CLASS_SYN and Reason.NO_ENTRY in silent
        return Finding(Reason.NO_ENTRY, None, ONLY_SILENT) if possible else None
    if not isinstance(l4, IcmpMessage):
        return None
    if l4.is_error:
        return Finding(Reason.ICMP_UNRELATED, None, ONLY_SILENT)
    if is_icmp_request(packet.proto, l4.type):
        return None
    return Finding(Reason.NO_ENTRY, None, ONLY_SILENT)


def detail_of(
    reason: Reason, flags: int, direction: int | None = None, state: TcpState | None = None
) -> str:
    """The detail of a finding about a segment, from the fields of an event; empty if none.

    Args:
        reason: The reason.
        flags: The flags of the segment.
        direction: The direction of the segment in its flow; None without one.
        state: The state of that flow.
    """
    kind = SEGMENT_CLASS[flags]
    if reason is Reason.NO_ENTRY:
        return WITHOUT_ENTRY[kind]
    if reason is Reason.BAD_TRANSITION and direction is not None and state is not None:
        return TRANSITIONS[direction][kind][state]
    return ""


def _unsupported(packet: Packet) -> str:
    if packet.fragment_offset:
        return NO_TRANSPORT
    return NO_DIAGNOSIS


def _without_entry(segment: Segment, loose: bool) -> Finding:  # noqa: FBT001 - packet path
    kind = SEGMENT_CLASS[segment.flags]
    if kind == CLASS_SYN or (kind == CLASS_ACK and loose):
        # Either would have opened an entry.
        return Finding(Reason.RACED, None, ENTRY_GONE)
    return Finding(Reason.NO_ENTRY, None, WITHOUT_ENTRY[kind])


def _diagnose_segment(
    segment: Segment, snapshot: FlowSnapshot, kernel: KernelRules, sysctls: Sysctls
) -> Finding:
    direction = snapshot.direction
    state = snapshot.state
    kind = SEGMENT_CLASS[segment.flags]
    if MOVES[direction][kind][state] == MOVE_INVALID:
        return Finding(Reason.BAD_TRANSITION, None, TRANSITIONS[direction][kind][state])
    peers = snapshot.peers
    if peers is None:
        return Finding(Reason.UNSUPPORTED, None, NO_WINDOW)
    sender = peers[direction]
    receiver = peers[1 - direction]
    if kind == CLASS_RST:
        if window.rst_closes_unchecked(state, kernel):
            return Finding(Reason.RACED, None, MOVED_ON)
        if not (kernel.ignores_invalid_rst and sysctls.ignore_invalid_rst):
            breach = window.rst_breach_of(
                segment.seq, state, snapshot.status, snapshot.last_index, receiver, kernel
            )
            if breach is not None:
                other = _other_candidate(segment, snapshot, kernel, sender, receiver)
                return Finding(breach.bound, breach, other)
    breach = window.breach_of(segment, state, sender, receiver, kernel)
    if (
        snapshot.status & IPS_SEQ_ADJUST
        and snapshot.shifts is None
        and (breach is None or breach.bound in _OF_ACK)
    ):
        # Conntrack first takes off the shift, which could not be read (kernel.md 1.6).
        return Finding(Reason.UNSUPPORTED if breach is None else breach.bound, None, SHIFTED)
    if breach is None:
        return Finding(Reason.RACED, None, MOVED_ON)
    return Finding(breach.bound, breach)


def _other_candidate(
    segment: Segment, snapshot: FlowSnapshot, kernel: KernelRules, sender: Peer, receiver: Peer
) -> str:
    """The other possible reason of an RST outside its bound; empty if there is none.

    Directly after an ignored SYN, only the window is checked, and the RST overwrites the record of
    the SYN except for its numbers, which take up sequence space.
    """
    if (
        kernel.rst_after_syn_checked
        or snapshot.last_index != CLASS_RST
        or snapshot.last_end == snapshot.last_seq
    ):
        return ""
    breach = window.breach_of(segment, snapshot.state, sender, receiver, kernel)
    return "" if breach is None else AFTER_A_SYN[breach.bound]


def _diagnose_sctp(packet: SctpPacket, snapshot: FlowSnapshot | None) -> Finding:
    tracker = SctpTracker()
    if snapshot is None:
        fits = tracker.open(packet) is not None
    elif snapshot.association is None or snapshot.association.state > _LAST_SCTP_STATE:
        return Finding(Reason.UNSUPPORTED, None, NO_STATE)
    else:
        association = copied(snapshot.association)
        # The kernel does not show which INITs it has seen; an INVALID answer implies both.
        association.inits = 3
        association.heartbeat_failed = False
        fits = tracker.follow(association, packet, snapshot.direction) != INVALID
    if not fits:
        return Finding(tracker.reason, None, tracker.detail)
    if not packet.whole:
        return Finding(Reason.UNSUPPORTED, None, NOT_ALL_CHUNKS)
    return Finding(Reason.RACED, None, ENTRY_GONE if snapshot is None else STATE_MOVED_ON)


def _diagnose_icmp(packet: Packet, message: IcmpMessage, snapshot: FlowSnapshot | None) -> Finding:
    if message.is_error:
        # Conntrack checks the origin of a redirect before the quoted packet.
        if message.type == REDIRECT_V6 and not comes_from_link(packet):
            return Finding(Reason.MALFORMED, None, FAR_REDIRECT)
        quoted = message.quoted
        if quoted is None:
            return Finding(Reason.ICMP_UNRELATED, None, SHORT_QUOTE)
        if snapshot is None:
            return Finding(Reason.ICMP_UNRELATED, None, QUOTES_NO_ENTRY)
        if packet.dst != quoted.src:
            return Finding(Reason.ICMP_MISMATCH, None, QUOTES_OTHER_SENDER)
        return Finding(Reason.RACED, None, QUOTES_ENTRY)
    if packet.family == IPV4 and message.type > LAST_TYPE_V4:
        return Finding(Reason.MALFORMED, None, ICMP_TYPE_ABOVE)
    if snapshot is None and not is_icmp_request(packet.proto, message.type):
        return Finding(Reason.NO_ENTRY, None, NOT_REQUESTED)
    return Finding(Reason.RACED, None, ENTRY_GONE)
