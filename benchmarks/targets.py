# SPDX-License-Identifier: MIT
"""The project's targets and their measured values. Ratios are computed for each round."""

import statistics
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks import contenders, latency, overhead, path, repeats, replaying, start
from benchmarks.rows import Results
from benchmarks.survivors import CONNECTIONS

_REPLAY: Final = "nfq-guard replay"
_REPLAY_TIMES: Final = 7.0

Outcome = Literal["met", "missed", "not measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target.

    Attributes:
        name: Name of the target.
        limit: Largest value that meets the target; smallest if `at_least`.
        unit: Unit of limit and measured value.
        measured: The measured value; None if it was not measured.
        note: Why it was not measured, or the spread.
        at_least: Whether larger values are better.
    """

    name: str
    limit: float
    unit: str
    measured: float | None
    note: str = ""
    at_least: bool = False

    @property
    def outcome(self) -> Outcome:
        """Whether the target is met."""
        if self.measured is None:
            return "not measured"
        kept = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if kept else "missed"


def judge(results: Results) -> list[Target]:
    """All targets, in the order of the page."""
    saturated = f"CPU a packet, {path.SATURATED}"
    translated = f"CPU a packet, {path.TRANSLATED}"
    alone = f"CPU a packet, {path.PACED}"
    found = [
        _ratio(results, saturated, contenders.C, "CPU of an accepted packet, guard to C", 1.1),
        _ratio(results, translated, contenders.C_DROP, "CPU of a dropped packet, guard to C", 1.5),
        _ratio(results, alone, contenders.C, f"CPU of a packet {path.PACED}, guard to C", 2.0),
        _of(results, latency.SECTION, contenders.GUARD, "added, median", None,
            "latency added at 10,000 pps, median", 100.0),
        _of(results, latency.SECTION, contenders.GUARD, "added, p99", None,
            "latency added at 10,000 pps, p99", 500.0),
        _of(results, start.SECTION, contenders.GUARD, start.METRIC, None,
            "process start to READY", 300.0),
        _killed(results, overhead.OPEN, "open"),
        _killed(results, overhead.KERNEL_DROP, "kernel-drop"),
    ]  # fmt: skip
    return [*found, _offloaded(results), _replayed(results)]


def _ratio(results: Results, metric: str, base: str, name: str, limit: float) -> Target:
    ours = results.find(path.SECTION, contenders.GUARD, metric)
    theirs = results.find(path.SECTION, base, metric)
    pairs = list(zip(ours.values, theirs.values, strict=False)) if ours and theirs else []
    if not pairs:
        return _absent(results, path.SECTION, name, limit, "times")
    ratios = [guard / c for guard, c in pairs]
    return Target(
        name=name,
        limit=limit,
        unit="times",
        measured=statistics.median(ratios),
        note=f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds",
    )


def _of(
    results: Results,
    section: str,
    variant: str,
    metric: str,
    x: float | None,
    name: str,
    limit: float,
) -> Target:
    row = results.find(section, variant, metric, x)
    if row is None or not row.values:
        return _absent(results, section, name, limit, "us" if section == latency.SECTION else "ms")
    low, high = row.spread
    note = f"quartiles {low:.0f} to {high:.0f}"
    return Target(name=name, limit=limit, unit=row.unit, measured=row.median, note=note)


def _killed(results: Results, variant: str, fail_mode: str) -> Target:
    """Connections that died under the guard."""
    name = f"connections killed, fail mode {fail_mode}"
    dead: dict[float, float] = {}
    attacked = 0
    for row in results.of(overhead.SECTION, "survived"):
        if row.variant == variant and row.x:
            dead[row.x] = sum(CONNECTIONS - alive for alive in row.values)
            attacked += CONNECTIONS * len(row.values)
    if not attacked:
        return _absent(results, overhead.SECTION, name, 0.0, "connections")
    where = ", ".join(f"{count:g} at {rate:,.0f} pps" for rate, count in dead.items() if count)
    note = f"of {attacked}" + (f"; {where}" if where else "")
    return Target(name=name, limit=0.0, unit="connections", measured=sum(dead.values()), note=note)


def _offloaded(results: Results) -> Target:
    name = "CPU under a flood of repeats, offload to kernel DROP"
    ours = results.find(repeats.SECTION, repeats.OFFLOAD, repeats.REPEAT)
    drop = results.find(repeats.SECTION, repeats.DROP, repeats.REPEAT)
    if ours is None or drop is None or not ours.values or not drop.values:
        return _absent(results, repeats.SECTION, name, 1.1, "times")
    ratios = [one / other for one, other in zip(ours.values, drop.values, strict=False)]
    return Target(
        name=name,
        limit=1.1,
        unit="times",
        measured=statistics.median(ratios),
        note=f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds",
    )


def _absent(results: Results, section: str, name: str, limit: float, unit: str) -> Target:
    why = next(
        (row.note for row in results.of(section) if not row.values and row.note),
        "this section did not run",
    )
    return Target(name=name, limit=limit, unit=unit, measured=None, note=why)


def _replayed(results: Results) -> Target:
    """The replay with checksum verification, against tshark without it."""
    name = "packets a second of CPU, replay to tshark"
    row = results.find(replaying.SECTION, _REPLAY, replaying.RATIO)
    if row is None or not row.values:
        return _absent(results, replaying.SECTION, name, _REPLAY_TIMES, "times")
    note = f"{min(row.values):.2f} to {max(row.values):.2f} over {len(row.values)} rounds"
    return Target(
        name=name, limit=_REPLAY_TIMES, unit="times", measured=row.median, note=note, at_least=True
    )
