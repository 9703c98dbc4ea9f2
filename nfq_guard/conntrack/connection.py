# SPDX-License-Identifier: MIT
"""The TCP tracker: what one segment is to its flow, and what it changes (kernel.md 1.4 to 1.9)."""

from typing import Final, final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.entry import (
    ACCEPT,
    ACCEPT_LAST,
    CAUSE_BAD_TRANSITION,
    CAUSE_CHALLENGE_ACK,
    CAUSE_NONE,
    CAUSE_RST_OUTSIDE,
    CAUSE_STATE_IGNORES,
    IGNORE,
    INVALID,
    REOPEN,
    Entry,
)
from nfq_guard.conntrack.kernels import KernelRules
from nfq_guard.conntrack.states import (
    CLASS_ACK,
    CLASS_FIN,
    CLASS_RST,
    CLASS_SYN,
    CLASS_SYNACK,
    MOVE_IGNORE,
    MOVE_INVALID,
    MOVES,
)
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.flow import (
    PEER_BE_LIBERAL,
    PEER_CLOSE_INIT,
    PEER_DATA_UNACKNOWLEDGED,
    PEER_EXP_CHALLENGE_ACK,
    PEER_MAXACK_SET,
    PEER_SACK_PERM,
    PEER_SIMULTANEOUS_OPEN,
    PEER_WINDOW_SCALE,
    STATUS_ASSURED,
    STATUS_SEEN_REPLY,
    Peer,
    TcpState,
)
from nfq_guard.seqno import Seq, add, after, before, later
from nfq_guard.wire.packet import ACK, SYN, Segment
from nfq_guard.wire.tcp import highest_acknowledged, parse_options

_NONE: Final = int(TcpState.NONE)
_SYN_SENT: Final = int(TcpState.SYN_SENT)
_SYN_RECV: Final = int(TcpState.SYN_RECV)
_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_FIN_WAIT: Final = int(TcpState.FIN_WAIT)
_LAST_ACK: Final = int(TcpState.LAST_ACK)
_TIME_WAIT: Final = int(TcpState.TIME_WAIT)
_CLOSE: Final = int(TcpState.CLOSE)
_SYN_SENT2: Final = int(TcpState.SYN_SENT2)

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

# What becomes of a RST that the table lets close the flow (kernel.md 1.7).
_RST_CLOSES: Final = 0
_RST_CHECKED: Final = 1
_RST_CHECKED_KEEPS_STATE: Final = 2
_RST_INVALID: Final = 3

# A shorter timeout after INVALID segments that close is worth it only from here on, seconds.
_SHORTENED_FROM_S: Final = 120


@final
class TcpTracker:
    """Follows the segments of any number of flows by one kernel's rules.

    Attributes:
        cause: Why the last segment was ignored or INVALID: a code of `window` or `entry`.
        actual: The number of that segment which broke a bound.
        limit: The last number that would have passed.
    """

    def __init__(self, kernel: KernelRules, sysctls: Sysctls) -> None:
        """Follow by the rules of `kernel`, set as `sysctls` say."""
        self.cause: int = CAUSE_NONE
        self.actual: Seq = Seq(0)
        self.limit: Seq = Seq(0)
        self._kernel = kernel
        self._old_segments_pass = kernel.old_segments_pass
        self._any_reinitialises = kernel.reinit_by_any_segment
        self._liberal = sysctls.be_liberal
        self._loose = sysctls.loose
        self._rst_below_passes = sysctls.ignore_invalid_rst and kernel.ignores_invalid_rst
        self._timeouts: tuple[int, ...] = sysctls.tcp_timeouts_s
        self._max_retrans = sysctls.max_retrans
        self._max_retrans_s = sysctls.max_retrans_timeout_s
        self._unacknowledged_s = sysctls.unacknowledged_timeout_s

    def opens(self, kind: int) -> bool:
        """Whether a segment of class `kind` may open an entry (kernel.md 1.4)."""
        return kind == CLASS_SYN or (kind == CLASS_ACK and self._loose)

    def open(self, entry: Entry, segment: Segment, kind: int) -> None:
        """Set up a fresh `entry` for the segment that opens it; `follow` comes next."""
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        sender, receiver = entry.peers
        end = segment.end
        sender.td_end = end
        sender.td_maxwin = max(segment.window, 1)
        if kind == CLASS_SYN:
            sender.td_maxend = end
            _take_options(sender, segment)
        else:
            # Nobody knows the scales of a flow picked up in the middle, so no window is held
            # against either side.
            sender.td_maxend = add(end, sender.td_maxwin)
            sender.flags = receiver.flags = PEER_SACK_PERM | PEER_BE_LIBERAL

    def follow(self, entry: Entry, segment: Segment, kind: int, direction: int, now: float) -> int:
        """Judge one segment of `entry` and take it into account.

        Args:
            entry: Its flow; state NONE right after `open`.
            segment: With flags that pass `states.FLAGS_PASS`.
            kind: Its class.
            direction: 0 original, 1 reply.
            now: Seconds.

        Returns:
            `ACCEPT`, `ACCEPT_LAST`, `IGNORE`, `INVALID` or `REOPEN`; `cause` says why for
            `IGNORE` and `INVALID`.
        """
        self.cause = CAUSE_NONE
        state = entry.state
        move = MOVES[direction][kind][state]
        checked = True
        if kind != CLASS_ACK or move >= MOVE_INVALID or state != _ESTABLISHED:
            if move == MOVE_INVALID:
                self.cause = CAUSE_BAD_TRANSITION
                return INVALID
            if move == MOVE_IGNORE or (move == _SYN_SENT and state >= _TIME_WAIT):
                if move == _SYN_SENT and _is_over(entry, direction):
                    return REOPEN
                if not _answers_ignored_syn(entry, segment, kind, direction):
                    self._record_ignored(entry, segment, kind, direction)
                    self.cause = CAUSE_STATE_IGNORES
                    return IGNORE
                _resync(entry, direction)
                state = _SYN_SENT
                move = _SYN_RECV
            elif kind == CLASS_RST:
                fate = self._judge_rst(entry, segment, direction)
                if fate == _RST_INVALID:
                    return INVALID
                checked = fate != _RST_CLOSES
                if fate == _RST_CHECKED_KEEPS_STATE:
                    move = state
            elif move == _SYN_SENT2:
                entry.last_flags |= PEER_SIMULTANEOUS_OPEN
            elif kind == CLASS_ACK:
                if move == _TIME_WAIT and state == _LAST_ACK:
                    if (
                        entry.last_index == CLASS_SYN
                        and entry.last_dir != direction
                        and entry.last_flags & PEER_EXP_CHALLENGE_ACK
                    ):
                        entry.last_flags &= ~PEER_EXP_CHALLENGE_ACK
                        self.cause = CAUSE_CHALLENGE_ACK
                        return IGNORE
                elif (
                    move == _SYN_RECV
                    and direction == 1
                    and entry.last_flags & PEER_SIMULTANEOUS_OPEN
                ):
                    move = _ESTABLISHED
        if checked:
            outcome = self._check_window(entry, segment, kind, direction, now)
            if outcome != ACCEPT:
                return outcome
        return self._accept(entry, kind, direction, state, move, now)

    def _accept(
        self, entry: Entry, kind: int, direction: int, state: int, move: int, now: float
    ) -> int:
        peers = entry.peers
        assert peers is not None  # noqa: S101 - entries of TCP have them
        entry.last_index = kind
        entry.last_dir = direction
        entry.state = move
        if move == _FIN_WAIT and state != _FIN_WAIT:
            peers[direction].flags |= PEER_CLOSE_INIT
        timeout = self._timeouts[move]
        if entry.retrans >= self._max_retrans and timeout > self._max_retrans_s:
            timeout = self._max_retrans_s
        elif kind == CLASS_RST:
            timeout = self._timeouts[_CLOSE]
        elif timeout > self._unacknowledged_s and (
            (peers[0].flags | peers[1].flags) & PEER_DATA_UNACKNOWLEDGED or entry.last_win == 0
        ):
            timeout = self._unacknowledged_s
        status = entry.status
        if not status & STATUS_SEEN_REPLY:
            if kind == CLASS_RST:
                return ACCEPT_LAST
            if kind == CLASS_SYN and state == _SYN_SENT and move == _SYN_SENT:
                # A SYN sent again does not keep a flow alive that nobody answers.
                return ACCEPT
            if move == _ESTABLISHED and timeout > self._unacknowledged_s:
                timeout = self._unacknowledged_s
        elif (
            not status & STATUS_ASSURED
            and move == _ESTABLISHED
            and state in (_SYN_RECV, _ESTABLISHED)
        ):
            entry.status = status | STATUS_ASSURED
        entry.expires = now + timeout
        return ACCEPT

    def _record_ignored(self, entry: Entry, segment: Segment, kind: int, direction: int) -> None:
        entry.last_index = kind
        entry.last_dir = direction
        entry.last_seq = segment.seq
        entry.last_end = segment.end
        entry.last_win = segment.window
        if kind == CLASS_SYN and direction == 0:
            # The SYN may be right and our idea of the flow stale: remember what it offers.
            offer = Peer(Seq(0), Seq(0), 0, Seq(0), 0, 0)
            _take_options(offer, segment)
            entry.last_wscale = offer.td_scale
            entry.last_flags = offer.flags
            if entry.state == _LAST_ACK:
                entry.last_flags |= PEER_EXP_CHALLENGE_ACK
        elif (
            kind == CLASS_ACK
            and direction == 1
            and entry.state == _SYN_SENT
            and self._kernel.rst_after_challenge_ack
        ):
            entry.last_ack = segment.ack

    def _judge_rst(self, entry: Entry, segment: Segment, direction: int) -> int:
        """What becomes of a RST (kernel.md 1.7)."""
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        kernel = self._kernel
        state = entry.state
        if kernel.closing_takes_any_rst and _FIN_WAIT <= state <= _CLOSE:
            return _RST_CLOSES
        seq = segment.seq
        receiver = entry.peers[1 - direction]
        last_index = entry.last_index
        assured = entry.status & STATUS_ASSURED
        if receiver.flags & PEER_MAXACK_SET and (
            last_index != CLASS_SYN or kernel.rst_after_syn_checked
        ):
            settled = state == _ESTABLISHED and assured
            if seq == 0 and not settled and kernel.ignores_invalid_rst:
                return _RST_CHECKED
            if before(seq, receiver.td_maxack) and not self._rst_below_passes:
                self.cause = CAUSE_RST_OUTSIDE
                self.actual = seq
                self.limit = receiver.td_maxack
                return _RST_INVALID
            if not settled or seq == receiver.td_maxack:
                return _RST_CHECKED
            follows_own_data = (
                last_index == CLASS_ACK and entry.last_dir == direction and seq == entry.last_end
            )
            return _RST_CHECKED if follows_own_data else _RST_CHECKED_KEEPS_STATE
        if segment.ack == entry.last_end and (
            (
                entry.status & STATUS_SEEN_REPLY
                and last_index == CLASS_SYN
                and entry.last_dir != direction
            )
            or (not assured and last_index == CLASS_ACK)
        ):
            return _RST_CLOSES
        if (
            kernel.rst_after_challenge_ack
            and state == _SYN_SENT
            and last_index == CLASS_ACK
            and entry.last_dir == 1
            and seq == entry.last_ack
        ):
            return _RST_CLOSES
        return _RST_CHECKED

    def _check_window(
        self, entry: Entry, segment: Segment, kind: int, direction: int, now: float
    ) -> int:
        """Hold the segment against the window, and move the window by it (kernel.md 1.6)."""
        peers = entry.peers
        assert peers is not None  # noqa: S101 - entries of TCP have them
        sender = peers[direction]
        receiver = peers[1 - direction]
        flags = segment.flags
        seq = segment.seq
        ack = segment.ack
        end = segment.end
        sack = ack
        if receiver.flags & PEER_SACK_PERM and segment.options:
            sack = highest_acknowledged(segment.options, ack)
        if sender.td_maxwin == 0:
            if self._meet(entry, segment, kind, direction, end, sack):
                return ACCEPT
        elif (kind != CLASS_ACK or self._any_reinitialises) and self._is_reinitialised(
            entry, segment, direction, end
        ):
            self._initialise(entry, segment, direction, end)
            if kind == CLASS_SYN and direction == 1:
                return ACCEPT
        if not flags & ACK or (kind == CLASS_RST and ack == 0):
            ack = sack = receiver.td_end
        if kind == CLASS_RST and seq == 0 and entry.state == _SYN_SENT:
            seq = end = sender.td_end
        breach = window.first_breach(
            seq,
            end,
            sack,
            sender.td_end,
            sender.td_maxend,
            sender.td_maxwin,
            receiver.td_end,
            receiver.td_maxwin,
            self._old_segments_pass,
        )
        if breach != window.FITS:
            return self._outside(entry, kind, direction, breach, seq, end, sack, now)
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
        """Learn about a sender not seen before; whether its segment passes without a check."""
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        if segment.flags & SYN:
            self._initialise(entry, segment, direction, end)
            return kind == CLASS_SYN
        sender.td_end = end
        sender.td_maxwin = max(segment.window << sender.td_scale, 1)
        sender.td_maxend = add(end, sender.td_maxwin)
        if receiver.td_maxwin == 0:
            receiver.td_end = receiver.td_maxend = sack
        elif sack == add(receiver.td_end, 1):
            # The answer to a keepalive that carried one octet and was sent before we looked.
            receiver.td_end = sack
        return False

    def _is_reinitialised(self, entry: Entry, segment: Segment, direction: int, end: Seq) -> bool:
        """Whether a half-open sender starts over with this segment."""
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        state = entry.state
        if not after(end, entry.peers[direction].td_end):
            return False
        if self._any_reinitialises:
            return (state == _SYN_SENT and direction == 0) or (
                state == _SYN_RECV and direction == 1
            )
        return segment.flags & SYN != 0 and state in (_SYN_SENT, _SYN_RECV)

    def _initialise(self, entry: Entry, segment: Segment, direction: int, end: Seq) -> None:
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        sender.td_end = sender.td_maxend = end
        sender.td_maxwin = max(segment.window, 1)
        _take_options(sender, segment)
        if (direction == 1 or self._any_reinitialises) and not (
            sender.flags & receiver.flags & PEER_WINDOW_SCALE
        ):
            sender.td_scale = receiver.td_scale = 0

    def _outside(
        self,
        entry: Entry,
        kind: int,
        direction: int,
        breach: int,
        seq: Seq,
        end: Seq,
        sack: Seq,
        now: float,
    ) -> int:
        """A segment that breaks a bound."""
        assert entry.peers is not None  # noqa: S101 - entries of TCP have them
        sender = entry.peers[direction]
        receiver = entry.peers[1 - direction]
        if breach == window.OVERSHOOT and self._kernel.overshoot_moves_end:
            sender.td_end = end
            sender.flags |= PEER_DATA_UNACKNOWLEDGED
        if self._liberal or sender.flags & PEER_BE_LIBERAL:
            return ACCEPT
        self.cause = breach
        if breach == window.ACK_OVER:
            self.actual = sack
            self.limit = receiver.td_end
        elif breach == window.SEQ_UNDER:
            self.actual = end
            self.limit = window.lowest_end(sender.td_end, receiver.td_maxwin)
        elif breach == window.ACK_UNDER:
            self.actual = sack
            self.limit = window.lowest_ack(receiver.td_end, sender.td_maxwin)
        else:
            self.actual = seq
            self.limit = sender.td_maxend
        if self._old_segments_pass and breach >= window.SEQ_UNDER:
            return IGNORE
        if (
            self._kernel.invalid_close_shortens
            and kind in (CLASS_FIN, CLASS_RST)
            and entry.status & STATUS_ASSURED
        ):
            self._shorten(entry, kind, direction, now)
        return INVALID

    def _shorten(self, entry: Entry, kind: int, direction: int, now: float) -> None:
        """Both ends closed outside the window: the flow is likely over (kernel.md 1.6)."""
        if entry.last_index in (CLASS_FIN, CLASS_RST) and entry.last_dir != direction:
            if entry.expires - now > _SHORTENED_FROM_S:
                entry.expires = now + self._unacknowledged_s
        else:
            entry.last_index = kind
            entry.last_dir = direction


def _take_options(peer: Peer, segment: Segment) -> None:
    """What the options of a SYN say about its sender; without any it stays as it was."""
    if not segment.options:
        return
    options = parse_options(segment.options)
    peer.td_scale = 0
    peer.flags &= PEER_BE_LIBERAL
    if options.sack_permitted:
        peer.flags |= PEER_SACK_PERM
    if options.window_scale is not None:
        peer.td_scale = options.window_scale
        peer.flags |= PEER_WINDOW_SCALE


def _is_over(entry: Entry, direction: int) -> bool:
    """Whether a SYN opens the next flow: this one was closed, or reset by the same side."""
    assert entry.peers is not None  # noqa: S101 - entries of TCP have them
    return (entry.peers[0].flags | entry.peers[1].flags) & PEER_CLOSE_INIT != 0 or (
        entry.last_dir == direction and entry.last_index == CLASS_RST
    )


def _answers_ignored_syn(entry: Entry, segment: Segment, kind: int, direction: int) -> bool:
    """Whether a SYN+ACK proves that a SYN which was ignored was right (kernel.md 1.8)."""
    return (
        kind == CLASS_SYNACK
        and entry.last_index == CLASS_SYN
        and entry.last_dir != direction
        and segment.ack == entry.last_end
    )


def _resync(entry: Entry, direction: int) -> None:
    """Start over from the SYN that was ignored; its SYN+ACK goes in `direction`."""
    assert entry.peers is not None  # noqa: S101 - entries of TCP have them
    asking = entry.peers[1 - direction]
    asking.td_end = asking.td_maxend = entry.last_end
    asking.td_maxwin = max(entry.last_win, 1)
    asking.td_scale = entry.last_wscale
    asking.flags = entry.last_flags
    entry.last_flags = 0
    answering = entry.peers[direction]
    answering.td_end = answering.td_maxend = answering.td_maxack = Seq(0)
    answering.td_maxwin = 0
    answering.td_scale = 0
    answering.flags &= PEER_BE_LIBERAL


def _move_window(
    sender: Peer, receiver: Peer, segment: Segment, ack: Seq, sack: Seq, end: Seq
) -> None:
    """What a segment inside the window tells about both sides (kernel.md 1.6 g)."""
    flags = segment.flags
    win = segment.window if flags & SYN else segment.window << sender.td_scale
    spanned = win + ((sack - ack) & _MASK)
    sender.td_maxwin = max(sender.td_maxwin, spanned)
    if after(end, sender.td_end):
        sender.td_end = end
        sender.flags |= PEER_DATA_UNACKNOWLEDGED
    if flags & ACK:
        if not sender.flags & PEER_MAXACK_SET:
            sender.td_maxack = ack
            sender.flags |= PEER_MAXACK_SET
        else:
            sender.td_maxack = later(ack, sender.td_maxack)
    if receiver.td_maxwin != 0 and after(end, sender.td_maxend):
        receiver.td_maxwin += (end - sender.td_maxend) & _MASK
    reach = (sack + win) & _MASK
    if (receiver.td_maxend - 1 - reach) & _MASK >= _HALF:
        receiver.td_maxend = Seq(reach if win else (reach + 1) & _MASK)
    if ack == receiver.td_end:
        receiver.flags &= ~PEER_DATA_UNACKNOWLEDGED
