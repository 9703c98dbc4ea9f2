# SPDX-License-Identifier: MIT
"""What counts as a shortage, and not as a bug."""

import errno
import os

import pytest

from nfq_guard.errors import shortage_in


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (MemoryError(), "Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("dictionary changed size during iteration"), ""),
        (OSError(errno.EBADF, os.strerror(errno.EBADF)), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_shortages(error: BaseException, words: str) -> None:
    assert shortage_in(error) == words
