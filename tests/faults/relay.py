# SPDX-License-Identifier: MIT
"""Emulates a bad link between two interfaces: `python -m tests.faults.relay A B SEED`.

Each frame may be lost, duplicated and delayed independently, so later frames may overtake it. The
program exits at the end of its standard input.
"""

import heapq
import random
import select
import socket
import sys
import time
from typing import Final

LOST: Final = 0.01
DOUBLED: Final = 0.02
# One frame in so many is late by up to `_LATE_S`: it was retransmitted meanwhile.
LATE: Final = 0.01
_DELAY_S: Final = (0.001, 0.006)
_LATE_S: Final = 0.5
_ALL: Final = 0x0003
_ETHERTYPE_ARP: Final = b"\x08\x06"
_RCVBUFFORCE: Final = 33


def main() -> None:
    """Pass frames until the end of standard input."""
    near, far, seed = sys.argv[1:]
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    one, other = _link(near), _link(far)
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    number = 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([one, other, sys.stdin], [], [], pause)
        if sys.stdin in ready:
            return
        now = time.monotonic()
        for link, out in ((one, other), (other, one)):
            for frame in _frames(link):
                for delay in _delays(rng, frame):
                    number += 1
                    heapq.heappush(waiting, (now + delay, number, out, frame))
        while waiting and waiting[0][0] <= now:
            _, _, out, frame = heapq.heappop(waiting)
            out.send(frame)


def _link(name: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    link.bind((name, _ALL))
    link.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 24)
    link.setblocking(False)
    return link


def _frames(link: socket.socket) -> list[bytes]:
    """The frames received on a link, without those that this program sent."""
    frames: list[bytes] = []
    while len(frames) < 64:
        try:
            frame, (_, _, kind, *_) = link.recvfrom(2048)
        except BlockingIOError:
            break
        if kind != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


def _delays(rng: random.Random, frame: bytes) -> list[float]:
    """The delay of each copy of a frame, seconds; empty for a lost frame."""
    if frame[12:14] == _ETHERTYPE_ARP:
        return [0.0]
    if rng.random() < LOST:
        return []
    delays = [rng.uniform(*_DELAY_S)]
    if rng.random() < DOUBLED:
        delays.append(rng.uniform(*_DELAY_S))
    if rng.random() < LATE:
        delays[0] += rng.uniform(0.0, _LATE_S)
    return delays


if __name__ == "__main__":
    main()
