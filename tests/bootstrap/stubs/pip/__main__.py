# SPDX-License-Identifier: MIT
"""Stands in for pip, which is slow: writes a megabyte and its own arguments."""

import sys
import sysconfig
import time
from pathlib import Path

site = Path(sysconfig.get_path("purelib"))
with (site / "installed.txt").open("a") as file:
    file.write(" " * 1_000_000 + " ".join(sys.argv[1:]) + "\n")
while Path("hold").exists():
    time.sleep(0.01)
if "impossible" in Path("constraints.txt").read_text():
    sys.exit("ResolutionImpossible")
