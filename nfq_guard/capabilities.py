# SPDX-License-Identifier: MIT
"""Which capabilities the calling thread has in effect."""

from pathlib import Path
from typing import Final

# Numbers by name (capabilities(7)), as far as this room needs them.
NET_ADMIN: Final = 12
SYS_ADMIN: Final = 21
PERFMON: Final = 38
BPF: Final = 39


def effective() -> int:
    """The set as a bit mask by capability number; empty where /proc does not tell."""
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
