# SPDX-License-Identifier: MIT
"""The pcapng format (draft-ietf-opsawg-pcapng): sections of blocks, each with its interfaces."""

import struct
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.capture.frame import (
    MAX_BLOCK_BYTES,
    MAX_FRAME_BYTES,
    MAX_TIME_NS,
    BrokenRecordError,
    Frame,
    word,
)

BLOCK_SECTION: Final = 0x0A0D0D0A
BLOCK_INTERFACE: Final = 1
BLOCK_PACKET: Final = 2  # obsolete
BLOCK_SIMPLE_PACKET: Final = 3
BLOCK_STATISTICS: Final = 5
BLOCK_ENHANCED_PACKET: Final = 6

MAGIC: Final = b"\x0a\x0d\x0d\x0a"

OPTION_END: Final = 0
OPTION_IF_TSRESOL: Final = 9
OPTION_IF_TSOFFSET: Final = 14
OPTION_IF_NAME: Final = 2
OPTION_ISB_IFDROP: Final = 5
OPTION_ISB_OSDROP: Final = 7
OPTION_EPB_DROPCOUNT: Final = 4

_BYTE_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_NANO: Final = 1_000_000_000
# Bounds the memory that a hostile file can take; a section with more interfaces is damaged.
_MAX_INTERFACES: Final = 1 << 16
# Linux allows 15 octets; other systems have longer names.
_MAX_NAME_BYTES: Final = 128


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Interface:
    """The contents of an interface description block.

    Attributes:
        linktype: LINKTYPE_* number.
        snaplen: Maximum number of octets captured of a frame; 0 means no limit.
        tick_ns: Nanoseconds per tick; 0 if that is not an integer.
        ticks_per_s: Ticks per second.
        offset_ns: Offset to add to each time.
    """

    linktype: int
    snaplen: int
    tick_ns: int
    ticks_per_s: int
    offset_ns: int


@final
class PcapngScanner:
    """Parses frames from a buffer.

    Attributes:
        frames: Number of frames parsed so far.
        drops: Frames that the capture itself reports as dropped: by the last statistics of each
            interface (isb_ifdrop, isb_osdrop), or by its frames (epb_dropcount) if that is more.
        names: Names of the interfaces of all sections, empty without one; `Frame.interface` is the
            position in it.
    """

    def __init__(self, source: int) -> None:
        """Start before the first section."""
        self._source = source
        self._interfaces: list[_Interface] = []
        # Interfaces of earlier sections.
        self._base = 0
        self.names: list[str] = []
        self._last_ns = 0
        self._set_byte_order("<")
        self._sections = 0
        self._drops: dict[tuple[int, int, int], int] = {}
        # By the frames themselves: those dropped before each.
        self._dropped_between = 0
        self.frames = 0

    def _set_byte_order(self, order: str) -> None:
        self._order = order
        self._little = order == "<"

    @property
    def drops(self) -> int:
        """Frames that the capture reports as dropped."""
        return max(sum(self._drops.values()), self._dropped_between)

    def scan(self, buffer: bytes, frames: list[Frame]) -> int:
        """Append the frames of complete blocks in `buffer` to `frames`.

        Returns:
            Bytes consumed, from the start of the buffer.

        Raises:
            BrokenRecordError: A block is malformed; `frames` has the frames before it.
        """
        end = len(buffer)
        start = 0
        source = self._source
        while start + 12 <= end:
            if buffer[start : start + 4] == MAGIC:
                order = _BYTE_ORDERS.get(buffer[start + 8 : start + 12])
                if order is None:
                    raise BrokenRecordError(start, "a section header has no byte order")
                self._set_byte_order(order)
            little = self._little
            kind = word(buffer, start, little)
            length = word(buffer, start + 4, little)
            if length < 12 or length & 3 or length > MAX_BLOCK_BYTES:
                raise BrokenRecordError(start, f"a block claims {length} bytes")
            stop = start + length
            if stop > end:
                break
            if word(buffer, stop - 4, little) != length:
                raise BrokenRecordError(start, "the two lengths of a block differ")
            if kind == BLOCK_ENHANCED_PACKET:
                if length < 32:
                    raise BrokenRecordError(start, "a packet block is too short")
                index = word(buffer, start + 8, little)
                captured = word(buffer, start + 20, little)
                if captured > length - 32 or captured > MAX_FRAME_BYTES:
                    raise BrokenRecordError(start, f"a packet block claims {captured} bytes")
                if length - 32 - captured >= 8:
                    self._count_dropped(buffer, start + 28 + (captured + 3 & ~3), stop - 4)
                interface = self._declared(index, start)
                ticks = word(buffer, start + 12, little) << 32 | word(buffer, start + 16, little)
                time_ns = (
                    ticks * interface.tick_ns
                    if interface.tick_ns
                    else ticks * _NANO // interface.ticks_per_s
                ) + interface.offset_ns
                if not -MAX_TIME_NS < time_ns < MAX_TIME_NS:
                    time_ns = self._last_ns
                self._last_ns = time_ns
                self.frames += 1
                frames.append(
                    Frame(
                        self.frames,
                        time_ns,
                        interface.linktype,
                        word(buffer, start + 24, little),
                        buffer[start + 28 : start + 28 + captured],
                        source,
                        self._base + index,
                    )
                )
            else:
                self._rare_block(kind, buffer[start:stop], start, frames)
            start = stop
        return start

    def _declared(self, index: int, start: int) -> _Interface:
        """The interface of the packet block at `start`."""
        if index >= len(self._interfaces):
            raise BrokenRecordError(start, f"undeclared interface {index}")
        return self._interfaces[index]

    def _rare_block(self, kind: int, block: bytes, start: int, frames: list[Frame]) -> None:
        if kind == BLOCK_SECTION:
            if len(block) < 28:
                raise BrokenRecordError(start, "a section header is too short")
            major: int = struct.unpack_from(self._order + "H", block, 12)[0]
            if major != 1:
                raise BrokenRecordError(start, f"unknown pcapng version {major}")
            self._base += len(self._interfaces)
            self._interfaces = []
            self._sections += 1
        elif kind == BLOCK_INTERFACE:
            if len(block) < 20 or len(self._interfaces) >= _MAX_INTERFACES:
                raise BrokenRecordError(
                    start, "an interface block is too short or exceeds the limit"
                )
            self._interfaces.append(self._interface(block))
        elif kind == BLOCK_SIMPLE_PACKET:
            self._simple_packet(block, start, frames)
        elif kind == BLOCK_PACKET:
            self._obsolete_packet(block, start, frames)
        elif kind == BLOCK_STATISTICS and len(block) >= 24:
            self._statistics(block)

    def _statistics(self, block: bytes) -> None:
        """Counters of one interface since the start of the capture; a later block replaces them."""
        index: int = struct.unpack_from(self._order + "I", block, 8)[0]
        position, end = 20, len(block) - 4
        while position + 4 <= end:
            code, length = struct.unpack_from(self._order + "HH", block, position)
            if code == OPTION_END:
                break
            if code in {OPTION_ISB_IFDROP, OPTION_ISB_OSDROP} and length == 8:
                if position + 12 > end or len(self._drops) >= _MAX_INTERFACES:
                    break
                value: int = struct.unpack_from(self._order + "Q", block, position + 4)[0]
                self._drops[self._sections, index, code] = value
            position += 4 + (length + 3 & ~3)

    def _count_dropped(self, buffer: bytes, position: int, end: int) -> None:
        """Take the number of frames dropped before a frame from its options."""
        while position + 4 <= end:
            code, length = struct.unpack_from(self._order + "HH", buffer, position)
            if code == OPTION_END:
                break
            if code == OPTION_EPB_DROPCOUNT and length == 8 and position + 12 <= end:
                value: int = struct.unpack_from(self._order + "Q", buffer, position + 4)[0]
                self._dropped_between += value
            position += 4 + (length + 3 & ~3)

    def _interface(self, block: bytes) -> _Interface:
        linktype, _, snaplen = struct.unpack_from(self._order + "HHI", block, 8)
        ticks_per_s, offset_s = 1_000_000, 0
        name = b""
        position, end = 16, len(block) - 4
        while position + 4 <= end:
            code, length = struct.unpack_from(self._order + "HH", block, position)
            value = block[position + 4 : min(position + 4 + length, end)]
            if code == OPTION_END:
                break
            if code == OPTION_IF_NAME:
                name = value[:_MAX_NAME_BYTES]
            elif code == OPTION_IF_TSRESOL and len(value) == 1:
                power = value[0] & 0x7F
                ticks_per_s = 2**power if value[0] & 0x80 else 10**power
            elif code == OPTION_IF_TSOFFSET and len(value) == 8:
                offset_s = struct.unpack(self._order + "q", value)[0]
            position += 4 + (length + 3 & ~3)
        if len(self.names) < _MAX_INTERFACES:
            self.names.append(name.rstrip(b"\0").decode("utf-8", "replace"))
        return _Interface(
            linktype=linktype,
            snaplen=snaplen,
            tick_ns=0 if _NANO % ticks_per_s else _NANO // ticks_per_s,
            ticks_per_s=ticks_per_s,
            offset_ns=offset_s * _NANO,
        )

    def _simple_packet(self, block: bytes, start: int, frames: list[Frame]) -> None:
        if len(block) < 16 or not self._interfaces:
            raise BrokenRecordError(start, "a simple packet block lacks an interface or a length")
        interface = self._interfaces[0]
        wire_len: int = struct.unpack_from(self._order + "I", block, 8)[0]
        captured = min(wire_len, interface.snaplen or wire_len)
        if captured > len(block) - 16 or captured > MAX_FRAME_BYTES:
            raise BrokenRecordError(start, f"a simple packet block claims {captured} bytes")
        self._append(frames, interface, self._last_ns, wire_len, block[12 : 12 + captured])

    def _obsolete_packet(self, block: bytes, start: int, frames: list[Frame]) -> None:
        if len(block) < 32:
            raise BrokenRecordError(start, "a packet block is too short")
        index, _, high, low, captured, wire_len = struct.unpack_from(
            self._order + "HHIIII", block, 8
        )
        if captured > len(block) - 32 or captured > MAX_FRAME_BYTES:
            raise BrokenRecordError(start, f"a packet block claims {captured} bytes")
        interface = self._declared(index, start)
        time_ns = (high << 32 | low) * _NANO // interface.ticks_per_s + interface.offset_ns
        if not -MAX_TIME_NS < time_ns < MAX_TIME_NS:
            time_ns = self._last_ns
        self._append(frames, interface, time_ns, wire_len, block[28 : 28 + captured], index)

    def _append(
        self,
        frames: list[Frame],
        interface: _Interface,
        time_ns: int,
        wire_len: int,
        octets: bytes,
        index: int = 0,
    ) -> None:
        self._last_ns = time_ns
        self.frames += 1
        frames.append(
            Frame(
                self.frames,
                time_ns,
                interface.linktype,
                wire_len,
                octets,
                self._source,
                self._base + index,
            )
        )
