# SPDX-License-Identifier: MIT
"""Checks each segment of a flow against the window, and updates the window (kernel.md 1.6)."""

from typing import Final, final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.entry import ACCEPT, IGNORE, INVALID, Entry
from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.conntrack.states import CLASS_ACK, CLASS_FIN, CLASS_RST, CLASS_SYN
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_MAXACK_SET,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    IPS_ASSURED,
    Peer,
    TcpState,
)
from nfq_guard.seqno import MASK, Seq, add, after, before, later
from nfq_guard.wire.packet import ACK, SYN, Segment
from nfq_guard.wire.tcp import parse_options

_SYN_SENT: Final = int(TcpState.SYN_SENT)
_SYN_RECV: Final = int(TcpState.SYN_RECV)

# Timeouts up to this are not shortened after INVALID segments that close, seconds.
_SHORTENED_FROM_S: Final = 120


@final
class SlidingWindow:
    """Checks segments of any number of flows by one kernel's rules.

    Attributes:
        reason: The bound that the last INVALID segment broke.
        ignored: Why the last ignored segment was ignored.
    """

    def __init__(self, kernel: KernelRules, sysctls: Sysctls) -> None:
        """Check by the rules of `kernel` and the values of `sysctls`."""
        self.reason: Reason | None = None
        self.ignored: Ignored | None = None
        self._kernel = kernel
        self._old_segments_pass = kernel.old_segments_pass
        self._overshoot_moves_end = kernel.overshoot_moves_end
        self._overshoot_moves_liberal = kernel.overshoot_moves_liberal
        self._any_reinitialises = kernel.reinit_by_any_segment
        self._any_syn_unscales = kernel.any_syn_unscales
        self._close_shortens = kernel.invalid_close_shortens
        self._liberal = sysctls.be_liberal
        self._unacknowledged_s = sysctls.unacknowledged_timeout_s

    def check(self, entry: Entry, segment: Segment, kind: int, direction: int, now: float) -> int:
        """Check the segment against the window, and update the window (kernel.md 1.6)."""
        # By name: in compiled code, a variable index would create a tuple of the pair.
        if direction:
            receiver, sender = entry.peers
        else:
            sender, receiver = entry.peers
        seq = segment.seq
        ack = segment.ack
        end = segment.end
        sack = window.highest_ack(segment, receiver)
        if sender.td_maxwin == 0:
            if self._meet(entry, segment, kind, direction, end, sack):
                return ACCEPT
        elif (kind != CLASS_ACK or self._any_reinitialises) and self._is_reinitialised(
            entry, segment, direction, end
        ):
            self._initialise(entry, segment, direction, end, scaling=not self._any_reinitialises)
            if kind == CLASS_SYN and direction == 1:
                return ACCEPT
        if not window.has_ack(segment):
            ack = sack = receiver.td_end
        if kind == CLASS_RST and window.stands_at_td_end(segment, entry.state):
            seq = end = sender.td_end
        bound = window.first_breach(seq, end, sack, sender, receiver, self._old_segments_pass)
        if bound is not None:
            return self._outside(entry, kind, direction, bound, end, sack, now)
        _move_window(sender, receiver, segment, ack, sack, end)
        if kind == CLASS_ACK:
            win = segment.window
            if (
                entry.last_dir == direction
                and entry.last_seq == seq
                and entry.last_ack == ack
                and entry.last_end == end
                and entry.last_win == win
            ):
                entry.retrans = (entry.retrans + 1) & 0xFF
            else:
                entry.last_dir = direction
                entry.last_seq = seq
                entry.last_ack = ack
                entry.last_end = end
                entry.last_win = win
                entry.retrans = 0
        return ACCEPT

    def _meet(
        self, entry: Entry, segment: Segment, kind: int, direction: int, end: Seq, sack: Seq
    ) -> bool:
        """Initialise a new sender; returns whether its segment passes without a check."""
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        if segment.flags & SYN:
            self._initialise(entry, segment, direction, end, scaling=True)
            return kind == CLASS_SYN
        sender.td_end = end
        sender.td_maxwin = max(segment.window << sender.td_scale, 1)
        sender.td_maxend = add(end, sender.td_maxwin)
        if sack == add(receiver.td_end, 1):
            # The answer to a keepalive of one byte that was sent before the flow was seen.
            receiver.td_end = sack
        return False

    def _is_reinitialised(self, entry: Entry, segment: Segment, direction: int, end: Seq) -> bool:
        """Whether this segment re-initialises a half-open sender."""
        state = entry.state
        if not after(end, entry.peers[direction].td_end):
            return False
        if self._any_reinitialises:
            return (state == _SYN_SENT and direction == 0) or (
                state == _SYN_RECV and direction == 1
            )
        return segment.flags & SYN != 0 and state in (_SYN_SENT, _SYN_RECV)

    def _initialise(
        self, entry: Entry, segment: Segment, direction: int, end: Seq, *, scaling: bool
    ) -> None:
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        sender.td_end = sender.td_maxend = end
        sender.td_maxwin = max(segment.window, 1)
        take_options(sender, segment)
        if (
            scaling
            and (direction == 1 or self._any_syn_unscales)
            and not (sender.flags & receiver.flags & IP_CT_TCP_FLAG_WINDOW_SCALE)
        ):
            sender.td_scale = receiver.td_scale = 0

    def _outside(
        self,
        entry: Entry,
        kind: int,
        direction: int,
        bound: Reason,
        end: Seq,
        sack: Seq,
        now: float,
    ) -> int:
        """The result for a segment that breaks `bound`."""
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        ignored = window.ignored_for(bound, end, sack, sender, receiver, self._kernel)
        is_liberal = self._liberal or sender.flags & IP_CT_TCP_FLAG_BE_LIBERAL
        if (
            bound is Reason.SEQ_OVER
            and self._overshoot_moves_end
            and (self._overshoot_moves_liberal or not is_liberal)
            and window.is_overshoot(end, sack, sender, receiver)
        ):
            sender.td_end = end
            sender.flags |= IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
        if is_liberal:
            return ACCEPT
        if ignored is not None:
            self.ignored = ignored
            return IGNORE
        self.reason = bound
        if self._close_shortens and kind in (CLASS_FIN, CLASS_RST) and entry.status & IPS_ASSURED:
            self._shorten(entry, kind, direction, now)
        return INVALID

    def _shorten(self, entry: Entry, kind: int, direction: int, now: float) -> None:
        """Both ends closed outside the window: the flow is likely over (kernel.md 1.6)."""
        if entry.last_index in (CLASS_FIN, CLASS_RST) and entry.last_dir != direction:
            if entry.expires - now > max(_SHORTENED_FROM_S, self._unacknowledged_s):
                entry.expires = now + self._unacknowledged_s
        else:
            entry.last_index = kind
            entry.last_dir = direction


def take_options(peer: Peer, segment: Segment) -> None:
    """Update a sender from the options of its SYN; without options nothing changes."""
    if not segment.options:
        return
    options = parse_options(segment.options)
    peer.td_scale = 0
    peer.flags &= IP_CT_TCP_FLAG_BE_LIBERAL
    if options.sack_permitted:
        peer.flags |= IP_CT_TCP_FLAG_SACK_PERM
    if options.window_scale is not None:
        peer.td_scale = options.window_scale
        peer.flags |= IP_CT_TCP_FLAG_WINDOW_SCALE


def _move_window(
    sender: Peer, receiver: Peer, segment: Segment, ack: Seq, sack: Seq, end: Seq
) -> None:
    """Update both sides from a segment inside the window (kernel.md 1.6 g)."""
    flags = segment.flags
    win = segment.window if flags & SYN else segment.window << sender.td_scale
    spanned = (win + sack - ack) & MASK
    sender.td_maxwin = max(sender.td_maxwin, spanned)
    if after(end, sender.td_end):
        sender.td_end = end
        sender.flags |= IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
    if flags & ACK:
        if not sender.flags & IP_CT_TCP_FLAG_MAXACK_SET:
            sender.td_maxack = ack
            sender.flags |= IP_CT_TCP_FLAG_MAXACK_SET
        else:
            sender.td_maxack = later(ack, sender.td_maxack)
    if receiver.td_maxwin != 0 and after(end, sender.td_maxend):
        # It wraps as in the kernel, after gigabytes from a sender that ignores the window.
        receiver.td_maxwin = (receiver.td_maxwin + end - sender.td_maxend) & MASK
    reach = add(sack, win)
    if before(add(receiver.td_maxend, -1), reach):
        receiver.td_maxend = reach if win else add(reach, 1)
    if ack == receiver.td_end:
        receiver.flags &= ~IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
