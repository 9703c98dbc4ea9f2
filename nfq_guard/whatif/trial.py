# SPDX-License-Identifier: MIT
"""Evaluates one or two policies on a recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from nfq_guard.policy.decision import Decision
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.whatif.conversations import Conversations, Fate
from nfq_guard.whatif.recorded import Judged, Recorded
from nfq_guard.whatif.tally import Tally
from nfq_guard.wire.packet import flow_key


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The decision of each policy on one packet."""

    recorded: Recorded
    judged: Judged
    decisions: tuple[Decision, ...]


@final
class Trial:
    """One recording, one or two policies.

    Attributes:
        packets: Packets of the recording, judged or not.
        invalid: Packets that were judged.
        doubtful: Packets of a capture that are INVALID only if the capture is complete; not judged.
        policies: The policies, in order.
        tallies: Counts for each policy.
        differences: Packets that only the first policy drops, and packets that only the second
            drops. Empty with one policy.
    """

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        """Start a trial of `policies`, one or two."""
        self.packets = 0
        self.invalid = 0
        self.doubtful = 0
        self.policies = tuple(policies)
        self.tallies = tuple(Tally() for _ in policies)
        self.differences = (Tally(), Tally())
        self._conversations: Conversations[Decided] = Conversations()
        self._start_s: float | None = None

    def take(self, recorded: Recorded) -> None:
        """Process the next packet of the recording."""
        self.packets += recorded.count
        if self._start_s is None:
            self._start_s = recorded.time_s
        now = recorded.time_s - self._start_s
        key = flow_key(recorded.packet)
        for decided, fate in self._conversations.saw(key, now, is_rst=recorded.is_rst):
            self._settle(decided, fate)
        judged = recorded.judged
        if judged is None:
            return
        self.invalid += recorded.count
        decisions = tuple(
            policy.decide(judged.queued, recorded.packet, judged.snapshot, judged.finding, now)
            for policy in self.policies
        )
        decided = Decided(recorded=recorded, judged=judged, decisions=decisions)
        for tally, decision in zip(self.tallies, decisions, strict=True):
            tally.count(recorded, judged.finding.reason, decision)
        if len(decisions) == 2 and decisions[0].drops is not decisions[1].drops:
            alone = 0 if decisions[0].drops else 1
            self.differences[alone].count(recorded, judged.finding.reason, decisions[alone])
        for settled, fate in self._conversations.awaits(key, now, decided):
            self._settle(settled, fate)

    def end(self) -> None:
        """End the recording, which completes the fates in the tallies."""
        for decided, fate in self._conversations.end():
            self._settle(decided, fate)

    def _settle(self, decided: Decided, fate: Fate) -> None:
        recorded = decided.recorded
        for tally, decision in zip(self.tallies, decided.decisions, strict=True):
            tally.settle(recorded, decision, fate)
        if len(decided.decisions) == 2:
            first, second = decided.decisions
            if first.drops is not second.drops:
                alone = 0 if first.drops else 1
                self.differences[alone].settle(recorded, decided.decisions[alone], fate)
