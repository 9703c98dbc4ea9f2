# SPDX-License-Identifier: MIT
"""Counts what one policy would have done."""

from dataclasses import dataclass
from typing import Any, Final, final

from nfq_guard.finding import Reason
from nfq_guard.flow import IPS_DST_NAT, IPS_SRC_NAT, FlowKey
from nfq_guard.names import address, endpoint, packet_ends
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.whatif.conversations import Fate, Settled
from nfq_guard.whatif.recorded import Recorded
from nfq_guard.wire.packet import Malformed, Packet, flow_key

# Bounds the flows and peers that are counted individually: a recorded flood has any number.
MOST_COUNTED: Final = 65_536
OTHERS: Final = "others"
# Examples kept for each reason.
EXAMPLES: Final = 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One packet that would be dropped.

    Attributes:
        number: Frame or line.
        flow: Its source and destination.
        reason: Why it is INVALID.
        rule: The rule that drops it.
    """

    number: int
    flow: str
    reason: Reason
    rule: str


@final
class Tally:
    """Packet counts; an event that represents several packets counts as several.

    Attributes:
        least_drops: Packets that would certainly be dropped.
        most_drops: Packets that may be dropped. Where the two bounds differ, every count of
            packets is an estimate.
        by_action: All packets.
        by_rule: All packets.
        rules_exact: Whether these two are exact. They may not be where the number of drops is: one
            rule drops within a rate, and another one heals beyond it.
        heals_by_flow: Packets that a rule would heal and that were accepted when recorded, by the
            flow's endpoints. In force, the policy heals the flow, and drops fewer of its packets.
        translated_passes: Packets of translated flows that would be accepted.
        drops_by_reason: Packets that would be dropped.
        drops_by_flow: Packets that would be dropped, by the flow's endpoints.
        drops_by_peer: Packets that would be dropped, by source address.
        examples: The first drops of each reason.
        drop_fates: Fates of the flows of packets that would be dropped but were accepted. `LIVED`
            are the false positives.
        false_positives: Flows of the false positives.
        confirmed: Packets that would be dropped, and were dropped when recorded.
        missed: Packets that would be accepted, were accepted, and were followed by a reset: the
            false negatives. An RST itself never counts.
        false_negatives: Flows of the false negatives.
        if_translated: Packets that would be accepted and were followed by an RST, but would be
            dropped if their flow is translated, which the recording does not show.
        fates_exact: Whether the numbers of packets by the fate of their flow are exact; they are
            not where they depend on packets of an event that lacks the time of each.
    """

    def __init__(self) -> None:
        """Start with zero counts."""
        self.least_drops = 0
        self.most_drops = 0
        self.by_action: dict[Action, int] = {}
        self.by_rule: dict[str, int] = {}
        self.rules_exact = True
        self.heals_by_flow: dict[str, int] = {}
        self.translated_passes = 0
        self.drops_by_reason: dict[Reason, int] = {}
        self.drops_by_flow: dict[str, int] = {}
        self.drops_by_peer: dict[str, int] = {}
        self.examples: list[Example] = []
        self.drop_fates = dict.fromkeys(Fate, 0)
        self.false_positives: dict[str, int] = {}
        self.confirmed = 0
        self.missed = 0
        self.false_negatives: dict[str, int] = {}
        self.if_translated = 0
        self.fates_exact = True
        self._labels: dict[FlowKey, str] = {}

    @property
    def drops(self) -> int:
        """Packets that would be dropped."""
        return sum(count for action, count in self.by_action.items() if action.drops)

    @property
    def passes(self) -> int:
        """Packets that would be accepted."""
        return sum(self.by_action.values()) - self.drops

    @property
    def exact(self) -> bool:
        """Whether the counts are exact, as far as packets are recorded."""
        return self.least_drops == self.most_drops

    def bound(self, recorded: Recorded, *, certain: bool, possible: bool) -> None:
        """Bound the drops among the packets of `recorded`.

        Args:
            recorded: The packets.
            certain: Whether a packet like it is dropped in any case.
            possible: Whether a packet like it may be dropped.
        """
        unlike = recorded.count - recorded.alike
        self.least_drops += recorded.alike if certain else 0
        self.most_drops += (recorded.alike if possible else 0) + unlike

    def count(self, recorded: Recorded, reason: Reason, decision: Decision, count: int) -> None:
        """Count `count` packets of `recorded`."""
        self.by_action[decision.action] = self.by_action.get(decision.action, 0) + count
        self.by_rule[decision.rule] = self.by_rule.get(decision.rule, 0) + count
        if not decision.drops:
            snapshot = None if recorded.judged is None else recorded.judged.snapshot
            if snapshot is not None and snapshot.status & (IPS_SRC_NAT | IPS_DST_NAT):
                self.translated_passes += count
            return
        shown = self.drops_by_reason.get(reason, 0)
        self.drops_by_reason[reason] = shown + count
        packet = recorded.packet
        label = self._label(packet)
        if decision.action is Action.HEAL and recorded.passed:
            _add(self.heals_by_flow, label, count)
        _add(self.drops_by_flow, label, count)
        _add(self.drops_by_peer, endpoint(address(packet.src), None), count)
        if sum(example.reason is reason for example in self.examples) < EXAMPLES:
            example = Example(
                number=recorded.number, flow=packet_ends(packet), reason=reason, rule=decision.rule
            )
            # An event of several packets is counted by distance and by decision.
            if example not in self.examples:
                self.examples.append(example)

    def settle(self, recorded: Recorded, decision: Decision, settled: Settled[Any]) -> None:
        """Count the fate of packets that were already counted."""
        fate, count = settled.fate, settled.count
        if recorded.passed and (decision.drops or not recorded.is_rst):
            exact = settled.exact if decision.drops else settled.resets_exact
            self.fates_exact = self.fates_exact and exact
        if decision.drops:
            if not recorded.passed:
                self.confirmed += count
                return
            self.drop_fates[fate] += count
            if fate is Fate.LIVED:
                _add(self.false_positives, self._label(recorded.packet), count)
        elif fate is Fate.RESET and recorded.passed and not recorded.is_rst:
            self.missed += count
            _add(self.false_negatives, self._label(recorded.packet), count)

    def _label(self, packet: Packet | Malformed) -> str:
        """One name for both directions: the endpoints of the flow's first packet."""
        key = flow_key(packet)
        label = self._labels.get(key)
        if label is None:
            if len(self._labels) >= MOST_COUNTED:
                return OTHERS
            label = self._labels[key] = packet_ends(packet)
        return label


def counted_apart(counts: dict[str, int]) -> int:
    """How many flows or peers are counted individually; further ones together are no flow."""
    return len(counts) - (OTHERS in counts)


def _add(counts: dict[str, int], name: str, count: int) -> None:
    if name not in counts and len(counts) >= MOST_COUNTED:
        name = OTHERS
    counts[name] = counts.get(name, 0) + count
