# SPDX-License-Identifier: MIT
"""Sockets that the start of the service, as root, leaves with systemd for the daemon.

The sandbox lets the daemon open no socket of the Internet. To read the tables of legacy iptables it
needs one, through which it sends nothing. systemd keeps the sockets between the two processes:
sd_pid_notify_with_fds(3), sd_listen_fds(3).
"""

import os
import socket
from contextlib import ExitStack, suppress
from typing import Final

from nfq_guard.firewall.xtables import System

_NAME: Final = "nfq-guard-tables"
_FIRST: Final = 3
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def leave() -> None:
    """Leave one socket a family with systemd, in place of those of an earlier start.

    Does nothing outside of a service, without legacy iptables, and for a family that is missing.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not System().find("iptables-legacy-save"):
        return
    with ExitStack() as stack:
        sockets = []
        for family in _FAMILIES:
            with suppress(OSError):
                sockets.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
        _notify(address, f"FDSTOREREMOVE=1\nFDNAME={_NAME}", [])
        _notify(address, f"FDSTORE=1\nFDNAME={_NAME}", sockets)


def take() -> list[socket.socket]:
    """The sockets that were left for this process; programs that it runs do not inherit them."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for number, name in enumerate(names, _FIRST):
        if name == _NAME:
            found.append(socket.socket(fileno=number))
            found[-1].set_inheritable(False)
    return found


def _notify(address: str, text: str, sockets: list[socket.socket]) -> None:
    """Send to systemd; without the sockets the daemon says that it does not see the rules."""
    where = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(where)
        socket.send_fds(channel, [text.encode()], [one.fileno() for one in sockets])
