# SPDX-License-Identifier: MIT
"""The plots of the result page, each small enough to be read on a phone.

Every plot has at most five lines. Bars have a linear axis that begins at 0; where the shortest bar
would be invisible beside the longest, points on a logarithmic axis replace them. Colours follow the
page's theme.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import evidence, latency, overhead, path, scaling
from benchmarks.rows import Results, Row
from benchmarks.survivors import CONNECTIONS

# Placeholders for the colours of the page, which `svg` substitutes.
_INK: Final = "#010203"
_GRID: Final = "#040506"
_OURS: Final = "#070809"
_OTHERS: Final = "#0a0b0c"
_THEME: Final = {
    _INK: "var(--ink)", _GRID: "var(--line)", _OURS: "var(--link)", _OTHERS: "var(--passed)",
}  # fmt: skip
# Colours with markers, so that lines also differ without colour; readable on light and dark.
_LINES: Final = (
    ("#8a8f94", "x"), ("#d0752c", "s"), ("#c4485a", "v"), ("#8f6fc0", "D"), ("#3d8fb5", "o"),
)  # fmt: skip
_WIDTH: Final = 4.4
# Ratio of the longest to the shortest bar above which the short ones would be invisible.
_LOG_FROM: Final = 50
_OVERHEAD: Final = (
    ("plain rules", ("none", "be_liberal", "DROP in PREROUTING", "DROP in FORWARD",
                     "DROP in INPUT")),
    ("the guard", ("none", "guard, dry-run", "guard, enforce", "guard, kernel-drop",
                   "guard with offload")),
)  # fmt: skip

mpl.rcParams.update(
    {
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.titlecolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.grid": True,
        "grid.color": _GRID,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "nfq_guard",
    }
)


class Plot(NamedTuple):
    """One plot.

    Attributes:
        caption: What it shows.
        figure: The drawing.
    """

    caption: str
    figure: Figure


Plots = Callable[[Results], Iterator[Plot]]


def svg(figure: Figure) -> str:
    """The figure as SVG for embedding, in the colours of the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    for sentinel, colour in _THEME.items():
        text = text.replace(sentinel, colour)
    return text[text.index("<svg") :]


def compact(value: float) -> str:
    """A number with its thousands as a letter: 0.5, 20, 1k, 1.5M."""
    if value == int(value) and abs(value) < 10_000 and value % 100:
        return f"{value:,.0f}"
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def _new(height: float) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(_WIDTH, height), layout="constrained")


def _bars(rows: Sequence[Row], unit: str, *, more_is_better: bool = False) -> Figure:
    """A bar or point for each row, the best at the top, with quartiles; its name is above it."""
    ordered = sorted(rows, key=lambda row: row.median, reverse=not more_is_better)
    figure, axes = _new(0.62 * len(ordered) + 0.8)
    medians = [row.median for row in ordered]
    logarithmic = max(medians) > _LOG_FROM * min(medians) > 0
    most = max(row.spread[1] for row in ordered)
    for at, row in enumerate(ordered):
        low, high = row.spread
        colour = _OURS if "guard" in row.variant else _OTHERS
        error = [[row.median - low], [high - row.median]]
        whisker = {"ecolor": _INK, "elinewidth": 1, "capsize": 3}
        if logarithmic:
            axes.errorbar(row.median, at, xerr=error, fmt="o", color=colour, ecolor=_INK, capsize=3)
        else:
            axes.barh(at, row.median, 0.4, xerr=error, color=colour, error_kw=whisker)
        axes.annotate(
            compact(row.median), (high, at), (6, 0), textcoords="offset points", va="center"
        )
        axes.text(0, at + 0.27, row.variant, va="bottom", transform=axes.get_yaxis_transform())
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(ordered) - 0.1)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(row.spread[0] for row in ordered) / 1.6, most * 4)
        unit += ", logarithmic"
    else:
        # The room for the last number is not part of the scale.
        axes.set_xlim(0, most)
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= most])
        axes.set_xlim(0, most * 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_xlabel(unit)
    return figure


def _curves(
    axes: Axes, lines: Sequence[tuple[str, Sequence[Row]]], places: Sequence[float]
) -> None:
    """Lines with quartiles, over places of equal distance; an empty one keeps its colour."""
    for (name, rows), (colour, marker) in zip(lines, _LINES, strict=False):
        if not rows:
            continue
        axes.errorbar(
            [places.index(row.x or 0) for row in rows],
            [row.median for row in rows],
            yerr=[
                [row.median - row.spread[0] for row in rows],
                [row.spread[1] - row.median for row in rows],
            ],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            linewidth=1.4,
            label=name,
        )
    axes.xaxis.set_major_locator(FixedLocator(range(len(places))))
    axes.set_xticks(range(len(places)), [compact(place) for place in places])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_ylim(bottom=0)


def _by_place(rows: Sequence[Row], variant: str) -> list[Row]:
    """The measured rows of a variant, in the order of a curve."""
    found = [row for row in rows if row.variant == variant and row.values]
    return sorted(found, key=lambda row: row.x or 0)


def packet_path(results: Results) -> Iterator[Plot]:
    """CPU time of an INVALID packet, by program."""
    for way in (path.SATURATED, path.PACED, path.TRANSLATED):
        rows = [row for row in results.of(path.SECTION, f"CPU a packet, {way}") if row.values]
        if rows:
            yield Plot(
                f"CPU time of the program itself, {way}; whiskers are quartiles.",
                _bars(rows, "microseconds a packet"),
            )


def added_latency(results: Results) -> Iterator[Plot]:
    """Latency added to a packet, by program."""
    for kind in ("median", "p99", "p99.9"):
        rows = [row for row in results.of(latency.SECTION, f"added, {kind}") if row.values]
        if rows:
            yield Plot(
                f"Latency that a queue adds to a packet, {kind}.",
                _bars(rows, "microseconds added"),
            )


def survival(results: Results) -> Iterator[Plot]:
    """Connections that survive stray packets."""
    rows = [row for row in results.of(overhead.SECTION, "survived") if row.x and row.values]
    worst: dict[str, float] = {}
    for row in rows:
        share = min(row.values) / CONNECTIONS * 100
        worst[row.variant] = min(worst.get(row.variant, 100.0), share)
    if worst:
        shares = [
            Row(section="", variant=name, metric="", unit="", values=[share])
            for name, share in worst.items()
        ]
        yield Plot(
            "Idle connections behind a translating router that survive, in the worst round at any "
            "rate of packets far beyond their window.",
            _bars(shares, "percent", more_is_better=True),
        )


def valid_traffic(results: Results) -> Iterator[Plot]:
    """Requests and downloads beside INVALID packets, the guard and plain rules apart."""
    for metric, label in (
        ("goodput", "download, Mbit/s"),
        ("request p50", "request, median, microseconds"),
        ("request p99", "request, p99, microseconds"),
        ("guard CPU", "the guard's own CPU, seconds a second"),
    ):
        rows = [row for row in results.of(overhead.SECTION, metric) if row.values]
        places = sorted({row.x or 0 for row in rows})
        top = max((row.spread[1] for row in rows), default=0) * 1.05
        for group, names in _OVERHEAD:
            lines = [(name, _by_place(rows, name)) for name in names]
            if not any(found for _, found in lines) or top <= 0:
                continue
            figure, axes = _new(3.6)
            _curves(axes, lines, places)
            axes.set_ylim(0, top)
            axes.set_xlabel("INVALID packets a second")
            figure.legend(
                loc="outside lower left", frameon=False, ncols=2, handlelength=1, columnspacing=1
            )
            yield Plot(f"{label[0].upper()}{label[1:]}: {group}.", figure)


def scaling_curves(results: Results) -> Iterator[Plot]:
    """The cost of a packet by batch size, tracked flows and rules, and the rate by workers."""
    for what, metric, label in (
        (scaling.BATCH, scaling.COST, "microseconds a packet"),
        (scaling.FLOWS_IN_TABLE, scaling.COST, "microseconds a packet"),
        (scaling.RULES, scaling.COST, "microseconds a packet"),
        (scaling.WORKERS, scaling.RATE, "packets a second"),
    ):
        rows = _by_place(results.of(scaling.SECTION, metric), what)
        if not rows:
            continue
        figure, axes = _new(2.8)
        _curves(axes, [(what, rows)], [row.x or 0 for row in rows])
        axes.set_xlabel(what)
        yield Plot(f"{label[0].upper()}{label[1:]} by {what}.", figure)


def sources(results: Results) -> Iterator[Plot]:
    """Cost of a judgment with each source of evidence."""
    rows = [row for row in results.of(evidence.SECTION, evidence.JUDGEMENT) if row.values]
    for kind in ("compiled", "pure Python"):
        found = [row for row in rows if row.variant.endswith(kind)]
        if found:
            yield Plot(
                f"A judgment without the queue, {kind}.",
                _bars(found, "microseconds of CPU, including the lookup"),
            )


PLOTS: Final[dict[str, tuple[Plots, ...]]] = {
    path.SECTION: (packet_path,),
    latency.SECTION: (added_latency,),
    overhead.SECTION: (survival, valid_traffic),
    scaling.SECTION: (scaling_curves,),
    evidence.SECTION: (sources,),
}
