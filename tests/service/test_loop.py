# SPDX-License-Identifier: MIT
import _thread
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import pytest

from nfq_guard.service.loop import Loop


def test_descriptor() -> None:
    reading, writing = os.pipe()
    with Loop() as loop:
        seen: list[bytes] = []
        loop.watch(reading, lambda: seen.append(os.read(reading, 10)))
        os.write(writing, b"x")
        loop.turn(1)
        loop.turn(0)
        assert seen == [b"x"]
        loop.forget(reading)
        os.write(writing, b"y")
        loop.turn(0)
        assert seen == [b"x"]
    os.close(reading)
    os.close(writing)


def test_signal_ends_a_wait_for_nothing() -> None:
    with Loop() as loop:
        loop.on(signal.SIGTERM, loop.stop)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        loop.run()
        assert time.monotonic() - started < 5


def test_stop_before_run_counts() -> None:
    with Loop() as loop:
        loop.stop()
        loop.run()


def test_no_signal_is_lost() -> None:
    """Signals at arbitrary times, each of which must take effect before the next is sent."""
    dice = random.Random(1)  # noqa: S311 - instants, no secrets
    with Loop() as loop:
        hits: list[int] = []
        loop.on(signal.SIGALRM, lambda: hits.append(1))
        loop.on(signal.SIGTERM, loop.stop)
        for number in range(1, 2001):
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 3e-4))
            while len(hits) < number:
                before = len(hits)
                loop.turn(5)
                assert len(hits) > before, "a signal was lost"


def test_timers() -> None:
    with Loop() as loop:
        ticks: list[float] = []
        loop.every(0.01, ticks.append)
        deadline = time.monotonic() + 5
        while len(ticks) < 3 and time.monotonic() < deadline:
            loop.turn(None)
        assert len(ticks) == 3
        assert ticks == sorted(ticks)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Loop() as loop:
        loop.on(signal.SIGUSR1, loop.stop)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_once_is_once() -> None:
    with Loop() as loop:
        called: list[float] = []
        loop.after(0.01, called.append)
        loop.every(0.02, lambda _now: loop.stop() if len(called) else None)
        loop.run()
        loop.turn(0.02)
        assert len(called) == 1


def test_background_work_comes_back_to_the_loop() -> None:
    with Loop() as loop:
        told: list[object] = []

        def failed(error: Exception) -> None:
            told.append(str(error))
            loop.stop()

        def raises() -> None:
            raise ValueError("no")

        loop.background(threading.get_ident, told.append, failed)
        loop.turn(1)
        loop.background(raises, told.append, failed)
        loop.run()
        assert told[0] != threading.get_ident()
        assert told[1] == "no"


def test_a_call_for_the_loop_from_another_thread() -> None:
    with Loop() as loop:
        made_in: list[int] = []

        def call() -> None:
            made_in.append(threading.get_ident())
            loop.stop()

        other = threading.Thread(target=loop.soon, args=(call,))
        other.start()
        loop.run()
        other.join()
        assert made_in == [threading.get_ident()]
        assert not loop.busy


def test_threads_yield_to_the_loop_soon() -> None:
    """`make bench` measures what it brings; the process has its interval back afterwards."""
    before = sys.getswitchinterval()
    with Loop():
        assert sys.getswitchinterval() < before / 10
    assert sys.getswitchinterval() == before


def test_run_until_done() -> None:
    with Loop() as loop:
        rounds: list[float] = []
        loop.every(0.001, rounds.append)
        soon = time.monotonic() + 60
        assert loop.run_until(lambda: len(rounds) >= 3, lambda: soon)
        assert len(rounds) >= 3


def test_run_until_a_bound_that_moves() -> None:
    """The bound is read anew before each round: a second signal can shorten it to now."""
    with Loop() as loop:
        hurried: list[float] = []
        loop.after(0.001, hurried.append)
        until = time.monotonic() + 3600
        assert not loop.run_until(lambda: False, lambda: 0.0 if hurried else until)
        assert len(hurried) == 1


def test_run_until_survives_what_is_raised() -> None:
    problems: list[Exception] = []
    reading, writing = os.pipe()
    with Loop(problems.append) as loop:

        def raises() -> None:
            raise ValueError(os.read(reading, 1))

        loop.watch(reading, raises)
        os.write(writing, b"x")
        soon = time.monotonic() + 60
        assert loop.run_until(lambda: bool(problems), lambda: soon)
        assert [str(problem) for problem in problems] == ["b'x'"]
    os.close(reading)
    os.close(writing)


def test_run_until_without_survivor_raises() -> None:
    with Loop() as loop:

        def raises(_now: float) -> None:
            raise ValueError("no")

        loop.after(0.0, raises)
        soon = time.monotonic() + 60
        with pytest.raises(ValueError, match="no"):
            loop.run_until(lambda: False, lambda: soon)


def test_timers_survive_what_is_raised() -> None:
    problems: list[Exception] = []
    with Loop(problems.append) as loop:

        def raises(_now: float) -> None:
            raise ValueError("no")

        loop.every(0.001, raises)
        while len(problems) < 2:
            loop.turn(1)
    assert {str(problem) for problem in problems} == {"no"}


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("none")])
def test_threads_that_cannot_start_fail_in_the_loop(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_body: Callable[[], None], _args: tuple[()]) -> None:
        raise error

    monkeypatch.setattr(_thread, "start_new_thread", start)
    with Loop() as loop:
        failed: list[Exception] = []
        loop.background(time.monotonic, lambda _result: None, failed.append)
        assert loop.busy
        assert failed == []
        loop.turn(1)
        assert failed == [error]
        assert not loop.busy


def test_a_thread_that_ends_before_its_first_line_fails_in_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Callable[[], None]] = []

    def start(body: Callable[[], None], _args: tuple[()]) -> None:
        begun.append(body)

    monkeypatch.setattr(_thread, "start_new_thread", start)
    with Loop() as loop:
        failed: list[Exception] = []
        told: list[int] = []
        soon = time.monotonic() + 60
        loop.background(lambda: 1, told.append, failed.append)
        loop.background(lambda: 2, told.append, failed.append)
        # A thread that ends without a result, while another still works.
        del begun[0]
        assert loop.run_until(lambda: bool(failed), lambda: soon)
        assert [type(error) for error in failed] == [MemoryError]
        assert loop.busy
        thread = threading.Thread(target=begun[0])
        thread.start()
        thread.join()
        del begun[0]
        assert loop.run_until(lambda: not loop.busy, lambda: soon)
        assert told == [2]
        # Later work is watched too.
        loop.background(lambda: 3, told.append, failed.append)
        del begun[0]
        assert loop.run_until(lambda: not loop.busy, lambda: soon)
        assert len(failed) == 2


def test_what_one_thread_s_caller_raises_leaves_no_other_waiting() -> None:
    problems: list[Exception] = []
    with Loop(problems.append) as loop:
        told: list[int] = []
        both = threading.Barrier(3, timeout=60)

        def raises(_result: int) -> None:
            raise ValueError("no")

        loop.background(both.wait, raises, problems.append)
        loop.background(both.wait, told.append, problems.append)
        both.wait()
        soon = time.monotonic() + 60
        assert loop.run_until(lambda: not loop.busy, lambda: soon)
        assert [str(problem) for problem in problems] == ["no"]
        assert len(told) == 1


_NARROW: Final = """
import contextlib, os, resource, sys, threading, time
from nfq_guard.service.loop import Loop

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096

if sys.argv[1] == "nproc":
    os.setgid(65534)
    os.setuid(65534)
    limits = [(resource.RLIMIT_NPROC, 1)] * 3
else:
    # From where no stack fits to where all of a thread does.
    threading.stack_size(1 << 17)
    limits = [(resource.RLIMIT_AS, size() + more) for more in range(0, 1 << 20, 1 << 13)]
answers = []
with Loop() as loop:
    for which, limit in limits:
        before = resource.getrlimit(which)
        resource.setrlimit(which, (limit, before[1]))
        with contextlib.suppress(MemoryError):
            loop.background(int, answers.append, answers.append)
            until = time.monotonic() + 30
            assert loop.run_until(lambda: not loop.busy, lambda: until), answers
        resource.setrlimit(which, before)
kinds = sorted({type(one).__name__ + ": " + str(one) for one in answers})
for line in (len(limits), len(answers), *kinds):
    print(line)
"""


@pytest.mark.parametrize("limit", ["nproc", "as"])
def test_threads_that_a_limit_of_the_process_forbids(limit: str) -> None:
    if limit == "nproc" and os.geteuid():
        pytest.skip("only root becomes another user, whose processes have a limit")
    done = subprocess.run(
        [sys.executable, "-c", _NARROW, limit],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    wanted, answered, *kinds = done.stdout.splitlines()
    assert answered == wanted
    assert "RuntimeError: can't start new thread" in kinds
    if limit == "as":
        assert "int: 0" in kinds
