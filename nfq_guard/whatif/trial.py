# SPDX-License-Identifier: MIT
"""Evaluates policies on a recording."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.flow import IPS_DST_NAT
from nfq_guard.policy.decision import Decision
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.raw_rules import unless_spared
from nfq_guard.whatif.conversations import Conversations, Fate, Seen, Settled, Span
from nfq_guard.whatif.recorded import Judged, Recorded
from nfq_guard.whatif.tally import Tally
from nfq_guard.wire.packet import flow_key

# Number of moments over which the packets of one event are spread if decisions depend on time.
_MOMENTS: Final = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The decision of each policy on `count` of the packets of `recorded`."""

    recorded: Recorded
    judged: Judged
    decisions: tuple[Decision, ...]
    count: int


@final
class Trial:
    """One recording, any number of policies.

    Rates depend on the time of each packet, which an event of several packets does not have. The
    decisions of a policy with rates about events are therefore estimates: the packets of an event
    are spread evenly over its time. The tallies have the bounds of these estimates.

    Attributes:
        packets: Packets of the recording, judged or not.
        invalid: Packets that were judged.
        doubtful: Packets of a capture that are INVALID only if the capture is complete; not judged.
        policies: The policies, in order.
        tallies: Counts for each policy.
        differences: Packets that only the first policy drops, and packets that only the second
            drops. Empty unless there are two policies.
    """

    def __init__(self, policies: Sequence[CompiledPolicy], *, has_times: bool = False) -> None:
        """Start a trial.

        Args:
            policies: The policies.
            has_times: Whether the recording has the exact time of each packet, as captures have.
        """
        self.packets = 0
        self.invalid = 0
        self.doubtful = 0
        self.policies = tuple(policies)
        self.tallies = tuple(Tally() for _ in policies)
        self.differences = (Tally(), Tally())
        self._has_times = has_times
        self._has_rates = any(policy.has_rates for policy in policies)
        self._conversations: Conversations[Decided] = Conversations()
        self._start_s: float | None = None

    def take(self, recorded: Recorded) -> None:
        """Process the next packet of the recording."""
        self.packets += recorded.count
        if self._start_s is None:
            self._start_s = recorded.first_s
        first, last = recorded.first_s - self._start_s, recorded.time_s - self._start_s
        key = flow_key(recorded.packet)
        seen = Seen(number=recorded.number, first_s=first, last_s=last, is_rst=recorded.is_rst)
        judged = recorded.judged
        if judged is None:
            for settled in self._conversations.saw(key, seen):
                self._settle(settled)
            return
        self.invalid += recorded.count
        self._bound(recorded, judged)
        for now, span, count in self._moments(recorded.count, first, last):
            for decisions, packets in self._decide(recorded, judged, now, count):
                decided = Decided(
                    recorded=recorded, judged=judged, decisions=decisions, count=packets
                )
                self._count(decided)
                for settled in self._conversations.awaits(key, seen, packets, decided, span):
                    self._settle(settled)

    def end(self) -> None:
        """End the recording, which completes the fates in the tallies."""
        for settled in self._conversations.end():
            self._settle(settled)

    def _moments(self, count: int, first: float, last: float) -> Iterator[tuple[float, Span, int]]:
        """The moments of decisions, each with a number of packets and the time that they share."""
        moments = min(count, _MOMENTS) if self._has_rates else 1
        for moment in range(moments):
            share = count * (moment + 1) // moments - count * moment // moments
            lasts = last - first
            # The last span ends with the event, whatever the rounding.
            end = last if moment + 1 == moments else first + lasts * (moment + 1) / moments
            span = (first + lasts * moment / moments, end)
            yield first + lasts * moment / max(moments - 1, 1), span, share

    def _decide(
        self, recorded: Recorded, judged: Judged, now: float, count: int
    ) -> Iterator[tuple[tuple[Decision, ...], int]]:
        """The decisions of all policies, each with its number of packets."""
        asked = (judged.queued, recorded.packet, judged.snapshot, judged.finding)
        runs = [policy.decide_all(*asked, now, count) for policy in self.policies]
        if judged.spared:
            runs = [[(unless_spared(decision), most) for decision, most in run] for run in runs]
        while all(runs):
            packets = min(run[0][1] for run in runs)
            yield tuple(run[0][0] for run in runs), packets
            for run in runs:
                decision, left = run[0]
                run[:1] = [(decision, left - packets)] if left > packets else []

    def _bound(self, recorded: Recorded, judged: Judged) -> None:
        asked = (judged.queued, recorded.packet, judged.snapshot, judged.finding)
        exact = self._has_times and recorded.count == 1
        certain: list[bool] = []
        possible: list[bool] = []
        for tally, policy in zip(self.tallies, self.policies, strict=True):
            decisions = policy.possible(*asked)
            drops = [decision.drops and not judged.spared for decision in decisions]
            if not exact and (len(decisions) > 1 or recorded.alike < recorded.count):
                tally.rules_exact = False
            certain.append(all(drops))
            possible.append(any(drops))
            if not exact:
                tally.bound(recorded, certain=certain[-1], possible=possible[-1])
        if len(self.policies) == 2 and not exact:
            for alone, tally in enumerate(self.differences):
                tally.bound(
                    recorded,
                    certain=certain[alone] and not possible[1 - alone],
                    possible=possible[alone] and not certain[1 - alone],
                )

    def _count(self, decided: Decided) -> None:
        recorded, reason, count = decided.recorded, decided.judged.finding.reason, decided.count
        exact = self._has_times and recorded.count == 1
        for tally, decision in zip(self.tallies, decided.decisions, strict=True):
            tally.count(recorded, reason, decision, count)
            if exact:
                tally.bound(recorded, certain=decision.drops, possible=decision.drops)
        alone = _alone(decided)
        if alone is not None:
            tally = self.differences[alone]
            tally.count(recorded, reason, decided.decisions[alone], count)
            if exact:
                tally.bound(recorded, certain=True, possible=True)

    def _settle(self, settled: Settled[Decided]) -> None:
        decided = settled.packet
        recorded = decided.recorded
        trials = zip(self.tallies, self.policies, decided.decisions, strict=True)
        for tally, policy, decision in trials:
            reset = settled.fate is Fate.RESET
            if reset and not decision.drops and _drops_translated(policy, decided):
                tally.if_translated += settled.count
            else:
                tally.settle(recorded, decision, settled)
        alone = _alone(decided)
        if alone is not None:
            self.differences[alone].settle(recorded, decided.decisions[alone], settled)


def _drops_translated(policy: CompiledPolicy, decided: Decided) -> bool:
    """Whether a policy drops a packet if its flow is translated, which the recording hides."""
    judged = decided.judged
    if judged.nat_known or judged.snapshot is None or decided.recorded.is_rst:
        return False
    snapshot = judged.snapshot
    asked = (judged.queued, decided.recorded.packet, snapshot, judged.finding)
    status = snapshot.status
    # A compiled snapshot cannot be copied.
    snapshot.status = status | IPS_DST_NAT
    drops = all(decision.drops for decision in policy.possible(*asked))
    snapshot.status = status
    return drops


def _alone(decided: Decided) -> int | None:
    """Which of two policies drops alone; None if neither does, or if there are not two."""
    drops = [decision.drops for decision in decided.decisions]
    if len(drops) != 2 or drops[0] is drops[1]:
        return None
    return 0 if drops[0] else 1
