# SPDX-License-Identifier: MIT
"""A trial as a JSON object."""

from collections.abc import Mapping
from typing import Final

from nfq_guard.whatif.conversations import Fate
from nfq_guard.whatif.tally import Example, Tally
from nfq_guard.whatif.trial import Trial

# Number of flows and peers that are listed, by descending packet count.
MOST_NAMED: Final = 20


def result(trial: Trial, source: str, kind: str) -> dict[str, object]:
    """The JSON object of a trial.

    Args:
        trial: An ended trial.
        source: Name of the recording, as given.
        kind: `events` or `capture`.
    """
    named = [policy.model.source for policy in trial.policies]
    difference: dict[str, object] | None = None
    if len(named) == 2:
        difference = {
            f"only_{letter}_drops": _drops(tally)
            for letter, tally in zip("ab", trial.differences, strict=True)
        }
    return {
        "source": source,
        "kind": kind,
        "packets": trial.packets,
        "invalid": trial.invalid,
        "policies": [
            {"policy": name, **_tally(tally)}
            for name, tally in zip(named, trial.tallies, strict=True)
        ],
        "difference": difference,
    }


def _tally(tally: Tally) -> dict[str, object]:
    return {
        "by_action": {str(action): count for action, count in tally.by_action.items()},
        "by_rule": tally.by_rule,
        "passes": tally.passes,
        **_drops(tally),
        "false_negatives": {"packets": tally.missed, "flows": top(tally.false_negatives)},
    }


def _drops(tally: Tally) -> dict[str, object]:
    return {
        "drops": tally.drops,
        "drops_by_reason": {str(reason): n for reason, n in tally.drops_by_reason.items()},
        "drops_by_flow": top(tally.drops_by_flow),
        "drops_by_peer": top(tally.drops_by_peer),
        "flows": len(tally.drops_by_flow),
        "confirmed_drops": tally.confirmed,
        "false_positives": {
            "packets": tally.drop_fates[Fate.LIVED],
            "flows": top(tally.false_positives),
        },
        "followed_by_rst": tally.drop_fates[Fate.RESET],
        "unknown": tally.drop_fates[Fate.UNKNOWN],
        "examples": [_example(example) for example in tally.examples],
    }


def _example(example: Example) -> dict[str, object]:
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
