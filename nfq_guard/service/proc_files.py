# SPDX-License-Identifier: MIT
"""Makes files of /proc readable for the group of a daemon that is not in group root.

Only root and its group can read these files by default. They belong to a network namespace, and
exist once their module is loaded.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from nfq_guard.errors import NfqGuardError
from nfq_guard.netlink.connection import Connection
from nfq_guard.nfqueue import counters, requests

_TABLES: Final = ("ip_tables_names", "ip6_tables_names")


def share(group: int) -> list[str]:
    """Let `group` read the counters of the queues and the names of legacy iptables' tables.

    Args:
        group: The number of the group; 0 restores the original access.

    Returns:
        A line for each file that could not be changed.
    """
    try:
        with closing(Connection()) as connection:
            # Makes the kernel load the module; without it the file does not exist.
            connection.send(requests.config_nothing())
    except (NfqGuardError, OSError):
        # The daemon reports what is missing.
        return []
    return list(_changed(group))


def _changed(group: int) -> Iterator[str]:
    net = counters.QUEUES.parent.parent
    for path in (counters.QUEUES, *(net / name for name in _TABLES)):
        try:
            os.chown(path, -1, group)
        except FileNotFoundError:
            continue
        except OSError as error:
            name = Path("/proc/net") / path.relative_to(net)
            yield f"{name} remains readable by root only: {error.strerror}"
