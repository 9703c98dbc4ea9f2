# SPDX-License-Identifier: MIT
"""Renders the result page, by the template of all pages, with embedded plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import PLOTS, svg
from benchmarks.rows import Results
from benchmarks.targets import Target
from benchmarks.text import TITLES, rows_of, target_rows
from nfq_guard.report.html import markup
from nfq_guard.report.html import render as render_page


def render(
    results: Results, targets: Sequence[Target], machine: Mapping[str, Any], warnings: Sequence[str]
) -> str:
    """Render the page."""
    sections = []
    for section, title in TITLES.items():
        rows = results.of(section)
        if not rows:
            continue
        # Matplotlib escapes the texts in its drawings.
        plots = [
            (markup(svg(plot.figure)), plot.caption)
            for plots in PLOTS.get(section, ())
            for plot in plots(results)
        ]
        head, *body = rows_of(rows)
        sections.append({"title": title, "plots": plots, "head": head, "rows": body})
    target_head, *judged = target_rows(targets)
    return render_page(
        "bench.html.jinja",
        {
            "title": "nfq_guard: what INVALID packets cost",
            "machine": machine,
            "warnings": warnings,
            "target_head": target_head,
            "targets": judged,
            "missed": sum(one.outcome != "met" for one in targets),
            "sections": sections,
        },
        (Path(__file__).parent / "templates",),
    )
