# SPDX-License-Identifier: MIT
"""A target is met, missed, or not measured; never assumed."""

import json
from pathlib import Path

import pytest

from benchmarks import contenders, overhead, path, readme, replaying, targets
from benchmarks.__main__ import updated, warnings_of
from benchmarks.replay import RIVAL
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
    """Medians of 2.2 and of `c` alone would say the same of other rounds."""
    results = Results()
    results.add(path.SECTION, contenders.GUARD, ACCEPTED, "us", 2.2, 20.0, 1.2)
    results.add(path.SECTION, contenders.C, ACCEPTED, "us", c, 20.0, 1.0)
    found = judged(results, "CPU of an accepted packet")
    assert found.outcome == outcome
    assert found.measured == pytest.approx(max(1.0, 2.2 / c))


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


def test_one_section_measured_later(tmp_path: Path) -> None:
    """It replaces its rows alone, and README says when it ran."""
    earlier = Results()
    earlier.add(path.SECTION, contenders.C, ACCEPTED, "us", 4.0)
    earlier.add(replaying.SECTION, RIVAL, replaying.RATE, "1/s", 1.0)
    machine = {
        "when": "2026-01-02T03:04:05",
        "cpu": "CPU",
        "cpus": 2,
        "kernel": "6.1",
        "python": "3.11",
    }
    known = {"machine": machine, "warnings": ["old"], "rows": earlier.as_json()}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(known))
    again = Results()
    again.add(replaying.SECTION, RIVAL, replaying.RATE, "1/s", 2.0)
    record = {"machine": {**machine, "when": "2026-02-03T04:05:06"}, "warnings": ["new"]}
    found = updated(file, record, again, [replaying.SECTION])
    assert [row["values"] for row in found["rows"]] == [[4.0], [2.0]]
    assert warnings_of(found) == ["old", "replay: new"]
    later = updated(file, {**record, "warnings": []}, again, [replaying.SECTION])
    assert warnings_of(later) == ["old"]
    assert found["machine"] == machine
    text = readme.section(found, readme.newest())
    assert text.startswith("`make bench` of 2026-01-02 (replay: 2026-02-03) on 2 CPUs")
