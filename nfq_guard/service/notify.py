# SPDX-License-Identifier: MIT
"""What systemd is told: ready, alive, stopping (sd_notify(3)); nothing without systemd."""

import os
import socket
from typing import Final, final


@final
class Notifier:
    """Talks to the socket in NOTIFY_SOCKET; silent when there is none.

    Attributes:
        watchdog_s: How often systemd wants to hear `WATCHDOG=1`, seconds; 0 when it does not.
    """

    def __init__(self, address: str | None = None, watchdog_usec: str | None = None) -> None:
        """Take both from the environment unless given."""
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        usec = os.environ.get("WATCHDOG_USEC", "") if watchdog_usec is None else watchdog_usec
        self.watchdog_s: Final = int(usec) / 1e6 if usec.isdigit() and self._address else 0.0

    def tell(self, *lines: str) -> None:
        """Send lines such as `READY=1`; a socket that is gone is not our trouble."""
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return
