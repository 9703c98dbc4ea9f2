# SPDX-License-Identifier: MIT
"""Made-up state of a daemon for a scrape of its metrics."""

from typing import Any

from nfq_guard.telemetry.exposition import Observed, ObservedQueue
from nfq_guard.telemetry.metrics import Stats


def observed(*stats: Stats, **changes: Any) -> Observed:  # noqa: ANN401 - fields of `Observed`
    """The state of a daemon with these counters for queues 7, 8 and so on, and nothing else."""
    nothing = Observed(
        at=0.0,
        queues=tuple(ObservedQueue(7 + place, 1, one) for place, one in enumerate(stats)),
        counters={},
        gauges={},
        rules=(),
        infos={},
        outputs={},
        parts=frozenset(),
        problems=(),
    )
    return nothing._replace(**changes)
