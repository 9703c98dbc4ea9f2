# SPDX-License-Identifier: MIT
"""Writes pcapng with an interface for each link type and name, and optional packet comments."""

import struct
from typing import BinaryIO, Final

from nfq_guard import __version__
from nfq_guard.capture.frame import Frame
from nfq_guard.capture.pcapng import (
    BLOCK_ENHANCED_PACKET,
    BLOCK_INTERFACE,
    BLOCK_SECTION,
    OPTION_END,
    OPTION_IF_NAME,
    OPTION_IF_TSRESOL,
)

_OPTION_COMMENT: Final = 1
_OPTION_USER_APPLICATION: Final = 4
_NANOSECONDS: Final = b"\x09"
_BYTE_ORDER: Final = 0x1A2B3C4D
_ANY_LENGTH: Final = 0xFFFFFFFFFFFFFFFF
_OPTION_MAX: Final = 0xFFFF


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def _option(code: int, value: bytes) -> bytes:
    value = value[:_OPTION_MAX]
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


_END: Final = _option(OPTION_END, b"")


class PcapngWriter:
    """Appends frames to an open file, little-endian, times in nanoseconds."""

    def __init__(self, file: BinaryIO) -> None:
        """Write the section header to `file`, which the caller closes."""
        self._file = file
        self._interfaces: dict[tuple[int, str], int] = {}
        application = _option(_OPTION_USER_APPLICATION, f"nfq-guard {__version__}".encode())
        header = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _ANY_LENGTH)
        file.write(_block(BLOCK_SECTION, header + application + _END))

    def write(self, frame: Frame, comment: str = "", interface_name: str = "") -> None:
        """Write one frame unchanged, except that a time before 1970 becomes 1970.

        Args:
            frame: The frame.
            comment: Its comment, if not empty.
            interface_name: The name of its interface, if known.
        """
        place = frame.linktype, interface_name
        interface = self._interfaces.get(place)
        if interface is None:
            interface = self._interfaces[place] = len(self._interfaces)
            options = _option(OPTION_IF_TSRESOL, _NANOSECONDS)
            if interface_name:
                options = _option(OPTION_IF_NAME, interface_name.encode()) + options
            body = struct.pack("<HHI", frame.linktype, 0, 0) + options + _END
            self._file.write(_block(BLOCK_INTERFACE, body))
        time_ns = max(frame.time_ns, 0) & _ANY_LENGTH
        head = struct.pack(
            "<IIIII",
            interface,
            time_ns >> 32,
            time_ns & 0xFFFFFFFF,
            len(frame.octets),
            frame.wire_len,
        )
        options = _option(_OPTION_COMMENT, comment.encode()) + _END if comment else b""
        self._file.write(_block(BLOCK_ENHANCED_PACKET, head + _padded(frame.octets) + options))
