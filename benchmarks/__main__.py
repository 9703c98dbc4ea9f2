# SPDX-License-Identifier: MIT
"""Measure, and write JSON, text and an HTML page: `python -m benchmarks [--quick] [--output DIR]`.

Exit status: 0 when every target is met, 1 when one is missed or could not be measured, 2 for wrong
usage, 69 when a program is missing, 77 without root, 130 after Ctrl-C.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from benchmarks import contenders, machine, targets, text
from benchmarks.rows import Results, from_json
from benchmarks.site import REPO
from nfq_guard.errors import EXIT_NO_PRIVILEGE, EXIT_NOT_FINE, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE

SECTIONS: Final = (
    "path",
    "latency",
    "start",
    "overhead",
    "repeats",
    "scaling",
    "evidence",
    "replay",
)
_UNPRIVILEGED: Final = frozenset({"replay"})
_HERE: Final = Path(__file__).parent
_NEEDED: Final = ("ip", "iptables", "gcc", "make")
_INTERRUPTED: Final = 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about one minute instead of ten")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--output", type=Path, default=REPO / "build" / "bench-results")
    parser.add_argument(
        "--render",
        type=Path,
        metavar="JSON",
        help="render from JSON without measuring: the text beside it, the page into --output",
    )
    parser.add_argument(
        "--update",
        type=Path,
        metavar="DIR",
        help="replace the sections that run in the results in DIR, and keep the others there",
    )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = _arguments()
    if args.render is not None:
        try:
            record = json.loads(args.render.read_text(encoding="utf-8"))
            results = from_json(record["rows"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            why = (
                error.strerror if isinstance(error, OSError) else None
            ) or "not results of a benchmark"
            print(f"benchmarks: {args.render}: {why}", file=sys.stderr)
            return EXIT_USAGE
        return _write(args.render.parent, record, results, args.output)
    if os.geteuid() != 0 and set(args.only) - _UNPRIVILEGED:
        print("benchmarks: needs root, because it creates network namespaces", file=sys.stderr)
        return EXIT_NO_PRIVILEGE
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        print(f"benchmarks: missing: {' '.join(missing)}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    built = subprocess.run(
        ["make", "-s", "-C", str(_HERE / "c")], check=False, capture_output=True, text=True
    )
    if built.returncode:
        print(f"benchmarks: {built.stderr.strip().splitlines()[0]}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    signal.signal(signal.SIGTERM, _as_interrupt)
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    busy = machine.too_busy()
    warnings = [f"the machine was busy: {busy}"] if busy else []
    if args.quick:
        warnings.append("a quick run: few and short rounds")
    if not contenders.COMPILED.exists():
        warnings.append("the guard is not compiled: run `make wheels compiled` first")
    record: dict[str, Any] = {
        "machine": {
            **machine.record(),
            "when": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        },
        "warnings": warnings,
    }
    for warning in warnings:
        say(f"warning: {warning}")
    results = Results()
    try:
        for name in args.only:
            say(f"section {name}")
            with _noting_failure(results, name, say):
                _section(name)(results, say, quick=args.quick)
    except KeyboardInterrupt:
        say("interrupted; everything has been removed")
        return _INTERRUPTED
    record["machine"]["load_after"] = list(os.getloadavg())
    record["machine"]["seconds"] = round(time.monotonic() - began, 1)
    if args.update is not None:
        record = updated(args.update / "results.json", record, results, args.only)
        results = from_json(record["rows"])
        return _write(args.update, record, results, args.output)
    return _write(args.output, record, results, args.output)


def updated(
    path: Path, record: dict[str, Any], results: Results, sections: Sequence[str]
) -> dict[str, Any]:
    """The results in `path` with `sections` from this run; `later` has what ran when."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in known["rows"] if row["section"] not in sections]
    ran = {**record["machine"], "warnings": record["warnings"]}
    later = {**known.get("later", {}), **dict.fromkeys(sections, ran)}
    return {**known, "rows": [*kept, *results.as_json()], "later": later}


def warnings_of(record: dict[str, Any]) -> list[str]:
    """What to say about the whole run, and about each section that ran later."""
    return [
        *record["warnings"],
        *(
            f"{name}: {warning}"
            for name, ran in record.get("later", {}).items()
            for warning in ran["warnings"]
        ),
    ]


@contextlib.contextmanager
def _noting_failure(results: Results, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Run one section; if it fails, record a row with the reason and continue."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - recorded as a row
        say(traceback.format_exc())
        results.missing(name, "the rest of this section", f"{type(error).__name__}: {error}")


def _section(name: str) -> Callable[..., None]:
    # `benchmarks.replay` is a standalone program.
    module = {"replay": "replaying"}.get(name, name)
    run: Callable[..., None] = importlib.import_module(f"benchmarks.{module}").run
    return run


def _write(directory: Path, record: dict[str, Any], results: Results, page_directory: Path) -> int:
    found = targets.judge(results)
    record["rows"] = results.as_json()
    record["targets"] = [
        {
            "name": one.name,
            "limit": one.limit,
            "at_least": one.at_least,
            "unit": one.unit,
            "measured": one.measured,
            "outcome": one.outcome,
            "note": one.note,
        }
        for one in found
    ]
    directory.mkdir(parents=True, exist_ok=True)
    said = text.report(results, found, warnings_of(record))
    (directory / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (directory / "results.txt").write_text(said, encoding="utf-8")
    print(said)
    if importlib.util.find_spec("matplotlib") is None:
        print("no page: matplotlib is not installed", file=sys.stderr)
    else:
        from benchmarks import page  # noqa: PLC0415 - only where there is matplotlib

        written = page.render(results, found, record["machine"], warnings_of(record))
        page_directory.mkdir(parents=True, exist_ok=True)
        (page_directory / "index.html").write_text(written, encoding="utf-8")
    print(f"written to {directory}", file=sys.stderr)
    return EXIT_OK if all(one.outcome == "met" for one in found) else EXIT_NOT_FINE


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
