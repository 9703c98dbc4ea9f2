# SPDX-License-Identifier: MIT
"""Time limits of the lab, by the speed of this machine."""

import subprocess
import sys
import time
from functools import cache
from typing import Final

from nfq_guard.lab.child import environment

# Start time of an interpreter on the machine where the lab's limits were measured, seconds.
_REFERENCE_S: Final = 0.05
_MOST: Final = 40.0


@cache
def slowness() -> float:
    """The start time of a process relative to the reference machine; at least 1.

    Measured once, with an interpreter. An emulated machine is 10 to 20 times slower.
    """
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import orjson"], env=environment(), check=True)
    return min(_MOST, max(1.0, (time.monotonic() - begun) / _REFERENCE_S))


def limit(seconds: float) -> float:
    """A limit of `seconds` on the reference machine, scaled to this one."""
    return seconds * slowness()
