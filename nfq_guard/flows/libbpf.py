# SPDX-License-Identifier: MIT
"""Loads, pins, opens and runs our BPF program with the system's libbpf, through ctypes.

libbpf prints nothing to the terminal: its warnings are kept for `LoadError`.
"""

import ctypes
import functools
import mmap
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

LIBRARY: Final = "libbpf.so.1"

_WARNING: Final = 0
_LINE_MAX: Final = 1024
# Maximum number of warnings kept from one load; a failing load of our program prints about ten.
_WARNINGS_MAX: Final = 64
_VERIFIER_LOG_SIZE: Final = 1 << 16
# The program reads no packet, but a test run demands more than an Ethernet header.
_PACKET_SIZE: Final = 64
# BPF_F_RDONLY: opening a pin takes only the right to read it.
_READ_ONLY: Final = 1 << 3

# The log of the verifier ends with statistics; the error is the last line before them.
_STATISTICS: Final = re.compile(
    r"(processed \d+ insns|verification time|stack depth|max_states|mark_precise|$)"
)


class LoadError(Exception):
    """The kernel or libbpf refused the program.

    Attributes:
        code: errno, or 0 when libbpf itself is missing or too old.
        warnings: libbpf's warnings.
    """

    def __init__(self, code: int, complaint: str, warnings: list[str]) -> None:
        """`complaint` is the last line of the verifier's log, or empty."""
        self.code = code
        self.warnings = tuple(warnings)
        super().__init__(complaint or (warnings[-1] if warnings else os.strerror(code)))


class _OpenOptions(ctypes.Structure):
    """The first members of `struct bpf_object_open_opts`; `size` states their length."""

    _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


class _GetOptions(ctypes.Structure):
    """The first members of `struct bpf_obj_get_opts`."""

    _fields_ = (("size", ctypes.c_size_t), ("file_flags", ctypes.c_uint32))


class _RunOptions(ctypes.Structure):
    """`struct bpf_test_run_opts`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_POINTER: Final = ctypes.c_void_p
# Result and arguments of each function.
_SIGNATURES: Final[dict[str, tuple[type | None, tuple[type, ...]]]] = {
    "bpf_object__open_mem": (_POINTER, (_POINTER, ctypes.c_size_t, _POINTER)),
    "bpf_object__load": (ctypes.c_int, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__find_program_by_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "bpf_program__fd": (ctypes.c_int, (_POINTER,)),
    "bpf_program__set_log_buf": (ctypes.c_int, (_POINTER, _POINTER, ctypes.c_size_t)),
    "bpf_map__fd": (ctypes.c_int, (_POINTER,)),
    "bpf_obj_pin": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_obj_get_opts": (ctypes.c_int, (ctypes.c_char_p, _POINTER)),
    "bpf_prog_test_run_opts": (ctypes.c_int, (ctypes.c_int, _POINTER)),
}

# A va_list is passed as a pointer on every architecture with both ctypes and BPF.
_PrintFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_warnings: list[str] = []


def _keep(level: int, form: bytes, arguments: int) -> int:
    if level == _WARNING and len(_warnings) < _WARNINGS_MAX:
        line = ctypes.create_string_buffer(_LINE_MAX)
        # NULL means the C library of this process.
        vsnprintf = ctypes.PyDLL(None).vsnprintf
        vsnprintf(line, ctypes.c_size_t(_LINE_MAX), form, ctypes.c_void_p(arguments))
        text = line.value.decode("utf-8", "replace").strip()
        _warnings.extend(text.splitlines())
    return 0


_print_function: Final = _PrintFunction(_keep)


@lru_cache(maxsize=1)
def _library() -> ctypes.PyDLL:
    """libbpf, with its functions declared.

    Calls hold the interpreter's lock: a run takes tens of microseconds, but reacquiring the lock
    from a busy thread can take milliseconds.

    Raises:
        LoadError: libbpf is not installed or lacks a function.
    """
    try:
        library = ctypes.PyDLL(LIBRARY)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise LoadError(0, str(error), []) from None
    library.libbpf_set_print(_print_function)
    return library


class Program:
    """A program in the kernel and its global variables; not thread-safe.

    Attributes:
        memory: The program's global variables, shared with it.
        run: Runs it once, in the calling thread's network namespace; returns 0 or a negative errno.
        descriptors: The file descriptors of the program and of its memory.
        closing: Closed by `close`.
    """

    def __init__(
        self, descriptor: int, memory_fd: int, memory_size: int, opened: ExitStack
    ) -> None:
        """Use an open program; `load` and `open_pinned` create instances.

        Args:
            descriptor: File descriptor of the program.
            memory_fd: File descriptor of the map that holds its global variables.
            memory_size: Bytes of the global variables.
            opened: Closes the descriptors; taken over unless the construction fails.
        """
        # This mapping outlives the descriptor.
        self.memory = mmap.mmap(memory_fd, memory_size)
        self.descriptors = (descriptor, memory_fd)
        self.closing = opened.pop_all()
        self._packet = ctypes.create_string_buffer(_PACKET_SIZE)
        self._options = _RunOptions(
            size=ctypes.sizeof(_RunOptions),
            data_in=ctypes.addressof(self._packet),
            data_size_in=_PACKET_SIZE,
        )
        # The same function without declared types: conversion of the arguments would take as long
        # as the rest of the call.
        self.run: Callable[[], int] = functools.partial(
            _library()["bpf_prog_test_run_opts"], descriptor, ctypes.byref(self._options)
        )

    @classmethod
    def load(cls, image: bytes, name: str, memory_size: int) -> Self:
        """Load an object file into the kernel.

        Args:
            image: The ELF file.
            name: The program in it.
            memory_size: Bytes of its zero-initialised global variables.

        Raises:
            LoadError: The kernel or libbpf refused it.
        """
        library = _library()
        _warnings.clear()
        options = _OpenOptions(ctypes.sizeof(_OpenOptions), b"nfq_guard")
        found = library.bpf_object__open_mem(image, len(image), ctypes.byref(options))
        if not found:
            raise LoadError(0, "", list(_warnings))
        with ExitStack() as stack:
            stack.callback(library.bpf_object__close, found)
            loaded = _load(library, found, name.encode())
            variables = library.bpf_object__find_map_by_name(found, b".bss")
            # Two duplicates, which a child process can inherit, instead of all descriptors of
            # libbpf.
            with ExitStack() as opened:
                descriptor = os.dup(loaded)
                opened.callback(os.close, descriptor)
                memory_fd = os.dup(library.bpf_map__fd(variables))
                opened.callback(os.close, memory_fd)
                return cls(descriptor, memory_fd, memory_size, opened)

    @classmethod
    def open_pinned(cls, program: Path, memory: Path, memory_size: int) -> Self:
        """Open a pinned program. Requires rights on the two files, but no capability.

        Args:
            program: The program's pin, which this process must be allowed to read.
            memory: The pin of its global variables, to be read and written.
            memory_size: Bytes of the global variables.

        Raises:
            LoadError: libbpf is missing.
            OSError: The kernel refused; the file is named.
        """
        with ExitStack() as stack:
            descriptor = _get(program, stack, _READ_ONLY)
            memory_fd = _get(memory, stack, 0)
            return cls(descriptor, memory_fd, memory_size, stack)

    def pin(self, program: Path, memory: Path) -> None:
        """Pin program and global variables under these names in a BPF file system.

        Raises:
            OSError: The kernel refused; the file is named.
        """
        for descriptor, path in zip(self.descriptors, (program, memory), strict=True):
            code = _library().bpf_obj_pin(descriptor, os.fsencode(path))
            if code < 0:
                raise OSError(-code, os.strerror(-code), str(path))

    def close(self) -> None:
        """Close the program; `run` must not be called afterwards. An unpinned program is freed."""
        self.closing.close()


def _load(library: ctypes.PyDLL, found: int, name: bytes) -> int:
    """Load an opened object; returns the file descriptor of its program."""
    program = library.bpf_object__find_program_by_name(found, name)
    log = ctypes.create_string_buffer(_VERIFIER_LOG_SIZE)
    library.bpf_program__set_log_buf(program, log, _VERIFIER_LOG_SIZE)
    result = library.bpf_object__load(found)
    if result < 0:
        raise LoadError(-result, last_complaint(log.value), list(_warnings))
    # The log buffer is freed with this frame; the kernel must not write to it again.
    library.bpf_program__set_log_buf(program, None, 0)
    descriptor: int = library.bpf_program__fd(program)
    return descriptor


def _get(path: Path, stack: ExitStack, flags: int) -> int:
    options = _GetOptions(ctypes.sizeof(_GetOptions), flags)
    descriptor: int = _library().bpf_obj_get_opts(os.fsencode(path), ctypes.byref(options))
    if descriptor < 0:
        raise OSError(-descriptor, os.strerror(-descriptor), str(path))
    stack.callback(os.close, descriptor)
    return descriptor


def last_complaint(log: bytes) -> str:
    """The line of a verifier log that names the problem; empty for an empty log."""
    for line in reversed(log.decode("utf-8", "replace").splitlines()):
        text = line.strip()
        if not _STATISTICS.match(text):
            return text
    return ""
