# SPDX-License-Identifier: MIT
"""Takes many messages of a netlink socket in one system call, which Python's sockets cannot.

One by one, eight messages cost half as much again; and that nothing more waits is told by the
count, where it takes Python a call of its own and the exception that this ends with.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Final, final

# Messages that one call can take.
SLOTS: Final = 64


class _Buffer(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr`."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("buffers", ctypes.c_void_p),
        ("buffer_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr`. A netlink message says its length itself, so this one is not read."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


@final
class Inbox:
    """Where the messages of one socket are put; not for use by two threads.

    Attributes:
        room: The slots, one after another; each message is at the start of its own.
        slot_bytes: Size of a slot; what a message has more is cut off.
        receive: Puts messages into the slots. Wants how many at most (`SLOTS` or less), flags
            as for `socket.recv`, and None for no time limit; gives how many there were, or -1 and
            then `reason` tells why. Fewer than wanted means that no more wait, or that the next
            call has a reason.
    """

    def __init__(self, fd: int, slot_bytes: int) -> None:
        """Read `fd`, which must stay open as long as this is used."""
        self.slot_bytes = slot_bytes
        self.room = mmap.mmap(-1, SLOTS * slot_bytes)
        room_at = ctypes.addressof(ctypes.c_char.from_buffer(self.room))
        self._buffers = (_Buffer * SLOTS)()
        self._messages = (_Message * SLOTS)()
        for number in range(SLOTS):
            self._buffers[number].base = room_at + number * slot_bytes
            self._buffers[number].length = slot_bytes
            header = self._messages[number].header
            header.buffers = ctypes.addressof(self._buffers[number])
            header.buffer_count = 1
        # With the interpreter's lock held, for the call does not wait. Its arguments are made once
        # and their types not declared: to convert them takes as long as all the rest.
        self.receive: Callable[[int, int, None], int] = functools.partial(
            ctypes.PyDLL(None, use_errno=True).recvmmsg, fd, ctypes.byref(self._messages)
        )


def reason() -> int:
    """Why the last `receive` of this thread gave -1: an errno, such as EAGAIN or ENOBUFS."""
    return ctypes.get_errno()
