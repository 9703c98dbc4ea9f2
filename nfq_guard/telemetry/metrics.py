# SPDX-License-Identifier: MIT
"""The numbers of one queue's worker, which `exposition` exports.

`metric_table` defines them. Reasons, actions and bounds exist from the start, so that no packet can
add a series.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, final

from nfq_guard.engine import Judgment
from nfq_guard.finding import BOUNDS, Reason
from nfq_guard.flow import IPS_DST_NAT, IPS_SRC_NAT, Evidence
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.telemetry.metric_table import GAUGES, QUEUE_COUNTERS

_TRANSLATED: Final = IPS_SRC_NAT | IPS_DST_NAT
# Values of up to 33 bits: 2.4 hours in microseconds.
_CLASSES: Final = 34
LONGEST: Final = (1 << 33) - 1


@final
class Buckets:
    """A histogram with powers of two as bounds: counts values by their number of bits.

    Attributes:
        counts: Values by their number of bits.
        total: Sum of the values.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * _CLASSES
        self.total = 0

    def add(self, value: int, times: int) -> None:
        """Count a value from 0 to `LONGEST`, `times` times."""
        self.counts[value.bit_length()] += times
        self.total += value * times

    def plain(self) -> list[int]:
        """The counts, followed by the sum."""
        return [*self.counts, self.total]

    def sum_of(self, base: "Buckets", plain: list[int]) -> None:
        """Set this to the sum of `base` and a result of `plain`."""
        for bits in range(_CLASSES):
            self.counts[bits] = base.counts[bits] + plain[bits]
        self.total = base.total + plain[_CLASSES]


@final
class Growth:
    """The increase of some counters, for an event about them."""

    def __init__(self, counters: Mapping[str, int], names: Sequence[str]) -> None:
        """Start at 0; `counters` are read at each `take`."""
        self._counters = counters
        self._taken = dict.fromkeys(names, 0)

    def take(self) -> dict[str, int]:
        """The increase of each since the last call; empty if there is none."""
        taken = self._taken
        self._taken = {name: self._counters[name] for name in taken}
        if self._taken == taken:
            return {}
        return {name: number - taken[name] for name, number in self._taken.items()}


class Tally(Protocol):
    """Counts packets (`service.ledger.Page`)."""

    def add(self, reason: Reason, decision: Decision, packets: int) -> None:
        """Count packets that were judged alike."""


@final
class Stats:
    """The numbers of one queue's worker, for `status` and metrics.

    Attributes:
        judged: Packets by reason and action; every pair is there from the start.
        rules: Packets by the rule that decided; bounded by the policies loaded so far.
        counters: By name; they never decrease.
        gauges: By name.
        evidence: Where flows are looked up.
        evidence_reason: Why there is no better evidence; None if there is none.
        judge_us: Microseconds from reading a packet to its verdict.
        queue_us: Microseconds that the first packet of a batch waited, if known.
        distances: Bytes beyond each bound.
        also: Counts the judged packets as well; None for nothing.
    """

    def __init__(self) -> None:
        self.also: Tally | None = None
        self.evidence = Evidence.NONE
        self.evidence_reason: str | None = None
        self.judged: dict[Reason, dict[Action, int]] = {
            reason: dict.fromkeys(Action, 0) for reason in Reason
        }
        self.rules: dict[str, int] = {}
        self.counters = dict.fromkeys([metric.name for metric in QUEUE_COUNTERS], 0)
        self.gauges = dict.fromkeys([metric.name for metric in GAUGES], 0.0)
        self.judge_us = Buckets()
        self.queue_us = Buckets()
        self.distances: dict[Reason, Buckets] = {
            reason: Buckets() for reason in Reason if reason in BOUNDS
        }

    def count(self, judgments: Sequence[Judgment]) -> None:
        """Count a batch by runs of equal reason and rule, because hashing an enum costs more."""
        run = 0
        last: Judgment | None = None
        for judgment in judgments:
            if last is not None and (
                judgment.decision is not last.decision
                or judgment.finding.reason is not last.finding.reason
            ):
                self._add(last, run)
                run = 0
            last = judgment
            run += 1
            if judgment.verdict:
                snapshot = judgment.snapshot
                if snapshot is not None and snapshot.status & _TRANSLATED:
                    self.counters["escaped_packets"] += 1
            breach = judgment.finding.breach
            if breach is not None:
                self.distances[breach.bound].add(breach.distance, 1)
        if last is not None:
            self._add(last, run)

    def plain(self) -> dict[str, Any]:
        """The numbers for JSON, without pairs that have no packet."""
        judged = {
            reason.value: {
                action.value: packets for action, packets in by_action.items() if packets
            }
            for reason, by_action in self.judged.items()
        }
        return {
            "judged": judged,
            "rules": self.rules,
            "counters": self.counters,
            "gauges": self.gauges,
            "evidence": self.evidence,
            "evidence_reason": self.evidence_reason,
            "histograms": {name: one.plain() for name, one in self._histograms().items()},
        }

    def sum_of(self, base: "Stats", plain: dict[str, Any]) -> None:
        """Set the numbers to the sum of `base` and `plain`, and all else to that of `plain`."""
        self.evidence = Evidence(plain["evidence"])
        self.evidence_reason = plain["evidence_reason"]
        for reason, by_action in self.judged.items():
            said = plain["judged"].get(reason.value, {})
            for action in by_action:
                by_action[action] = base.judged[reason][action] + said.get(action.value, 0)
        rules = dict(base.rules)
        for rule, packets in plain["rules"].items():
            rules[rule] = rules.get(rule, 0) + packets
        self.rules = rules
        for name, count in plain["counters"].items():
            self.counters[name] = base.counters[name] + count
        for name, value in plain["gauges"].items():
            if name != "start_time_seconds":
                self.gauges[name] = value
        of_base = base._histograms()  # noqa: SLF001 - of its own class
        for name, buckets in self._histograms().items():
            buckets.sum_of(of_base[name], plain["histograms"][name])

    def copy(self) -> "Stats":
        """A copy that does not change."""
        copied = Stats()
        copied.sum_of(self, Stats().plain())
        copied.gauges = dict(self.gauges)
        copied.evidence = self.evidence
        copied.evidence_reason = self.evidence_reason
        return copied

    def _histograms(self) -> dict[str, Buckets]:
        of_bounds = {f"distance {bound.value}": found for bound, found in self.distances.items()}
        return {"judge": self.judge_us, "queue": self.queue_us} | of_bounds

    def _add(self, judgment: Judgment, packets: int) -> None:
        decision = judgment.decision
        self.judged[judgment.finding.reason][decision.action] += packets
        self.rules[decision.rule] = self.rules.get(decision.rule, 0) + packets
        if self.also is not None:
            self.also.add(judgment.finding.reason, decision, packets)
