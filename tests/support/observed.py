# SPDX-License-Identifier: MIT
"""Hand-made data of a scrape."""

from typing import Any

from nfq_guard.telemetry.exposition import Observed, ObservedQueue
from nfq_guard.telemetry.metrics import Stats


def observed(*stats: Stats, **changes: Any) -> Observed:  # noqa: ANN401 - fields of `Observed`
    """The state of a daemon whose queues, from 7 on, have these numbers, and nothing else."""
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
