# SPDX-License-Identifier: MIT
"""The memory shared with the BPF program, without a kernel."""

import errno
import mmap
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nfq_guard.flow import FlowTuple, LookupFailed
from nfq_guard.flows import exchange as layout
from nfq_guard.flows.exchange import (
    ANSWER_ERROR,
    ANSWER_SIZE,
    BATCH,
    EXCHANGE_ANSWERS,
    EXCHANGE_SIZE,
    Exchange,
)
from tests.support import btf

_OBJECT = Path(__file__).parents[2] / "nfq_guard" / "flows" / "ct_lookup.bpf.o"

IPV4 = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 0x1122, 0x3344)
IPV6 = FlowTuple(17, bytes(range(16)), bytes(range(16, 32)), 0x5566, 0x7788)


def exchange(
    result: int = 0, errors: Sequence[int] = (errno.ENOENT,) * BATCH
) -> tuple[mmap.mmap, Exchange]:
    """Shared memory in which every lookup ends with its error, none with an entry."""
    memory = mmap.mmap(-1, EXCHANGE_SIZE)
    for index, error in enumerate(errors):
        at = EXCHANGE_ANSWERS + index * ANSWER_SIZE + ANSWER_ERROR
        memory[at : at + 4] = struct.pack("=i", -error)
    return memory, Exchange(memory, lambda: result)


@pytest.mark.parametrize(
    ("name", "unread"),
    [("exchange", {"count", "hz", "options_size"}), ("answer", set()), ("window", set())],
)
def test_layout_is_that_of_the_object(name: str, unread: set[str]) -> None:
    """Each size and offset, by the type information of the object file."""
    found = btf.structs(_OBJECT.read_bytes())[name]
    ours = {
        member: getattr(layout, f"{name}_{member}".upper())
        for member in found.offsets
        if member not in unread
    }
    assert ours == {
        member: offset for member, offset in found.offsets.items() if member not in unread
    }
    assert getattr(layout, f"{name}_size".upper()) == found.size


def test_header_and_requests_are_those_of_the_object() -> None:
    """Those are packed by `struct`, member by member."""
    structs = btf.structs(_OBJECT.read_bytes())
    header = structs["exchange"].offsets
    assert [header["count"], header["hz"], header["options_size"]] == [0, 4, 8]
    assert layout.HEADER.format == "=III"
    assert layout.HEADER.size == header["requests"]
    request = structs["request"]
    assert request.offsets == {"tuple_size": 0, "proto": 1, "zone": 2, "tuple": 4}
    assert request.size == layout.REQUEST_SIZE
    for packed in (layout.REQUEST_IPV4, layout.REQUEST_IPV6):
        assert packed.format.startswith(">BBH")
        assert packed.size == request.size


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


def test_an_error_is_not_the_answer_no_entry() -> None:
    _, asked = exchange(errors=(errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP))
    assert asked.ask([IPV4, IPV6, IPV4], 0) == [
        None,
        LookupFailed(errno.EINVAL),
        LookupFailed(errno.EOPNOTSUPP),
    ]
    assert asked.missing == 3


def test_a_kernel_that_does_not_run_the_program_fails_every_lookup() -> None:
    _, asked = exchange(-errno.ENOMEM)
    assert asked.ask([IPV4, IPV6], 0) == [LookupFailed(errno.ENOMEM)] * 2
    assert asked.missing == 2
