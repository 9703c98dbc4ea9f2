# SPDX-License-Identifier: MIT
"""Explains in full sentences why a frame has no packet for conntrack, or why it is not INVALID."""

from typing import Final

from nfq_guard.flow import IP_CT_TCP_FLAG_BE_LIBERAL, CtState, FlowSnapshot, TcpState
from nfq_guard.glossary import IGNORED
from nfq_guard.replay.explanation import Explanation
from nfq_guard.replay.packets import (
    COPIED,
    DROPPED_BEFORE,
    FRAGMENT_WAITS,
    NOT_IP,
    SNAPPED,
    UNKNOWN_LINK,
)
from nfq_guard.replay.words import UNMODELLED, state_name
from nfq_guard.wire.packet import RST, SYN, Segment

WHY_ABSENT: Final = {
    NOT_IP: "The frame holds no IP packet, such as ARP, so conntrack does not see it.",
    UNKNOWN_LINK: "The frame was captured on a link type that nfq_guard cannot read.",
    FRAGMENT_WAITS: (
        "The frame is an IP fragment. Conntrack sees the datagram once it is complete, and the "
        "frame with the last missing fragment is the one that is judged."
    ),
    DROPPED_BEFORE: (
        "Its IP header is broken: the kernel's IP layer discards the packet before conntrack or "
        "any rule sees it."
    ),
    COPIED: (
        "The frame repeats an earlier packet: on another interface, in a mirror, "
        "or after address translation. The kernel judges it once, where it first arrives."
    ),
    SNAPPED: (
        "The frame was not captured far enough to read its headers: the snapshot length was "
        "too small."
    ),
}


def why_passed(explanation: Explanation) -> str:
    """Why the packet of `explanation` is not INVALID."""
    outcome = explanation.outcome
    if outcome.ctstate is CtState.UNTRACKED:
        return "Conntrack does not track neighbour and multicast listener discovery."
    if outcome.ctstate is CtState.RELATED:
        return "It is an ICMP error about a packet of a known flow, and goes to its sender."
    if outcome.ignored is not None:
        return IGNORED[outcome.ignored]
    segment = explanation.segment
    packet = outcome.packet
    if packet is not None and packet.proto in UNMODELLED:
        name, kernels = UNMODELLED[packet.proto]
        return f"{outcome.ctstate}. It is a packet of {name}: {kernels}."
    if segment is None:
        return f"{outcome.ctstate}: its protocol has no window, so an entry suffices."
    before = explanation.before
    if before is None:
        if segment.flags & SYN:
            return "NEW: a SYN begins a flow; both windows begin with it."
        return (
            "NEW: no flow is known, and conntrack picks it up in the middle (tcp_loose). The "
            "window scale is unknown then, so conntrack enforces no bound in this flow."
        )
    if segment.flags & SYN:
        return f"{outcome.ctstate}: it opens the window of its sender, so no bound is checked."
    if not explanation.checks:
        if segment.flags & RST:
            return f"{outcome.ctstate}: the flow is closing, and any RST is accepted then."
        return f"{outcome.ctstate}: its sender was not seen before, so its window begins here."
    return f"{outcome.ctstate}: {_after_the_check(explanation, segment, before)}"


def _after_the_check(explanation: Explanation, segment: Segment, before: FlowSnapshot) -> str:
    """The result of the window check, and the effect of the segment."""
    holds = all(check.holds for check in explanation.checks)
    peers = before.peers
    if holds:
        said = "all bounds hold"
    elif peers is not None and peers[before.direction].flags & IP_CT_TCP_FLAG_BE_LIBERAL:
        said = "a bound is broken, but its sender counts as liberal"
    else:
        said = "a bound is broken, but conntrack is set to be liberal"
    if segment.flags & RST:
        return f"{said}. {_what_the_rst_does(explanation, before)}"
    return f"{said}, and the segment moves the window on." if holds else f"{said}."


def _what_the_rst_does(explanation: Explanation, before: FlowSnapshot) -> str:
    """The effect of an RST that passed the window check on its flow."""
    after = explanation.after
    if after is None:
        return "The RST deletes the entry, as no packet of the other direction was seen."
    expires = f"the entry expires {after.timeout_s} s from now"
    if after.state == TcpState.CLOSE or before.peers is None:
        return f"The RST closes the flow: {expires}."
    exact = before.peers[1 - before.direction].td_maxack
    relative = explanation.relative(exact, before.direction)
    number = str(exact) if relative is None else f"{relative} ({exact})"
    return (
        f"Conntrack does not close the flow: the RST's sequence number is not {number}, the last "
        "one that the other side acknowledged (RFC 5961). The flow stays "
        f"{state_name(after.state)}, but {expires}, unless a packet of the flow renews it, such as "
        "the challenge ACK of a host that does not accept the RST either. If the flow is idle for "
        "longer, its next packet has no entry and is not translated."
    )
