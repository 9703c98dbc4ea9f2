# SPDX-License-Identifier: MIT
"""A lock for changes of our rules in a network namespace.

Reading, writing, verifying and rolling back take several programs, and a concurrent installer must
not interfere between them. The lock is a socket with an abstract name, which like the rules belongs
to the network namespace, and disappears with the process.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nfq_guard.errors import BusyError

_NAME: Final = b"\0nfq-guard-rules"
# Enough for two installs with retries on a busy machine.
_PATIENCE_S: Final = 20.0
_PAUSE_S: Final = 0.02


@contextmanager
def held() -> Iterator[None]:
    """Hold the lock of the calling thread's network namespace.

    Raises:
        BusyError: Another process held it throughout.
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
