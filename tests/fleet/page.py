# SPDX-License-Identifier: MIT
"""The figures of docs/fleet.md: measurements, and computed values for other sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nfq_guard.service.settings import Settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "fleet.md"
RECORD: Final = PAGE.with_suffix(".json")
_NODES: Final = (10, 100, 1_000, 10_000)
_INTERVAL_S: Final = 30
_SAMPLE_BYTES: Final = 1.5
_DAY_S: Final = 86_400
# As deploy/kubernetes has it.
_EVENTS_PER_S: Final = 50
_ONE_FLOW: Final = _DAY_S / Settings().log_interval_s

Record = dict[str, Any]


def write(record: Record) -> None:
    """Keep a record, and write its figures into the page."""
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


def filled(text: str, record: Record) -> str:
    """The page with the figures of a record."""
    for name, lines in (("fleet", _measured(record)), ("computed", _computed(record))):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        text = "".join((before, begin, "\n".join(lines), "\n", end, after))
    return text


def _measured(record: Record) -> Iterator[str]:
    yield (
        f"A node has {record['series_of_a_node']} series, {record['buckets_of_a_node']} of them "
        f"buckets of histograms, in {record['exposition_bytes']:,} bytes; an event has "
        f"{record['event_bytes']} bytes.\n"
    )
    yield (
        "| nodes | series | samples a second | CPU | memory, MB | dashboard of a node, ms "
        "| sum over raw counters, ms | rules of the fleet, ms |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for run in record["runs"]:
        yield (
            f"| {run['nodes']:,} | {run['series']:,.0f} | {run['samples_per_s']:,} "
            f"| {run['cpu_share']:.1%} | {run['memory_mb']:,} | {run['dashboard_ms']:,} "
            f"| {run['everything_ms']:,} | {run['fleet_ms']:,} |"
        )


def _computed(record: Record) -> Iterator[str]:
    last = record["runs"][-1]
    yield (
        "| nodes | series | samples a second | disk for 15 days, GB | memory, GB | CPU "
        "| events of one odd flow a node, a day | events at the limit, a day |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for nodes in _NODES:
        series = nodes * record["series_of_a_node"]
        samples = series / _INTERVAL_S
        memory = last["memory_mb"] / last["series"] * series / 1000
        cpu = last["cpu_share"] / last["samples_per_s"] * samples
        one = nodes * _ONE_FLOW * record["event_bytes"]
        most = nodes * _EVENTS_PER_S * _DAY_S * record["event_bytes"]
        yield (
            f"| {nodes:,} | {series:,} | {samples:,.0f} "
            f"| {samples * _DAY_S * 15 * _SAMPLE_BYTES / 1e9:,.1f} | {memory:,.2f} | {cpu:.1%} "
            f"| {one / 1e9:,.2f} GB | {most / 1e9:,.0f} GB |"
        )
