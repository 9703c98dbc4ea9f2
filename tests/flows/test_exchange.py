# SPDX-License-Identifier: MIT
"""The memory shared with the kernel half, without a kernel."""

import errno
import mmap
import sys

import pytest

from nfq_guard.flow import FlowTuple
from nfq_guard.flows.exchange import BATCH, EXCHANGE_SIZE, Exchange

IPV4 = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 0x1122, 0x3344)
IPV6 = FlowTuple(17, bytes(range(16)), bytes(range(16, 32)), 0x5566, 0x7788)


def exchange(result: int = 0) -> tuple[mmap.mmap, Exchange]:
    memory = mmap.mmap(-1, EXCHANGE_SIZE)
    return memory, Exchange(memory, lambda: result)


def test_requests_are_laid_out_as_the_kernel_takes_them() -> None:
    memory, asked = exchange()
    assert asked.ask([IPV4, IPV6], 7) == [None, None]
    assert int.from_bytes(memory[:4], sys.byteorder) == 2
    assert memory[12:52] == (
        b"\x0c\x06\x00\x07\x0a\x00\x00\x01\x0a\x00\x00\x02\x11\x22\x33\x44" + bytes(24)
    )
    assert memory[52:92] == b"\x24\x11\x00\x07" + bytes(range(32)) + b"\x55\x66\x77\x88"
    asked.ask([IPV4], 7)
    assert int.from_bytes(memory[:4], sys.byteorder) == 1


def test_a_full_batch_fits() -> None:
    _, asked = exchange()
    assert asked.ask([IPV6] * BATCH, 0) == [None] * BATCH
    assert asked.missing == BATCH
    assert asked.error_of(BATCH - 1) == 0


def test_kernel_that_refuses() -> None:
    _, asked = exchange(-errno.ENOMEM)
    with pytest.raises(OSError, match="BPF_PROG_TEST_RUN: Cannot allocate memory"):
        asked.ask([IPV4], 0)
