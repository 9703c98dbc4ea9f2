# SPDX-License-Identifier: MIT
"""Renders the result page: one HTML file with embedded plots."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.plots import PLOTS, svg
from benchmarks.rows import Results
from benchmarks.targets import Target
from benchmarks.text import TITLES, rows_of, target_rows

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2429; background: #fff; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #e3e8eb;
         vertical-align: top; }
.met { color: #1c7a3f; font-weight: 600; }
.missed { color: #b3261e; font-weight: 600; }
.warning { background: #fdf1d6; padding: .5rem 1rem; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: #55636b; font-size: 13px; }
details { margin: 1rem 0; overflow-x: auto; }
"""


def render(
    results: Results, targets: Sequence[Target], machine: Mapping[str, Any], warnings: Sequence[str]
) -> str:
    """Render the page."""
    words = {key: html.escape(str(value)) for key, value in machine.items()}
    body = ["<h1>What INVALID packets cost</h1>"]
    body += [f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings]
    body.append(
        f"<p>{words['cpu']}, {words['cpus']} CPUs, kernel {words['kernel']}, "
        f"Python {words['python']}, nfq_guard {words['nfq_guard']} at {words['revision']}, "
        f"{words['when']}. Figures are medians over rounds, with quartiles.</p>"
    )
    body.append("<h2>Targets</h2>" + _table(target_rows(targets)))
    for section, title in TITLES.items():
        rows = results.of(section)
        if not rows:
            continue
        body.append(f"<h2>{html.escape(title)}</h2>")
        for caption, plot in PLOTS.get(section, ()):
            figure = plot(results)
            if figure is not None:
                body.append(
                    f"<figure>{svg(figure)}<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
        body.append(f"<details><summary>All figures</summary>{_table(rows_of(rows))}</details>")
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>nfq_guard: what INVALID packets cost</title><style>{_STYLE}</style>\n"
        + "\n".join(body)
        + "\n</html>\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rest:
        cells = "".join(
            f'<td class="{cell}">{cell}</td>'
            if cell in {"met", "missed"}
            else f"<td>{html.escape(cell)}</td>"
            for cell in row
        )
        lines.append(f"<tr>{cells}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"
