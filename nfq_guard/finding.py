# SPDX-License-Identifier: MIT
"""Why a packet is INVALID, with the numbers that prove it, and why a packet is ignored."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from nfq_guard.seqno import Seq


class Reason(StrEnum):
    """Why conntrack called a packet INVALID; the values are public API."""

    SEQ_OVER = "seq-over"
    ACK_OVER = "ack-over"
    SEQ_UNDER = "seq-under"
    ACK_UNDER = "ack-under"
    RST_OUTSIDE = "rst-outside"
    BAD_TRANSITION = "bad-transition"
    NO_ENTRY = "no-entry"
    BAD_FLAGS = "bad-flags"
    BAD_CHECKSUM = "bad-checksum"
    BAD_TAG = "bad-tag"
    MALFORMED = "malformed"
    ICMP_UNRELATED = "icmp-unrelated"
    ICMP_MISMATCH = "icmp-mismatch"
    RACED = "raced"
    UNSUPPORTED = "unsupported"


# The reasons that are a bound of the window check, or the one of an RST (kernel.md 1.6 and 1.7).
BOUNDS: Final = frozenset(
    {
        Reason.SEQ_OVER,
        Reason.ACK_OVER,
        Reason.SEQ_UNDER,
        Reason.ACK_UNDER,
        Reason.RST_OUTSIDE,
    }
)


class Ignored(StrEnum):
    """Why conntrack passes a packet with its flow without taking it into account.

    The first three break a bound of the window check, but kernels from 6.1 on do not call the
    segment INVALID for it.
    """

    OVERSHOOT = "overshoot"
    SEQ_UNDER = "seq-under"
    ACK_UNDER = "ack-under"
    STATE = "state"
    CHALLENGE_ACK = "challenge-ack"


@final
@dataclass(init=False, slots=True)
class Breach:
    """A bound, and the numbers of one segment that is checked against it.

    Attributes:
        bound: Which bound, one of `BOUNDS`.
        actual: The segment's number: `seq` for SEQ_OVER and RST_OUTSIDE, `end` for SEQ_UNDER, the
            highest byte acknowledged for ACK_OVER and ACK_UNDER.
        limit: The bound itself: the last number that passes.
        distance: Bytes by which `actual` is beyond `limit`: at least 1 where the bound is broken,
            as in every `Finding`.
    """

    bound: Reason
    actual: Seq
    limit: Seq
    distance: int

    def __init__(self, bound: Reason, actual: Seq, limit: Seq, distance: int) -> None:
        self.bound = bound
        self.actual = actual
        self.limit = limit
        self.distance = distance


@final
@dataclass(init=False, slots=True)
class Finding:
    """The diagnosis of one INVALID packet.

    Attributes:
        reason: Why the packet is INVALID.
        breach: The broken bound, for the reasons in `BOUNDS`; None where the evidence has no
            number of it.
        detail: A fixed phrase with more detail, such as "reply syn in ESTABLISHED"; may be empty.
    """

    reason: Reason
    breach: Breach | None
    detail: str

    def __init__(self, reason: Reason, breach: Breach | None = None, detail: str = "") -> None:
        self.reason = reason
        self.breach = breach
        self.detail = detail
