# SPDX-License-Identifier: MIT
"""The effective capabilities of the calling thread (capabilities(7))."""

from pathlib import Path
from typing import Final

NET_ADMIN: Final = 12
NET_RAW: Final = 13
SYS_ADMIN: Final = 21
PERFMON: Final = 38
BPF: Final = 39


def effective() -> int:
    """The effective set, a bit mask by capability number; 0 where /proc cannot be read."""
    try:
        status = Path("/proc/thread-self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has(number: int) -> bool:
    """Whether the capability of this number is in effect."""
    return bool(effective() >> number & 1)
