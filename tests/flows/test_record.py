# SPDX-License-Identifier: MIT
"""The memory shared with the kernel half, without a kernel."""

import sys

from nfq_guard.flow import FlowTuple
from nfq_guard.flows.record import (
    BATCH,
    EXCHANGE_SIZE,
    error_of,
    found_count,
    put_requests,
    take_answers,
)

IPV4 = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 0x1122, 0x3344)
IPV6 = FlowTuple(17, bytes(range(16)), bytes(range(16, 32)), 0x5566, 0x7788)


def test_requests_are_laid_out_as_the_kernel_takes_them() -> None:
    memory = memoryview(bytearray(EXCHANGE_SIZE))
    put_requests(memory, [IPV4, IPV6], 7)
    assert int.from_bytes(memory[:4], sys.byteorder) == 2
    assert bytes(memory[16:56]) == (
        b"\x0c\x06\x00\x07\x0a\x00\x00\x01\x0a\x00\x00\x02\x11\x22\x33\x44" + bytes(24)
    )
    assert bytes(memory[56:96]) == b"\x24\x11\x00\x07" + bytes(range(32)) + b"\x55\x66\x77\x88"


def test_a_full_batch_fits() -> None:
    memory = memoryview(bytearray(EXCHANGE_SIZE))
    put_requests(memory, [IPV6] * BATCH, 0)
    assert take_answers(memory, [IPV6] * BATCH) == [None] * BATCH
    assert found_count(memory) == 0
    assert error_of(memory, BATCH - 1) == 0
