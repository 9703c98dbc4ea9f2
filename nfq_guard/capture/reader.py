# SPDX-License-Identifier: MIT
"""A capture as a stream of frames, whatever its format; several merged by time.

Never holds more of a file than one chunk and one record. A file that is cut or damaged gives the
frames up to there, and `Capture.damage` says what happened.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from nfq_guard.capture import pcap, pcapng
from nfq_guard.capture.frame import BrokenRecordError, CaptureError, Frame
from nfq_guard.capture.source import DamagedError, Source

# A chunk and the frames cut from it stay in the cache of a processor: 1 MiB took a third longer.
_CHUNK: Final = 1 << 17
_MERGED_BATCH: Final = 1024


class _Scanner(Protocol):
    frames: int

    def scan(self, buffer: bytes, found: list[Frame]) -> int:
        """Append whole frames to `found`; octets used."""


class Capture:
    """One capture file, to be read once from its start.

    Attributes:
        name: The file as the operator named it.
        damage: Why reading ended before the end of the file, a sentence with file, frame and
            octet; None after a whole file, and before the end was reached.
    """

    def __init__(self, name: str, source: int = 0) -> None:
        """Open `name`, `-` for standard input; `source` becomes `Frame.source`.

        Raises:
            CaptureError: It cannot be read, is empty or is no capture.
            UnavailableError: A decompressor is missing.
        """
        self._octets = Source(name)
        self.name = self._octets.name
        self.damage: str | None = None
        self._offset = 0
        self._buffer = b""
        try:
            while len(self._buffer) < pcap.HEADER_OCTETS and self._fill():
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
        if magic not in pcap.MAGICS:
            msg = (
                f"{self.name}: expected a pcap or pcapng capture, found {magic.hex(' ')} at octet 0"
            )
            raise CaptureError(msg)
        header = self._buffer[: pcap.HEADER_OCTETS]
        if len(header) < pcap.HEADER_OCTETS:
            raise CaptureError(f"{self.name}: cut inside the file header")
        self._buffer = self._buffer[pcap.HEADER_OCTETS :]
        self._offset = pcap.HEADER_OCTETS
        return pcap.PcapScanner(header, source)

    def _fill(self) -> bool:
        more = self._octets.read(_CHUNK)
        self._buffer = self._buffer + more if self._buffer else more
        return bool(more)

    @property
    def consumed(self) -> int:
        """Octets of the file read so far, before decompression."""
        return self._octets.consumed

    @property
    def total(self) -> int | None:
        """Octets of the file; None where that is not known."""
        return self._octets.total

    @property
    def frames(self) -> int:
        """Frames read so far."""
        return self._scanner.frames

    def batches(self) -> Iterator[list[Frame]]:
        """The frames in the order of the file, as many at a time as a chunk holds.

        Raises:
            CaptureError: The file is broken or cut before its first frame.
        """
        ends = None
        while ends is None:
            found: list[Frame] = []
            try:
                used = self._scanner.scan(self._buffer, found)
                self._buffer = self._buffer[used:]
                self._offset += used
                if not self._fill():
                    ends = ""
                    if self._buffer:
                        ends = f"the file is cut inside the record at octet {self._offset}"
            except BrokenRecordError as error:
                ends = f"broken at octet {self._offset + error.offset}: {error}"
            except DamagedError as error:
                ends = str(error)
            if found:
                yield found
        if ends:
            if not self.frames:
                raise CaptureError(f"{self.name}: no frame could be read: {ends}")
            self.damage = f"{self.name}: read up to frame {self.frames}: {ends}"

    def close(self) -> None:
        """Close the file."""
        self._octets.close()


def _flat(capture: Capture) -> Iterator[Frame]:
    for batch in capture.batches():
        yield from batch


def _time_of(frame: Frame) -> int:
    return frame.time_ns


def merged(captures: Sequence[Capture]) -> Iterator[list[Frame]]:
    """The frames of all captures by time, numbered in that order; of one, as they are in it."""
    if len(captures) == 1:
        yield from captures[0].batches()
        return
    batch: list[Frame] = []
    by_time = heapq.merge(*map(_flat, captures), key=_time_of)
    for number, frame in enumerate(by_time, start=1):
        frame.number = number
        batch.append(frame)
        if len(batch) == _MERGED_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
