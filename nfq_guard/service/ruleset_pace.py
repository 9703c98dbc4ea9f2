# SPDX-License-Identifier: MIT
"""Limits how often a ruleset that keeps changing is read, by the CPU time of a reading.

Wall-clock time does not count: on a busy machine it is many times longer.
"""

import resource
import time
from typing import Final

# Minimum time between two readings after changes: in seconds, and in multiples of a reading's CPU
# time.
_PAUSE_S: Final = 2.0
_PAUSE_SHARE: Final = 50


def cpu_time() -> float:
    """CPU seconds of this thread and of all child processes that have ended."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + programs.ru_utime + programs.ru_stime


def pause_s(cpu_s: float, clock_s: float) -> float:
    """Seconds until the next reading may begin.

    Args:
        cpu_s: CPU seconds of the last reading.
        clock_s: Duration of the last reading, which bounds `cpu_s`: a worker process that ended
            meanwhile adds all its CPU time to that.
    """
    return max(_PAUSE_S, _PAUSE_SHARE * min(cpu_s, clock_s))
