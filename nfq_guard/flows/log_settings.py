# SPDX-License-Identifier: MIT
"""Makes conntrack log INVALID packets to NFLOG, and restores the sysctls afterwards.

Root sets the sysctls before the daemon starts, or the daemon does so if it runs as root. Until they
are restored, at the stop or after a crash at the next start, their old values are in a file that
only root can write, one for each network namespace. Nothing changes on a host that already logs
INVALID packets or has another reader of NFLOG.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.errors import BusyError, NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.flows import shared_folder
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.kernel_log import GROUP, KernelLog
from nfq_guard.netlink.owner import UNKNOWN, is_guard, reader_of_log

FOLDER: Final = Path("/run/nfq-guard-kernel-log")
SYSCTLS: Final = Path("/proc/sys/net/netfilter")
_NAMESPACE: Final = Path("/proc/thread-self/ns/net")

_LOG_INVALID: Final = "nf_conntrack_log_invalid"
_LOGGER: Final = "nfnetlink_log"
# Log packets of every protocol.
_ALL: Final = "255"
_OFF: Final = "0"
# In the order of setting: the log is turned on last, and off first.
_WANTED: Final = {"nf_log/2": _LOGGER, "nf_log/10": _LOGGER, _LOG_INVALID: _ALL}


class _Record(msgspec.Struct, frozen=True):
    """The file of a network namespace.

    Attributes:
        instance: The daemon for which the sysctls are set.
        before: The old value of each sysctl.
    """

    instance: str
    before: dict[str, str]


def turn_on(instance: str) -> None:
    """Turn the kernel's log on for the daemon `instance` in this network namespace.

    Raises:
        NfqGuardError: It was not possible, and nothing has changed; the message says why.
    """
    if os.geteuid() != 0:
        raise PrivilegeError("turning on the kernel's log takes root")
    # Loads conntrack's module; without it there are no sysctls.
    CtnetlinkFlows((0,)).close()
    record = _read()
    try:
        # Check the group first: its module has the logger, and no other program may receive our
        # log.
        group = KernelLog(guess_rules(os.uname().release), is_on)
    except BusyError:
        holder = reader_of_log(GROUP) or UNKNOWN
        if is_guard(holder):
            if record is not None and record.instance == instance and is_on():
                return  # for a daemon that runs already
        elif record is not None:
            _restore(record)
        raise BusyError(
            f"the kernel's log is left alone: {holder} reads NFLOG group {GROUP}"
        ) from None
    with group:
        if record is not None:
            _restore(record)  # of a daemon that was killed
        _change(instance)


def turn_off(instance: str) -> None:
    """Restore the sysctls that `turn_on` changed for `instance`, if it did.

    Sysctls that another program has changed since are not restored.

    Raises:
        UnavailableError: The kernel refused.
    """
    record = _read()
    if record is not None and record.instance == instance:
        _restore(record)


def obstacle(instance: str) -> str | None:
    """Why the kernel does not log for the daemon `instance`; None if it does."""
    record = _read()
    if record is None:
        return "the kernel's log is not turned on: `nfq-guard prepare` as root does that"
    if record.instance != instance:
        return f"the kernel's log is turned on for another daemon, {record.instance}"
    for name in _differing():
        return f"another program has set net.netfilter.{name.replace('/', '.')} to {_now(name)}"
    return None


def is_on() -> bool:
    """Whether the kernel logs every INVALID packet to NFLOG."""
    return not _differing()


def logs_for() -> str | None:
    """The daemon for which the kernel logs; None if it does not log, or not for a daemon."""
    record = _read()
    return record.instance if record is not None and is_on() else None


def unfit() -> str | None:
    """Why the kernel's log cannot be turned on here; None if it can or is on already."""
    if logs_for() is not None:
        return None
    now = _now(_LOG_INVALID)
    if now not in {"", _OFF}:
        return f"net.netfilter.{_LOG_INVALID} is {now} already"
    holder = reader_of_log(GROUP)
    if holder is not None and not is_guard(holder):
        return f"{holder} reads NFLOG group {GROUP}"
    return None


def _change(instance: str) -> None:
    with suppress(FileNotFoundError):
        _check_owner()
    before = {name: _now(name) for name in _WANTED}
    if before[_LOG_INVALID] != _OFF:
        raise BusyError(
            f"the kernel's log is left alone: net.netfilter.{_LOG_INVALID} is "
            f"{before[_LOG_INVALID]} already"
        )
    record = _Record(instance, before)
    _write(record)
    try:
        for name, value in _WANTED.items():
            (SYSCTLS / name).write_text(value, encoding="ascii")
    except OSError as error:
        with suppress(NfqGuardError):
            _restore(record)
        raise UnavailableError(f"the kernel's log cannot be turned on: {error}") from None


def _restore(record: _Record) -> None:
    for name in reversed(_WANTED):
        before = record.before.get(name)
        if before is None or _now(name) != _WANTED[name]:
            continue
        try:
            (SYSCTLS / name).write_text(before, encoding="ascii")
        except OSError as error:
            raise UnavailableError(f"{SYSCTLS / name} cannot be restored: {error}") from None
    _path().unlink(missing_ok=True)
    shared_folder.remove_unused(FOLDER)


def _differing() -> list[str]:
    """The sysctls that lack the value that the log requires."""
    return [name for name, value in _WANTED.items() if _now(name) != value]


def _now(name: str) -> str:
    """The value of a sysctl; empty if it cannot be read."""
    try:
        return (SYSCTLS / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _path() -> Path:
    return FOLDER / str(_NAMESPACE.stat().st_ino)


def _read() -> _Record | None:
    """The file of this network namespace; None without one that only root can write."""
    try:
        status = FOLDER.lstat()
        if status.st_uid != 0 or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
            return None
        return msgspec.json.decode(_path().read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _check_owner() -> None:
    if FOLDER.lstat().st_uid != 0:
        raise UnavailableError(f"{FOLDER} belongs to another user")


def _write(record: _Record) -> None:
    path = _path()
    new = path.with_suffix(".new")

    def make() -> None:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        _check_owner()
        FOLDER.chmod(0o755)
        new.write_bytes(msgspec.json.encode(record))

    try:
        shared_folder.create_in(make)
        new.chmod(0o644)
        new.rename(path)
    except OSError as error:
        raise UnavailableError(f"{FOLDER} cannot be written: {error.strerror}") from None
