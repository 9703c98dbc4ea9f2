# SPDX-License-Identifier: MIT
"""One at a time: who changes our rules in a network namespace holds its lock.

Reading the rules, writing them, looking again and rolling back are several programs' work, between
which another installer would be taken for a stranger. The lock is a socket with an abstract name:
such names belong to the network namespace as the rules do, and go with the process.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nfq_guard.errors import BusyError

_NAME: Final = b"\0nfq-guard-rules"
# Two installs with retries, on a machine that has other things to do.
_PATIENCE_S: Final = 20.0
_PAUSE_S: Final = 0.02


@contextmanager
def held() -> Iterator[None]:
    """Hold the lock of the calling thread's network namespace.

    Raises:
        BusyError: Somebody else held it all the while.
    """
    deadline = time.monotonic() + _PATIENCE_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        while True:
            try:
                lock.bind(_NAME)
            except OSError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        "another nfq-guard is changing the rules and does not end"
                    ) from None
                time.sleep(_PAUSE_S)
            else:
                break
        yield
