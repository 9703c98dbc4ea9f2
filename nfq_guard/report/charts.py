# SPDX-License-Identifier: MIT
"""Charts as inline SVG, whose colours follow the page's light or dark theme."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, final

_WIDTH: Final = 720
_HEIGHT: Final = 180
_LEFT: Final = 56
_BOTTOM: Final = 26
_TOP: Final = 10


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a stacked chart.

    Attributes:
        label: Text under the bar, if there is room.
        parts: Heights from the bottom up, one for each class of `stacked_bars`.
        title: Tooltip.
    """

    label: str
    parts: tuple[int, ...]
    title: str


def stacked_bars(bars: Sequence[Bar], classes: Sequence[str], caption: str) -> str:
    """A bar chart; `classes` are the CSS classes of the parts, from the bottom up."""
    most = max((sum(bar.parts) for bar in bars), default=0) or 1
    top = _round_up(most)
    plot = _HEIGHT - _BOTTOM - _TOP
    step = (_WIDTH - _LEFT) / max(1, len(bars))
    pieces = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">',
        *(_grid(top * share / 2, top, plot) for share in range(3)),
    ]
    every = max(1, round(len(bars) * 64 / (_WIDTH - _LEFT)))
    for index, bar in enumerate(bars):
        x = _LEFT + index * step
        pieces.append(f"<g><title>{escape(bar.title)}</title>")
        base = float(_HEIGHT - _BOTTOM)
        for part, name in zip(bar.parts, classes, strict=True):
            height = part / top * plot
            base -= height
            if part:
                pieces.append(
                    f'<rect class="{name}" x="{x + step * 0.1:.1f}" y="{base:.1f}" '
                    f'width="{max(0.8, step * 0.8):.1f}" height="{max(0.8, height):.1f}"/>'
                )
        pieces.append("</g>")
        if index % every == 0:
            pieces.append(
                f'<text class="tick" x="{x + step / 2:.1f}" y="{_HEIGHT - 8}" '
                f'text-anchor="middle">{escape(bar.label)}</text>'
            )
    pieces.append("</svg>")
    return "".join(pieces)


def _grid(value: float, top: int, plot: int) -> str:
    y = _HEIGHT - _BOTTOM - value / top * plot
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _round_up(number: int) -> int:
    """The next of 2, 4, 10, 20, 40, 100, ..., so that half of it is an integer as well."""
    scale = 1
    while True:
        for step in (2, 4, 10):
            if number <= step * scale:
                return step * scale
        scale *= 10
