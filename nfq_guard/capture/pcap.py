# SPDX-License-Identifier: MIT
"""The classic pcap format (draft-ietf-opsawg-pcap): one header, then records of one link type."""

import struct
from typing import Final, final

from nfq_guard.capture.frame import MAX_FRAME_BYTES, BrokenRecordError, Frame, word

HEADER_BYTES: Final = 24

# By the first four bytes of the file: byte order, and nanoseconds per unit of the fraction.
MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}

# Version 2.4, the only one since 1998.
_VERSION_LITTLE: Final = b"\x02\x00\x04\x00"
_VERSION_BIG: Final = b"\x00\x02\x00\x04"


@final
class PcapScanner:
    """Parses frames from a buffer.

    Attributes:
        frames: Number of frames parsed so far.
        drops: Frames reported as dropped: 0, as the format cannot tell.
    """

    def __init__(self, header: bytes, source: int) -> None:
        """Parse the file header of `HEADER_BYTES`, which begins with one of `MAGICS`."""
        order, self._fraction_ns = MAGICS[header[:4]]
        # The upper 16 bits hold the length of a frame check sequence, which is not needed.
        self._linktype: int = struct.unpack_from(order + "I", header, 20)[0] & 0xFFFF
        self._little = order == "<"
        self._source = source
        self.frames = 0
        self.drops = 0

    def scan(self, buffer: bytes, frames: list[Frame]) -> int:
        """Append the complete frames in `buffer` to `frames`.

        Returns:
            Bytes consumed, from the start of the buffer.

        Raises:
            BrokenRecordError: A record has an impossible length, or is the header of another file;
                `frames` has those before it.
        """
        little = self._little
        fraction_ns = self._fraction_ns
        linktype = self._linktype
        source = self._source
        number = self.frames
        end = len(buffer)
        start = 0
        # The product is longer than the integers that compiled code multiplies in registers.
        second = -1
        second_ns = 0
        while start + 16 <= end:
            captured = word(buffer, start + 8, little)
            if captured > MAX_FRAME_BYTES:
                self.frames = number
                raise BrokenRecordError(start, f"a record claims {captured} bytes")
            if captured == 0 and _is_header(buffer, start):
                self.frames = number
                raise BrokenRecordError(
                    start, "another capture begins, as in joined files: name each file instead"
                )
            stop = start + 16 + captured
            if stop > end:
                break
            number += 1
            if word(buffer, start, little) != second:
                second = word(buffer, start, little)
                second_ns = second * 1_000_000_000
            frames.append(
                Frame(
                    number,
                    second_ns + word(buffer, start + 4, little) * fraction_ns,
                    linktype,
                    word(buffer, start + 12, little),
                    buffer[start + 16 : stop],
                    source,
                )
            )
            start = stop
        self.frames = number
        return start


def _is_header(buffer: bytes, start: int) -> bool:
    """Whether a record without octets is the header of a file: a magic number and a version."""
    order_of = MAGICS.get(buffer[start : start + 4])
    return order_of is not None and buffer[start + 4 : start + 8] == (
        _VERSION_LITTLE if order_of[0] == "<" else _VERSION_BIG
    )
