# SPDX-License-Identifier: MIT
"""Counts instructions per packet with callgrind and compares them with a record.

    python -m benchmarks.instructions --check | --record

The counts are of the judgment of each kind of packet, and of a whole turn of the daemon, from one
wait to the next, with one packet and with thirty-two. `--check` prints each count and exits 1 when
one is more than 5 % over the record in instructions.json. Unlike times, counts do not depend on the
load of the machine. They belong to one build of Python; without a record of this build, the program
says so and compares nothing.

Exit status: 0 fine, 1 over the limit, 69 when make, valgrind or the compiled tree is missing.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.contenders import COMPILED, PEERS
from benchmarks.site import BUILD, REPO
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, EXIT_UNAVAILABLE

RECORD: Final = Path(__file__).with_name("instructions.json")
LIMIT: Final = 1.05
# The programs that run under callgrind.
_PROGRAMS: Final = ("judgements.py", "turns.py")
_TREES: Final = {"compiled": COMPILED, "pure": REPO}


class MissingError(Exception):
    """A program, or the compiled tree, is missing."""


def key() -> str:
    """The key of a record: counts differ between builds of the interpreter."""
    build = hashlib.sha256(sys.version.encode()).hexdigest()[:8]
    name = platform.python_implementation().lower()
    return f"{name}-{platform.python_version()}-{build}-{platform.machine()}"


def count(tree: Path) -> dict[str, int]:
    """Instructions per packet, by name of the count.

    Raises:
        MissingError: A program or the tree is missing.
    """
    if not tree.exists():
        raise MissingError(f"{tree} is missing: run `make wheels compiled`")
    for program in ("make", "valgrind"):
        if shutil.which(program) is None:
            raise MissingError(f"program {program} (Debian package {program}) is missing")
    library = BUILD / "counting.so"
    built = subprocess.run(
        ["make", "-s", "-C", str(Path(__file__).parent / "c"), "counting"],
        check=False,
        capture_output=True,
        text=True,
    )
    if built.returncode:
        raise MissingError(built.stderr.strip().splitlines()[0])
    found: dict[str, int] = {}
    for program in _PROGRAMS:
        totals = _run(PEERS / program, tree, library)
        for name in dict.fromkeys(name for name, _ in totals):
            (short, few), (long, many) = sorted(
                (packets, sum_) for (kind, packets), sum_ in totals.items() if kind == name
            )
            found[name] = round((many - few) / (long - short))
    return found


def _run(program: Path, tree: Path, library: Path) -> dict[tuple[str, int], int]:
    """Instructions by name and number of packets, from a short and a long run of each."""
    with tempfile.TemporaryDirectory(prefix="nfqg-") as directory:
        words = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet",
            f"--callgrind-out-file={directory}/out",
            sys.executable, str(program), str(library),
        ]  # fmt: skip
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tree),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, env=environment, cwd="/"
        )
        if done.returncode:
            raise MissingError((done.stderr.strip().splitlines() or ["valgrind failed"])[-1])
        return _totals(Path(directory))


def _totals(directory: Path) -> dict[tuple[str, int], int]:
    """Parse callgrind's output files."""
    totals: dict[tuple[str, int], int] = {}
    for path in directory.iterdir():
        text = path.read_text(encoding="utf-8", errors="replace")
        trigger = re.search(r"^desc: Trigger: Client Request: (\S+) (\d+)$", text, re.MULTILINE)
        total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
        if trigger and total:
            totals[trigger[1], int(trigger[2])] = int(total[1])
    return totals


def check(found: dict[str, dict[str, int]]) -> int:
    """Print each count beside its record; returns the exit status."""
    recorded = _recorded().get(key())
    if recorded is None:
        print(f"instructions: no record for {key()}, so no comparison")
        recorded = {}
    worse = False
    for tree, kinds in found.items():
        for name, counted in kinds.items():
            before = recorded.get(tree, {}).get(name)
            if before is None:
                print(f"{tree} {name}: {counted:,} instructions a packet, no record")
                continue
            over = counted > before * LIMIT
            worse = worse or over
            verdict = f"over the limit of {LIMIT - 1:+.0%}" if over else "fine"
            change = counted / before - 1
            print(
                f"{tree} {name}: {counted:,} instructions a packet, "
                f"{change:+.1%} of {before:,}: {verdict}"
            )
    return EXIT_NOT_FINE if worse else EXIT_OK


def record(found: dict[str, dict[str, int]]) -> int:
    """Store the counts as the record of this Python."""
    everything = _recorded()
    everything[key()] = {**everything.get(key(), {}), **found}
    RECORD.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return check(found)


def _recorded() -> dict[str, dict[str, dict[str, int]]]:
    if not RECORD.exists():
        return {}
    read: dict[str, dict[str, dict[str, int]]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return read


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare the counts with the record")
    what.add_argument("--record", action="store_true", help="store the counts as the record")
    parser.add_argument("--tree", choices=_TREES, action="append", help="default: compiled")
    args = parser.parse_args()
    try:
        found = {tree: count(_TREES[tree]) for tree in args.tree or ["compiled"]}
    except MissingError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return record(found) if args.record else check(found)


if __name__ == "__main__":
    sys.exit(main())
