# SPDX-License-Identifier: MIT
import os

from nfq_guard.netlink.owner import process_of
from nfq_guard.nfqueue.counters import parse


def test_columns() -> None:
    found = parse("    7 2673819671   4 2   256    10     20      200  1\n")
    line = found[7]
    assert (line.port_id, line.waiting, line.copy_bytes) == (2673819671, 4, 256)
    assert (line.queue_dropped, line.user_dropped, line.last_id) == (10, 20, 200)


def test_short_lines_are_passed_over() -> None:
    assert parse("\n 7 1 2\n") == {}


def test_nobody_has_this_port() -> None:
    assert process_of(0xFFFFFFFE) == "unknown process"


def test_no_file_leaks() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    process_of(0xFFFFFFFE)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names alone
