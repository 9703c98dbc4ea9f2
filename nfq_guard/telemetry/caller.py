# SPDX-License-Identifier: MIT
"""A thread for calls that a file system may not answer."""

import _thread
import errno
import os
from collections.abc import Callable
from typing import Final, final

# Time for which a result is waited for at the end, where what is not written is lost, seconds.
_LAST_ANSWER_S: Final = 1.0
# Time within which a thread starts, seconds.
_START_S: Final = 1.0
# Made in time: without memory it could not be.
_NO_MEMORY: Final = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@final
class Caller:
    """A thread that makes one call at a time, for calls that a file system may not answer.

    No signal interrupts a write to a file system that is frozen for a snapshot, or whose server is
    gone.
    """

    def __init__(self, late: Callable[[], object], answer_s: float) -> None:
        """Start the thread.

        Args:
            late: Called in the thread after each call whose result was not there in time.
            answer_s: Time for which a call may keep the caller waiting, seconds.

        Raises:
            RuntimeError: It does not start, as without the memory for it.
        """
        self._late = late
        self._is_late = False
        self._answer_s = answer_s
        self._call: Callable[[], object] | None = None
        self._result: object = None
        self._error: OSError | None = None
        self._patience_s: float | None = None
        self._wanted = _thread.allocate_lock()
        self._made = _thread.allocate_lock()
        self._wanted.acquire()
        self._made.acquire()
        self._purpose = ""
        _thread.start_new_thread(self._run, ())
        if not self._made.acquire(timeout=_START_S):
            raise RuntimeError

    @property
    def is_busy(self) -> bool:
        """Whether it makes a call whose result was not fetched."""
        return bool(self._purpose)

    def makes(self, purpose: str) -> bool:
        """Whether it makes a call for this purpose, as `is_busy`."""
        return self._purpose == purpose

    def result(self, purpose: str, call: Callable[[], object]) -> object:
        """The result of `call`, or of the call for the same purpose that is being made.

        Raises:
            BlockingIOError: None yet. The result of the call is that of a later one.
            OSError: The call raised it.
        """
        if self._purpose not in {"", purpose}:
            self._await(0.0)  # nobody needs that result any more
            self._error = None
        patience_s = 0.0
        if not self._purpose:
            self._purpose = purpose
            self._call = call
            self._is_late = False
            self._wanted.release()
            patience_s = self._answer_s
        self._await(patience_s)
        error, self._error = self._error, None
        if error is not None:
            raise error.with_traceback(None)
        return self._result

    def wait_longer(self) -> None:
        """From now on wait longer for results, until one is not there after that time."""
        if self._patience_s is None:
            self._patience_s = _LAST_ANSWER_S

    def end(self) -> bool:
        """End the thread. False while it makes a call: it ends with the process."""
        if self._purpose:
            try:
                self._await(0.0)
            except BlockingIOError:
                return False
        self._call = None
        self._wanted.release()
        return True

    def _await(self, patience_s: float) -> None:
        if not self._made.acquire(timeout=self._patience_s or patience_s):
            if self._patience_s is not None:
                self._patience_s = 0.0
            self._is_late = True
            # The thread may have looked at that before.
            if not self._made.acquire(blocking=False):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._purpose = ""

    def _run(self) -> None:
        self._made.release()
        while True:
            self._wanted.acquire()
            call = self._call
            if call is None:
                return
            try:
                self._result = call()
            except OSError as error:
                self._error = error
            except MemoryError:
                self._error = _NO_MEMORY
            self._made.release()
            if self._is_late:
                self._late()
