# SPDX-License-Identifier: MIT
"""Files that systemd keeps for the daemon: sd_pid_notify_with_fds(3), sd_listen_fds(3).

The start of the service, which runs as root, leaves sockets for legacy iptables: the daemon needs
an Internet socket to read the tables, sends nothing through it, and its sandbox forbids it to open
one. The sockets show only whether the rules have changed, so it also leaves a copy of them.

The daemon leaves the socket of its queue, which stays bound while any process holds that socket.
Packets then wait in the queue from the end of one daemon to the start of the next.
"""

import os
import socket
from contextlib import ExitStack, suppress
from typing import Final, final

from nfq_guard.firewall import legacy_copy
from nfq_guard.firewall.xtables import System

TABLES: Final = "nfq-guard-tables"
QUEUE: Final = "nfq-guard-queue"
RULES: Final = "nfq-guard-rules"
_FIRST: Final = 3
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def leave_tables() -> None:
    """Store one socket a family and a copy of the tables, replacing those of an earlier start.

    Does nothing outside a service, without legacy iptables, or for a missing family.
    """
    if not os.environ.get("NOTIFY_SOCKET") or not System().find("iptables-legacy-save"):
        return
    with ExitStack() as stack:
        sockets = []
        for family in _FAMILIES:
            with suppress(OSError):
                sockets.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
        _remove(TABLES)
        _store(TABLES, [one.fileno() for one in sockets])
    _remove(RULES)
    content = legacy_copy.made()
    if content:
        with os.fdopen(os.memfd_create(RULES), "wb") as file:
            file.write(content)
            file.flush()
            _store(RULES, [file.fileno()])


@final
class QueueKeeper:
    """Keeps the queue bound after the end of this process, by a socket that systemd holds.

    Attributes:
        kept: The queue socket of the previous process, if there was one.
    """

    def __init__(self) -> None:
        """Take the socket that an earlier process left."""
        self.kept: socket.socket | None = None
        for one in take(QUEUE):
            self.forget()
            self.kept = one

    def keep(self, fd: int) -> None:
        """Store the socket in systemd, which keeps no second copy of one that it has."""
        _store(QUEUE, [fd])

    def forget(self) -> None:
        """Make systemd close its socket of the queue. A process that holds it is unaffected."""
        _remove(QUEUE)


def take(name: str) -> list[socket.socket]:
    """The sockets of that name that were left for this process; returned once.

    Child processes do not inherit them.
    """
    found = [socket.socket(fileno=number) for number in _left(name)]
    for one in found:
        one.set_inheritable(False)
    return found


def take_rules() -> bytes:
    """The copy that was left for this process, once; empty for none."""
    content = b""
    for number in _left(RULES):
        with suppress(OSError), os.fdopen(number, "rb") as file:
            # The offset is that of the process which wrote it.
            content = os.pread(file.fileno(), legacy_copy.CONTENT_BYTES_MAX, 0)
    return content


def _left(name: str) -> list[int]:
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return [number for number, each in enumerate(names, _FIRST) if each == name]


def _store(name: str, files: list[int]) -> None:
    # Without FDPOLL=0 systemd would close a socket with an error, such as after an overrun.
    _notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", files)


def _remove(name: str) -> None:
    _notify(f"FDSTOREREMOVE=1\nFDNAME={name}", [])


def _notify(text: str, files: list[int]) -> None:
    """Send to systemd, if there is one. An error is ignored.

    Without the sockets the daemon reports that it cannot see the rules, or rebinds its queue.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    where = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(where)
        socket.send_fds(channel, [text.encode()], files)
