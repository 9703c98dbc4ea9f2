# SPDX-License-Identifier: MIT
"""Measured figures and their summaries. A figure that was not measured is absent."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

QUARTILES_FROM: Final = 3


@dataclass(slots=True, kw_only=True)
class Row:
    """One quantity, measured once per round.

    Attributes:
        section: Section of the benchmark, such as `path`.
        variant: What was measured, such as `guard, compiled`.
        metric: The quantity, such as `CPU a lookup`.
        unit: Unit of the values, such as `us`.
        x: The point on a curve, such as packets a second; None if there is no curve.
        values: One per round, in order; empty if the quantity could not be measured.
        note: Why nothing was measured, or a remark on the values.
    """

    section: str
    variant: str
    metric: str
    unit: str
    x: float | None = None
    values: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """The median; `values` must not be empty."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile; smallest and largest of fewer than three values."""
        if len(self.values) < QUARTILES_FROM:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


class Results:
    """All rows of one run, in the order in which they were first measured."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Start with `rows`, as read from a file."""
        self.rows: list[Row] = list(rows)

    def add(
        self,
        section: str,
        variant: str,
        metric: str,
        unit: str,
        *values: float,
        x: float | None = None,
        note: str = "",
    ) -> None:
        """Add values to a row, which is created if necessary."""
        row = self.find(section, variant, metric, x)
        if row is None:
            row = Row(section=section, variant=variant, metric=metric, unit=unit, x=x)
            self.rows.append(row)
        row.values += values
        row.note = note or row.note

    def missing(self, section: str, variant: str, why: str) -> None:
        """Record that a variant was not measured, and why."""
        self.add(section, variant, "not measured", "", note=why)

    def find(self, section: str, variant: str, metric: str, x: float | None = None) -> Row | None:
        """The row with these names, with or without values."""
        for row in self.rows:
            if (row.section, row.variant, row.metric, row.x) == (section, variant, metric, x):
                return row
        return None

    def of(self, section: str, metric: str | None = None) -> list[Row]:
        """Rows of a section, optionally of one metric."""
        return [
            row
            for row in self.rows
            if row.section == section and (metric is None or row.metric == metric)
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Rows as JSON objects, with median and spread for other readers."""
        written: list[dict[str, Any]] = []
        for row in self.rows:
            entry = asdict(row)
            if row.values:
                entry["median"] = row.median
                entry["quartiles"] = list(row.spread)
            written.append(entry)
        return written


def from_json(entries: Iterable[dict[str, Any]]) -> Results:
    """Parse the output of `Results.as_json`."""
    names = Row.__dataclass_fields__
    return Results(
        Row(**{key: value for key, value in entry.items() if key in names}) for entry in entries
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed; `ordered` is sorted, not empty."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
