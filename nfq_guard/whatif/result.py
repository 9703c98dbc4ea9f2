# SPDX-License-Identifier: MIT
"""A trial as a JSON object."""

from collections.abc import Mapping
from typing import Final, TypedDict, cast

import msgspec

from nfq_guard.policy.captured import not_captured
from nfq_guard.policy.model import PolicyModel
from nfq_guard.telemetry.reader import Unrecorded
from nfq_guard.whatif.conversations import Fate
from nfq_guard.whatif.tally import Example, Tally, counted_apart
from nfq_guard.whatif.trial import Trial

# Number of flows and peers that are listed, by descending packet count.
MOST_NAMED: Final = 20


class HitRecord(TypedDict):
    """Packets of the recording and their flows.

    Attributes:
        packets: Number of packets.
        flows: The flows with most of them, each with its number of packets.
    """

    packets: int
    flows: dict[str, int]


class ExampleRecord(TypedDict):
    """One packet that would be dropped.

    Attributes:
        number: Frame of the capture, or line of the events.
        flow: Source and destination.
        reason: Why it is INVALID.
        rule: The rule that drops it.
    """

    number: int
    flow: str
    reason: str
    rule: str


class DropsRecord(TypedDict):
    """Packets that a policy would drop.

    Attributes:
        drops: Number of these packets; an estimate unless the two bounds are equal.
        least_drops: Lower bound of that number.
        most_drops: Upper bound of that number.
        drops_by_reason: These packets by reason.
        drops_by_flow: These packets by flow, for the flows with most of them.
        drops_by_peer: These packets by source address, for the sources with most of them.
        flows: Number of their flows; 65,536 stands for more, too, which are `others` together.
        confirmed_drops: Packets of these that were dropped when recorded.
        false_positives: Packets of these that were accepted, and whose flow continued.
        followed_by_rst: Packets of these that were accepted, and followed by an RST.
        unknown: Packets of these in flows without later packets.
        fates_exact: Whether the last three, and `false_negatives`, are exact; estimates where the
            fate depends on packets of an event that lacks the time of each.
        examples: The first ones of each reason.
    """

    drops: int
    least_drops: int
    most_drops: int
    drops_by_reason: dict[str, int]
    drops_by_flow: dict[str, int]
    drops_by_peer: dict[str, int]
    flows: int
    confirmed_drops: int
    false_positives: HitRecord
    followed_by_rst: int
    unknown: int
    fates_exact: bool
    examples: list[ExampleRecord]


class PolicyRecord(DropsRecord):
    """What one policy would have done.

    Attributes:
        policy: The policy, as it was named.
        by_action: INVALID packets by action.
        by_rule: INVALID packets by the rule that decides.
        rules_exact: Whether these two are exact. Estimates where a rate decides, of which events do
            not have the time or the segment of each packet.
        heal_flows: Number of flows of packets that were accepted, and that a rule would heal. In
            force the policy heals such a flow, after which fewer of its packets are INVALID, and
            drops fewer than `drops` and `least_drops`.
        passes: INVALID packets that would be accepted.
        translated_passes: Packets of these in translated flows, which leave untranslated.
        false_negatives: Packets that would be accepted, were accepted, and were followed by an RST.
        not_captured: For a capture, the rules that may match otherwise than live, each with its
            fields that a capture does not show.
        if_translated: Packets like these that would be dropped if their flow is translated, which a
            capture of one side does not show; not in `false_negatives`.
    """

    policy: str
    by_action: dict[str, int]
    by_rule: dict[str, int]
    rules_exact: bool
    heal_flows: int
    passes: int
    translated_passes: int
    false_negatives: HitRecord
    if_translated: int
    not_captured: dict[str, list[str]]


class PolicyDifferenceRecord(TypedDict):
    """The difference between two policies: packets that only one of them would drop.

    Attributes:
        only_a_drops: Packets that the first would drop and the second accept.
        only_b_drops: Packets that the second would drop and the first accept.
    """

    only_a_drops: DropsRecord
    only_b_drops: DropsRecord


class UnrecordedRecord(TypedDict):
    """What is missing from the recording, by its own events; no count of packets includes it.

    Attributes:
        suppressed: Packets without an event because of the limit on all events, or of the size of
            the file.
        kernel_dropped: Packets that the kernel dropped before they could be judged.
        kernel_passed: Packets that passed unjudged: more than could be judged, or without a worker.
        shed: Packets above `max_rate_pps`, which were left to the fail mode.
        unjudged: Packets that were left to the fail mode, because a daemon or worker failed.
        offloaded: Packets that the kernel dropped by order of the policy then in force.
        allowed: Packets that the policy then in force allowed, without `log_allowed`.
        lost_judged: Packets that a process had judged, and that had no event when it was killed.
        lost_lines: Lines that the log lost; each may represent any number of packets.
        unserved_s: Seconds without a daemon, with any number of packets.
    """

    suppressed: int
    kernel_dropped: int
    kernel_passed: int
    shed: int
    unjudged: int
    offloaded: int
    allowed: int
    lost_judged: int
    lost_lines: int
    unserved_s: float


class TrialRecord(TypedDict):
    """What one or two policies would have done to a recording.

    Attributes:
        source: The recording.
        kind: `events` or `capture`.
        kernel: The kernel whose rules a capture was replayed by; null for events.
        kernel_doubt: Why the requested kernel may follow other rules; null if it follows these.
        packets: Packets of the recording.
        invalid: Of these, INVALID ones.
        policies: Each policy.
        difference: Their difference; null for one policy.
        unrecorded: Packets missing from events; null for a capture.
        doubtful: Packets that are INVALID only if the capture is complete; not in `invalid`.
        skipped_lines: Lines of events that are not events; their packets are unknown.
        damage: Why the recording was not read to its end; null if it was.
    """

    source: str
    kind: str
    kernel: str | None
    kernel_doubt: str | None
    packets: int
    invalid: int
    policies: list[PolicyRecord]
    difference: PolicyDifferenceRecord | None
    unrecorded: UnrecordedRecord | None
    doubtful: int
    skipped_lines: int
    damage: str | None


def result(
    trial: Trial,
    source: str,
    kind: str,
    unrecorded: Unrecorded | None = None,
    kernel: str | None = None,
    kernel_doubt: str | None = None,
    *,
    skipped_lines: int = 0,
    damage: str | None = None,
) -> TrialRecord:
    """The JSON object of a trial.

    Args:
        trial: An ended trial.
        source: Name of the recording, as given.
        kind: `events` or `capture`.
        unrecorded: Packets missing from events.
        kernel: As in the record.
        kernel_doubt: As in the record.
        skipped_lines: As in the record.
        damage: As in the record.
    """
    named = [policy.model.source for policy in trial.policies]
    difference: PolicyDifferenceRecord | None = None
    if len(named) == 2:
        only_a, only_b = trial.differences
        difference = {"only_a_drops": _drops(only_a), "only_b_drops": _drops(only_b)}
    return {
        "source": source,
        "kind": kind,
        "kernel": kernel,
        "kernel_doubt": kernel_doubt,
        "packets": trial.packets,
        "invalid": trial.invalid,
        "policies": [
            _policy(name, tally, _not_captured(policy.model) if kind == "capture" else {})
            for name, policy, tally in zip(named, trial.policies, trial.tallies, strict=True)
        ],
        "difference": difference,
        "unrecorded": None
        if unrecorded is None
        else cast("UnrecordedRecord", msgspec.structs.asdict(unrecorded)),
        "doubtful": trial.doubtful,
        "skipped_lines": skipped_lines,
        "damage": damage,
    }


def _not_captured(model: PolicyModel) -> dict[str, list[str]]:
    return {name: list(fields) for name, fields in not_captured(model).items()}


def _policy(name: str, tally: Tally, unseen: dict[str, list[str]]) -> PolicyRecord:
    return {
        "policy": name,
        "by_action": {str(action): count for action, count in tally.by_action.items()},
        "by_rule": tally.by_rule,
        "rules_exact": tally.rules_exact,
        "heal_flows": counted_apart(tally.heals_by_flow),
        "passes": tally.passes,
        "translated_passes": tally.translated_passes,
        **_drops(tally),
        "false_negatives": {"packets": tally.missed, "flows": top(tally.false_negatives)},
        "if_translated": tally.if_translated,
        "not_captured": unseen,
    }


def _drops(tally: Tally) -> DropsRecord:
    return {
        "drops": tally.drops,
        "least_drops": tally.least_drops,
        "most_drops": tally.most_drops,
        "drops_by_reason": {str(reason): n for reason, n in tally.drops_by_reason.items()},
        "drops_by_flow": top(tally.drops_by_flow),
        "drops_by_peer": top(tally.drops_by_peer),
        "flows": counted_apart(tally.drops_by_flow),
        "confirmed_drops": tally.confirmed,
        "false_positives": {
            "packets": tally.drop_fates[Fate.LIVED],
            "flows": top(tally.false_positives),
        },
        "followed_by_rst": tally.drop_fates[Fate.RESET],
        "unknown": tally.drop_fates[Fate.UNKNOWN],
        "fates_exact": tally.fates_exact,
        "examples": [_example(example) for example in tally.examples],
    }


def _example(example: Example) -> ExampleRecord:
    return {
        "number": example.number,
        "flow": example.flow,
        "reason": example.reason,
        "rule": example.rule,
    }


def top(counts: Mapping[str, int], most: int = MOST_NAMED) -> dict[str, int]:
    """The names with the highest counts, in descending order."""
    ranked = sorted(counts.items(), key=lambda named: (-named[1], named[0]))
    return dict(ranked[:most])
