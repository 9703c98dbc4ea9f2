# SPDX-License-Identifier: MIT
"""Runs the commands that read captures on damaged ones: `python -m tests.damage_captures --seed 1`.

Each source of `tests.support.damage` is cut at every record and changed at random. Ends with status
1 when a command crashed or refused a file without its name; each such file is kept.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.damage import Bench, damaged


def main() -> int:
    """Run until every source was damaged so often, or the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.damage_captures", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--changes", type=int, default=400, help="random ones of each source")
    parser.add_argument("--seconds", type=float, default=1800.0, help="at most")
    parser.add_argument("--kept", type=Path, default=Path("build/damage"), help="failing files")
    args = parser.parse_args()
    begun = time.monotonic()
    crashes = 0
    with tempfile.TemporaryDirectory(prefix="nfqg-damage-") as folder:
        bench = Bench(Path(folder), args.seed)
        for source, damage, octets in damaged(args.seed, args.changes):
            crash = bench.try_one(source, damage, octets)
            if crash is not None:
                crashes += 1
                args.kept.mkdir(parents=True, exist_ok=True)
                path = args.kept / f"seed{args.seed}-{crashes}"
                path.write_bytes(crash.octets)
                words = " ".join(crash.words)
                sys.stdout.write(f"{path}: {source}, {damage}: {words}: {crash.what}\n")
            if time.monotonic() - begun > args.seconds:
                sys.stdout.write("the time is over\n")
                break
    sys.stdout.write(f"{bench.runs} runs, {bench.refused} refused, {crashes} crashed\n")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
