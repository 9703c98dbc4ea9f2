# SPDX-License-Identifier: MIT
"""Idle connections, packets that would kill them, and the survivors."""

import socket
import struct
from pathlib import Path
from typing import Final

from benchmarks import frames
from benchmarks.site import ROUTER_OUTSIDE, SERVER, Site

CONNECTIONS: Final = 20
_PORT: Final = 5002
# From linux/tcp.h.
_TCP_REPAIR: Final = 19
_TCP_REPAIR_QUEUE: Final = 20
_TCP_QUEUE_SEQ: Final = 21
_REPAIR_ON: Final = 1
_REPAIR_OFF_SILENTLY: Final = -1
_SEND_QUEUE: Final = 2
# Beyond any window, and below half of the sequence space.
_BEYOND: Final = 1 << 28
_ANSWER_S: Final = 2.0


class Survivors:
    """Idle translated connections from the client to the server; to be closed with `close`."""

    def __init__(self, site: Site) -> None:
        """Open the connections."""
        self._site = site
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        with site.server.entered():
            listener = socket.socket()
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVER, _PORT))
            listener.listen(CONNECTIONS)
            for _ in range(CONNECTIONS):
                with site.client.entered():
                    near = socket.socket()
                near.settimeout(_ANSWER_S)
                near.connect((SERVER, _PORT))
                far, _ = listener.accept()
                far.settimeout(_ANSWER_S)
                self._pairs.append((near, far))

    def killers(self) -> Path:
        """Frames from the server, one per connection, far beyond its window.

        They acknowledge exactly what the client has sent, so that the server accepts an RST in
        answer to one as an RST from its peer.
        """
        path = self._site.directory / "killers"
        frames.write(
            path,
            (
                frames.segment(
                    self._site.from_server,
                    frames.address(SERVER),
                    frames.address(ROUTER_OUTSIDE),
                    _PORT,
                    far.getpeername()[1],
                    (_next_seq(far) + _BEYOND) & 0xFFFFFFFF,
                    _next_seq(near),
                    frames.ACK | frames.PSH,
                    payload=bytes(16),
                )
                for near, far in self._pairs
            ),
        )
        return path

    def alive(self) -> int:
        """Number of connections that still carry a byte in both directions."""
        return sum(_echoes(near, far) for near, far in self._pairs)

    def close(self) -> None:
        """Close the connections."""
        for pair in self._pairs:
            for end in pair:
                end.close()


def _echoes(near: socket.socket, far: socket.socket) -> bool:
    try:
        near.send(b"?")
        if far.recv(1) != b"?":
            return False
        far.send(b"!")
        return near.recv(1) == b"!"
    except OSError:
        return False


def _next_seq(end: socket.socket) -> int:
    """The sequence number of the next byte that this end will send."""
    end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
    try:
        end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        raw = end.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 4)
    finally:
        end.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_SILENTLY)
    (number,) = struct.unpack("=I", raw)
    return int(number)
