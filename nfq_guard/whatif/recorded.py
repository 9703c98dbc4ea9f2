# SPDX-License-Identifier: MIT
"""One recorded packet, wherever it was recorded."""

from dataclasses import dataclass
from typing import final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.wire.packet import RST, Malformed, Packet, Queued, Segment


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One packet of a recording, in the order of time.

    Attributes:
        number: Frame in the capture, or line in the file of events.
        time_s: Seconds; from where does not matter.
        count: Packets that it stands for: the daemon folds several into one event.
        packet: The packet.
        judged: What a policy is asked about it; None for packets that were not INVALID.
        passed: Whether it was let pass. A capture does not tell, so it is taken for granted.
    """

    number: int
    time_s: float
    count: int
    packet: Packet | Malformed
    judged: "Judged | None"
    passed: bool

    @property
    def is_rst(self) -> bool:
        """Whether it resets its connection."""
        l4 = self.packet.l4 if isinstance(self.packet, Packet) else None
        return isinstance(l4, Segment) and bool(l4.flags & RST)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a policy is asked about an INVALID packet, beside the packet itself."""

    queued: Queued
    snapshot: FlowSnapshot | None
    finding: Finding
