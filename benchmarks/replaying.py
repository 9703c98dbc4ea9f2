# SPDX-License-Identifier: MIT
"""Section: `nfq-guard replay` and `tshark -q -z expert` on the same mixed capture."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.mixed import write_mixed
from benchmarks.replay import CONTESTANTS, RIVAL, cost
from benchmarks.rows import Results
from benchmarks.site import REPO

SECTION: Final = "replay"
RATE: Final = "frames a second of CPU"
RATIO: Final = "times tshark"
PEAK: Final = "peak memory"


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    if shutil.which("tshark") is None:
        results.missing(SECTION, RIVAL, "Debian package tshark is not installed")
        return
    frames, rounds = (50_000, 1) if quick else (500_000, 3)
    tree = contenders.COMPILED if contenders.COMPILED.exists() else REPO
    with tempfile.TemporaryDirectory(prefix="nfqg-") as directory:
        capture = Path(directory, "capture.pcap")
        with capture.open("wb") as file:
            write_mixed(file, frames)
        for _ in range(rounds):
            rates: dict[str, float] = {}
            for name, command in CONTESTANTS.items():
                run = cost(command, capture, tree)
                rates[name] = frames / run.cpu_s
                results.add(SECTION, name, RATE, "1/s", rates[name])
                results.add(SECTION, name, PEAK, "MiB", run.peak_mib)
                say(f"replay, {name}: {rates[name]:,.0f} frames/s")
            for name, rate in rates.items():
                if name != RIVAL:
                    results.add(SECTION, name, RATIO, "times", rate / rates[RIVAL])
