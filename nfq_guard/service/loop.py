# SPDX-License-Identifier: MIT
"""The event loop: descriptors, signals, timers and threads, on the monotonic clock.

Signals reach the loop through a wakeup descriptor. A signal that arrives between two system calls
still ends the wait; with a flag alone it would be missed. Work that takes longer than a packet can
wait runs in a thread (`background`); its result reaches the loop through the same descriptor.
"""

import _thread
import functools
import math
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Final, Self, TypeVar, final

_EVENTS_MAX: Final = 32
# Not a signal number: announces that a thread has finished.
_DONE: Final = b"\0"
# A descriptor whose call keeps raising must not use all CPU time while the daemon ends.
_PAUSE_S: Final = 0.01
# How long a thread that computes keeps the interpreter once the loop wants it. Python's default is
# 5 ms, and the loop wants it twice a turn; benchmarks/README.md has what that costs.
_YIELD_S: Final = 0.0001
# How often the loop looks for threads that ended without a result, while there are any.
_LOOK_S: Final = 0.5

T = TypeVar("T")


@final
class _Timer:
    __slots__ = ("at", "call", "every_s")

    def __init__(self, every_s: float, at: float, call: Callable[[float], None]) -> None:
        self.every_s = every_s
        self.at = at
        self.call = call


@final
class _Job:
    """Work in a thread; the thread holds the only reference to `call`."""

    __slots__ = ("call", "failed")

    def __init__(
        self, call: weakref.ref[functools.partial[None]], failed: Callable[[Exception], None]
    ) -> None:
        self.call = call
        self.failed = failed


@final
class Loop:
    """Waits for descriptors, signals and timers, and calls their functions; main thread only."""

    def __init__(self, survive: Callable[[Exception], None] | None = None) -> None:
        """Watch nothing yet.

        Args:
            survive: Takes exceptions of timers' calls, and all exceptions during `run_until`;
                without it they are raised.
        """
        self._survive = survive
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], object]] = {}
        self._signals: dict[int, Callable[[], None]] = {}
        self._before: dict[int, object] = {}
        self._timers: list[_Timer] = []
        # When the first timer is due.
        self._due = math.inf
        # The time at the end of the last round.
        self._now = time.monotonic()
        self._stopped = False
        self._jobs: list[_Job] = []
        self._done: deque[tuple[_Job | None, Callable[[], None]]] = deque()
        # Whether the timer that looks for threads without a result is set.
        self._looking = False
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.settimeout(0)
        self._wakeup_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._yield_before_s = sys.getswitchinterval()
        sys.setswitchinterval(_YIELD_S)
        self.watch(self._woken.fileno(), self._take_signals)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    @property
    def busy(self) -> bool:
        """Whether a thread of `background` has not finished yet."""
        return bool(self._jobs)

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """Call `call` whenever `fd` is readable or in error."""
        self._ready[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`."""
        del self._ready[fd]
        self._epoll.unregister(fd)

    def forget_if_watched(self, fd: int) -> None:
        """As `forget`, if it is watched."""
        if fd in self._ready:
            self.forget(fd)

    def writing(self, fd: int, *, only: bool) -> None:
        """Watch `fd` for writing, or for reading again."""
        self._epoll.modify(fd, select.EPOLLOUT if only else select.EPOLLIN)

    def background(
        self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]
    ) -> None:
        """Do `work` in a thread; then the loop calls `done` or `failed`, if it still runs.

        One of the two is called even if the thread fails. Without memory the thread may not start,
        or may end before its first line; `threading` waits for that line, and would wait forever.
        """

        def body() -> None:
            # As `threading` does, for debuggers and for coverage.
            sys.settrace(threading.gettrace())
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed to `failed`
                self._finish(job, functools.partial(failed, error))
            else:
                self._finish(job, functools.partial(done, result))

        # Out of memory, CPython 3.11 leaks the function that it cannot call, but not the wrapped
        # one.
        call = functools.partial(body)
        job = _Job(weakref.ref(call), failed)
        self._jobs.append(job)
        try:
            _thread.start_new_thread(call, ())
        except (RuntimeError, MemoryError) as error:  # no further thread can be started
            self._finish(job, functools.partial(failed, error))
        if not self._looking:
            self._looking = True
            self.after(_LOOK_S, self._look)

    def soon(self, call: Callable[[], None]) -> None:
        """Call soon; may be used from any thread."""
        self._finish(None, call)

    def every(self, seconds: float, call: Callable[[float], None]) -> None:
        """Call with the monotonic time about every `seconds`; missed calls are skipped."""
        self._add(seconds, seconds, call)

    def after(self, seconds: float, call: Callable[[float], None]) -> None:
        """Call once with the monotonic time, in about `seconds`."""
        self._add(0.0, seconds, call)

    def on(self, number: signal.Signals, call: Callable[[], None]) -> None:
        """Call from the loop, never from within other code, after the signal has arrived."""
        self._before[number] = signal.signal(number, _ignore)
        self._signals[number] = call

    def stop(self) -> None:
        """Make `run` return after this round."""
        self._stopped = True

    def run(self) -> None:
        """Run until `stop` is called; return at once if it was called before."""
        while not self._stopped:
            self.turn(None)

    def run_until(self, done: Callable[[], bool], until: Callable[[], float]) -> bool:
        """Run until `done()`, at most until the monotonic time `until()`, despite exceptions.

        Both functions are called before each round. Returns the last result of `done`.
        """
        while not done():
            left = until() - time.monotonic()
            if left <= 0:
                return False
            try:
                self.turn(left)
            except Exception as error:
                if self._survive is None:
                    raise
                self._survive(error)
                time.sleep(_PAUSE_S)
        return True

    def turn(self, wait_s: float | None) -> None:
        """One round: wait for an event, at most `wait_s`, and call what is due."""
        if self._due < math.inf:
            until = max(0.0, self._due - self._now)
            wait_s = until if wait_s is None else min(wait_s, until)
        for fd, _ in self._epoll.poll(wait_s, _EVENTS_MAX):
            call = self._ready.get(fd)
            if call is not None:
                call()
        now = time.monotonic()
        self._now = now
        if now >= self._due:
            self._call_due(now)

    def close(self) -> None:
        """Restore signal handlers and the interpreter's interval, and close."""
        sys.setswitchinterval(self._yield_before_s)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave us
        signal.set_wakeup_fd(self._wakeup_before)
        self._epoll.close()
        self._waker.close()
        self._woken.close()

    def _call_due(self, now: float) -> None:
        for timer in list(self._timers):
            if now >= timer.at:
                if timer.every_s:
                    timer.at = now + timer.every_s
                else:
                    self._timers.remove(timer)
                self._call(timer, now)
        self._find_due()

    def _call(self, timer: _Timer, now: float) -> None:
        try:
            timer.call(now)
        except Exception as error:
            if self._survive is None:
                raise
            self._survive(error)

    def _add(self, every_s: float, in_s: float, call: Callable[[float], None]) -> None:
        self._now = time.monotonic()
        self._timers.append(_Timer(every_s, self._now + in_s, call))
        self._find_due()

    def _find_due(self) -> None:
        self._due = min((timer.at for timer in self._timers), default=math.inf)

    def _take_signals(self) -> None:
        try:
            numbers = self._woken.recv(4096)
        except BlockingIOError:
            return
        for number in dict.fromkeys(numbers):
            call = self._signals.get(number)
            if call is not None:
                call()
        while self._done:
            job, done = self._done.popleft()
            if job is not None:
                self._jobs.remove(job)
            done()

    def _look(self, _now: float) -> None:
        """Report the failure of threads that have ended without a result."""
        # A thread that has ended adds no result after this point.
        ended = [job for job in self._jobs if job.call() is None]
        finished = [job for job, _ in list(self._done)]
        for job in ended:
            if job not in finished:
                error = MemoryError("its thread ended without a result: out of memory")
                self._done.append((job, functools.partial(job.failed, error)))
        # Also for a thread that ended after its result but before it woke the loop.
        if self._done:
            self._wake()
        self._looking = bool(self._jobs)
        if self._looking:
            self.after(_LOOK_S, self._look)

    def _finish(self, job: _Job | None, call: Callable[[], None]) -> None:
        self._done.append((job, call))
        self._wake()

    def _wake(self) -> None:
        try:
            self._waker.send(_DONE)
        except BlockingIOError:
            return  # bytes are waiting, so the loop will look
        except OSError:
            return  # it is closed


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler that does nothing: Python writes to the wakeup descriptor only if there is one."""
