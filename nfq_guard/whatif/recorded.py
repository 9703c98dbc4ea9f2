# SPDX-License-Identifier: MIT
"""Recorded packets, from events or from a capture."""

from dataclasses import dataclass
from typing import final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.wire.packet import RST, Malformed, Packet, Queued, Segment


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One packet of a recording, or several that the daemon folded into one event.

    Attributes:
        number: Frame in the capture, or line in the file of events.
        first_s: When the first packet was seen, seconds since an arbitrary origin.
        time_s: When the last one was.
        count: Number of packets.
        alike: Number of packets that every policy treats as `packet`; the others are unknown.
        packet: The first packet.
        judged: Input of a policy; None for packets that were not INVALID.
        passed: Whether it was accepted. Always true for captures, which do not record it.
    """

    number: int
    first_s: float
    time_s: float
    count: int
    alike: int
    packet: Packet | Malformed
    judged: "Judged | None"
    passed: bool

    @property
    def is_rst(self) -> bool:
        """Whether it is an RST."""
        l4 = self.packet.l4 if isinstance(self.packet, Packet) else None
        return isinstance(l4, Segment) and bool(l4.flags & RST)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The input of a policy for an INVALID packet, besides the packet itself.

    Attributes:
        queued: As the kernel would queue it.
        snapshot: Its flow; None without one.
        finding: Why it is INVALID.
        nat_known: Whether the recording shows whether its flow is translated.
        spared: Whether no policy drops it, because rules of the host hide its other half.
    """

    queued: Queued
    snapshot: FlowSnapshot | None
    finding: Finding
    nat_known: bool = True
    spared: bool = False
