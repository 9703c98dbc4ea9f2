# SPDX-License-Identifier: MIT
"""The bounds of a TCP window, and the first one that a segment breaks (kernel.md 1.6 and 1.7).

Bound  holds when                                   broken: INVALID       broken: ignored
I      seq  <= sender.td_maxend                     SEQ_OVER              OVERSHOOT (from 6.1)
II     end  >= sender.td_end - receiver.td_maxwin   SEQ_UNDER (to 5.15)   SEQ_UNDER (from 6.1)
III    sack <= receiver.td_end                      ACK_OVER              -
IV     sack >= receiver.td_end - max_ack_window     ACK_UNDER (to 5.15)   ACK_UNDER (from 6.1)
RST    seq  >= receiver.td_maxack                   RST_OUTSIDE           -

The tracker of a replay, the diagnosis and `explain` all use the functions below.
"""

from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.conntrack.states import CLASS_SYN
from nfq_guard.finding import Breach, Ignored, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_MAXACK_SET,
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_ASSURED,
    FlowSnapshot,
    Peer,
    TcpState,
)
from nfq_guard.seqno import MASK, Seq, add, after, before, distance
from nfq_guard.wire.packet import ACK, RST, Segment
from nfq_guard.wire.tcp import highest_acknowledged

_SEQ_OVER: Final = Reason.SEQ_OVER
_ACK_OVER: Final = Reason.ACK_OVER
_SEQ_UNDER: Final = Reason.SEQ_UNDER
_ACK_UNDER: Final = Reason.ACK_UNDER

_SYN_SENT: Final = int(TcpState.SYN_SENT)
_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_FIN_WAIT: Final = int(TcpState.FIN_WAIT)
_CLOSE: Final = int(TcpState.CLOSE)
# Bytes by which an acknowledgement may lag, whatever the window.
_LEAST_ACK_WINDOW: Final = 66000


def max_ack_window(sender_maxwin: int) -> int:
    """Bytes by which an acknowledgement may lag behind the other side's data."""
    return max(_LEAST_ACK_WINDOW, sender_maxwin)


def has_ack(segment: Segment) -> bool:
    """Whether the ACK field counts; in an RST it does not when it is 0."""
    return segment.flags & ACK != 0 and (segment.flags & RST == 0 or segment.ack != 0)


def highest_ack(segment: Segment, receiver: Peer) -> Seq:
    """The highest byte in the ACK field and, if `receiver` offered SACK, in the SACK blocks."""
    if receiver.flags & IP_CT_TCP_FLAG_SACK_PERM and segment.options:
        return highest_acknowledged(segment.options, segment.ack)
    return segment.ack


def acknowledged(segment: Segment, receiver: Peer) -> Seq:
    """The number that the segment acknowledges; without an ACK, all data that was sent."""
    return highest_ack(segment, receiver) if has_ack(segment) else receiver.td_end


def stands_at_td_end(segment: Segment, state: int) -> bool:
    """Whether the check uses the sender's `td_end` for `seq` and `end`: an RST with `seq` 0."""
    return state == _SYN_SENT and segment.seq == 0 and segment.flags & RST != 0


def ack_shift(snapshot: FlowSnapshot, ack: Seq) -> int:
    """What conntrack takes off the numbers that a segment acknowledges; 0 without a shift.

    Args:
        snapshot: The flow, looked up for the segment.
        ack: The ACK field of the segment.
    """
    if snapshot.shifts is None:
        return 0
    shift = snapshot.shifts[1 - snapshot.direction]
    if after(add(ack, -1), shift.correction_pos):
        return shift.offset_after
    return shift.offset_before


def as_sender_counts(snapshot: FlowSnapshot, ack: Seq) -> tuple[Peer, Peer] | None:
    """Both ends of a flow in the numbers of a segment; the same object without a shift.

    Conntrack takes the shift off the acknowledged number and compares that with the receiver's
    numbers. The comparison is the same with the shift added to the latter, and then all numbers are
    those of the packet.

    Args:
        snapshot: The flow, looked up for the segment.
        ack: The ACK field of the segment.
    """
    shift = ack_shift(snapshot, ack)
    peers = snapshot.peers
    if not shift or peers is None:
        return peers
    one = peers[snapshot.direction]
    other = peers[1 - snapshot.direction]
    sender = Peer(
        one.td_end,
        one.td_maxend,
        one.td_maxwin,
        add(one.td_maxack, shift),
        one.td_scale,
        one.flags,
    )
    receiver = Peer(
        add(other.td_end, shift),
        add(other.td_maxend, shift),
        other.td_maxwin,
        other.td_maxack,
        other.td_scale,
        other.flags,
    )
    return (receiver, sender) if snapshot.direction else (sender, receiver)


def first_breach(
    seq: Seq,
    end: Seq,
    sack: Seq,
    sender: Peer,
    receiver: Peer,
    old_segments_pass: bool,  # noqa: FBT001 - positional on the packet path
) -> Reason | None:
    """The bound that decides about a segment; None when all four hold.

    Args:
        seq: Its sequence number.
        end: The number after its last byte.
        sack: The number that it acknowledges (`acknowledged`).
        sender: Its sender.
        receiver: The other side; while its `td_maxwin` is 0, none was seen and bound II holds.
        old_segments_pass: `KernelRules.old_segments_pass`; it decides the order of II and III.
    """
    if after(seq, sender.td_maxend):
        return _SEQ_OVER
    if old_segments_pass:
        if after(sack, receiver.td_end):
            return _ACK_OVER
        if _is_seq_under(end, sender, receiver):
            return _SEQ_UNDER
    else:
        if _is_seq_under(end, sender, receiver):
            return _SEQ_UNDER
        if after(sack, receiver.td_end):
            return _ACK_OVER
    return _ACK_UNDER if _is_ack_under(sack, sender, receiver) else None


def _is_seq_under(end: Seq, sender: Peer, receiver: Peer) -> bool:
    return receiver.td_maxwin != 0 and before(end, add(sender.td_end, -receiver.td_maxwin))


def _is_ack_under(sack: Seq, sender: Peer, receiver: Peer) -> bool:
    return before(sack, add(receiver.td_end, -max_ack_window(sender.td_maxwin)))


def is_overshoot(end: Seq, sack: Seq, sender: Peer, receiver: Peer) -> bool:
    """Whether a segment over bound I is within one receiver window of it, and breaks no other."""
    return (
        receiver.td_maxwin != 0
        and (end - sender.td_maxend + 1) & MASK <= receiver.td_maxwin
        and not after(sack, receiver.td_end)
        and not _is_seq_under(end, sender, receiver)
        and not _is_ack_under(sack, sender, receiver)
    )


def ignored_for(
    bound: Reason, end: Seq, sack: Seq, sender: Peer, receiver: Peer, kernel: KernelRules
) -> Ignored | None:
    """Why a segment that breaks `bound` first is ignored; None if it is INVALID."""
    if not kernel.old_segments_pass or bound is _ACK_OVER:
        return None
    if bound is _SEQ_UNDER:
        return Ignored.SEQ_UNDER
    if bound is _ACK_UNDER:
        return Ignored.ACK_UNDER
    return Ignored.OVERSHOOT if is_overshoot(end, sack, sender, receiver) else None


def against(bound: Reason, seq: Seq, end: Seq, sack: Seq, sender: Peer, receiver: Peer) -> Breach:
    """The numbers of a segment at one of the four bounds, broken or not."""
    if bound is _SEQ_OVER:
        limit = sender.td_maxend
        return Breach(bound, seq, limit, distance(seq, limit))
    if bound is _ACK_OVER:
        limit = receiver.td_end
        return Breach(bound, sack, limit, distance(sack, limit))
    if bound is _SEQ_UNDER:
        limit = add(sender.td_end, -receiver.td_maxwin)
        return Breach(bound, end, limit, distance(limit, end))
    limit = add(receiver.td_end, -max_ack_window(sender.td_maxwin))
    return Breach(bound, sack, limit, distance(limit, sack))


def breach_of(
    segment: Segment, state: int, sender: Peer, receiver: Peer, kernel: KernelRules
) -> Breach | None:
    """The bound for which `kernel` calls a segment INVALID, with its numbers; None if it passes.

    Args:
        segment: Checked neither for its flags nor as an RST (`rst_breach_of`).
        state: `flow.TcpState` number of its flow.
        sender: Its sender.
        receiver: The other side.
        kernel: The conntrack rules.
    """
    seq = segment.seq
    end = segment.end
    if stands_at_td_end(segment, state):
        seq = end = sender.td_end
    sack = acknowledged(segment, receiver)
    bound = first_breach(seq, end, sack, sender, receiver, kernel.old_segments_pass)
    if bound is None or ignored_for(bound, end, sack, sender, receiver, kernel) is not None:
        return None
    return against(bound, seq, end, sack, sender, receiver)


def rst_closes_unchecked(state: int, kernel: KernelRules) -> bool:
    """Whether an RST of any number ends a flow in this state: once it is closing."""
    return kernel.closing_takes_any_rst and _FIN_WAIT <= state <= _CLOSE


def rst_is_held(receiver: Peer, last_index: int, kernel: KernelRules) -> bool:
    """Whether an RST is checked against `receiver.td_maxack` at all (kernel.md 1.7)."""
    return receiver.flags & IP_CT_TCP_FLAG_MAXACK_SET != 0 and (
        last_index != CLASS_SYN or kernel.rst_after_syn_checked
    )


def is_settled(state: int, status: int) -> bool:
    """Whether a flow is ESTABLISHED and ASSURED, for which an RST is checked more strictly."""
    return state == _ESTABLISHED and status & IPS_ASSURED != 0


def rst_against(seq: Seq, receiver: Peer) -> Breach:
    """The numbers of an RST at its bound, broken or not."""
    limit = receiver.td_maxack
    return Breach(Reason.RST_OUTSIDE, seq, limit, distance(limit, seq))


def rst_breach_of(
    seq: Seq, state: int, status: int, last_index: int, receiver: Peer, kernel: KernelRules
) -> Breach | None:
    """The breach of an RST below the number that the other side has acknowledged; None without one.

    Args:
        seq: Its sequence number.
        state: `flow.TcpState` number of its flow.
        status: `flow.IPS_*` bits of its flow.
        last_index: Class of the last segment that the flow recorded.
        receiver: The other side.
        kernel: The conntrack rules; the caller checks `nf_conntrack_tcp_ignore_invalid_rst`.
    """
    if not rst_is_held(receiver, last_index, kernel):
        return None
    if seq == 0 and kernel.ignores_invalid_rst and not is_settled(state, status):
        return None
    if not before(seq, receiver.td_maxack):
        return None
    return rst_against(seq, receiver)


def is_near(segment: Segment, sender: Peer, receiver: Peer, least: int) -> bool:
    """Whether a segment is close to every bound of its window, broken or not.

    Close means within `least` bytes, or within a further window if that is more; for bound III,
    beyond which there is no data, within `least` bytes. A blind sender meets one bound by chance
    half of the time, but rarely all of them.
    """
    sack = acknowledged(segment, receiver)
    window = max(least, receiver.td_maxwin)
    lag = max_ack_window(sender.td_maxwin)
    return not (
        after(segment.seq, add(sender.td_maxend, window))
        or before(segment.end, add(sender.td_end, -receiver.td_maxwin - window))
        or after(sack, add(receiver.td_end, least))
        or before(sack, add(receiver.td_end, -lag - max(least, lag)))
    )
