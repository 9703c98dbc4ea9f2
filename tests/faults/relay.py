# SPDX-License-Identifier: MIT
"""Passes frames between two interfaces as a bad link does: `python -m tests.faults.relay A B SEED`.

Each frame may be lost, doubled and delayed on its own, so that later ones overtake it. It ends with
its standard input.
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
# One in so many is late by up to `_LATE_S`: its copy was sent again meanwhile.
LATE: Final = 0.01
_DELAY_S: Final = (0.001, 0.006)
_LATE_S: Final = 0.5
_ALL: Final = 0x0003
_ETHERTYPE_ARP: Final = b"\x08\x06"
_RCVBUFFORCE: Final = 33


def main() -> None:
    """Pass frames until the standard input ends."""
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
    """What came in by a link; not what this program sent."""
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
    """How long each copy of a frame is under way, seconds; none of a lost one."""
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
