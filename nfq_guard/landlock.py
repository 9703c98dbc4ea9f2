# SPDX-License-Identifier: MIT
"""Landlock: restricts where this process and its child processes may write (landlock(7)).

From the kernel's user interface (linux/landlock.h). The numbers of its system calls are the same on
every architecture that the guard runs on.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Never

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULE_NET_PORT: Final = 2
_PATH_BENEATH: Final = struct.Struct("=Qi")
_NET_PORT: Final = struct.Struct("=QQ")

_WRITE_FILE: Final = 1 << 1
# Removing and creating entries of a directory, LANDLOCK_ACCESS_FS_REMOVE_DIR to _MAKE_SYM.
_CHANGE_DIRECTORY: Final = (1 << 13) - (1 << 4)
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_BIND_TCP: Final = 1 << 0
_CONNECT_TCP: Final = 1 << 1
# Versions of the interface that added rights.
_HAS_REFER: Final = 2
_HAS_TRUNCATE: Final = 3
_HAS_NETWORK: Final = 4


def write_only_to(places: Iterable[Path], ports: Iterable[int] = ()) -> bool:
    """Permanently restrict writing to `places`, and forbid TCP connections.

    Files that are open already stay writable. The process needs CAP_SYS_ADMIN or no_new_privs, and
    should have only one thread.

    Args:
        places: Directories, including their contents, and files; missing ones are ignored.
        ports: The TCP ports that may still be listened on, if the kernel supports such a rule.

    Returns:
        Whether the kernel has Landlock; if not, nothing has changed.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < 1:
        return False
    of_file = _WRITE_FILE | (_TRUNCATE if version >= _HAS_TRUNCATE else 0)
    everything = of_file | _CHANGE_DIRECTORY | (_REFER if version >= _HAS_REFER else 0)
    network = _BIND_TCP | _CONNECT_TCP if version >= _HAS_NETWORK else 0
    handled = struct.pack("=QQ", everything, network)[: 16 if network else 8]
    ruleset = libc.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        if ctypes.get_errno() in {errno.EPERM, errno.ENOSYS}:
            return False  # a filter of system calls, such as that of a container
        _refused()
    try:
        for place in places:
            _allow_beneath(libc, ruleset, place, everything, of_file)
        for port in ports if network else ():
            rule = _NET_PORT.pack(_BIND_TCP, port)
            if libc.syscall(_ADD_RULE, ruleset, _RULE_NET_PORT, rule, 0):
                _refused()
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            _refused()
    finally:
        os.close(ruleset)
    return True


def _allow_beneath(
    libc: ctypes.CDLL, ruleset: int, place: Path, everything: int, of_file: int
) -> None:
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = _PATH_BENEATH.pack(everything if is_directory else of_file, descriptor)
        if libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0):
            _refused()
    finally:
        os.close(descriptor)


def _refused() -> Never:
    code = ctypes.get_errno()
    raise OSError(code, f"Landlock: {os.strerror(code)}")
