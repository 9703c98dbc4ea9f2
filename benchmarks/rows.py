# SPDX-License-Identifier: MIT
"""Measured figures, and how several of one are summed up. A figure is measured or it is absent."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

QUARTILES_FROM: Final = 3


@dataclass(slots=True, kw_only=True)
class Row:
    """One thing measured some times.

    Attributes:
        section: Which part of the bench, such as `path`.
        variant: What was measured, such as `guard, compiled`.
        metric: What about it, such as `cpu_per_packet`.
        unit: Of the values, such as `us`.
        x: The point on a curve, such as packets a second; None where there is no curve.
        values: One a round, in the order of the rounds; empty when nothing could be measured.
        note: Why nothing was measured, or what to know about the values.
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
        """The middle value; there must be one."""
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
        """Add values to the row of this name, which is made if it is new."""
        row = self.find(section, variant, metric, x)
        if row is None:
            row = Row(section=section, variant=variant, metric=metric, unit=unit, x=x)
            self.rows.append(row)
        row.values += values
        row.note = note or row.note

    def missing(self, section: str, variant: str, why: str) -> None:
        """Say that a variant was not measured, and why."""
        self.add(section, variant, "not measured", "", note=why)

    def find(self, section: str, variant: str, metric: str, x: float | None = None) -> Row | None:
        """The row of this name, with or without values."""
        for row in self.rows:
            if (row.section, row.variant, row.metric, row.x) == (section, variant, metric, x):
                return row
        return None

    def of(self, section: str, metric: str | None = None) -> list[Row]:
        """Rows of a section, perhaps of one metric alone."""
        return [
            row
            for row in self.rows
            if row.section == section and (metric is None or row.metric == metric)
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Rows as they are written; median and spread for who reads them without this program."""
        written: list[dict[str, Any]] = []
        for row in self.rows:
            entry = asdict(row)
            if row.values:
                entry["median"] = row.median
                entry["quartiles"] = list(row.spread)
            written.append(entry)
        return written


def from_json(entries: Iterable[dict[str, Any]]) -> Results:
    """What `Results.as_json` wrote."""
    names = Row.__dataclass_fields__
    return Results(
        Row(**{key: value for key, value in entry.items() if key in names}) for entry in entries
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed; `ordered` is sorted, not empty."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
