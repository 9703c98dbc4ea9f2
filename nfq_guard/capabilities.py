# SPDX-License-Identifier: MIT
"""The capabilities of the calling thread (capabilities(7))."""

import ctypes
import errno
import fcntl
import os
import pwd
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CHOWN: Final = 0
DAC_OVERRIDE: Final = 1
DAC_READ_SEARCH: Final = 2
NET_BIND_SERVICE: Final = 10
NET_ADMIN: Final = 12
NET_RAW: Final = 13
SYS_ADMIN: Final = 21
PERFMON: Final = 38
BPF: Final = 39

_NAMES: Final = {
    CHOWN: "CAP_CHOWN",
    DAC_OVERRIDE: "CAP_DAC_OVERRIDE",
    DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
    NET_ADMIN: "CAP_NET_ADMIN",
    NET_RAW: "CAP_NET_RAW",
    SYS_ADMIN: "CAP_SYS_ADMIN",
    PERFMON: "CAP_PERFMON",
    BPF: "CAP_BPF",
}

# The inode number of the initial user namespace.
_INIT_USER_NAMESPACE: Final = 0xEFFFFFFD
# The ioctl of a namespace that opens the user namespace which owns it (ioctl_ns(2)).
_NS_GET_USERNS: Final = 0xB701
_OTHER_OWNER: Final = (
    "CAP_NET_ADMIN does not count here, as another user namespace owns this network namespace "
    "(such as a rootless container with the network of the host)"
)
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
# _LINUX_CAPABILITY_VERSION_3: sets of 64 bits, in two halves.
_CAPABILITY_VERSION: Final = 0x20080522
_NUMBERS: Final = 64
# 32 capabilities of the effective, the permitted and the inheritable set.
_HALF: Final = struct.Struct("=III")


def effective() -> int:
    """The effective set, a bit mask by capability number."""
    return _sets()[0]


def first_barred(
    kept: int, user: pwd.struct_passwd | None, wanted: Iterable[tuple[Path, int]]
) -> Path | None:
    """The first existing file that `user` with the capabilities `kept` cannot access.

    Each file is given with its mode of access, as for `os.access`. Call it while the process has
    only one thread.
    """
    existing = [(path, mode) for path, mode in wanted if path.exists()]
    child = os.fork()
    if child == 0:
        status = 0
        try:
            keep_only(kept, user)
            for number, (path, mode) in enumerate(existing, 1):
                if not os.access(path, mode):
                    status = number
                    break
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    number = os.waitstatus_to_exitcode(ended)
    return existing[number - 1][0] if number > 0 else None


def _sets() -> list[int]:
    """The effective, the permitted and the inheritable set.

    By capget(2), because /proc takes a descriptor: without a free one the daemon would believe that
    it has no capability.
    """
    data = ctypes.create_string_buffer(2 * _HALF.size)
    if ctypes.CDLL(None, use_errno=True).capget(_header(), data):
        _refused("read")
    low, high = (_HALF.unpack_from(data, at) for at in (0, _HALF.size))
    return [one | more << 32 for one, more in zip(low, high, strict=True)]


def _header() -> bytes:
    """Version and process of capget(2) and capset(2): the calling thread."""
    return struct.pack("=Ii", _CAPABILITY_VERSION, 0)


def has(number: int) -> bool:
    """Whether the capability of this number is in effect."""
    return bool(effective() >> number & 1)


def no_net_admin() -> str | None:
    """Why the kernel refuses this thread CAP_NET_ADMIN in its network namespace; None if not."""
    if not has(NET_ADMIN):
        return "CAP_NET_ADMIN is missing"
    return None if owns_network() else _OTHER_OWNER


def owns_network() -> bool:
    """Whether the capabilities of this thread count in its network namespace.

    They do not if the user namespace that owns it is neither this one nor below it. Unknown counts
    as yes.
    """
    try:
        network = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        os.close(fcntl.ioctl(network, _NS_GET_USERNS))
    except OSError as error:
        return error.errno != errno.EPERM
    finally:
        os.close(network)
    return True


def is_init_user_namespace() -> bool:
    """Whether this process is in the initial user namespace, the only one where BPF takes them."""
    return Path("/proc/self/ns/user").stat().st_ino == _INIT_USER_NAMESPACE


def names(mask: int) -> list[str]:
    """Names of capabilities, or numbers of those unknown here, in numeric order."""
    return [
        _NAMES.get(number, f"capability {number}")
        for number in range(_NUMBERS)
        if mask >> number & 1
    ]


def keep_only(wanted: int, user: pwd.struct_passwd | None = None) -> None:
    """Give up all capabilities except `wanted`, permanently, also for child processes.

    Call it while the process has only one thread. It cannot add capabilities. The inheritable
    capabilities stay unchanged, unless `user` is given.

    Args:
        wanted: A bit mask by capability number.
        user: The user to become, with all its groups; requires root. Child processes then inherit
            the kept capabilities, as those of root do anyway.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    held = _sets()
    for number in range(_NUMBERS):
        if not wanted >> number & 1 and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            # EINVAL: this kernel has no further capabilities. EPERM: CAP_SETPCAP is missing, but
            # the next call prevents programs from gaining any.
            if ctypes.get_errno() not in {errno.EINVAL, errno.EPERM}:
                _refused()
            break
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        _refused()
    kept = [each & wanted for each in held]
    if user is not None:
        if libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0):
            _refused()
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        kept[2] = kept[1]
    elif kept == held:
        return  # a sandbox may forbid the next call
    low = _HALF.pack(*(each & 0xFFFFFFFF for each in kept))
    high = _HALF.pack(*(each >> 32 for each in kept))
    if libc.capset(_header(), low + high):
        _refused()
    for number in range(_NUMBERS if user is not None else 0):
        if kept[2] >> number & 1 and libc.prctl(
            _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0
        ):
            _refused()


def _refused(what: str = "given up") -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"capabilities cannot be {what}: {os.strerror(code)}")
