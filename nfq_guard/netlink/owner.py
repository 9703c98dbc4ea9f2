# SPDX-License-Identifier: MIT
"""The process that holds a netfilter socket."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

from nfq_guard.netlink.messages import NETLINK_NETFILTER

# Of the calling thread's network namespace, not of the process's first thread.
_SOCKETS: Final = Path("/proc/thread-self/net/netlink")
_LOG_GROUPS: Final = Path("/proc/thread-self/net/netfilter/nfnetlink_log")
UNKNOWN: Final = "unknown process"


# Processes by the inode of their socket, whose files are no longer visible.
_remembered: dict[str, str] = {}


def remember(port_ids: Iterable[int]) -> None:
    """Look up these processes now, before Landlock hides the files of all others."""
    for port_id in port_ids:
        name = process_of(port_id)
        if name != UNKNOWN:
            _remembered[_inode(port_id)] = name


def process_of(port_id: int) -> str:
    """The process that holds the netfilter socket of a port id, for example `suricata (pid 711)`.

    A port id is often, but not always, a process id. The socket's inode is searched among the open
    files of all processes whose files are visible. systemd is named only if it alone holds the
    socket: it keeps sockets for services (sd_pid_notify_with_fds(3)), and uses none itself.
    """
    inode = _inode(port_id)
    keeper = ""
    if inode:
        wanted = f"socket:[{inode}]"
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and _holds(process, wanted):
                try:
                    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                except OSError:
                    continue
                found = f"{name} (pid {process.name})"
                if not is_kept(found):
                    return found
                keeper = found
    return keeper or _remembered.get(inode, UNKNOWN)


def is_kept(owner: str) -> bool:
    """Whether an owner, formatted by `process_of`, is systemd: no process uses the socket."""
    return owner.startswith("systemd (pid ")


def is_socket_of(fd: int, port_id: int) -> bool:
    """Whether a file is the netfilter socket of a port id, in this network namespace."""
    return _inode(port_id) == str(os.fstat(fd).st_ino)


def _inode(port_id: int) -> str:
    try:
        lines = _SOCKETS.read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    for line in lines[1:]:
        columns = line.split()
        if columns[1] == str(NETLINK_NETFILTER) and columns[2] == str(port_id):
            return columns[9]
    return ""


def open_files(process: Path) -> set[str]:
    """What a process has open, for example `socket:[4711]`, by its directory in /proc.

    Raises:
        OSError: The process ended, or its files are not visible.
    """
    found: set[str] = set()
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since, as that of this listing
            found.add(str(entry.readlink()))
    return found


def _holds(process: Path, wanted: str) -> bool:
    try:
        return wanted in open_files(process)
    except OSError:
        return False


def reader_of_log(group: int) -> str | None:
    """The process that reads an NFLOG group; None if there is none, or it is not visible."""
    try:
        lines = _LOG_GROUPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        columns = line.split()
        if columns[0] == str(group):
            return process_of(int(columns[1]))
    return None


def is_guard(owner: str) -> bool:
    """Whether an owner, formatted by `process_of`, is a guard."""
    match = re.search(r"\(pid (\d+)\)$", owner)
    if match is None:
        return False
    try:
        line = Path("/proc", match[1], "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return False
    return runs_guard(line.split("\0"))


def runs_guard(argv: Sequence[str]) -> bool:
    """Whether a command line runs nfq_guard: the script, or the package through `python -m`."""
    return guard_words(argv) is not None


def guard_words(argv: Sequence[str]) -> Sequence[str] | None:
    """The arguments of nfq_guard in a command line; None if it runs something else."""
    if not argv:
        return None
    if Path(argv[0]).name == "nfq-guard":
        return argv[1:]
    if not Path(argv[0]).name.startswith("python"):
        return None
    # The interpreter's options precede the script, as `-I` in the launcher of the Debian package.
    script = next((at for at, word in enumerate(argv) if at and not word.startswith("-")), 0)
    if Path(argv[script]).name == "nfq-guard":
        return argv[script + 1 :]
    for at, (option, module) in enumerate(pairwise(argv)):
        if option == "-m" and module.partition(".")[0] == "nfq_guard":
            return argv[at + 2 :]
    return None
