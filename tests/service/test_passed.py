# SPDX-License-Identifier: MIT
"""Packets that passed because the queue was full, with simulated counters."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.nfqueue.counters import CounterFile
from nfq_guard.service.passed import Numbered, PassedPackets, numbered_in

_LINES = "    0   {port}  0 2  256  {dropped} 0 {last} 1\n    5  12  0 2  256  1 9 10 1\n"


class Kernel:
    """The counters of a host, which may change while they are read."""

    def __init__(self, owners: tuple[int, ...] = (7,)) -> None:
        self.owners = owners
        self.queued: int | None = 0
        self.numbered: int | None = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.passed = PassedPackets(self._queued, self._numbered)

    def _queued(self) -> int | None:
        found = self.queued
        self.meanwhile()
        return found

    def _numbered(self) -> Numbered | None:
        return None if self.numbered is None else Numbered(self.owners, self.numbered)

    def come(self, judged: int, passed: int = 0) -> None:
        assert self.queued is not None
        assert self.numbered is not None
        self.queued += judged + passed
        self.numbered += judged

    def look(self) -> int:
        self.passed.look()
        return self.passed.count


def test_what_no_queue_numbered_has_passed() -> None:
    kernel = Kernel()
    kernel.come(500, passed=90)  # before the first reading: another daemon's, or without one
    assert kernel.look() == 0
    kernel.come(1000)
    assert kernel.look() == 0
    kernel.come(300, passed=25)
    assert kernel.look() == kernel.look() == 25
    kernel.come(0, passed=5)
    assert kernel.look() == 30


def test_packets_between_the_readings_never_make_it_larger() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.meanwhile = lambda: kernel.come(40, passed=1)
    looks = [kernel.look() for _ in range(5)]
    assert looks == [0, 0, 0, 0, 0]
    kernel.meanwhile = lambda: None
    assert kernel.look() == 5


def test_the_first_reading_is_repeated_until_nothing_comes() -> None:
    kernel = Kernel()
    bursts = [3, 2, 1, 0]

    def burst() -> None:
        kernel.come(bursts.pop(0) if bursts else 0)

    kernel.meanwhile = burst
    kernel.look()
    kernel.come(10, passed=4)
    assert kernel.look() == 4


def test_packets_never_stop_coming() -> None:
    """The count starts too low by at most the packets of one reading."""
    kernel = Kernel()
    kernel.meanwhile = lambda: kernel.come(2)
    kernel.look()
    kernel.meanwhile = lambda: None
    kernel.come(50, passed=10)
    assert 8 <= kernel.look() <= 10


@pytest.mark.parametrize("what", ["queue", "rules", "number", "told"])
def test_what_counts_from_0_again_is_no_passed_packet(what: str) -> None:
    kernel = Kernel()
    kernel.look()
    kernel.come(100, passed=10)
    assert kernel.look() == 10
    if what == "queue":
        kernel.owners, kernel.numbered = (8,), 0
    elif what == "rules":
        kernel.queued = 3
    elif what == "number":
        kernel.numbered = 1
    else:
        kernel.passed.forget()
        assert kernel.queued is not None
        kernel.queued += 1000
    assert kernel.look() == 10
    kernel.come(100, passed=7)
    assert kernel.look() == 17


def test_a_queue_without_a_worker_passes_packets() -> None:
    """What comes between the end of the old worker and the reading after it is unknown."""
    kernel = Kernel((7, 9))
    kernel.look()
    kernel.come(100, passed=1)
    assert kernel.look() == 1
    kernel.come(20)
    kernel.owners, kernel.numbered = (7, 0), 60  # the others were those of the other queue
    assert kernel.look() == 1
    kernel.come(30, passed=40)
    assert kernel.look() == 41
    kernel.come(10, passed=5)
    kernel.owners = (7, 11)
    kernel.come(50, passed=2)
    assert kernel.look() == 48
    kernel.owners, kernel.numbered = (7, 12), 70
    assert kernel.look() == 48


def test_what_cannot_be_read_changes_nothing() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.come(5, passed=5)
    kernel.queued, queued = None, kernel.queued
    assert kernel.look() == 0
    kernel.queued, kernel.numbered, numbered = queued, None, kernel.numbered
    assert kernel.look() == 0
    kernel.numbered = numbered

    def rebind() -> None:
        kernel.owners = (*kernel.owners, 1)

    kernel.meanwhile = rebind
    assert kernel.look() == 0

    def wrap() -> None:
        kernel.numbered = 0

    kernel.meanwhile = wrap
    assert kernel.look() == 0


def test_lines_of_our_queues(tmp_path: Path) -> None:
    path = tmp_path / "nfnetlink_queue"
    path.write_text(_LINES.format(port=34, dropped=4, last=100), encoding="ascii")
    file = CounterFile(path)
    assert numbered_in(file, [0]) == Numbered((34,), 104)
    assert numbered_in(file, [0, 5]) == Numbered((34, 12), 115)
    assert numbered_in(file, [0, 1]) == Numbered((34, 0), 104)
    file.close()
    assert numbered_in(file, [0]) is None


def test_it_counts_on_from_the_daemon_before() -> None:
    kernel = Kernel()
    kernel.come(500, passed=90)
    kernel.look()
    assert kernel.passed.unnumbered == 90
    kernel.come(7, passed=3)
    later = Kernel((8,))
    later.queued, later.numbered = 600, 0
    later.come(40)
    later.passed.resume(90 + 507)
    assert later.look() == 3
    assert later.passed.goes_on
    later.come(10, passed=2)
    assert later.look() == 5
    later.passed.forget()
    assert later.passed.unnumbered is None
    assert later.look() == 5


@pytest.mark.parametrize("accounted", [601, -(1 << 32)])
def test_what_other_rules_or_a_wrapped_number_left_is_not_counted(accounted: int) -> None:
    kernel = Kernel()
    kernel.come(0, passed=600)
    kernel.passed.resume(accounted)
    assert kernel.look() == 0
    assert not kernel.passed.goes_on


def test_a_restart_without_a_packet_between() -> None:
    kernel = Kernel()
    kernel.come(0, passed=600)
    kernel.passed.resume(600)
    assert kernel.look() == 0
    assert kernel.passed.goes_on


def test_counters_that_cannot_be_read_once_end_it() -> None:
    kernel = Kernel()
    kernel.come(0, passed=600)
    kernel.numbered = None
    kernel.passed.resume(10)
    assert kernel.look() == 0
    assert not kernel.passed.goes_on
    kernel.numbered = 0
    assert kernel.look() == 0


def test_packets_that_the_counters_do_not_show() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.come(0, passed=4)
    assert kernel.look() == 4
    kernel.passed.add(6)
    assert kernel.look() == 10
    kernel.come(0, passed=1)
    assert kernel.look() == 11
