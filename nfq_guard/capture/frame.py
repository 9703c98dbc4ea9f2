# SPDX-License-Identifier: MIT
"""One captured frame, and the errors of a capture file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from nfq_guard.errors import UsageError

if TYPE_CHECKING:
    from mypy_extensions import i64

# A length field above these limits is treated as damage, so that a broken file cannot make the
# reader allocate memory. Frames: Linux builds packets of up to 512 KiB (BIG TCP). Blocks: name
# resolution and secrets may be long.
MAX_FRAME_BYTES: Final = 1 << 20
MAX_BLOCK_BYTES: Final = 1 << 24
# Times this far from the epoch, nanoseconds, are damage too: the years 1385 and 2554.
MAX_TIME_NS: Final = 1 << 64
# Of a frame's number, the bits above these are the file: 1 for the first of several.
_OWN_BITS: Final = 40


def number_in(source: int, own: int) -> int:
    """The number of a frame among those of several files: its file's index, and its place there."""
    return source + 1 << _OWN_BITS | own


def own_number(number: int) -> int:
    """The number of a frame in its file, from 1."""
    return number & (1 << _OWN_BITS) - 1


def source_of(number: int) -> int:
    """The index of the file of a frame of several files."""
    return (number >> _OWN_BITS) - 1


def frame_name(number: int) -> str:
    """`frame 7`; among those of several files `frame 7 of capture 2`."""
    capture = number >> _OWN_BITS
    return f"frame {own_number(number)}" + (f" of capture {capture}" if capture else "")


def word(octets: bytes, at: int, little: bool) -> int:  # noqa: FBT001 - on the packet path
    """The 32-bit integer at `at`, in either byte order.

    Indexed rather than unpacked: compiled, this takes a third of the time of struct.
    """
    first: i64 = octets[at]
    second: i64 = octets[at + 1]
    third: i64 = octets[at + 2]
    fourth: i64 = octets[at + 3]
    if little:
        return first | second << 8 | third << 16 | fourth << 24
    return first << 24 | second << 16 | third << 8 | fourth


class CaptureError(UsageError):
    """No frame of a file can be read; the message names the file."""


class BrokenRecordError(Exception):
    """A malformed record, after which reading cannot continue.

    Attributes:
        offset: Start of the record, in bytes from the start of the buffer.
    """

    def __init__(self, offset: int, problem: str) -> None:
        """`problem` completes the message "broken at byte N: ..."."""
        super().__init__(problem)
        self.offset = offset


@final
@dataclass(init=False, slots=True)
class Frame:
    """One captured frame.

    Attributes:
        number: 1-based position in its file (`own_number`); with the file, if several are merged.
        time_ns: Nanoseconds since the epoch, within `MAX_TIME_NS`; a record without such a time
            has its predecessor's.
        linktype: LINKTYPE_* number of its interface.
        wire_len: Length of the frame on the wire, in octets.
        octets: The captured octets, link header first; may be shorter than `wire_len`.
        source: Index of its file, if several are read together.
        interface: Number of its interface in a pcapng file, over all its sections, else 0.
    """

    number: int
    time_ns: int
    linktype: int
    wire_len: int
    octets: bytes
    source: int
    interface: int

    def __init__(
        self,
        number: int,
        time_ns: int,
        linktype: int,
        wire_len: int,
        octets: bytes,
        source: int,
        interface: int = 0,
    ) -> None:
        self.number = number
        self.time_ns = time_ns
        self.linktype = linktype
        self.wire_len = wire_len
        self.octets = octets
        self.source = source
        self.interface = interface
