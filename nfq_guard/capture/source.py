# SPDX-License-Identifier: MIT
"""Reads a file or standard input, decompressing gzip, xz and zstd on the fly.

Compression is recognised by magic number. A small hostile file can demand a large dictionary, so
`_MEMORY_LIMIT` and `_ZSTD_WINDOW_LOG` bound the memory that decompression may take.
"""

import gzip
import importlib
import lzma
import os
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
    reader = module.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG).stream_reader(
        raw, read_across_frames=True
    )
    return reader, module.ZstdError


class Source:
    """The decompressed contents of one file.

    Attributes:
        name: The file's name as given, or `standard input`.
        total: Size of the file in bytes; None if unknown.
    """

    def __init__(self, name: str) -> None:
        """Open a file; `-` for standard input.

        Raises:
            CaptureError: The file does not exist or cannot be read.
            UnavailableError: It is compressed with zstd and no decompressor is installed.
        """
        self.name = "standard input" if name == STDIN else name
        self._damage: DamagedError | None = None
        self._errors: tuple[type[Exception], ...] = ()
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
            self._damage = DamagedError(f"decompression failed: {error}")
        except OSError as error:
            self._damage = DamagedError(error.strerror or str(error))
        if self._damage is not None and missing == size:
            raise self._damage
        return b"".join(parts)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()
