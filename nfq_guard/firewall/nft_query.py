# SPDX-License-Identifier: MIT
"""Asking nftables whether it has a table, in 20 us instead of the 10 ms of a program."""

import errno
import socket
from typing import Final

from nfq_guard.netlink import (
    ERROR,
    NETLINK_NETFILTER,
    NLMSG_ERROR,
    attribute,
    message,
    messages,
)

# From the kernel's user interface (linux/netfilter/nfnetlink.h, nf_tables.h).
NFTABLES: Final = 10
FAMILY_INET: Final = 1
_GET_TABLE: Final = NFTABLES << 8 | 1
_TABLE_NAME: Final = 1
_DATAGRAM_MAX: Final = 1 << 16


def has_table(name: str) -> bool:
    """Whether the namespace of the calling thread has this table of family inet.

    Also where we may not ask, so that the program that is asked next says why.
    """
    try:
        with socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            NETLINK_NETFILTER,
        ) as asking:
            asking.bind((0, 0))
            body = attribute(_TABLE_NAME, name.encode() + b"\0")
            asking.send(message(_GET_TABLE, 0, 1, FAMILY_INET, 0, body))
            # The kernel has answered before `send` returned.
            for kind, _, content in messages(asking.recv(_DATAGRAM_MAX)):
                if kind == NLMSG_ERROR:
                    (code,) = ERROR.unpack_from(content)
                    return -code in {errno.EPERM, errno.EACCES}
                return True
    except OSError:
        pass  # a kernel without nftables, or without netlink, has no tables
    return False
