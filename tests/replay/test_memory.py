# SPDX-License-Identifier: MIT
"""The memory of a replay grows with flows up to the size of its table, and not with frames."""

import itertools
import tracemalloc
from collections.abc import Iterator

import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.replay.copies import Copies
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from tests.support.conversation import Conversation
from tests.support.healthy import renumbered

FLOWS = 50


def rounds(number: int, first_port: int = 10_000) -> Iterator[list[Frame]]:
    """`FLOWS` connections that are all open, with so many requests and answers each."""
    talks = [
        Conversation(client_isn=port * 77_777, server_isn=port * 99_991, sport=port)
        for port in range(first_port, first_port + FLOWS)
    ]
    for talk in talks:
        talk.open()
    for place in range(number):
        for talk in talks:
            talk.client("PA", 1 + 10 * place, 1 + 20 * place, length=10)
            talk.server("PA", 1 + 20 * place, 11 + 10 * place, length=20)
        yield renumbered([frame for talk in talks for frame in talk.frames])
        for talk in talks:
            talk.frames.clear()


def follow(replayer: Replayer, batches: Iterator[list[Frame]]) -> int:
    """Bytes that the replay holds after them."""
    for frames in batches:
        assert replayer.replay(frames) == []
        del frames
    held, _ = tracemalloc.get_traced_memory()
    return held


@pytest.fixture
def replayer() -> Iterator[Replayer]:
    """Without a search for copies, whose tables fill up first; its memory alone is counted."""
    tracemalloc.start()
    one = Replayer(ReplaySettings(capacity=2 * FLOWS))
    one.copies = Copies(searched=0)
    yield one
    tracemalloc.stop()


def test_frames_take_no_memory(replayer: Replayer) -> None:
    batches = rounds(40)
    few = follow(replayer, itertools.islice(batches, 20))
    many = follow(replayer, batches)
    assert replayer.frames == FLOWS * (3 + 2 * 40)
    assert many < few * 1.02


def test_flows_take_no_memory_beyond_the_table(replayer: Replayer) -> None:
    """What remains of a flow that was evicted, such as the number of its SYN, is small."""
    full = [follow(replayer, rounds(1, 10_000 + FLOWS * part)) for part in range(12)]
    assert replayer.table.created == FLOWS * 12
    each = full[0] / FLOWS
    assert (full[-1] - full[3]) / (FLOWS * 8) < each / 3
