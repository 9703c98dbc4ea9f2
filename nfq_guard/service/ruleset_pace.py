# SPDX-License-Identifier: MIT
"""How soon a ruleset that keeps changing is read again, by the CPU time that reading takes.

The time on the clock does not count: on a busy machine it is many times as long.
"""

import resource
import time
from typing import Final

# Least time between two readings after changes: in seconds, and in multiples of a reading's CPU
# time.
_PAUSE_S: Final = 2.0
_PAUSE_SHARE: Final = 50


def cpu_time() -> float:
    """CPU seconds of this thread, and of all programs that this process has run to their end."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + programs.ru_utime + programs.ru_stime


def pause_s(cpu_s: float, clock_s: float) -> float:
    """Seconds until the next reading may begin.

    Args:
        cpu_s: CPU seconds that the last one took.
        clock_s: How long it took; a worker process that ended meanwhile counts in `cpu_s` with all
            its life.
    """
    return max(_PAUSE_S, _PAUSE_SHARE * min(cpu_s, clock_s))
