# SPDX-License-Identifier: MIT
"""Time limits of the lab, by the speed of this machine."""

import subprocess
import sys
import time
from functools import cache
from typing import Final

# How long an interpreter takes to start where the lab's limits were measured, seconds.
_REFERENCE_S: Final = 0.05
_MOST: Final = 40.0


@cache
def slowness() -> float:
    """How many times slower than the reference this machine starts a process; at least 1.

    Measured once, by the start of an interpreter. An emulated machine is 10 to 20 times slower.
    """
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import orjson"], check=True)
    return min(_MOST, max(1.0, (time.monotonic() - begun) / _REFERENCE_S))


def limit(seconds: float) -> float:
    """A limit of `seconds` on the reference machine, as long as it must be on this one."""
    return seconds * slowness()
