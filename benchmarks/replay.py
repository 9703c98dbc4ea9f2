# SPDX-License-Identifier: MIT
"""Compares the speed of `nfq-guard replay` and of `tshark -q -z expert` on one mixed capture.

    python -m benchmarks.replay [--frames N] [--repeat N] [--tree DIR] [--json FILE]

The two run in turns, and the best run of each counts, because other load on the machine slows
both. CPU seconds, user and system, of the whole process with its start. The growth table shows
that our time is linear in frames, that it does not depend on how many conversations are open at
once, and that memory grows with flows, up to the size of the table, and not with frames.
`--tree` is where the package is unpacked, such as `build/compiled`; the source tree by default.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.mixed import OPEN, write_mixed

ROOT: Final = Path(__file__).resolve().parent.parent
RIVAL: Final = "tshark -q -z expert"
TSHARK: Final = ("tshark", "-n", "-q", "-z", "expert", "-r", "{capture}")
GUARD: Final = (sys.executable, "-m", "nfq_guard", "replay", "--summary", "{capture}")
# tshark does not verify TCP checksums by default, so neither side does here.
GUARD_ALIKE: Final = (*GUARD, "--checksum", "ignore")
CONTESTANTS: Final = {
    "nfq-guard replay": GUARD,
    "nfq-guard replay, no checksums": GUARD_ALIKE,
    RIVAL: TSHARK,
}


class Cost(NamedTuple):
    """The cost of one run.

    Attributes:
        cpu_s: User and system CPU time.
        peak_mib: Peak of the resident memory.
    """

    cpu_s: float
    peak_mib: float


def cost(command: Sequence[str], capture: Path, tree: Path) -> Cost:
    """Run a command to its end."""
    words = [word.format(capture=capture) for word in command]
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd="/",
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{words[0]} ended with {process.returncode}"
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def is_compiled(tree: Path) -> bool:
    """Whether the package in `tree` has its packet path compiled."""
    return any(tree.glob("nfq_guard/replay/replayer.*.so"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    tree = args.tree.resolve()
    assert shutil.which("tshark"), "needs tshark (Debian package tshark)"
    with tempfile.TemporaryDirectory(prefix="nfqg-bench-") as folder:
        capture = Path(folder) / "capture.pcap"
        with capture.open("wb") as file:
            write_mixed(file, args.frames)
        runs: dict[str, list[Cost]] = {name: [] for name in CONTESTANTS}
        for _ in range(args.repeat):
            for name, command in CONTESTANTS.items():
                runs[name].append(cost(command, capture, tree))
        growth = []
        for factor, times_open in ((1, 1), (2, 1), (4, 1), (1, 4), (1, 16)):
            frames = args.frames // 4 * factor
            with capture.open("wb") as file:
                write_mixed(file, frames, open_at_once=OPEN * times_open)
            best = min(cost(GUARD, capture, tree) for _ in range(2))
            growth.append({"frames": frames, "open": OPEN * times_open, **best._asdict()})
    rival = min(run.cpu_s for run in runs[RIVAL])
    rows = {
        name: {
            "cpu_s": round(min(run.cpu_s for run in costs), 3),
            "frames_per_s": round(args.frames / min(run.cpu_s for run in costs)),
            "times_tshark": round(rival / min(run.cpu_s for run in costs), 2),
            "peak_mib": round(max(run.peak_mib for run in costs)),
        }
        for name, costs in runs.items()
    }
    kind = "compiled" if is_compiled(tree) else "not compiled"
    print(f"{args.frames:,} frames, best of {args.repeat}, {kind}\n")
    print(f"{'':<32} {'CPU s':>8} {'frames/s':>10} {'x tshark':>9} {'peak MiB':>9}")
    for name, row in rows.items():
        print(
            f"{name:<32} {row['cpu_s']:>8} {row['frames_per_s']:>10,} {row['times_tshark']:>9} "
            f"{row['peak_mib']:>9,}"
        )
    print(f"\n{'frames':>10} {'open':>8} {'CPU s':>8} {'us/frame':>10} {'peak MiB':>9}")
    for line in growth:
        each_us = line["cpu_s"] / line["frames"] * 1e6
        print(
            f"{line['frames']:>10,} {line['open']:>8,} {line['cpu_s']:>8.3f} {each_us:>10.2f} "
            f"{line['peak_mib']:>9.0f}"
        )
    result = {"compiled": is_compiled(tree), "frames": args.frames, "runs": rows, "growth": growth}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
