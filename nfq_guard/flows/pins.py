# SPDX-License-Identifier: MIT
"""Pins of our BPF program: root loads it, a daemon with CAP_NET_ADMIN alone runs it.

Loading requires capabilities up to CAP_SYS_ADMIN; opening a pin requires only rights on its files.
A run writes to the program's global variables, so two processes cannot share a program: each queue
has its own pin.

Below /sys/fs/bpf, `nfq-guard/INSTANCE/HASH-N` holds pin N of the program with that hash, as two
files: `program` and `memory`. Everything belongs to root; only the directory of a pin belongs to
the daemon's user, so that members of its group, who may read the status, cannot write to `memory`.
The hash prevents a daemon from using a program of another version.
"""

import errno
import fcntl
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from nfq_guard import capabilities
from nfq_guard.errors import PrivilegeError, UnavailableError, UsageError
from nfq_guard.flows import bpf, shared_folder
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.exchange import EXCHANGE_SIZE
from nfq_guard.flows.libbpf import LoadError, Program
from nfq_guard.flows.unavailable import Host, unavailable_reason

BPF_FILES: Final = Path("/sys/fs/bpf")
# Where the unit mounts our directory of it, because systemd makes /sys/fs/bpf with mode 0700.
BOUND: Final = Path("/run/nfq-guard/bpf")
USER: Final = "nfq-guard"

_HOME: Final = "nfq-guard"
_PROGRAM: Final = "program"
_MEMORY: Final = "memory"
_PIN: Final = re.compile(r"[0-9a-f]{16}-\d+")
_DEFAULT_INSTANCE: Final = "nfq-guard"
_UNPRIVILEGED: Final = Path("/proc/sys/kernel/unprivileged_bpf_disabled")


def instance_of(config: Path | None) -> str:
    """The name of a daemon among those of this host: the name of its configuration file.

    Args:
        config: None for the default configuration.
    """
    # The BPF file system does not allow dots.
    return _DEFAULT_INSTANCE if config is None else config.stem.replace(".", "_")


def account(user: str) -> pwd.struct_passwd:
    """The account of the daemon's user, for root.

    Raises:
        PrivilegeError: This process is not root's.
        UsageError: The user does not exist.
    """
    if os.geteuid() != 0:
        raise PrivilegeError("pinning the BPF program takes root")
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"user {user!r} does not exist") from None


def prepare(instance: str, count: int, user: str = USER) -> Path:
    """Pin the program `count` times, replacing all pins of `instance`.

    Args:
        instance: From `instance_of`.
        count: Number of queues.
        user: Name of the daemon's user.

    Returns:
        The directory of the pins.

    Raises:
        NfqGuardError: The program cannot be pinned; nothing is pinned then.
    """
    owner = account(user)
    _require_bpf_files()
    folder = BPF_FILES / _HOME / instance
    # Loads conntrack's modules; without them the kernel has no lookup function.
    CtnetlinkFlows((0,)).close()
    with ExitStack() as undo:

        def make() -> None:
            _make(folder.parent, owner.pw_gid)
            shutil.rmtree(folder, ignore_errors=True)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            _make(folder, owner.pw_gid)

        try:
            shared_folder.create_in(make)
            for number in range(count):
                _pin(folder / f"{bpf.object_hash()}-{number}", owner)
        except LoadError as error:
            reason = unavailable_reason(error, Host.here())
            raise UnavailableError(f"the BPF program cannot be loaded: {reason}") from None
        except OSError as error:
            raise UnavailableError(f"the BPF program cannot be pinned: {error}") from None
        undo.pop_all()
    return folder


def remove(instance: str) -> None:
    """Remove all pins of `instance`; processes that have opened a pin keep the program.

    Raises:
        PrivilegeError: This process is not root's.
        UnavailableError: The kernel refused.
    """
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(BPF_FILES / _HOME / instance)
    except OSError as error:
        if os.geteuid() != 0:
            raise PrivilegeError("removing the pins takes root") from None
        raise UnavailableError(f"the pins cannot be removed: {error}") from None
    shared_folder.remove_unused(BPF_FILES / _HOME)


def open_pinned(instance: str) -> Program | None:
    """Open an unused pin of `instance`, and hold it until the program is closed.

    Returns:
        None if this process sees no pins of that instance.

    Raises:
        LoadError: libbpf is missing.
        UnavailableError: There are pins, but none that may be used.
    """
    for folder in (BPF_FILES / _HOME / instance, BOUND / instance):
        try:
            names = sorted(each.name for each in folder.iterdir() if _PIN.fullmatch(each.name))
        except OSError:
            continue
        if names:
            return _open_one(folder, names)
    return None


def _open_one(folder: Path, names: list[str]) -> Program:
    wanted = f"{bpf.object_hash()}-"
    ours = [name for name in names if name.startswith(wanted)]
    if not ours:
        raise UnavailableError(f"the pin {folder / names[0]} is of another version of the program")
    for name in ours:
        program = _open(folder, folder / name)
        if program is not None:
            return program
    raise UnavailableError(f"all {len(ours)} pins in {folder} are held by other processes")


def _open(folder: Path, pin: Path) -> Program | None:
    """Open one pin; None if another process holds it."""
    for problem in _problems(folder, pin):
        raise UnavailableError(f"{problem}: the pin is not used")
    with ExitStack() as stack:
        try:
            held = os.open(pin, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            program = Program.open_pinned(pin / _PROGRAM, pin / _MEMORY, EXCHANGE_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise UnavailableError(_refusal(error)) from None
        program.closing.push(stack.pop_all())
        return program


def _problems(folder: Path, pin: Path) -> Iterator[str]:
    """Why a pin must not be trusted: other users than root and ours could change it."""
    for path, owners, forbidden in (
        (folder, {0}, 0o022),
        (pin, {0, os.geteuid()}, 0o022),
        (pin / _PROGRAM, {0}, 0o022),
        # Group members would need to search `pin`, which only its owner may do.
        (pin / _MEMORY, {0}, 0o002),
    ):
        try:
            found = path.lstat()
        except OSError as error:
            yield f"{path} cannot be examined ({error.strerror})"
            continue
        if found.st_uid not in owners:
            yield f"{path} belongs to user {found.st_uid}, not to root"
        if stat.S_IMODE(found.st_mode) & forbidden:
            yield f"{path} is writable by others (mode {stat.S_IMODE(found.st_mode):04o})"


def _refusal(error: OSError) -> str:
    said = f"the pin {error.filename} cannot be opened: {error.strerror}"
    if error.errno != errno.EPERM or capabilities.has(capabilities.BPF):
        return said
    with suppress(OSError):
        value = _UNPRIVILEGED.read_text(encoding="ascii").strip()
        if value != "0":
            return (
                f"{said}; kernel.unprivileged_bpf_disabled is {value}, which before Linux 5.19 "
                "forbids it without CAP_BPF, unless a seccomp filter forbids bpf(2)"
            )
    return said


def _require_bpf_files() -> None:
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            if before.split()[4] == str(BPF_FILES) and after.startswith("bpf "):
                return
    raise UnavailableError(
        f"no BPF file system is mounted: mount -t bpf -o mode=700 bpf {BPF_FILES}"
    )


def _make(folder: Path, group: int) -> None:
    """Create a directory of root that the daemon may search, or use the existing one.

    Raises:
        UnavailableError: Users other than root could change the existing one.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise UnavailableError(f"{folder} is not a directory that only root can write to")
    os.chown(folder, 0, group)
    folder.chmod(0o750)


def _pin(pin: Path, owner: pwd.struct_passwd) -> None:
    pin.mkdir(mode=0o700)
    program = bpf.load()
    try:
        program.pin(pin / _PROGRAM, pin / _MEMORY)
    finally:
        program.close()
    for name, mode in ((_PROGRAM, 0o640), (_MEMORY, 0o660)):
        os.chown(pin / name, 0, owner.pw_gid)
        (pin / name).chmod(mode)
    os.chown(pin, owner.pw_uid, owner.pw_gid)
