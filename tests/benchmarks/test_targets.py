# SPDX-License-Identifier: MIT
"""A target is met, missed, or not measured; never assumed."""

import pytest

from benchmarks import contenders, overhead, path, targets
from benchmarks.rows import Results
from benchmarks.survivors import CONNECTIONS

ACCEPTED = f"CPU a packet, {path.SATURATED}"


def judged(results: Results, name: str) -> targets.Target:
    (found,) = [one for one in targets.judge(results) if one.name.startswith(name)]
    return found


def test_nothing_measured_is_not_met() -> None:
    assert {one.outcome for one in targets.judge(Results())} == {"not measured"}


@pytest.mark.parametrize(("c", "outcome"), [(2.0, "met"), (1.9, "missed")])
def test_ratio_round_by_round(c: float, outcome: str) -> None:
    """Medians of 3.0 and of `c` alone would say the same of other rounds."""
    results = Results()
    results.add(path.SECTION, contenders.GUARD, ACCEPTED, "us", 3.0, 30.0, 2.0)
    results.add(path.SECTION, contenders.C, ACCEPTED, "us", c, 20.0, 1.0)
    found = judged(results, "CPU of an accepted packet")
    assert found.outcome == outcome
    assert found.measured == pytest.approx(max(1.5, 3.0 / c))


def test_row_without_figures_gives_its_reason() -> None:
    results = Results()
    results.missing(path.SECTION, contenders.GUARD, "did not bind queue 3")
    found = judged(results, "CPU of an accepted packet")
    assert (found.measured, found.note) == (None, "did not bind queue 3")


def test_each_killed_connection_counts() -> None:
    results = Results()
    for pps, alive in ((1000, (20, 20)), (10_000, (20, 19)), (100_000, (0, 20))):
        results.add(overhead.SECTION, overhead.OPEN, "survived", "of 20", *alive, x=float(pps))
        results.add(
            overhead.SECTION, overhead.KERNEL_DROP, "survived", "of 20", *alive, x=float(pps)
        )
    open_mode = judged(results, "connections killed, fail mode open")
    assert (open_mode.measured, open_mode.outcome) == (21, "missed")
    assert open_mode.note == f"of {6 * CONNECTIONS}; 1 at 10,000 pps, 20 at 100,000 pps"
    assert judged(results, "connections killed, fail mode kernel-drop").measured == 21
