# SPDX-License-Identifier: MIT
import os
import random
import signal
import threading
import time

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
    """Signals at arbitrary instants, each to be acted on before the next is sent."""
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
