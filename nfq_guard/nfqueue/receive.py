# SPDX-License-Identifier: MIT
"""Receives many netlink messages in one system call, which Python's sockets cannot.

One at a time, eight messages cost half as much again. The count also shows that no more wait;
Python needs another call for that, which ends in an exception.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Final, final

# Messages that one call can receive.
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
    """`struct mmsghdr`. Its length is not read: each netlink message has its own."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


@final
class Inbox:
    """Receives the messages of one socket into slots; not for use by two threads.

    Attributes:
        room: The slots, one after another; each message is at the start of its slot.
        slot_bytes: Size of a slot; longer messages are truncated.
        receive: Receives messages into the slots. Takes the maximum number (`SLOTS` or less), flags
            as of `socket.recv`, and None for no time limit. Returns the number received, or -1 with
            the errno in `reason`. With fewer than the maximum, no more wait, or the next call
            fails.
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
        # Holds the interpreter's lock, because the call does not block. Its arguments are created
        # once and their types are not declared: conversion would take as long as all the rest.
        self.receive: Callable[[int, int, None], int] = functools.partial(
            ctypes.PyDLL(None, use_errno=True).recvmmsg, fd, ctypes.byref(self._messages)
        )


def reason() -> int:
    """The errno of this thread's last `receive`, for example EAGAIN or ENOBUFS."""
    return ctypes.get_errno()
