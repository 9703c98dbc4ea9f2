# SPDX-License-Identifier: MIT
"""Healthy TCP traffic as captured on a router, with loss and retransmissions.

Conntrack calls none of it INVALID. `without` and `swapped` alter it as a capture may.
"""

import functools
import random
from collections.abc import Sequence

from nfq_guard.capture.frame import Frame
from tests.support.conversation import SYN_OPTIONS, Conversation

MSS = 1000


def connection(rng: random.Random, sport: int, start: float) -> list[Frame]:
    """One connection: a request, an answer in windows with some loss before the router, an end."""
    talk = Conversation(
        client_isn=rng.randrange(2**32), server_isn=rng.randrange(2**32), sport=sport
    )
    talk.now = start
    step = 0.0003
    ending = rng.choice(["fin", "fin", "rst", "refused"])
    talk.client("S", 0, win=64240, options=SYN_OPTIONS, wait=step)
    if ending == "refused":
        talk.isns = (talk.isns[0], 0)
        talk.server("RA", 0, 1, win=0, wait=step)
        return talk.frames
    talk.server("SA", 0, 1, win=65160, options=SYN_OPTIONS, wait=step)
    talk.client("A", 1, 1, wait=step)
    request = rng.randrange(1, 600)
    talk.client("PA", 1, 1, length=request, wait=step)
    sent, acked, mine = 1, 1, 1 + request
    total = MSS * rng.randrange(3, 120)
    talk.server("A", 1, mine, wait=step)
    while acked < total:
        burst = [sent + MSS * place for place in range(rng.randrange(1, 20))]
        burst = [number for number in burst if number < total]
        lost = {number for number in burst if rng.random() < 0.03}
        for number in burst:
            if number not in lost:
                talk.server("A", number, mine, length=MSS, wait=step)
        for number in sorted(lost):
            before = number
            if any(other > number for other in burst if other not in lost):
                talk.client("A", mine, before, win=500, wait=step)
            talk.server("A", number, mine, length=MSS, wait=step)
        sent = burst[-1] + MSS
        talk.client("A", mine, sent, win=rng.choice([300, 500, 800]), wait=step)
        acked = sent
    if ending == "rst":
        talk.client("RA", mine, acked, wait=step)
    else:
        talk.server("FA", acked, mine, wait=step)
        talk.client("FA", mine, acked + 1, wait=step)
        talk.server("A", acked + 1, mine + 1, wait=step)
    return talk.frames


def download(rng: random.Random, sport: int, *, sack: bool) -> list[Frame]:
    """One connection with any window scale, bursts up to its window, and runs of lost segments."""
    scale = rng.choice([0, 7, 10, 12, 13, 14, 14])
    room = min(rng.choice([60_000, 300_000, 600_000]), 65_535 << scale)
    window = max(1, room >> scale)
    step = 1e-5
    options = [("MSS", 1460), ("WScale", scale), *([("SAckOK", b"")] if sack else [])]
    talk = Conversation(
        client_isn=rng.randrange(2**32), server_isn=rng.randrange(2**32), sport=sport
    )
    talk.client("S", 0, win=64240, options=options, wait=step)
    talk.server("SA", 0, 1, win=65160, options=options, wait=step)
    talk.client("A", 1, 1, win=window, wait=step)
    talk.client("PA", 1, 1, length=100, win=window, wait=step)
    sent, mine = 1, 101
    for most in (10, rng.choice([60, 300])):
        segments = min(room // MSS, most)
        burst = [sent + MSS * place for place in range(segments)]
        first = rng.randrange(segments)
        lost = burst[first : first + rng.choice([0, 1, 40, 150])]
        for number in burst:
            if number in lost:
                continue
            talk.server("A", number, mine, length=MSS, wait=step)
            if lost and number > lost[-1] and rng.random() < 0.2:
                edges = [talk.isns[1] + lost[-1] + MSS, talk.isns[1] + number + MSS]
                block = ("SAck", tuple(edge % 2**32 for edge in edges))
                selective = [block] if sack else []
                talk.client("A", mine, lost[0], win=window, options=selective, wait=step)
        for number in lost:
            talk.server("A", number, mine, length=MSS, wait=step)
            if number != lost[-1] and rng.random() < 0.5:
                talk.client("A", mine, number + MSS, win=window, wait=step)
        sent = burst[-1] + MSS
        talk.client("A", mine, sent, win=window, wait=step)
    talk.server("FA", sent, mine, wait=step)
    talk.client("FA", mine, sent + 1, win=window, wait=step)
    talk.server("A", sent + 1, mine + 1, wait=step)
    return talk.frames


@functools.cache
def _traffic(seed: int, connections: int, first_port: int) -> list[Frame]:
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    frames = [
        frame
        for number in range(connections)
        for frame in connection(rng, first_port + number, 1_700_000_000.0 + number * 0.002)
    ]
    frames.sort(key=lambda frame: frame.time_ns)
    return frames


def traffic(seed: int, connections: int = 12, first_port: int = 40000) -> list[Frame]:
    """Several connections from different ports, merged by time."""
    return renumbered(_traffic(seed, connections, first_port))


def renumbered(frames: Sequence[Frame]) -> list[Frame]:
    """Copies of frames, numbered in their order."""
    return [
        Frame(number, one.time_ns, one.linktype, one.wire_len, one.octets, one.source)
        for number, one in enumerate(frames, start=1)
    ]


def without(frames: Sequence[Frame], share: float, seed: int) -> list[Frame]:
    """The capture with a share of its frames lost."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    return renumbered([frame for frame in frames if rng.random() >= share])


def swapped(frames: Sequence[Frame], share: float, seed: int, *, keeps_times: bool) -> list[Frame]:
    """The capture with a share of neighbours in the wrong order.

    Args:
        frames: As captured.
        share: Share of all places.
        seed: Seed of the choice.
        keeps_times: Whether each frame keeps its time, so that times go back; else the times stay
            in order.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    order = list(frames)
    place = 0
    while place < len(order) - 1:
        if rng.random() < share:
            order[place], order[place + 1] = order[place + 1], order[place]
            place += 1
        place += 1
    mixed = renumbered(order)
    if not keeps_times:
        for frame, original in zip(mixed, frames, strict=True):
            frame.time_ns = original.time_ns
    return mixed


def displaced(frames: Sequence[Frame], share: float, most: int, seed: int) -> list[Frame]:
    """The capture with a share of its frames up to `most` places ahead; each keeps its time."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    order = list(frames)
    for place in range(len(order)):
        if rng.random() < share:
            order.insert(max(0, place - rng.randrange(1, most + 1)), order.pop(place))
    return renumbered(order)
