# SPDX-License-Identifier: MIT
"""Reads captures of any supported format as a stream of frames, merging several by time.

At most one chunk and one record of a file are in memory. A truncated or damaged file yields the
frames before the damage, which `Capture.damage` describes.
"""

import heapq
import shlex
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from nfq_guard.capture import pcap, pcapng
from nfq_guard.capture.frame import BrokenRecordError, CaptureError, Frame, number_in
from nfq_guard.capture.source import DamagedError, Source, described

# Small enough that a chunk and its frames stay in the CPU cache, and that the C library does not
# map new memory for each chunk. 128 KiB took 5 % longer, 1 MiB a third.
_CHUNK: Final = 1 << 16
_MERGED_BATCH: Final = 1024
_DESCRIBED_BYTES: Final = 512


# Other formats, which editcap converts, by their first four bytes.
_OTHER_FORMATS: Final = {
    b"snoo": "snoop",
    b"XCP\0": "Network Associates Sniffer",
    b"TRSN": "Network General Sniffer",
    b"GMBU": "Microsoft Network Monitor",
    b"RTSS": "Microsoft Network Monitor 1",
    b"\x7fver": "EtherPeek",
    b"\xa1\xb2\xcd\x34": "libpcap as Kuznetzov patched it",
    b"\x34\xcd\xb2\xa1": "libpcap as Kuznetzov patched it",
}


class _Scanner(Protocol):
    frames: int

    @property
    def drops(self) -> int:
        """Frames that the capture reports as dropped."""

    def scan(self, buffer: bytes, frames: list[Frame]) -> int:
        """Append complete frames to `frames`; returns the bytes consumed."""


class Capture:
    """One capture file, which can be read once.

    Attributes:
        name: The file's name as given, or `standard input`.
        damage: Why reading ended before the end of the file: a message with the file, frame and
            byte offset. None until `batches` has ended, and if the file is intact.
    """

    def __init__(self, name: str, source: int = 0) -> None:
        """Open `name`, `-` for standard input; `source` becomes `Frame.source`.

        Raises:
            CaptureError: The file cannot be read, is empty or is not a capture.
            UnavailableError: A decompressor is missing.
        """
        self._given = name
        self._octets = Source(name)
        self.name = self._octets.name
        self.damage: str | None = None
        self._offset = 0
        self._buffer = b""
        try:
            while len(self._buffer) < pcap.HEADER_BYTES and self._fill():
                pass
            self._scanner = self._begin(source)
        except DamagedError as error:
            self.close()
            raise CaptureError(f"{self.name}: {error}") from None
        except CaptureError:
            self.close()
            raise

    def _begin(self, source: int) -> _Scanner:
        magic = self._buffer[:4]
        if not magic:
            raise CaptureError(f"{self.name}: the file is empty")
        if magic == pcapng.MAGIC:
            return pcapng.PcapngScanner(source)
        convert = shlex.join(["editcap", "-F", "pcap", self._given, "OUT"])
        other = _OTHER_FORMATS.get(magic)
        if other is not None:
            raise CaptureError(f"{self.name}: a capture of {other}; convert it: {convert}")
        if magic not in pcap.MAGICS:
            found = described(self._buffer[:_DESCRIBED_BYTES]) or (
                f"{magic.hex(' ')} at byte 0 (where it is a capture of another kind: {convert})"
            )
            if found in {"JSON", "a text"}:
                found += ": events are for whatif and report, the kernel's log for why"
            raise CaptureError(f"{self.name}: expected a pcap or pcapng capture, found {found}")
        header = self._buffer[: pcap.HEADER_BYTES]
        if len(header) < pcap.HEADER_BYTES:
            raise CaptureError(f"{self.name}: truncated in the file header")
        self._buffer = self._buffer[pcap.HEADER_BYTES :]
        self._offset = pcap.HEADER_BYTES
        return pcap.PcapScanner(header, source)

    def _fill(self) -> bool:
        more = self._octets.read(_CHUNK)
        self._buffer = self._buffer + more if self._buffer else more
        return bool(more)

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far, before decompression."""
        return self._octets.consumed

    @property
    def total(self) -> int | None:
        """Size of the file in bytes; None if unknown."""
        return self._octets.total

    @property
    def frames(self) -> int:
        """Frames read so far."""
        return self._scanner.frames

    @property
    def drops(self) -> int:
        """Frames that the capture itself reports as dropped; complete after the last batch."""
        return self._scanner.drops

    def interface_name(self, index: int) -> str:
        """The name of an interface in a pcapng file; empty without one."""
        scanner = self._scanner
        names = scanner.names if isinstance(scanner, pcapng.PcapngScanner) else []
        return names[index] if index < len(names) else ""

    def batches(self) -> Iterator[list[Frame]]:
        """The frames in file order, one list for each chunk of the file.

        Raises:
            CaptureError: The file is damaged or truncated before the end of its first frame.
        """
        damage = None
        while damage is None:
            frames: list[Frame] = []
            try:
                used = self._scanner.scan(self._buffer, frames)
                self._buffer = self._buffer[used:]
                self._offset += used
                if not self._fill():
                    damage = ""
                    if self._buffer:
                        damage = f"the file is truncated in the record at byte {self._offset}"
            except BrokenRecordError as error:
                damage = f"broken at byte {self._offset + error.offset}: {error}"
            except DamagedError as error:
                damage = str(error)
            if frames:
                yield frames
        if damage:
            if not self.frames:
                raise CaptureError(f"{self.name}: no frame could be read: {damage}")
            self.damage = f"{self.name}: read up to frame {self.frames}: {damage}"

    def close(self) -> None:
        """Close the file."""
        self._octets.close()


def _flat(capture: Capture) -> Iterator[Frame]:
    for batch in capture.batches():
        yield from batch


def _time_of(frame: Frame) -> int:
    return frame.time_ns


def merged(captures: Sequence[Capture]) -> Iterator[list[Frame]]:
    """The frames of all captures in chronological order.

    The frames of a single capture keep their order. The number of a frame of several captures names
    its capture too (`frame.number_in`).
    """
    if len(captures) == 1:
        yield from captures[0].batches()
        return
    batch: list[Frame] = []
    by_time = heapq.merge(*map(_flat, captures), key=_time_of)
    for frame in by_time:
        frame.number = number_in(frame.source, frame.number)
        batch.append(frame)
        if len(batch) == _MERGED_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
