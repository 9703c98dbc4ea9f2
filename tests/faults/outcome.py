# SPDX-License-Identifier: MIT
"""The outcome of a fault."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        fault: Its code, as in `tests/faults/catalogue.py`.
        injected: Number and kind of injections, as text.
        target: The target.
        measured: The measured value.
        met: Whether the target was reached.
        exact: Whether the counts of sender, rules, queue and receiver agreed to the packet.
    """

    fault: str
    injected: str
    target: str
    measured: str
    met: bool
    exact: bool | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """The value among them that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ms(seconds: float) -> str:
    """In whole milliseconds."""
    return f"{seconds * 1e3:.0f} ms"
