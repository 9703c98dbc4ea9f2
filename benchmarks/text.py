# SPDX-License-Identifier: MIT
"""Renders a run as text: the targets, then every row by section."""

from collections.abc import Iterable, Sequence

from benchmarks.rows import Results, Row
from benchmarks.targets import Target

TITLES = {
    "path": "Packet path: cost of an INVALID packet by program",
    "latency": "Latency of a judged packet at 10,000 a second",
    "start": "Start",
    "overhead": "Cost of each mitigation for valid traffic",
    "repeats": "A flood of repeats: offloaded to the kernel by the guard, or a plain DROP rule",
    "scaling": "Scaling of the guard",
    "evidence": "Sources of evidence",
    "replay": "Replay of a capture",
}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, as wide as necessary."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def number(value: float) -> str:
    """Format with three significant digits."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def target_rows(targets: Iterable[Target]) -> list[list[str]]:
    """The table of targets."""
    rows = [["target", "limit", "measured", "", "note"]]
    rows += [
        [
            one.name,
            f"{'>=' if one.at_least else '<='} {number(one.limit)} {one.unit}",
            "-" if one.measured is None else f"{number(one.measured)} {one.unit}",
            one.outcome,
            one.note,
        ]
        for one in targets
    ]
    return rows


def rows_of(rows: Iterable[Row]) -> list[list[str]]:
    """A table of figures: median and quartiles, or why they are missing."""
    lines = [["what", "metric", "at", "median", "quartiles", "rounds", "note"]]
    for row in rows:
        at = "" if row.x is None else f"{row.x:,.0f}"
        if not row.values:
            lines.append([row.variant, row.metric, at, "-", "", "0", row.note])
            continue
        low, high = row.spread
        lines.append(
            [
                row.variant,
                row.metric,
                at,
                f"{number(row.median)} {row.unit}",
                f"{number(low)} .. {number(high)}",
                str(len(row.values)),
                row.note,
            ]
        )
    return lines


def report(results: Results, targets: Sequence[Target], warnings: Sequence[str]) -> str:
    """Render the whole run."""
    parts = [f"warning: {warning}" for warning in warnings]
    parts.append(table(target_rows(targets)))
    for section, title in TITLES.items():
        rows = results.of(section)
        if rows:
            parts.append(f"{title}\n\n{table(rows_of(rows))}")
    return "\n\n".join(parts) + "\n"
