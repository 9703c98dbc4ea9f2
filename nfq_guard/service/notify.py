# SPDX-License-Identifier: MIT
"""Notifications to the service manager: sd_notify(3). Without systemd nothing is sent."""

import os
import socket
import time
from collections.abc import Sequence
from typing import Final, final


@final
class Notifier:
    """Sends datagrams to the socket in NOTIFY_SOCKET, if there is one.

    After `stopping` nothing is sent: a daemon that is ending must not feed its watchdog or report
    that it is ready.

    Attributes:
        watchdog_s: Longest time between two calls of `alive`, seconds; 0 without a watchdog.
    """

    def __init__(self, address: str | None = None, watchdog_usec: str | None = None) -> None:
        """Take the arguments from the environment unless given."""
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        usec = os.environ.get("WATCHDOG_USEC", "") if watchdog_usec is None else watchdog_usec
        self.watchdog_s: Final = int(usec) / 1e6 if usec.isdecimal() and self._address else 0.0
        self._stopping = False

    def ready(self, queues: Sequence[int], *, last_good: str = "") -> None:
        """Report that all queues are served and the rules are installed.

        `last_good` is the time of the configuration that is used instead of one with mistakes.
        """
        numbers = ", ".join(str(number) for number in queues)
        instead = (
            f"; the configuration has mistakes, using that of {last_good}" if last_good else ""
        )
        self._send("READY=1", f"STATUS=queue {numbers}: serving{instead}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Report the start of a reload."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Report the end of a reload, whether the policy was adopted or refused."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Report that the daemon is ending."""
        self._send("STOPPING=1")
        self._stopping = True

    def _send(self, *lines: str) -> None:
        """Send without blocking; errors, such as a full or closed socket, are ignored."""
        if not self._address or self._stopping:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return
