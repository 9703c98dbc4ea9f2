# SPDX-License-Identifier: MIT
"""The TCP tracker: how a segment is treated, and how it changes its flow (kernel.md 1.4 to 1.9)."""

from typing import Final, final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.entry import (
    ACCEPT,
    ACCEPT_LAST,
    IGNORE,
    INVALID,
    REOPEN,
    Entry,
    new_peer,
)
from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.conntrack.states import (
    CLASS_ACK,
    CLASS_RST,
    CLASS_SYN,
    CLASS_SYNACK,
    MOVE_IGNORE,
    MOVE_INVALID,
    MOVES,
)
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.tcp_in_window import SlidingWindow, take_options
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import (
    IP_CT_EXP_CHALLENGE_ACK,
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_CLOSE_INIT,
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_SIMULTANEOUS_OPEN,
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    TcpState,
)
from nfq_guard.seqno import Seq, add
from nfq_guard.wire.packet import Segment

_SYN_SENT: Final = int(TcpState.SYN_SENT)
_SYN_RECV: Final = int(TcpState.SYN_RECV)
_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_FIN_WAIT: Final = int(TcpState.FIN_WAIT)
_LAST_ACK: Final = int(TcpState.LAST_ACK)
_TIME_WAIT: Final = int(TcpState.TIME_WAIT)
_CLOSE: Final = int(TcpState.CLOSE)
_SYN_SENT2: Final = int(TcpState.SYN_SENT2)

# A SYN in these opens the next flow, or is ignored.
_OVER: Final = (_TIME_WAIT, _CLOSE)

# Treatment of an RST that the state table allows (kernel.md 1.7).
_RST_CLOSES: Final = 0
_RST_CHECKED: Final = 1
_RST_CHECKED_KEEPS_STATE: Final = 2
_RST_INVALID: Final = 3
_RST_PASSES_KEEPS_STATE: Final = 4


@final
class TcpTracker:
    """Follows the segments of any number of flows by one kernel's rules.

    Attributes:
        reason: Why the last INVALID segment is INVALID.
        ignored: Why the last ignored segment was ignored.
    """

    def __init__(self, kernel: KernelRules, sysctls: Sysctls) -> None:
        """Follow segments by the rules of `kernel` with the sysctls `sysctls`."""
        self.reason: Reason | None = None
        self.ignored: Ignored | None = None
        self._kernel = kernel
        self._sliding = SlidingWindow(kernel, sysctls)
        self._loose = sysctls.loose
        self._rst_below_passes = sysctls.ignore_invalid_rst and kernel.ignores_invalid_rst
        self._timeouts: tuple[int, ...] = sysctls.tcp_timeouts_s
        self._max_retrans = sysctls.max_retrans
        self._max_retrans_s = sysctls.max_retrans_timeout_s
        self._unacknowledged_s = sysctls.unacknowledged_timeout_s
        self._inexact_rst_spares_timeout = kernel.inexact_rst_spares_timeout

    def opens(self, kind: int) -> bool:
        """Whether a segment of class `kind` may open an entry (kernel.md 1.4)."""
        return kind == CLASS_SYN or (kind == CLASS_ACK and self._loose)

    def open(self, entry: Entry, segment: Segment, kind: int) -> None:
        """Set up a fresh `entry` for the segment that opens it; `follow` comes next."""
        sender, receiver = entry.peers
        end = segment.end
        sender.td_end = end
        sender.td_maxwin = max(segment.window, 1)
        if kind == CLASS_SYN:
            sender.td_maxend = end
            take_options(sender, segment)
        else:
            # The window scales of a flow picked up in the middle are unknown, so no window is
            # enforced.
            sender.td_maxend = add(end, sender.td_maxwin)
            sender.flags = receiver.flags = IP_CT_TCP_FLAG_SACK_PERM | IP_CT_TCP_FLAG_BE_LIBERAL

    def follow(self, entry: Entry, segment: Segment, kind: int, direction: int, now: float) -> int:
        """Judge one segment of `entry` and take it into account.

        Args:
            entry: Its flow; state NONE right after `open`.
            segment: With flags that pass `states.FLAGS_PASS`.
            kind: Its class.
            direction: 0 original, 1 reply.
            now: Seconds.

        Returns:
            `ACCEPT`, `ACCEPT_LAST`, `REOPEN`, `IGNORE` (`ignored` says why) or `INVALID`
            (`reason` says why).
        """
        state = entry.state
        move = MOVES[direction][kind][state]
        if kind != CLASS_ACK or state != _ESTABLISHED:
            if move == MOVE_INVALID:
                self.reason = Reason.BAD_TRANSITION
                return INVALID
            if move == MOVE_IGNORE or (move == _SYN_SENT and state in _OVER):
                return self._out_of_order(entry, segment, kind, direction, move, now)
            if kind == CLASS_RST:
                return self._reset(entry, segment, direction, state, now)
            if move == _SYN_SENT2:
                entry.last_flags |= IP_CT_TCP_SIMULTANEOUS_OPEN
            elif kind == CLASS_ACK:
                if move == _TIME_WAIT and _answers_challenge(entry, direction, state):
                    entry.last_flags &= ~IP_CT_EXP_CHALLENGE_ACK
                    self.ignored = Ignored.CHALLENGE_ACK
                    return IGNORE
                if move == _SYN_RECV and entry.last_flags & IP_CT_TCP_SIMULTANEOUS_OPEN:
                    move = _ESTABLISHED
        return self._checked(entry, segment, kind, direction, state, move, now)

    def _checked(
        self,
        entry: Entry,
        segment: Segment,
        kind: int,
        direction: int,
        state: int,
        move: int,
        now: float,
    ) -> int:
        """Change `state` by `move` if the segment is within the window."""
        sliding = self._sliding
        outcome = sliding.check(entry, segment, kind, direction, now)
        if outcome != ACCEPT:
            self.reason = sliding.reason
            self.ignored = sliding.ignored
            return outcome
        return self._accept(entry, kind, direction, state, move, now)

    def _out_of_order(
        self, entry: Entry, segment: Segment, kind: int, direction: int, move: int, now: float
    ) -> int:
        """Treatment of a segment that the table ignores, or of a SYN after the end of the flow."""
        if move == _SYN_SENT and _is_over(entry, direction):
            return REOPEN
        if _answers_ignored_syn(entry, segment, kind, direction):
            _resync(entry, direction)
            return self._checked(entry, segment, kind, direction, _SYN_SENT, _SYN_RECV, now)
        self._record_ignored(entry, segment, kind, direction)
        self.ignored = Ignored.STATE
        return IGNORE

    def _reset(self, entry: Entry, segment: Segment, direction: int, state: int, now: float) -> int:
        fate = self._judge_rst(entry, segment, direction)
        if fate == _RST_INVALID:
            return INVALID
        if fate == _RST_CLOSES:
            return self._accept(entry, CLASS_RST, direction, state, _CLOSE, now)
        if fate == _RST_PASSES_KEEPS_STATE:
            return self._accept(entry, CLASS_RST, direction, state, state, now)
        move = state if fate == _RST_CHECKED_KEEPS_STATE else _CLOSE
        return self._checked(entry, segment, CLASS_RST, direction, state, move, now)

    def _accept(
        self, entry: Entry, kind: int, direction: int, state: int, move: int, now: float
    ) -> int:
        peers = entry.peers
        entry.last_index = kind
        entry.last_dir = direction
        entry.state = move
        if move == _FIN_WAIT and state != _FIN_WAIT:
            peers[direction].flags |= IP_CT_TCP_FLAG_CLOSE_INIT
        timeout = self._timeouts[move]
        if entry.retrans >= self._max_retrans and timeout > self._max_retrans_s:
            timeout = self._max_retrans_s
        elif kind == CLASS_RST:
            spared = self._inexact_rst_spares_timeout and move == _ESTABLISHED
            timeout = self._unacknowledged_s if spared else self._timeouts[_CLOSE]
        elif timeout > self._unacknowledged_s and (
            (peers[0].flags | peers[1].flags) & IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
            or entry.last_win == 0
        ):
            timeout = self._unacknowledged_s
        status = entry.status
        if not status & IPS_SEEN_REPLY:
            if kind == CLASS_RST:
                return ACCEPT_LAST
            if kind == CLASS_SYN and state == _SYN_SENT:
                # A repeated SYN does not extend the life of a flow without an answer. The first SYN
                # of the other end does not either: it counts as an answer only after this.
                return ACCEPT
            if move == _ESTABLISHED and timeout > self._unacknowledged_s:
                timeout = self._unacknowledged_s
        elif (
            not status & IPS_ASSURED and move == _ESTABLISHED and state in (_SYN_RECV, _ESTABLISHED)
        ):
            entry.status = status | IPS_ASSURED
        entry.expires = now + timeout
        return ACCEPT

    def _record_ignored(self, entry: Entry, segment: Segment, kind: int, direction: int) -> None:
        entry.last_index = kind
        entry.last_dir = direction
        entry.last_seq = segment.seq
        entry.last_end = segment.end
        entry.last_win = segment.window
        if kind == CLASS_SYN and direction == 0:
            # The SYN may be valid and the entry stale: remember the values of the SYN.
            offer = new_peer()
            take_options(offer, segment)
            entry.last_wscale = offer.td_scale
            entry.last_flags = offer.flags
            if entry.state == _LAST_ACK:
                entry.last_flags |= IP_CT_EXP_CHALLENGE_ACK
        elif (
            kind == CLASS_ACK
            and direction == 1
            and entry.state == _SYN_SENT
            and self._kernel.rst_after_challenge_ack
        ):
            entry.last_ack = segment.ack

    def _judge_rst(self, entry: Entry, segment: Segment, direction: int) -> int:
        """Treatment of an RST (kernel.md 1.7)."""
        kernel = self._kernel
        state = entry.state
        if window.rst_closes_unchecked(state, kernel):
            return _RST_CLOSES
        seq = segment.seq
        receiver = entry.peers[1 - direction]
        last_index = entry.last_index
        if window.rst_is_held(receiver, last_index, kernel):
            if not self._rst_below_passes and window.rst_breach_of(
                seq, state, entry.status, last_index, receiver, kernel
            ):
                self.reason = Reason.RST_OUTSIDE
                return _RST_INVALID
            if not window.is_settled(state, entry.status) or seq == receiver.td_maxack:
                return _RST_CHECKED
            follows_own_data = (
                last_index == CLASS_ACK and entry.last_dir == direction and seq == entry.last_end
            )
            if follows_own_data:
                return _RST_CHECKED
            answers = self._answers_let_through(entry, segment, direction)
            return _RST_PASSES_KEEPS_STATE if answers else _RST_CHECKED_KEEPS_STATE
        if self._answers_let_through(entry, segment, direction):
            return _RST_CLOSES
        if (
            kernel.rst_after_challenge_ack
            and state == _SYN_SENT
            and last_index == CLASS_ACK
            and seq == entry.last_ack
        ):
            return _RST_CLOSES
        return _RST_CHECKED

    def _answers_let_through(self, entry: Entry, segment: Segment, direction: int) -> bool:
        """Whether an RST answers a SYN or an ACK that was accepted without a check."""
        if segment.ack != entry.last_end:
            return False
        if entry.last_index == CLASS_SYN:
            return entry.status & IPS_SEEN_REPLY != 0 and (
                entry.last_dir != direction or self._kernel.rst_answers_own_syn
            )
        return not entry.status & IPS_ASSURED and entry.last_index == CLASS_ACK


def _is_over(entry: Entry, direction: int) -> bool:
    """Whether a SYN opens a new flow: this one was closed, or reset by the same side."""
    return (entry.peers[0].flags | entry.peers[1].flags) & IP_CT_TCP_FLAG_CLOSE_INIT != 0 or (
        entry.last_dir == direction and entry.last_index == CLASS_RST
    )


def _answers_challenge(entry: Entry, direction: int, state: int) -> bool:
    """Whether an ACK answers a SYN that was ignored in LAST_ACK, instead of ending the flow."""
    return (
        state == _LAST_ACK
        and entry.last_index == CLASS_SYN
        and entry.last_dir != direction
        and entry.last_flags & IP_CT_EXP_CHALLENGE_ACK != 0
    )


def _answers_ignored_syn(entry: Entry, segment: Segment, kind: int, direction: int) -> bool:
    """Whether a SYN+ACK proves that an ignored SYN was valid (kernel.md 1.8)."""
    return (
        kind == CLASS_SYNACK
        and entry.last_index == CLASS_SYN
        and entry.last_dir != direction
        and segment.ack == entry.last_end
    )


def _resync(entry: Entry, direction: int) -> None:
    """Restart the flow from the ignored SYN; its SYN+ACK travels in `direction`."""
    entry.last_flags &= ~IP_CT_EXP_CHALLENGE_ACK
    asking = entry.peers[1 - direction]
    asking.td_end = asking.td_maxend = entry.last_end
    asking.td_maxwin = max(entry.last_win, 1)
    asking.td_scale = entry.last_wscale
    asking.flags = entry.last_flags
    answering = entry.peers[direction]
    answering.td_end = answering.td_maxend = answering.td_maxack = Seq(0)
    answering.td_maxwin = 0
    answering.td_scale = 0
    answering.flags &= IP_CT_TCP_FLAG_BE_LIBERAL
