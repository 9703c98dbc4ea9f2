# SPDX-License-Identifier: MIT
"""Writes README's performance section from the newest results: `python -m benchmarks.readme`.

`--check` writes nothing and exits 1 if README differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import contenders, path, targets
from benchmarks.rows import Results, from_json
from benchmarks.site import REPO
from benchmarks.text import number
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK

RESULTS: Final = Path(__file__).parent / "results"
# Results of some sections on machines of another kind, by date.
_OTHER_MACHINES: Final = Path(__file__).parent / "other_machines"
README: Final = REPO / "README.md"
_SECTION: Final = re.compile(
    r"(?<=<!-- performance -->\n).*?(?=<!-- end of performance -->)", re.DOTALL
)
_SHOWN: Final = (
    contenders.BARE,
    contenders.C,
    contenders.GUARD,
    contenders.FNFQUEUE,
    contenders.GUARD_PURE,
    contenders.SCAPY,
    contenders.OPENSNITCH,
)


def newest() -> Path:
    """The folder of the newest committed results; folders are named by their date."""
    return max(path for path in RESULTS.iterdir() if path.is_dir())


def section(record: dict[str, Any], folder: Path) -> str:
    """The text of the section."""
    machine = record["machine"]
    results = from_json(record["rows"])
    later = "".join(f" ({name}: {of['when'][:10]})" for name, of in record.get("later", {}).items())
    lines = [
        f"`make bench` of {machine['when'][:10]}{later} on {machine['cpus']} CPUs "
        f"({machine['cpu']}), Linux {machine['kernel']}, Python {machine['python']}; every figure "
        f"is measured beside its rivals in the same run, and all figures are in [{folder.name}]"
        f"({folder.relative_to(REPO)}/results.txt). Other machines have other ratios too: "
        + "; ".join(map(_elsewhere, sorted(_OTHER_MACHINES.iterdir())))
        + ".",
        "",
        "| target | limit | measured | |",
        "|---|---|---|---|",
        *(_promise(one) for one in targets.judge(results)),
        "",
        "CPU time of one INVALID packet by program, median of the rounds. Saturated: packets "
        "always wait, as in a flood. At 10,000 pps each packet wakes its program by itself:",
        "",
        "| program | saturated, us | of the C program | at 10,000 pps, us | of the C program |",
        "|---|---|---|---|---|",
        *_costs(results),
    ]
    return "\n".join(lines) + "\n"


def _elsewhere(folder: Path) -> str:
    """The ratios to the C program on another machine, and the targets that it missed."""
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results = from_json(record["rows"])
    loads = (("saturated", path.SATURATED), ("at 10,000 pps", path.PACED))
    ratios = [
        f"{_cost(results, contenders.GUARD, load).partition('| ')[2]} times {name}"
        for name, load in loads
    ]
    missed = [
        f"{one.name} ({number(one.measured)} {one.unit})"
        for one in targets.judge(results)
        if one.measured is not None and one.outcome == "missed"
    ]
    return (
        f"on {record['machine']['cpu']} ([{folder.name}]({folder.relative_to(REPO)}/results.txt)) "
        f"the guard takes the CPU of the C program {' and '.join(ratios)}, and misses "
        f"{', '.join(missed) or 'no target'}"
    )


def _promise(one: targets.Target) -> str:
    sign = "at least" if one.at_least else "at most"
    measured = "not measured" if one.measured is None else f"{number(one.measured)} {one.unit}"
    note = f" ({one.note})" if one.outcome != "met" and one.note else ""
    return (
        f"| {one.name} | {sign} {number(one.limit)} {one.unit} | {measured}{note} | {one.outcome} |"
    )


def _costs(results: Results) -> list[str]:
    lines: list[str] = []
    for variant in _SHOWN:
        cells = [_cost(results, variant, load) for load in (path.SATURATED, path.PACED)]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def _cost(results: Results, variant: str, load: str) -> str:
    """Two cells: the figure, and its ratio to the C program's."""
    metric = f"CPU a packet, {load}"
    row = results.find(path.SECTION, variant, metric)
    base = results.find(path.SECTION, contenders.C, metric)
    if row is None or base is None or not row.values or not base.values:
        return "not measured | "
    return f"{row.median:,.1f} | {row.median / base.median:,.2f}"


def main() -> int:
    """Write or check the section; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    folder = newest()
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    before = README.read_text(encoding="utf-8")
    after = _SECTION.sub(lambda _: section(record, folder), before)
    if args.check:
        if before == after:
            return EXIT_OK
        print("README.md: the performance section differs from the newest results")
        return EXIT_NOT_FINE
    README.write_text(after, encoding="utf-8")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
