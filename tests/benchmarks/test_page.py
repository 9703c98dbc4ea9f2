# SPDX-License-Identifier: MIT
"""The page of the benchmark, from the results in the tree."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from benchmarks import targets
from benchmarks.page import render
from benchmarks.plots import PLOTS, Plot, compact, svg
from benchmarks.rows import Results, from_json
from tests.support.browser import Browser

pytestmark = pytest.mark.xdist_group("browser")
_LINES_MAX = 5


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    (newest, *_) = sorted(
        (Path(__file__).parents[2] / "benchmarks" / "results").glob("*/results.json"), reverse=True
    )
    found: dict[str, object] = json.loads(newest.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def results(record: dict[str, object]) -> Results:
    rows = record["rows"]
    assert isinstance(rows, list)
    return from_json(rows)


@pytest.fixture
def plots(results: Results) -> Iterator[list[Plot]]:
    yield [plot for each in PLOTS.values() for some in each for plot in some(results)]
    plt.close("all")


@pytest.fixture(scope="module")
def html(record: dict[str, object], results: Results) -> str:
    machine = record["machine"]
    assert isinstance(machine, dict)
    return render(results, targets.judge(results), machine, ["<b>busy</b>"])


def test_bars_have_a_linear_axis_from_0(plots: list[Plot]) -> None:
    for plot in plots:
        for axes in plot.figure.axes:
            if axes.patches:
                assert axes.get_xscale() == "linear", plot.caption
                assert axes.get_xlim()[0] == 0


def test_few_lines_and_whiskers(plots: list[Plot]) -> None:
    for plot in plots:
        for axes in plot.figure.axes:
            drawn = [one for one in axes.containers if hasattr(one, "has_yerr") and one.has_yerr]
            assert len(drawn) <= _LINES_MAX, plot.caption


def test_ticks_stand_apart(plots: list[Plot]) -> None:
    for plot in plots:
        plot.figure.draw_without_rendering()
        for axes in plot.figure.axes:
            boxes = [
                label.get_window_extent()
                for label in axes.get_xticklabels(which="both")
                if label.get_text() and label.get_visible()
            ]
            for one, other in pairwise(boxes):
                assert one.x1 < other.x0, plot.caption


def test_colours_are_those_of_the_page() -> None:
    figure = plt.figure()
    figure.text(0.5, 0.5, "<x> & y")
    drawn = svg(figure)
    assert "var(--ink)" in drawn
    assert "&lt;x&gt; &amp; y" in drawn


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (999, "999"), (1000, "1k"), (1024, "1,024"), (2_500_000, "2.5M")],
)
def test_numbers(value: float, text: str) -> None:
    assert compact(value) == text


def test_nothing_measured_is_a_page() -> None:
    machine = dict.fromkeys(("cpu", "cpus", "kernel", "python", "nfq_guard", "revision", "when"))
    html = render(Results(), targets.judge(Results()), machine, [])
    assert "targets missed or not measured" in html


def test_the_page(html: str, tmp_path: Path) -> None:
    assert "&lt;b&gt;busy&lt;/b&gt;" in html
    assert len(re.findall("<figure>", html)) >= 15
    page = tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    with Browser() as browser:
        for width in (390, 1280):
            browser.screen(width)
            browser.open(page)
            assert browser.complaints() == []
            assert browser.requests() == [page.as_uri()]
            assert browser.run("document.documentElement.scrollWidth") <= width
            smallest = browser.run(
                """Math.min(...[...document.querySelectorAll("svg text")].map(text =>
                    parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
            )
            assert smallest >= 12
