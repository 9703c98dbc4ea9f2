# SPDX-License-Identifier: MIT
"""The search for reference cycles while a queue is served."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from nfq_guard.service.worker.queue_server import GarbageCollection


class _Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def garbage() -> Iterator[GarbageCollection]:
    """Begun, and ended after the test."""
    one = GarbageCollection()
    one.begin()
    yield one
    one.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_search_does_not_start_by_itself(garbage: GarbageCollection) -> None:
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert garbage is not None


def test_new_cycle_goes_within_a_second(garbage: GarbageCollection) -> None:
    """Nothing that a bug makes may pile up."""
    lost = weakref.ref(_Cycle())
    assert lost() is not None
    garbage.tick(1.0)
    assert lost() is None


def test_old_cycle_goes_within_a_minute(garbage: GarbageCollection) -> None:
    """A policy that was swapped out after it had grown old is found by the full search."""
    old = _Cycle()
    for second in range(3):
        garbage.tick(float(second))
    lost = weakref.ref(old)
    del old
    for second in range(60):
        garbage.tick(float(second))
    assert lost() is None
