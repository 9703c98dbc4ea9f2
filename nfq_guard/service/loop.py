# SPDX-License-Identifier: MIT
"""The one place that waits: descriptors, signals and timers, on the monotonic clock.

Signals reach the loop through a wakeup descriptor, so that one which comes while nothing else
happens, or between two system calls, still ends the wait; a flag alone would lose some. Work that
takes longer than a packet can wait goes on in a thread and comes back the same way.
"""

import functools
import math
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Final, Self, TypeVar, final

_EVENTS_MAX: Final = 32
# No signal has this number: a thread is done.
_DONE: Final = b"\0"

T = TypeVar("T")


@final
class _Timer:
    __slots__ = ("at", "call", "every_s")

    def __init__(self, every_s: float, at: float, call: Callable[[float], None]) -> None:
        self.every_s = every_s
        self.at = at
        self.call = call


@final
class Loop:
    """Waits and calls; only in the main thread, as signals are its business."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], object]] = {}
        self._signals: dict[int, Callable[[], None]] = {}
        self._before: dict[int, object] = {}
        self._timers: list[_Timer] = []
        # When the first of them is due.
        self._due = math.inf
        # As of the end of the last round: what it took since is no matter to a timer.
        self._now = time.monotonic()
        self._stopped = False
        self._done: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.settimeout(0)
        self._wakeup_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self.watch(self._woken.fileno(), self._take_signals)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """Call whenever `fd` can be read; an error of it counts as that too."""
        self._ready[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Watch it no more."""
        del self._ready[fd]
        self._epoll.unregister(fd)

    def forget_if_watched(self, fd: int) -> None:
        """As `forget`, if it is."""
        if fd in self._ready:
            self.forget(fd)

    def writing(self, fd: int, *, only: bool) -> None:
        """Call for a watched `fd` when it can be written, and not when it can be read; or undo."""
        self._epoll.modify(fd, select.EPOLLOUT if only else select.EPOLLIN)

    def background(
        self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]
    ) -> None:
        """Do `work` in a thread; then call one of the two from the loop, if it still goes round."""

        def body() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - it belongs to whom the loop hands it to
                self._finish(functools.partial(failed, error))
            else:
                self._finish(functools.partial(done, result))

        threading.Thread(target=body, name="background", daemon=True).start()

    def every(self, seconds: float, call: Callable[[float], None]) -> None:
        """Call with the monotonic time about every so many seconds; missed ones are not made up."""
        self._add(seconds, seconds, call)

    def after(self, seconds: float, call: Callable[[float], None]) -> None:
        """Call once with the monotonic time, in about so many seconds."""
        self._add(0.0, seconds, call)

    def on(self, number: signal.Signals, call: Callable[[], None]) -> None:
        """Call from the loop, never from within other code, when the signal came."""
        self._before[number] = signal.signal(number, _ignore)
        self._signals[number] = call

    def stop(self) -> None:
        """Let `run` end after this round."""
        self._stopped = True

    def run(self) -> None:
        """Go round until `stop`, also if that was called before."""
        while not self._stopped:
            self.turn(None)

    def turn(self, wait_s: float | None) -> None:
        """One round: wait for something, at most `wait_s`, and call what is due."""
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
        """Give signals back to whom they belonged before."""
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
                timer.call(now)
        self._find_due()

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
            self._done.popleft()()

    def _finish(self, call: Callable[[], None]) -> None:
        """From a thread: have the loop call, soon."""
        self._done.append(call)
        try:
            self._waker.send(_DONE)
        except BlockingIOError:
            return  # it is about to look anyway
        except OSError:
            return  # it is closed


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor tells the loop; Python wants a handler for it to do so."""
