# SPDX-License-Identifier: MIT
"""Loads and runs our BPF program by the system's libbpf, through ctypes.

libbpf's messages do not reach the terminal: its warnings are kept for `LoadError`.
"""

import ctypes
import functools
import mmap
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

LIBRARY: Final = "libbpf.so.1"

_WARNING: Final = 0
_LINE_MAX: Final = 1024
# Warnings kept of one load; a failing load of our program prints about ten.
_WARNINGS_MAX: Final = 64
_VERIFIER_LOG_SIZE: Final = 1 << 16
# The program reads no packet, but a test run demands more than an Ethernet header.
_PACKET_SIZE: Final = 64

# The verifier ends its log with statistics; its complaint is the last line before them.
_STATISTICS: Final = re.compile(
    r"(processed \d+ insns|verification time|stack depth|max_states|mark_precise|$)"
)


class LoadError(Exception):
    """The kernel or libbpf refused the program.

    Attributes:
        code: errno, or 0 when libbpf itself is missing or too old.
        complaint: The last line of the verifier's log, or empty.
        warnings: libbpf's warnings.
    """

    def __init__(self, code: int, complaint: str, warnings: list[str]) -> None:
        self.code = code
        self.complaint = complaint
        self.warnings = tuple(warnings)
        super().__init__(complaint or (warnings[-1] if warnings else os.strerror(code)))


class _OpenOptions(ctypes.Structure):
    """The first members of `struct bpf_object_open_opts`; `size` tells libbpf how many."""

    _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


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
    "bpf_prog_test_run_opts": (ctypes.c_int, (ctypes.c_int, _POINTER)),
}

# A va_list is passed as a pointer on every architecture that has both ctypes and BPF.
_PrintFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_warnings: list[str] = []


def _keep(level: int, form: bytes, arguments: int) -> int:
    if level == _WARNING and len(_warnings) < _WARNINGS_MAX:
        line = ctypes.create_string_buffer(_LINE_MAX)
        # NULL names the C library of this process.
        vsnprintf = ctypes.PyDLL(None).vsnprintf
        vsnprintf(line, ctypes.c_size_t(_LINE_MAX), form, ctypes.c_void_p(arguments))
        text = line.value.decode("utf-8", "replace").strip()
        _warnings.extend(text.splitlines())
    return 0


_print_function: Final = _PrintFunction(_keep)


@lru_cache(maxsize=1)
def _library() -> ctypes.PyDLL:
    """libbpf, with its functions declared.

    Calls hold the interpreter's lock: a run takes tens of microseconds, and getting the lock back
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
    """One loaded program and its global variables; not for use by two threads.

    Attributes:
        memory: The program's global variables, shared with it.
        run: Runs it once, in the calling thread's network namespace; returns 0 or a negative errno.
    """

    def __init__(self, image: bytes, name: str, memory_size: int) -> None:
        """Load the object file `image` into the kernel.

        Args:
            image: The ELF file.
            name: The program in it.
            memory_size: Bytes of its zero-initialised global variables.

        Raises:
            LoadError: The kernel or libbpf refused it.
        """
        self._library = _library()
        _warnings.clear()
        options = _OpenOptions(ctypes.sizeof(_OpenOptions), b"nfq_guard")
        self._object = self._library.bpf_object__open_mem(image, len(image), ctypes.byref(options))
        if not self._object:
            raise LoadError(0, "", list(_warnings))
        try:
            self._load(name.encode())
            self._map(memory_size)
        except BaseException:
            self._library.bpf_object__close(self._object)
            raise
        self._packet = ctypes.create_string_buffer(_PACKET_SIZE)
        self._options = _RunOptions(
            size=ctypes.sizeof(_RunOptions),
            data_in=ctypes.addressof(self._packet),
            data_size_in=_PACKET_SIZE,
        )
        # The function once more, without declared types: converting the arguments of each call
        # would take as long as all the rest of it.
        self.run: Callable[[], int] = functools.partial(
            self._library["bpf_prog_test_run_opts"], self._fd, ctypes.byref(self._options)
        )

    def _load(self, name: bytes) -> None:
        program = self._library.bpf_object__find_program_by_name(self._object, name)
        log = ctypes.create_string_buffer(_VERIFIER_LOG_SIZE)
        self._library.bpf_program__set_log_buf(program, log, _VERIFIER_LOG_SIZE)
        result = self._library.bpf_object__load(self._object)
        if result < 0:
            raise LoadError(-result, last_complaint(log.value), list(_warnings))
        # The log buffer ends with this frame; the kernel must not write to it again.
        self._library.bpf_program__set_log_buf(program, None, 0)
        self._fd: int = self._library.bpf_program__fd(program)

    def _map(self, size: int) -> None:
        # A mapping of our own, which outlives the object.
        shared = self._library.bpf_object__find_map_by_name(self._object, b".bss")
        descriptor = self._library.bpf_map__fd(shared)
        self.memory = mmap.mmap(descriptor, size)

    def close(self) -> None:
        """Unload it; `run` must not be called afterwards."""
        if self._object:
            self._library.bpf_object__close(self._object)
            self._object = None


def last_complaint(log: bytes) -> str:
    """The line of a verifier log that names the problem; empty for an empty log."""
    for line in reversed(log.decode("utf-8", "replace").splitlines()):
        text = line.strip()
        if not _STATISTICS.match(text):
            return text
    return ""
