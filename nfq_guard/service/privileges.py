# SPDX-License-Identifier: MIT
"""The privileges that a daemon keeps after the steps that require root.

A daemon that root starts becomes the user of the setting `user`, if there is one. It keeps the
capabilities that its sockets and its rules require; its child processes get no others. Outside the
sandbox of the systemd service, Landlock restricts it to the directories that it writes to.
"""

import os
import pwd
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nfq_guard import capabilities, landlock
from nfq_guard.errors import NfqGuardError, PrivilegeError, UsageError
from nfq_guard.firewall import Backend, lock
from nfq_guard.flows import log_settings
from nfq_guard.netlink import owner
from nfq_guard.nfqueue import counters
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import JOURNAL, STDOUT, Settings, parse_listen
from nfq_guard.service.unit import UNDER_SYSTEMD

_PRIVILEGED_PORTS: Final = 1024
_READ: Final = os.R_OK
_WRITE: Final = os.W_OK | os.X_OK


# The lock file of iptables-legacy.
_XTABLES_LOCK: Final = Path("/run/xtables.lock")


def give_up(
    settings: Settings, read: Collection[Path], last_good_at: Path | None = None
) -> list[str]:
    """Keep only the privileges that a daemon with these settings needs until it has stopped.

    Call it while the process has only one thread.

    Args:
        settings: The settings of the daemon.
        read: The files of its configuration, which reloads read.
        last_good_at: The file with the last good configuration; None for none.

    Returns:
        Notes for the operator.

    Raises:
        PrivilegeError: The kernel refused, or a user other than root is to become another user.
        UsageError: The host has no such user.
    """
    user = _other_user(settings)
    if settings.rules == "install":
        _load_modules(settings)
    kept = _needed(settings)
    if settings.pods_dir and (user is not None or os.geteuid() != 0):
        kept |= 1 << capabilities.DAC_READ_SEARCH
    notes: list[str] = []
    if user is not None:
        _give_runtime_directory(user)
    elif settings.rules != "none" and os.geteuid() == 0 and _is_of_another(lock.FOLDER):
        kept |= 1 << capabilities.CHOWN  # each lock belongs to the owner of the directory
    if capabilities.has(capabilities.DAC_OVERRIDE):
        wanted = [*((path, _READ) for path in read), *_files(settings)]
        wanted += _files_of_others(settings, by_another=user is not None)
        barred = capabilities.first_barred(kept, user, wanted)
        if barred is not None:
            kept |= 1 << capabilities.DAC_OVERRIDE
            notes.append(
                f"the daemon keeps CAP_DAC_OVERRIDE, because {barred} is not open to its user"
            )
    alone = UNDER_SYSTEMD not in os.environ
    if alone:
        owner.remember(one.port_id for one in counters.all_queues().values())
    try:
        capabilities.keep_only(kept, user)
        if alone and not landlock.write_only_to(
            _written(settings, last_good_at), _listened_on(settings)
        ):
            notes.append(
                "the kernel has no Landlock: the daemon is not restricted to its own directories"
            )
    except OSError as error:
        raise PrivilegeError(error.strerror) from None
    return notes


def _other_user(settings: Settings) -> pwd.struct_passwd | None:
    """The user to become; None to remain the user that started the daemon."""
    if not settings.user:
        return None
    try:
        user = pwd.getpwnam(settings.user)
    except KeyError:
        raise UsageError(
            f"daemon.user: expected a user of this host, found {settings.user!r}"
        ) from None
    if user.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PrivilegeError(f"daemon.user: only root may become {settings.user}")
    return user


def _give_runtime_directory(user: pwd.struct_passwd) -> None:
    """Give the directory to the user, as systemd does with a `RuntimeDirectory`."""
    try:
        lock.FOLDER.mkdir(mode=0o750, exist_ok=True)
        os.chown(lock.FOLDER, user.pw_uid, user.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise UsageError(f"{lock.FOLDER} cannot be given to {user.pw_name}: {error}") from None


def _is_of_another(folder: Path) -> bool:
    """Whether a directory exists and belongs to another user, such as that of the service."""
    with suppress(OSError):
        return folder.stat().st_uid != os.geteuid()
    return False


def _needed(settings: Settings) -> int:
    kept = 1 << capabilities.NET_ADMIN
    if settings.rules == "install":
        # Legacy iptables opens a raw socket.
        kept |= 1 << capabilities.NET_RAW
    address = parse_listen(settings.metrics_listen)
    if address is not None and address[1] < _PRIVILEGED_PORTS:
        kept |= 1 << capabilities.NET_BIND_SERVICE
    return kept


def _listened_on(settings: Settings) -> Iterator[int]:
    address = parse_listen(settings.metrics_listen)
    if address is not None:
        yield address[1]


def _written(settings: Settings, last_good_at: Path | None) -> Iterator[Path]:
    """Files and directories that the daemon, or a program that it runs, writes to."""
    if os.geteuid() == 0:
        with suppress(OSError):
            lock.FOLDER.mkdir(mode=0o750, exist_ok=True)
    yield lock.FOLDER
    for path, mode in _files(settings):
        if mode & os.W_OK:
            yield path
    if last_good_at is not None:
        yield last_good_at.parent
    yield from (_XTABLES_LOCK, Path(os.devnull))
    if log_settings.FOLDER.exists():
        # At its end it restores the sysctls that it set.
        yield from (log_settings.FOLDER, log_settings.SYSCTLS)


def _load_modules(settings: Settings) -> None:
    """Let iptables load its modules: the legacy programs do so themselves, which requires root."""
    with suppress(NfqGuardError):
        firewall_of(settings).load_modules()


def _files(settings: Settings) -> Iterator[tuple[Path, int]]:
    """Files that the daemon creates or replaces while it runs, and the access needed."""
    files = [name for name in settings.logs if name not in {STDOUT, JOURNAL}]
    for name in (*files, settings.events_file):
        if name:
            yield Path(name), os.W_OK
            yield Path(name).parent, _WRITE
    if settings.capture_dir:
        yield Path(settings.capture_dir), _WRITE
    for name in (settings.metrics_file, settings.control_socket):
        if name:
            yield Path(name).parent, _WRITE


def _files_of_others(settings: Settings, *, by_another: bool) -> Iterator[tuple[Path, int]]:
    """The other files, which may belong to root or to another user, each with the access needed.

    The daemon imports some modules after its start. The directory of the locks belongs to the user
    of the service where that is installed, and root without CAP_DAC_OVERRIDE is any other user.
    """
    yield from ((Path(__file__), _READ), (Path(os.__file__), _READ))
    if settings.rules != "none":
        yield lock.FOLDER, _WRITE
        if by_another and firewall_of(settings).described_choice().backend is Backend.LEGACY:
            yield _XTABLES_LOCK, _READ | os.W_OK
    if log_settings.FOLDER.exists():
        yield log_settings.FOLDER, _WRITE
