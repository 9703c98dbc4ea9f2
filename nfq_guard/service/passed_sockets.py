# SPDX-License-Identifier: MIT
"""Sockets that systemd keeps for the daemon: sd_pid_notify_with_fds(3), sd_listen_fds(3).

The start of the service, as root, leaves some. The sandbox lets the daemon open no socket of the
Internet. To read the tables of legacy iptables it needs one, through which it sends nothing.

The daemon leaves the socket of its queue, which is bound as long as anybody has that socket.
Packets then wait in the queue from the end of one daemon to the start of the next.
"""

import os
import socket
from contextlib import ExitStack, suppress
from typing import Final, final

from nfq_guard.firewall.xtables import System

TABLES: Final = "nfq-guard-tables"
QUEUE: Final = "nfq-guard-queue"
_FIRST: Final = 3
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def leave_tables() -> None:
    """Leave one socket a family with systemd, in place of those of an earlier start.

    Does nothing outside of a service, without legacy iptables, and for a family that is missing.
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


@final
class QueueKeeper:
    """Has systemd keep the queue bound after the end of this process.

    Attributes:
        kept: The socket of the queue of the process before this one, if there was one.
    """

    def __init__(self) -> None:
        """Take what an earlier process left."""
        self.kept: socket.socket | None = None
        for one in take(QUEUE):
            self.forget()
            self.kept = one

    def keep(self, fd: int) -> None:
        """Have systemd keep the socket; of one that it has already it takes no second copy."""
        _store(QUEUE, [fd])

    def forget(self) -> None:
        """Have systemd close what it keeps of the queue. A process that has the socket goes on."""
        _remove(QUEUE)


def take(name: str) -> list[socket.socket]:
    """The sockets of that name that were left for this process, once.

    Programs that it runs do not inherit them.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for number, each in enumerate(names, _FIRST):
        if each == name:
            found.append(socket.socket(fileno=number))
            found[-1].set_inheritable(False)
    return found


def _store(name: str, files: list[int]) -> None:
    # Without FDPOLL=0 systemd would close one that has an error, as after an overrun.
    _notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", files)


def _remove(name: str) -> None:
    _notify(f"FDSTOREREMOVE=1\nFDNAME={name}", [])


def _notify(text: str, files: list[int]) -> None:
    """Send to systemd, if there is one. An error is ignored.

    Without the sockets the daemon says that it does not see the rules, or binds its queue anew.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    where = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(where)
        socket.send_fds(channel, [text.encode()], files)
