# SPDX-License-Identifier: MIT
"""Sockets that the service manager has opened: sd_listen_fds(3)."""

import os
import socket
from typing import Final

_FIRST: Final = 3
# FileDescriptorName= in the unit that `make install` installs.
METRICS: Final = "metrics"


def take_sockets(name: str) -> list[socket.socket]:
    """The listening sockets of that name, once; those of other names are left open and unused."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[socket.socket] = []
    for place in range(int(count)):
        fd = _FIRST + place
        os.set_inheritable(fd, False)  # noqa: FBT003 - its only spelling
        if place < len(names) and names[place] == name:
            found.append(socket.socket(fileno=fd))
    return found
