# SPDX-License-Identifier: MIT
"""Runs the tree on Debian's kernels, each booted in QEMU: `make kernels`, `make kernels-short`.

Status 1 when a kernel could not be booted, differs from our rules for it, gives the guard less
evidence than it gave before, or has a trial of the lab not as expected. Needs root and
`make wheels`. The cache is KERNELS_DIR, ~/.cache/nfq-guard/kernels by default.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import orjson

from tests.kernels import page
from tests.kernels.fetch import (
    KERNELS,
    Fetched,
    cache_folder,
    fetch_kernels,
    fetch_root,
    install_programs,
    make_disk,
    say,
)
from tests.kernels.machine import run
from tests.kernels.outcome import Outcome

_TREE: Final = Path(__file__).parents[2]
_PAGE: Final = _TREE / "docs" / "kernels.md"
_BUILD: Final = _TREE / "build"
_SHORT_PACKETS: Final = 4_000
_LONG_PACKETS: Final = 1_000_000
# One trial of each kind: an attack that succeeds, and the guard against it, with and without NAT.
_SHORT_MATRIX: Final = (("late-retransmission", "snat-reply"), ("none", "guard"))
# An emulated machine fuzzes no fewer packets a second than this.
_SLOWEST_PACKETS_S: Final = 100
_LIMIT_S: Final = 1_800
# What the tests in the machine need beside the wheels.
_TEST_PACKAGES: Final = ("hypothesis", "pytest", "pytest-timeout")


def main() -> int:
    """Boot each kernel in turn, and write the page if it is wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few minutes a kernel")
    parser.add_argument("--page", action="store_true", help="write docs/kernels.md")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--packets", type=int, help="fuzzed packets a kernel")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    # So that machines and folders are gone on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    packets = args.packets or (_SHORT_PACKETS if args.short else _LONG_PACKETS)
    scenarios, mitigations = _SHORT_MATRIX if args.short else ((), ())
    begun = time.monotonic()
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    install_programs()
    root = fetch_root(cache)
    kernels = fetch_kernels(cache, args.kernel)
    job = {
        "packets": packets,
        "seed": args.seed,
        "scenarios": scenarios,
        "mitigations": mitigations,
    }
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="nfq-guard-kernels-") as folder:
        tree = Path(folder) / "tree.disk"
        _make_tree(Path(folder) / "tree", tree, job)
        for name, kernel in kernels.items():
            outcomes.append(_run_one(name, kernel, root, tree, packets))
    for outcome in outcomes:
        for line in outcome.problems():
            say(f"{outcome.name}: {line}")
    say(f"{time.monotonic() - begun:.0f} s in all")
    if args.page:
        _PAGE.write_text(page.render(outcomes, args.seed), encoding="ascii")
        say(f"wrote {_PAGE.relative_to(_TREE)}")
    return 1 if any(outcome.problems() for outcome in outcomes) else 0


def _run_one(name: str, kernel: Fetched, root: Path, tree: Path, packets: int) -> Outcome:
    logs = _BUILD / "kernels"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    say(f"{name}: booting {kernel.release} ({kernel.version}), console in {log}")
    outcome = Outcome(name, kernel.version)
    begun = time.monotonic()
    limit_s = _LIMIT_S + packets / _SLOWEST_PACKETS_S
    try:
        for record in run(kernel, root, tree, log, limit_s):
            outcome.add(record)
            if "seconds" in record and "scenario" not in record:
                say(f"{name}: {record['step']}, {record['seconds']:.0f} s")
    except subprocess.TimeoutExpired:
        outcome.add({"step": "machine", "failed": f"it did not end within {limit_s:.0f} s"})
    outcome.seconds = time.monotonic() - begun
    say(f"{name}: {outcome}")
    return outcome


def _make_tree(folder: Path, disk: Path, job: dict[str, Any]) -> None:
    """The disk that becomes /guard: tests, and the wheels with what they need, unpacked."""
    wheels = sorted((_BUILD / "wheels").glob("*.whl"))
    if not wheels:
        sys.exit("kernels: no wheels; please run: make wheels")
    if sys.version_info[:2] != (3, 11):
        sys.exit("kernels: the machines run Debian 12: make .venv with PYTHON=python3.11")
    folder.mkdir()
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
            "--constraint", "constraints.txt", "--target", str(folder / "site"), "--no-compile",
            *map(str, wheels), *_TEST_PACKAGES,
        ],
        cwd=_TREE, check=True,
    )  # fmt: skip
    ignore = shutil.ignore_patterns("__pycache__", "captures", "traces")
    shutil.copytree(_TREE / "tests", folder / "tests", ignore=ignore)
    shutil.copy(_TREE / "pyproject.toml", folder)
    shutil.copytree(_TREE / "bpf", folder / "bpf")
    shutil.copytree(_TREE / "rules", folder / "rules")
    (folder / "job.json").write_bytes(orjson.dumps(job))
    make_disk(folder, disk, "600M")


if __name__ == "__main__":
    sys.exit(main())
