# SPDX-License-Identifier: MIT
"""Why a packet is INVALID, with the numbers that prove it (design 6)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import final

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
    MALFORMED = "malformed"
    ICMP_UNRELATED = "icmp-unrelated"
    ICMP_MISMATCH = "icmp-mismatch"
    RACED = "raced"
    UNSUPPORTED = "unsupported"


class Bound(StrEnum):
    """The bound that a segment broke (kernel.md 1.6 e and 1.7)."""

    SEQ_OVER = "seq-over"
    ACK_OVER = "ack-over"
    SEQ_UNDER = "seq-under"
    ACK_UNDER = "ack-under"
    RST_OUTSIDE = "rst-outside"


@final
@dataclass(init=False, slots=True)
class Breach:
    """The proof: what the segment carries, and the last number that would have passed.

    Attributes:
        bound: Which bound.
        actual: The segment's number: `seq` for SEQ_OVER and RST_OUTSIDE, `end` for SEQ_UNDER, the
            highest octet acknowledged for ACK_OVER and ACK_UNDER.
        limit: The bound itself: the last number that passes.
        distance: Octets by which `actual` is beyond `limit`, at least 1.
    """

    bound: Bound
    actual: Seq
    limit: Seq
    distance: int

    def __init__(self, bound: Bound, actual: Seq, limit: Seq, distance: int) -> None:
        self.bound = bound
        self.actual = actual
        self.limit = limit
        self.distance = distance


@final
@dataclass(init=False, slots=True)
class Finding:
    """What `diagnose` found.

    Attributes:
        reason: Why the packet is INVALID.
        breach: The broken bound, for the five reasons that have one.
        detail: A fixed phrase that says more, such as "reply syn in ESTABLISHED"; may be empty.
    """

    reason: Reason
    breach: Breach | None
    detail: str

    def __init__(self, reason: Reason, breach: Breach | None = None, detail: str = "") -> None:
        self.reason = reason
        self.breach = breach
        self.detail = detail
