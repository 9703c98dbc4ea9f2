# SPDX-License-Identifier: MIT
"""The charts of the page: packets over time, and the distances beyond each bound."""

from datetime import UTC, datetime
from typing import Any, Final

from nfq_guard.names import counted
from nfq_guard.report.summary import Fate, Summary
from nfq_guard.report.timeline import WIDTHS

_BARS_MAX: Final = 90
_TIME_LABELS: Final = 5
_TICKS: Final = 6
_WORDS: Final = {
    Fate.ESCAPED: "got through untranslated",
    Fate.PASSED: "got through",
    Fate.DROPPED: "dropped",
}


def timeline(summary: Summary, *, days: bool) -> dict[str, Any] | None:
    """The bars of the packets over time; None without a packet.

    Args:
        summary: The events.
        days: Whether times need their date.
    """
    bars = summary.timeline.bars(_BARS_MAX)
    if bars is None:
        return None
    number = len(bars.heights)
    top = _round_up(max(sum(heights) for heights in bars.heights))
    shape = "%H:%M:%S" if bars.width < 60 else "%H:%M"
    if days:
        shape = "%m-%d" if bars.width >= 86_400 else "%m-%d %H:%M"
    drawn = []
    for index, heights in enumerate(bars.heights):
        base, parts = 100.0, []
        for fate in Fate:
            height = 100 * heights[fate] / top
            base -= height
            if height:
                parts.append((fate.name.lower(), f"{base:.2f}", f"{height:.2f}"))
        when = datetime.fromtimestamp(bars.start + index * bars.width, UTC)
        heights_text = ", ".join(f"{_amount(heights[fate])} {_WORDS[fate]}" for fate in Fate)
        drawn.append(
            {"x": f"{index + 0.07:.2f}", "parts": parts, "title": f"{when:%F %T}: {heights_text}"}
        )
    between = next(
        (width for width in WIDTHS if number * bars.width <= _TIME_LABELS * width), WIDTHS[-1]
    )
    first_label = -(-bars.start // between) * between
    labels = [
        (
            f"{100 * (moment - bars.start) / (number * bars.width):.2f}",
            datetime.fromtimestamp(moment, UTC).strftime(shape),
        )
        for moment in range(first_label, bars.start + number * bars.width, between)
    ] or [("0", datetime.fromtimestamp(bars.start, UTC).strftime(shape))]
    marks = sorted(
        {
            f"{100 * (read.when.timestamp() - bars.start) / (number * bars.width):.1f}"
            for read in summary.resets
        },
        key=float,
    )
    return {
        "caption": f"packets in each {_span(bars.width)}, stacked by what became of them",
        "span": _span(bars.width),
        "spread": summary.counts.packets > 0,
        "left_out": f"{summary.timeline.left_out:,}" if summary.timeline.left_out else "",
        "bars": drawn,
        "marks": marks,
        "unmarked": summary.counts.resets > sum(read.event.count for read in summary.resets),
        "widest": _amount(top),
        "y": [("0", _amount(top)), ("50", _amount(top / 2)), ("100", "0")],
        "x": labels,
    }


def _amount(number: float) -> str:
    """A number of packets, which is a fraction where they were spread."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _round_up(number: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten: at most a third above."""
    scale = 1.0
    while scale > number:
        scale /= 10
    while True:
        for step in (1, 1.5, 2, 3, 4, 5, 6, 8):
            if number <= step * scale * (1 + 1e-9):
                return step * scale
        scale *= 10


def distances(summary: Summary) -> dict[str, Any] | None:
    """A row of cells for each bound, over the classes of distances; None without one."""
    if not summary.distances:
        return None
    powers = [power for (_, power), packets in summary.distances.items() if packets]
    classes = range(min(powers), max(powers) + 1)
    rows = []
    for bound in sorted({bound for bound, _ in summary.distances}):
        counts = [summary.distances[bound, power] for power in classes]
        most = max(counts)
        cells = []
        for power, packets in zip(classes, counts, strict=True):
            span = f"{_binary(1 << power - 1)} to {_binary(1 << power)} bytes"
            title = f"{span}: {counted(packets, 'packet')}"
            cells.append((title, f"{max(3, 100 * packets / most) if packets else 0:.0f}"))
        rows.append(
            {
                "bound": bound,
                "packets": counted(sum(counts), "packet"),
                "most": f"{most:,}",
                "caption": "; ".join(title for title, height in cells if height != "0"),
                "cells": cells,
            }
        )
    every = max(1, -(-len(classes) // _TICKS))
    ticks = [
        _binary(1 << power - 1) if index % every == 0 else "" for index, power in enumerate(classes)
    ]
    return {"rows": rows, "ticks": ticks}


def _binary(number: int) -> str:
    for unit, scale in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if number >= scale:
            return f"{number // scale} {unit}"
    return str(number)


def _span(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            number = seconds // length
            return unit if number == 1 else f"{number} {unit}s"
    return "second" if seconds == 1 else f"{seconds} seconds"
