# SPDX-License-Identifier: MIT
"""The outcome of one frame of a replay."""

from dataclasses import dataclass
from typing import final

from nfq_guard.capture.frame import Frame
from nfq_guard.finding import Finding, Ignored
from nfq_guard.flow import CtState, FlowSnapshot
from nfq_guard.policy.decision import Decision
from nfq_guard.replay.associations import Claim
from nfq_guard.replay.checksums import Suspect
from nfq_guard.replay.doubt import Doubted, Place
from nfq_guard.resets import Passed
from nfq_guard.wire.packet import Malformed, Packet


@final
@dataclass(init=False, slots=True)
class Outcome:
    """The outcome of one frame.

    Attributes:
        frame: The frame; for a fragmented datagram the one that completed it.
        packet: The packet, reassembled; None if there is none.
        ctstate: What iptables would have matched; None where conntrack would see no packet.
        absent: Why conntrack sees no packet, a fixed phrase; else empty.
        ignored: Why the packet left its flow unchanged; None if it did not.
        snapshot: Its flow after the packet; None without a flow, and for packets that are not
            judged.
        finding: Why it is INVALID.
        decision: The decision of the policy.
        state: `TcpState` number of its flow after it; 0 without one.
        direction: Its direction in its flow; 0 original, 1 reply.
        now: Seconds since the first frame of the replay.
        cause: The INVALID packet that this RST answers; None for any other packet.
        doubted: Why the finding may be due to the capture; None if it is certain.
        place: The segment's place in its stream, while the outcome is held.
        claim: Its place in its SCTP association, while the outcome is held.
        orphan: Whether one packet that is missing in the file would explain that it has no entry.
        translated: Whether it answers an ICMP request that has another tuple in the file.
        suspect: Its checksum, while it is undecided whether the packet was damaged.
        if_broken: The outcome if the packet was damaged, while that is undecided.
    """

    frame: Frame
    packet: Packet | Malformed | None
    ctstate: CtState | None
    absent: str
    ignored: Ignored | None
    snapshot: FlowSnapshot | None
    finding: Finding | None
    decision: Decision | None
    state: int
    direction: int
    now: float
    cause: Passed | None
    doubted: Doubted | None
    place: Place | None
    claim: Claim | None
    orphan: bool
    translated: bool
    suspect: Suspect | None
    if_broken: "Outcome | None"

    def __init__(
        self,
        frame: Frame,
        packet: Packet | Malformed | None,
        ctstate: CtState | None,
        now: float,
        absent: str = "",
        ignored: Ignored | None = None,
        snapshot: FlowSnapshot | None = None,
        finding: Finding | None = None,
        decision: Decision | None = None,
        state: int = 0,
        direction: int = 0,
    ) -> None:
        self.frame = frame
        self.packet = packet
        self.ctstate = ctstate
        self.absent = absent
        self.ignored = ignored
        self.snapshot = snapshot
        self.finding = finding
        self.decision = decision
        self.state = state
        self.direction = direction
        self.now = now
        self.cause = None
        self.doubted = None
        self.place = None
        self.claim = None
        self.orphan = False
        self.translated = False
        self.suspect = None
        self.if_broken = None
