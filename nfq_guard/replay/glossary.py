# SPDX-License-Identifier: MIT
"""What reasons and bounds mean, for somebody who has not met them before."""

from typing import Final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.entry import CAUSE_CHALLENGE_ACK, CAUSE_STATE_IGNORES
from nfq_guard.finding import Bound, Reason
from nfq_guard.flow import IP_CT_TCP_FLAG_BE_LIBERAL, CtState
from nfq_guard.replay.explanation import Lesson
from nfq_guard.replay.replayer import FRAGMENT_WAITS, NOT_IP, SNAPPED, UNKNOWN_LINK
from nfq_guard.wire.packet import RST, SYN

BOUND_RULES: Final = {
    Bound.SEQ_OVER: "Does it begin where the receiver has offered room?",
    Bound.SEQ_UNDER: "Does it end within one window of what was sent last?",
    Bound.ACK_OVER: "Does it acknowledge only what was sent?",
    Bound.ACK_UNDER: "Is its acknowledgement recent enough?",
    Bound.RST_OUTSIDE: "Does it come after what was acknowledged?",
}

MEANINGS: Final = {
    Reason.SEQ_OVER: (
        "The sender went past the last octet that the receiver had offered room for. Most often "
        "conntrack missed a window update that took another way, or the segment belongs to another "
        "connection between the same ports."
    ),
    Reason.ACK_OVER: (
        "It acknowledges data that conntrack has not seen the other side send. Most often that "
        "data took another way, or was in a segment that was itself INVALID."
    ),
    Reason.SEQ_UNDER: (
        "All of its data is older than one window: a late retransmission. The receiver would drop "
        "it with an ACK; kernels before 6.1 call it INVALID, and a host that translates then lets "
        "it through untranslated."
    ),
    Reason.ACK_UNDER: (
        "Its acknowledgement is older than any window of this flow: an ACK that was delayed on the "
        "way. Kernels before 6.1 call it INVALID."
    ),
    Reason.RST_OUTSIDE: (
        "A RST from before what the other side has acknowledged already is one that its receiver "
        "would not believe either: a late answer to an old segment, or a forgery."
    ),
    Reason.BAD_TRANSITION: (
        "Such a segment cannot come in that state. Most often conntrack sees one direction only, "
        "or an old segment of an earlier connection arrives."
    ),
    Reason.NO_ENTRY: (
        "No flow is known that it belongs to, and it is none that begins one. Most often the entry "
        "has expired: CLOSE lasts 10 s, LAST_ACK 30 s, TIME_WAIT 120 s."
    ),
    Reason.BAD_FLAGS: "No TCP sends this combination of flags; scanners do.",
    Reason.BAD_CHECKSUM: (
        "Its octets changed on the way. If this host sent it, the NIC was still to compute the "
        "checksum: see --checksum."
    ),
    Reason.MALFORMED: "Its headers contradict themselves.",
    Reason.ICMP_UNRELATED: (
        "It is an ICMP error about a packet of a flow that is not known, so nobody here sent that "
        "packet, or the entry has expired."
    ),
    Reason.ICMP_MISMATCH: (
        "It is an ICMP error about a packet of a known flow, but goes to another host than the one "
        "that sent the packet."
    ),
    Reason.RACED: "It would fit the window that the flow has by now.",
    Reason.UNSUPPORTED: "Nothing more can be said about it.",
}

ABSENT_MEANINGS: Final = {
    NOT_IP: "The frame holds no IP packet, such as ARP, so conntrack does not see it.",
    UNKNOWN_LINK: "The frame was captured on a link of a type that we cannot read.",
    FRAGMENT_WAITS: (
        "The frame is an IP fragment. Conntrack sees the datagram when it is whole; the frame "
        "with its last missing piece is the one that is judged."
    ),
    SNAPPED: (
        "The capture holds too little of the frame to read its headers: it was taken with too "
        "small a snapshot length."
    ),
}

_IGNORED: Final = {
    window.OVERSHOOT: (
        "It goes beyond the room that the receiver offered, by less than one window. Conntrack "
        "lets it pass with its flow, and counts nothing in it (since kernel 6.1)."
    ),
    window.SEQ_UNDER: (
        "All of its data is old: a late retransmission. Since kernel 6.1 conntrack lets it pass "
        "with its flow, and counts nothing in it."
    ),
    window.ACK_UNDER: (
        "Its acknowledgement is older than any window. Since kernel 6.1 conntrack lets it pass "
        "with its flow, and counts nothing in it."
    ),
    CAUSE_STATE_IGNORES: (
        "In this state the answer to it will tell what it means, so conntrack lets it pass, "
        "remembers it, and checks no window."
    ),
    CAUSE_CHALLENGE_ACK: "It answers a SYN that came late: a challenge ACK, which closes nothing.",
}


def why_passed(lesson: Lesson) -> str:
    """Why a packet is not INVALID."""
    outcome = lesson.outcome
    if outcome.ctstate is CtState.UNTRACKED:
        return "Conntrack leaves such messages of the link alone."
    if outcome.ctstate is CtState.RELATED:
        return "It is an ICMP error about a packet of a known flow, and goes to its sender."
    if outcome.ignored:
        return _IGNORED.get(lesson.cause, "Its flow takes no note of it.")
    segment = lesson.segment
    if segment is None:
        return f"{outcome.ctstate}: its protocol has no window, so an entry is all it takes."
    if lesson.before is None:
        if segment.flags & SYN:
            return "NEW: a SYN begins a flow; both windows begin with it."
        return (
            "NEW: no flow is known, and conntrack picks it up in the middle (tcp_loose). It does "
            "not know how windows are scaled here, so it will hold no bound against this flow."
        )
    if segment.flags & SYN:
        return (
            f"{outcome.ctstate}: it opens the window of its sender, so no bound is held against it."
        )
    if not lesson.checks:
        if segment.flags & RST:
            return f"{outcome.ctstate}: the flow is closing, and then any RST is taken."
        return f"{outcome.ctstate}: its sender was not seen before, so its window begins here."
    if all(check.holds for check in lesson.checks):
        return f"{outcome.ctstate}: all bounds hold, and the window moves on by this segment."
    peers = lesson.before.peers
    if peers is not None and peers[lesson.before.direction].flags & IP_CT_TCP_FLAG_BE_LIBERAL:
        return f"{outcome.ctstate}: a bound is broken, but its sender counts as liberal."
    return f"{outcome.ctstate}: a bound is broken, but conntrack is set to be liberal."
