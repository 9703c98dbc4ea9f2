# SPDX-License-Identifier: MIT
"""Section: `nfq-guard replay` and tshark's TCP analysis on the same capture."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.replay import CONTESTANTS, cpu_seconds, write_capture
from benchmarks.rows import Results
from benchmarks.site import REPO

SECTION: Final = "replay"
RATE: Final = "packets a second of CPU"
RATIO: Final = "times tshark"
TSHARK: Final = "tshark"


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    if shutil.which("tshark") is None:
        results.missing(SECTION, TSHARK, "Debian package tshark is not installed")
        return
    packets, rounds = (40_000, 1) if quick else (400_000, 3)
    tree = contenders.COMPILED if contenders.COMPILED.exists() else REPO
    with tempfile.TemporaryDirectory(prefix="nfqg-") as directory:
        capture = Path(directory, "capture.pcap")
        with capture.open("wb") as file:
            written = write_capture(file, packets, packets // 200)
        for _ in range(rounds):
            rates: dict[str, float] = {}
            for name, command in CONTESTANTS.items():
                rates[name] = written / cpu_seconds(command, capture, tree)
                results.add(SECTION, name, RATE, "1/s", rates[name])
                say(f"replay, {name}: {rates[name]:,.0f} packets/s")
            for name, rate in rates.items():
                if name != TSHARK:
                    results.add(SECTION, name, RATIO, "times", rate / rates[TSHARK])
