# SPDX-License-Identifier: MIT
"""Queries by netlink of the tables of nftables: 20 us instead of 10 ms for a program."""

import errno
from typing import Final

from nfq_guard.errors import UnavailableError
from nfq_guard.netlink.connection import Connection
from nfq_guard.netlink.messages import NLMSG_ERROR, attribute, attributes, error_in, message

# From the kernel's user interface (linux/netfilter/nfnetlink.h, nf_tables.h).
NFTABLES: Final = 10
FAMILY_INET: Final = 1
_GET_TABLE: Final = NFTABLES << 8 | 1
_TABLE_NAME: Final = 1
_TABLE_FLAGS: Final = 2
_DORMANT: Final = 1
_FAMILIES: Final = {4: 2, 6: 10}
_GET_GENERATION: Final = NFTABLES << 8 | 16
_NEW_GENERATION: Final = NFTABLES << 8 | 15
_GENERATION_ID: Final = 1


def generation() -> int | None:
    """The generation number of the nftables ruleset, which every change increments.

    None if the kernel has no nftables, or without the privilege to query. iptables-nft changes it
    too, iptables-legacy does not.
    """
    try:
        with Connection() as connection:
            connection.send(message(_GET_GENERATION, 0, 1, 0, 0, b""))
            for kind, _, content in connection.receive() or ():
                if kind == _NEW_GENERATION:
                    number = attributes(content[4:]).get(_GENERATION_ID, b"")
                    return int.from_bytes(number, "big")
    except (UnavailableError, OSError):
        pass
    return None


def has_table(name: str) -> bool:
    """Whether nftables has a table of this name and family inet, in the caller's namespace.

    True without the privilege to query: the program that runs next reports the error.
    """
    try:
        with Connection() as connection:
            body = attribute(_TABLE_NAME, name.encode() + b"\0")
            connection.send(message(_GET_TABLE, 0, 1, FAMILY_INET, 0, body))
            for kind, _, content in connection.receive() or ():
                if kind == NLMSG_ERROR:
                    return error_in(content) in {errno.EPERM, errno.EACCES}
                return True
    except (UnavailableError, OSError):
        pass  # a kernel without nftables, or without netlink, has no tables
    return False


def is_dormant(name: str, family: int | None = None) -> bool:
    """Whether the kernel runs no chain of a table; False where that is not known.

    Args:
        name: Its name.
        family: 4 or 6 for a table of iptables-nft; None for the family inet.
    """
    number = FAMILY_INET if family is None else _FAMILIES[family]
    try:
        with Connection() as connection:
            body = attribute(_TABLE_NAME, name.encode() + b"\0")
            connection.send(message(_GET_TABLE, 0, 1, number, 0, body))
            for kind, _, content in connection.receive() or ():
                if kind != NLMSG_ERROR:
                    flags = attributes(content[4:]).get(_TABLE_FLAGS, b"")
                    return bool(int.from_bytes(flags, "big") & _DORMANT)
    except (UnavailableError, OSError):
        pass
    return False
