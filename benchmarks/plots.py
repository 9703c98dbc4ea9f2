# SPDX-License-Identifier: MIT
"""The plots of the result page; each is None if the run has no data for it."""

import io
from collections.abc import Callable, Sequence
from typing import Final

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import evidence, latency, overhead, path, scaling
from benchmarks.rows import Results, Row
from benchmarks.survivors import CONNECTIONS

_OURS: Final = "#1b6e9c"
_OTHERS: Final = "#a8b3ba"
_INK: Final = "#1c2429"
# One marker for each mitigation, so that they differ without colour as well.
_LINES: Final = (
    ("#7a7a7a", "x"), ("#c77d0a", "s"), ("#b3261e", "v"), ("#d1679b", "^"), ("#6a51a3", "D"),
    ("#74b3d8", "o"), ("#1b6e9c", "o"), ("#1c7a3f", "P"),
)  # fmt: skip

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _INK,
        "axes.grid": True,
        "grid.color": "#e3e8eb",
        "axes.axisbelow": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "nfq_guard",
    }
)

Plot = Callable[[Results], Figure | None]


def svg(figure: Figure) -> str:
    """The figure as SVG for embedding."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


# Ratio of the longest to the shortest bar above which the short ones would be invisible.
_LOG_FROM: Final = 50


def _bars(axes: Axes, rows: Sequence[Row], unit: str) -> None:
    """One bar per row, the cheapest at the top, with quartiles."""
    ordered = sorted((row for row in rows if row.values), key=lambda row: -row.median)
    for at, row in enumerate(ordered):
        low, high = row.spread
        axes.barh(
            at,
            row.median,
            xerr=[[row.median - low], [high - row.median]],
            color=_OURS if "guard" in row.variant else _OTHERS,
            error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2},
        )
        axes.annotate(
            f"{row.median:.3g}", (high, at), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(ordered)), [row.variant for row in ordered])
    axes.grid(visible=False, axis="y")
    if ordered and ordered[0].median > _LOG_FROM * ordered[-1].median > 0:
        axes.set_xscale("log")
        unit += ", logarithmic"
    axes.set_xlabel(unit)
    axes.set_xlim(left=0)
    axes.margins(x=0.1)


def packet_path(results: Results) -> Figure | None:
    """CPU time of an INVALID packet, by program."""
    ways = [
        way
        for way in (path.SATURATED, path.PACED, path.TRANSLATED)
        if any(row.values for row in results.of(path.SECTION, f"CPU a packet, {way}"))
    ]
    if not ways:
        return None
    figure, all_axes = plt.subplots(
        len(ways), 1, figsize=(8, 2.1 * len(ways) + 0.6), squeeze=False, layout="constrained"
    )
    for axes, way in zip(all_axes[:, 0], ways, strict=True):
        rows = results.of(path.SECTION, f"CPU a packet, {way}")
        _bars(axes, rows, "microseconds of CPU a packet")
        axes.set_title(way, loc="left")
    return figure


def added_latency(results: Results) -> Figure | None:
    """Latency added to a packet, by program."""
    kinds = ("added, median", "added, p99", "added, p99.9")
    names = [row.variant for row in results.of(latency.SECTION, kinds[0]) if row.values]
    if not names:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(names) + 1), layout="constrained")
    for kind, marker in zip(kinds, ("o", "s", "^"), strict=True):
        rows = [results.find(latency.SECTION, name, kind) for name in names]
        axes.plot(
            [row.median if row and row.values else float("nan") for row in rows],
            range(len(names)),
            marker,
            color=_OURS,
            label=kind.removeprefix("added, "),
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds added, log scale")
    figure.legend(frameon=False, ncols=3, loc="outside upper right")
    return figure


def survival(results: Results) -> Figure | None:
    """Connections that survive stray packets."""
    rows = [row for row in results.of(overhead.SECTION, "survived") if row.x and row.values]
    if not rows:
        return None
    worst: dict[str, float] = {}
    for row in rows:
        share = min(row.values) / CONNECTIONS * 100
        worst[row.variant] = min(worst.get(row.variant, 100.0), share)
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(worst) + 0.8), layout="constrained")
    names = list(worst)[::-1]
    for at, name in enumerate(names):
        axes.barh(at, worst[name], color=_OURS if "guard" in name else _OTHERS)
        axes.text(worst[name] + 1, at, f"{worst[name]:.0f} %", va="center", color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 112)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("percent of connections that live, worst round at any rate above 0")
    return figure


def _curves(axes: Axes, results: Results, metric: str, label: str) -> bool:
    drawn = False
    # From all rows, so that a mitigation looks the same in every plot.
    names = dict.fromkeys(row.variant for row in results.of(overhead.SECTION))
    for index, name in enumerate(names):
        rows = sorted(
            (
                row
                for row in results.of(overhead.SECTION, metric)
                if row.variant == name and row.values
            ),
            key=lambda row: row.x or 0,
        )
        if not rows:
            continue
        colour, marker = _LINES[index % len(_LINES)]
        axes.plot(
            [row.x or 0 for row in rows],
            [row.median for row in rows],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=2 if "guard" in name else 1,
            label=name,
        )
        drawn = True
    axes.set_xscale("symlog", linthresh=1000)
    axes.set_xlabel("INVALID packets a second")
    axes.set_title(label, loc="left")
    axes.set_ylim(bottom=0)
    return drawn


def valid_traffic(results: Results) -> Figure | None:
    """Requests and downloads beside INVALID packets."""
    figure, all_axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    drawn = [
        _curves(axes, results, metric, label)
        for axes, metric, label in zip(
            all_axes.flat,
            ("goodput", "request p50", "request p99", "guard CPU"),
            (
                "download, Mbit/s",
                "request, median, microseconds",
                "request, p99, microseconds",
                "the guard's own CPU, seconds a second",
            ),
            strict=True,
        )
    ]
    if not any(drawn):
        plt.close(figure)
        return None
    handles, labels = all_axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center")
    return figure


def scaling_curves(results: Results) -> Figure | None:
    """The four curves."""
    curves = (
        (scaling.BATCH, scaling.COST, "log"),
        (scaling.FLOWS_IN_TABLE, scaling.COST, "log"),
        (scaling.RULES, scaling.COST, "log"),
        (scaling.WORKERS, scaling.RATE, "linear"),
    )
    figure, all_axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained")
    drawn = False
    for axes, (what, metric, scale) in zip(all_axes.flat, curves, strict=True):
        rows = sorted(
            (
                row
                for row in results.of(scaling.SECTION, metric)
                if row.variant == what and row.values
            ),
            key=lambda row: row.x or 0,
        )
        axes.set_title(what, loc="left")
        axes.set_ylabel("packets a second" if metric == scaling.RATE else "microseconds a packet")
        if not rows:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            continue
        drawn = True
        middle = [row.median for row in rows]
        axes.errorbar(
            [row.x or 0 for row in rows],
            middle,
            yerr=[
                [row.median - row.spread[0] for row in rows],
                [row.spread[1] - row.median for row in rows],
            ],
            color=_OURS,
            marker="o",
            capsize=2,
        )
        axes.set_xscale(scale)
        axes.set_ylim(bottom=0)
    if not drawn:
        plt.close(figure)
        return None
    return figure


def sources(results: Results) -> Figure | None:
    """Cost of a judgment with each source of evidence."""
    rows = results.of(evidence.SECTION, evidence.JUDGEMENT)
    if not any(row.values for row in rows):
        return None
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 0.8), layout="constrained")
    _bars(axes, rows, "microseconds of CPU a judgement, the lookup in it")
    return figure


# By section: the caption and the plot.
PLOTS: Final[dict[str, tuple[tuple[str, Plot], ...]]] = {
    path.SECTION: (
        ("CPU time of the program itself. All got the same packets; whiskers are quartiles.",
         packet_path),
    ),
    latency.SECTION: (
        ("What a queue adds to the way of a packet through the router.", added_latency),
    ),
    overhead.SECTION: (
        ("Connections at rest behind a translating router, under packets far over their window.",
         survival),
        ("Valid traffic through the same router meanwhile.", valid_traffic),
    ),
    scaling.SECTION: (("What bends the cost of a packet.", scaling_curves),),
    evidence.SECTION: (("The judgement without the queue.", sources),),
}  # fmt: skip
