# SPDX-License-Identifier: MIT
"""Keeps the frames of one interface, by its name in a pcapng file or by its number.

A number is the index of an interface in its pcapng file, from 0, over all its sections. In a Linux
cooked capture (version 2) it is the kernel's index of the interface, which each frame contains.
"""

from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard.capture.frame import Frame, word
from nfq_guard.capture.links import LINUX_SLL2

# Bounds the memory that a hostile file can take, and the length of an error message.
_MOST_KNOWN: Final = 1 << 12
_MOST_LISTED: Final = 16
# Digits of a number of 32 bits.
_MOST_DIGITS: Final = 10


class Named(Protocol):
    """A capture that names its interfaces."""

    def interface_name(self, index: int) -> str:
        """The name of an interface; empty without one."""


@final
class InterfaceFilter:
    """Selects the frames of one interface of each file.

    Attributes:
        kept: Number of frames selected.
    """

    def __init__(self, wanted: str, captures: Sequence[Named]) -> None:
        """Select an interface of `captures`; `Frame.source` is an index into them."""
        digits = wanted.isascii() and wanted.isdigit() and len(wanted) <= _MOST_DIGITS
        self._wanted = wanted
        self._number = int(wanted) if digits else -1
        self._captures = captures
        self._known: dict[tuple[int, int, int], bool] = {}
        self.kept = 0

    def keep(self, frames: Sequence[Frame]) -> list[Frame]:
        """The frames of the interface."""
        known = self._known
        kept: list[Frame] = []
        for frame in frames:
            place = (frame.source, frame.interface, _index_of(frame))
            takes = known.get(place)
            if takes is None:
                takes = self._takes(*place)
                if len(known) < _MOST_KNOWN:
                    known[place] = takes
            if takes:
                kept.append(frame)
        self.kept += len(kept)
        return kept

    def seen(self) -> str:
        """The interfaces that have frames, for an error message."""
        names: dict[str, None] = {}
        for source, interface, index in self._known:
            name = self._captures[source].interface_name(interface)
            number = interface if index < 0 else index
            names[f"{number} ({ascii(name)[1:-1]})" if name else str(number)] = None
        listed = list(names)
        more = len(listed) - _MOST_LISTED
        rest = f" and {more} more" if more > 0 else ""
        return ", ".join(listed[:_MOST_LISTED]) + rest

    def _takes(self, source: int, interface: int, index: int) -> bool:
        number = interface if index < 0 else index
        name = self._captures[source].interface_name(interface)
        return number == self._number or (name == self._wanted and bool(name))


def _index_of(frame: Frame) -> int:
    """The kernel's index of the interface in a cooked frame; -1 without one."""
    if frame.linktype != LINUX_SLL2 or len(frame.octets) < 8:
        return -1
    return word(frame.octets, 4, little=False)
