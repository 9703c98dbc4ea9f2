# SPDX-License-Identifier: MIT
"""Reads a file or standard input, decompressing gzip, xz and zstd on the fly.

Compression is recognised by magic number. A small hostile file can demand a large dictionary, so
`_MEMORY_LIMIT` and `_ZSTD_WINDOW_LOG` bound the memory that decompression may take.
"""

import gzip
import importlib
import lzma
import os
import re
import stat
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from nfq_guard.capture.frame import CaptureError
from nfq_guard.errors import UnavailableError

STDIN: Final = "-"

_CHUNK: Final = 1 << 16
_MEMORY_LIMIT: Final = 1 << 28
_ZSTD_WINDOW_LOG: Final = 27

_MAGIC_BYTES: Final = 6
_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\x00"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# Compressions of others, by their first bytes.
_OTHER_COMPRESSIONS: Final = {
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
    b"\x1f\x9d": "compress",
    b"Rar!": "RAR",
}
# The numbers of /dev/null, which ends at once (the kernel's admin-guide/devices.txt).
_NULL_DEVICE: Final = (1, 3)
# Control characters that no text has.
_NO_TEXT: Final = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f]")

# Of RFC 8878: a frame with a magic number in this range is skipped.
_ZSTD_SKIPPABLE: Final = 0x184D2A50
_ZSTD_DICTIONARY_ID_BYTES: Final = (0, 1, 2, 4)
_ZSTD_RLE_BLOCK: Final = 1
_ZSTD_CHECKSUM_BYTES: Final = 4


def is_text(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be a text."""
    return _NO_TEXT.search(head) is None


def described(head: bytes) -> str:
    """What a file that begins with these bytes is, for a message; empty for unknown binary data."""
    for magic, name in _OTHER_COMPRESSIONS.items():
        if head.startswith(magic):
            return f"a file compressed by {name}; gzip, xz and zstd are supported"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return "JSON"
    if is_text(head):
        return "a text"
    return "" if head.strip(b"\0") else "zero bytes"


def shown(name: str) -> str:
    """The name of a file for a message; `-` is standard input."""
    return "standard input" if name == STDIN else name or "''"


def _is_endless(status: os.stat_result, fd: int) -> bool:
    """Whether an open file is a device that may never end, such as /dev/zero or /dev/kmsg."""
    return (
        stat.S_ISCHR(status.st_mode)
        and status.st_rdev != os.makedev(*_NULL_DEVICE)
        and not os.isatty(fd)
    )


class DamagedError(Exception):
    """The compressed data is truncated or corrupt, or reading failed."""


class _Reads(Protocol):
    def read1(self, size: int, /) -> bytes:
        """Read up to `size` bytes; empty only at the end."""


class _Counted:
    """A file that counts the bytes read from it, and whose magic number can be inspected first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._head = b""
        # A read from a pipe may return less than requested.
        while len(self._head) < _MAGIC_BYTES and (more := os.read(file.fileno(), _CHUNK)):
            self._head += more
        self.consumed = 0

    def starts(self, magic: bytes) -> bool:
        return self._head.startswith(magic)

    def read1(self, size: int = _CHUNK) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = os.read(self._file.fileno(), size)
        self.consumed += len(data)
        return data

    # gzip and zstd call `read`, and accept a short result.
    read = read1


class _Xz:
    """Decompresses concatenated xz streams within the memory limit."""

    def __init__(self, raw: _Counted) -> None:
        self._raw = raw
        self._stream = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)

    def read1(self, size: int) -> bytes:
        while True:
            stream = self._stream
            if stream.eof:
                rest = stream.unused_data.lstrip(b"\0") or self._raw.read1().lstrip(b"\0")
                if not rest:
                    return b""
                self._stream = self._new()
                data = self._stream.decompress(rest, size)
            elif stream.needs_input:
                compressed = self._raw.read1()
                if not compressed:
                    raise EOFError
                data = stream.decompress(compressed, size)
            else:
                data = stream.decompress(b"", size)
            if data:
                return data


class _ZstdFrames:
    """Hands on zstd frames, and follows their structure (RFC 8878, section 3.1).

    The package zstandard does not tell the end of a frame from the end of a truncated file.

    Attributes:
        complete: Whether the bytes so far end with a frame.
    """

    def __init__(self, raw: _Counted) -> None:
        self._raw = raw
        self._held = b""
        self._skip = 0
        self._checksum_bytes = 0
        self._within = False

    @property
    def complete(self) -> bool:
        return not (self._held or self._skip or self._within)

    def read(self, size: int = _CHUNK) -> bytes:
        octets = self._raw.read(size)
        data = self._held + octets
        at = self._skip
        while at < len(data) and (length := self._length(data, at)):
            at += length
        self._skip = max(at - len(data), 0)
        self._held = data[at:]
        return octets

    def _length(self, data: bytes, at: int) -> int:
        """Bytes of the frame header or block at `at`; 0 if they cannot be told yet."""
        if self._within:
            header = int.from_bytes(data[at : at + 3], "little")
            if len(data) < at + 3:
                return 0
            size = 1 if header >> 1 & 3 == _ZSTD_RLE_BLOCK else header >> 3
            if header & 1:
                self._within = False
                size += self._checksum_bytes
            return 3 + size
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            return 8 + size if len(data) >= at + 8 else 0
        if len(data) < at + 5:
            return 0
        descriptor = data[at + 4]
        one_segment = descriptor >> 5 & 1
        size_bytes = (one_segment, 2, 4, 8)[descriptor >> 6]
        self._checksum_bytes = _ZSTD_CHECKSUM_BYTES if descriptor & 4 else 0
        self._within = True
        return 5 + (1 - one_segment) + _ZSTD_DICTIONARY_ID_BYTES[descriptor & 3] + size_bytes


class _Zstd:
    """Decompresses by the package zstandard, and notices a truncated file."""

    def __init__(self, reader: _Reads, frames: _ZstdFrames) -> None:
        self._reader = reader
        self._frames = frames

    def read1(self, size: int) -> bytes:
        data = self._reader.read1(size)
        if not data and not self._frames.complete:
            raise EOFError
        return data


def _zstd(raw: _Counted, name: str) -> tuple[_Reads, type[Exception]]:
    """A zstd reader and its error type, from Python 3.14's library or the package zstandard."""
    in_library = sys.version_info >= (3, 14)
    try:
        module: Any = importlib.import_module("compression.zstd" if in_library else "zstandard")
    except ImportError:
        needed = (
            "a Python that was built with it"
            if in_library
            else "the package zstandard (pip install 'nfq-guard[zstd]')"
        )
        raise UnavailableError(f"{name}: zstd needs {needed}") from None
    if in_library:
        options = {module.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        return module.ZstdFile(raw, options=options), module.ZstdError
    frames = _ZstdFrames(raw)
    reader = module.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG).stream_reader(
        frames, read_across_frames=True
    )
    return _Zstd(reader, frames), module.ZstdError


def _problem(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    # The message of Python quotes bytes, and speaks of the file.
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        return "other data than gzip follows"
    return str(error)


class Source:
    """The decompressed contents of one file.

    Attributes:
        name: The file's name as given, or `standard input`.
        total: Size of the file in bytes; None if unknown.
    """

    def __init__(self, name: str) -> None:
        """Open a file; `-` for standard input.

        Raises:
            CaptureError: The file does not exist, cannot be read or is a device without an end.
            UnavailableError: It is compressed with zstd and no decompressor is installed.
        """
        self.name = shown(name)
        self._damage: DamagedError | None = None
        self._errors: tuple[type[Exception], ...] = ()
        # Python has no object for a standard input that is closed.
        if name == STDIN and sys.stdin is None:
            raise CaptureError(f"{self.name}: it is closed")
        # The path of no name is the current folder.
        if not name:
            raise CaptureError(f"{self.name}: the name is empty")
        try:
            # Stays open until `close`, because the caller decides how long to read.
            self._file: BinaryIO = (
                os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
                if name == STDIN
                else Path(name).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
            )
        except OSError as error:
            raise CaptureError(f"{self.name}: {error.strerror}") from None
        try:
            status = os.fstat(self._file.fileno())
            if _is_endless(status, self._file.fileno()):
                self._file.close()
                raise CaptureError(f"{self.name}: a device; expected a file or a pipe")
            self.total = status.st_size if stat.S_ISREG(status.st_mode) else None
            self._raw = _Counted(self._file)
            self._reader = self._decompressor()
        except OSError as error:
            self._file.close()
            raise CaptureError(f"{self.name}: {error.strerror}") from None
        except UnavailableError:
            self._file.close()
            raise

    def _decompressor(self) -> _Reads:
        raw = self._raw
        if raw.starts(_GZIP):
            self._errors = (gzip.BadGzipFile, zlib.error)
            return gzip.GzipFile(fileobj=cast("BinaryIO", raw), mode="rb")
        if raw.starts(_XZ):
            self._errors = (lzma.LZMAError, MemoryError)
            return _Xz(raw)
        if raw.starts(_ZSTD):
            reader, zstd_error = _zstd(raw, self.name)
            self._errors = (zstd_error,)
            return reader
        return raw

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far, before decompression."""
        return self._raw.consumed

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; empty only at the end.

        A compressed file is read until `size` bytes are available, because its reader returns
        small pieces.

        Raises:
            DamagedError: The rest cannot be read or decompressed.
        """
        if self._damage is not None:
            raise self._damage
        parts: list[bytes] = []
        missing = size
        try:
            while missing:
                data = self._reader.read1(missing)
                parts.append(data)
                missing -= len(data)
                if not data or self._reader is self._raw:
                    break
        except EOFError:
            self._damage = DamagedError("the compressed file is truncated")
        except self._errors as error:
            self._damage = DamagedError(f"decompression failed: {_problem(error)}")
        except OSError as error:
            self._damage = DamagedError(error.strerror or str(error))
        if self._damage is not None and missing == size:
            raise self._damage
        return b"".join(parts)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()
