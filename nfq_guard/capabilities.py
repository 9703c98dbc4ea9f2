# SPDX-License-Identifier: MIT
"""The capabilities of the calling thread (capabilities(7))."""

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

DAC_OVERRIDE: Final = 1
NET_BIND_SERVICE: Final = 10
NET_ADMIN: Final = 12
NET_RAW: Final = 13
SYS_ADMIN: Final = 21
PERFMON: Final = 38
BPF: Final = 39

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
# _LINUX_CAPABILITY_VERSION_3: sets of 64 bits, in two halves.
_CAPABILITY_VERSION: Final = 0x20080522
_NUMBERS: Final = 64


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


def keep_only(wanted: int) -> None:
    """Give up all capabilities but `wanted`, for good, also those that a program run later has.

    For the only thread of a process. Capabilities that are not held are not gained.

    Args:
        wanted: A bit mask by capability number.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    held = effective()
    kept = held & wanted
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(_NUMBERS):
        if not wanted >> number & 1 and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            # EINVAL: this kernel has no more of them. EPERM: only CAP_SETPCAP may do it, and the
            # next call keeps programs from gaining any all the same.
            if ctypes.get_errno() not in {errno.EINVAL, errno.EPERM}:
                _refused()
            break
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        _refused()
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    halves = (kept & 0xFFFFFFFF, kept >> 32)
    sets = b"".join(struct.pack("=III", half, half, 0) for half in halves)
    if libc.capset(header, sets):
        _refused()


def _refused() -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"capabilities cannot be given up: {os.strerror(code)}")
