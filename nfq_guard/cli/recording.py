# SPDX-License-Identifier: MIT
"""Opens a recording of events: a file, plain or compressed, or standard input."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

from nfq_guard.capture import pcap, pcapng
from nfq_guard.capture.frame import CaptureError
from nfq_guard.capture.source import DamagedError, Source, described, is_text, shown
from nfq_guard.cli.terminal import printable
from nfq_guard.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 512
# The result of `content` for events.
EVENTS: Final = "events"


@final
class _Decompressed(io.RawIOBase):
    """A source as a raw stream that ends at damage."""

    def __init__(self, source: Source) -> None:
        self.damage = ""
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        try:
            data = self._source.read(len(view))
        except DamagedError as error:
            self.damage = str(error)
            return 0
        view[: len(data)] = data
        return len(data)


@contextmanager
def opened(name: str) -> Iterator[io.BufferedReader]:
    """Open a recording; `-` is standard input. Damage is reported at the end.

    Raises:
        UsageError: The recording cannot be read.
    """
    try:
        source = Source(name)
    except CaptureError as error:
        problem = str(error).removeprefix(f"{shown(name)}: ")
        raise UsageError(f"{shown(name)}: cannot be read: {problem}") from None
    raw = _Decompressed(source)
    try:
        yield io.BufferedReader(raw, _BUFFER_BYTES)
        if raw.damage:
            sys.stderr.write(f"nfq-guard: {printable(name)}: {_not_whole(raw.damage)}\n")
    finally:
        source.close()


def _not_whole(damage: str) -> str:
    return f"not read to the end: {damage}"


def missing_end(stream: io.BufferedReader) -> str:
    """Why a stream that was read has not all of the recording; empty if it has."""
    raw = stream.raw
    return _not_whole(raw.damage) if isinstance(raw, _Decompressed) and raw.damage else ""


def is_capture(stream: io.BufferedReader) -> bool:
    """Whether a newly opened stream is a capture."""
    magic = stream.peek(4)[:4]
    return magic in pcap.MAGICS or magic == pcapng.MAGIC


def may_have_events(stream: io.BufferedReader) -> bool:
    """Whether a newly opened stream may contain events: a text, whatever its first line is."""
    return is_text(_head(stream))


def content(stream: io.BufferedReader) -> str:
    """What a newly opened stream contains, for a message; `binary data` if that is unknown."""
    found = described(_head(stream))
    if found == "JSON" and b'"event":' in _head(stream):
        return EVENTS
    return found or "binary data"


def _head(stream: io.BufferedReader) -> bytes:
    return stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
