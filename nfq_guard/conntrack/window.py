# SPDX-License-Identifier: MIT
"""The four bounds of a TCP window, and which of them a segment breaks first (kernel.md 1.6).

Bound  holds when                                   broken: INVALID       broken: ignored
I      seq  <= sender.td_maxend                     SEQ_OVER              OVERSHOOT (from 6.1)
II     end  >= sender.td_end - receiver.td_maxwin   SEQ_UNDER (to 5.15)   SEQ_UNDER (from 6.1)
III    sack <= receiver.td_end                      ACK_OVER              -
IV     sack >= receiver.td_end - max_ack_window     ACK_UNDER (to 5.15)   ACK_UNDER (from 6.1)

Numbers go in one by one, not as a `Peer`, because replay keeps them flat in its entries.
"""

from typing import Final

from nfq_guard.seqno import Seq

FITS: Final = 0
SEQ_OVER: Final = 1
ACK_OVER: Final = 2
SEQ_UNDER: Final = 3
ACK_UNDER: Final = 4
# Over bound I by at most one receiver window, all else in order.
OVERSHOOT: Final = 5

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
# How far an acknowledgement may lag whatever the window is, in octets.
_LEAST_ACK_WINDOW: Final = 66000


def max_ack_window(sender_maxwin: int) -> int:
    """Octets by which an acknowledgement may lag behind the other side's data."""
    return max(_LEAST_ACK_WINDOW, sender_maxwin)


def lowest_end(sender_end: Seq, receiver_maxwin: int) -> Seq:
    """Bound II: the lowest `end` that passes."""
    return Seq((sender_end - receiver_maxwin) & _MASK)


def lowest_ack(receiver_end: Seq, sender_maxwin: int) -> Seq:
    """Bound IV: the lowest acknowledgement that passes."""
    return Seq((receiver_end - max_ack_window(sender_maxwin)) & _MASK)


def first_breach(
    seq: Seq,
    end: Seq,
    sack: Seq,
    sender_end: Seq,
    sender_maxend: Seq,
    sender_maxwin: int,
    receiver_end: Seq,
    receiver_maxwin: int,
    old_segments_pass: bool,  # noqa: FBT001 - positional on the packet path
) -> int:
    """The bound that decides about a segment, `FITS` when all hold.

    Args:
        seq: Its sequence number.
        end: The number after its last octet.
        sack: The highest octet it acknowledges, by ACK field or SACK block.
        sender_end: `td_end` of its sender.
        sender_maxend: `td_maxend` of its sender.
        sender_maxwin: `td_maxwin` of its sender.
        receiver_end: `td_end` of the other side.
        receiver_maxwin: `td_maxwin` of the other side; 0: not seen, so bound II holds.
        old_segments_pass: `KernelRules.old_segments_pass`; it decides the order.
    """
    over = (sender_maxend - seq) & _MASK >= _HALF
    under = receiver_maxwin != 0 and (end - sender_end + receiver_maxwin) & _MASK >= _HALF
    ack_over = (receiver_end - sack) & _MASK >= _HALF
    ack_under = (sack - receiver_end + max_ack_window(sender_maxwin)) & _MASK >= _HALF
    if over:
        overshoot = (end - sender_maxend + 1) & _MASK
        if (
            receiver_maxwin != 0
            and not (under or ack_over or ack_under)
            and overshoot <= receiver_maxwin
        ):
            return OVERSHOOT
        return SEQ_OVER
    if old_segments_pass:
        if ack_over:
            return ACK_OVER
        if under:
            return SEQ_UNDER
    else:
        if under:
            return SEQ_UNDER
        if ack_over:
            return ACK_OVER
    return ACK_UNDER if ack_under else FITS
