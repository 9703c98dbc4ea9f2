# SPDX-License-Identifier: MIT
"""A netlink socket to netfilter, on which the kernel responds before `send` returns."""

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol, Self, final

from nfq_guard.errors import ShortageError, UnavailableError, is_shortage
from nfq_guard.netlink.messages import NETLINK_NETFILTER, messages

_DATAGRAM_MAX: Final = 1 << 16
# asm-generic/socket.h; Python does not name it.
_SO_RCVBUFFORCE: Final = 33


def enlarge(one: socket.socket, buffer_bytes: int) -> None:
    """Request a receive buffer of about this size for a socket, as far as the kernel grants it."""
    with suppress(PermissionError):  # not in the host's user namespace
        one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        return
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


@final
class Connection:
    """A connection to the kernel, in the network namespace in which it was opened."""

    def __init__(self) -> None:
        """Open the connection.

        Raises:
            UnavailableError: The kernel has no netfilter netlink.
            ShortageError: Memory or descriptors are short.
        """
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                NETLINK_NETFILTER,
            )
        except OSError as error:
            if is_shortage(error.errno):
                raise ShortageError(f"no netlink socket: {error.strerror}") from None
            raise UnavailableError(f"kernel option CONFIG_NETFILTER_NETLINK: {error}") from None
        self._socket.bind((0, 0))

    def fileno(self) -> int:
        """The descriptor for epoll."""
        return self._socket.fileno()

    def enlarge(self, buffer_bytes: int) -> None:
        """Request a receive buffer of about this size, as far as the kernel grants it."""
        enlarge(self._socket, buffer_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, octets: bytes) -> None:
        """Send messages; the kernel has handled them when this returns.

        Raises:
            OSError: The kernel did not accept them.
        """
        self._socket.send(octets)

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        """The messages of the next datagram: type, sequence and body; None if none waits.

        Raises:
            OSError: ENOBUFS: datagrams were lost; others can still be received.
        """
        try:
            datagram = self._socket.recv(_DATAGRAM_MAX)
        except BlockingIOError:
            return None
        return list(messages(datagram))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Receiver(Protocol):
    """The part of `Connection` that `responses` uses."""

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        """The messages of the next datagram; None if none waits."""


def responses(connection: Receiver) -> Iterator[tuple[int, int, bytes]]:
    """All waiting messages: type, sequence and body; those of lost datagrams are missing.

    Reads until none is left, so that stale responses cannot accumulate.

    Raises:
        OSError: The connection failed.
    """
    while True:
        try:
            received = connection.receive()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            continue
        if received is None:
            return
        yield from received
