# SPDX-License-Identifier: MIT
"""Reassembles IP fragments (RFC 791 3.2, RFC 8200 4.5, RFC 5722).

Linux defragments before conntrack: a fragment on its own is never judged, the whole packet is, when
its last missing fragment arrives.
"""

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.wire.ipv6 import EXTENSIONS, FRAGMENT, skip_extensions

# Seconds after which Linux gives up (sysctl ipfrag_time, nf_conntrack_frag6_timeout).
TIMEOUT_V4_S: Final = 30.0
TIMEOUT_V6_S: Final = 60.0

# A flood of fragments of datagrams that never complete would fill any table. As in Linux
# (ipfrag_high_thresh), new datagrams are refused above this until older ones expire.
MEMORY_OCTETS: Final = 4 << 20
_PIECE_COST: Final = 256

_LONGEST: Final = 65_535

# Result of `offer` for a fragment that does not complete its datagram.
WAITING: Final = b""


@final
@dataclass(init=False, slots=True)
class _Fragment:
    """One fragment.

    Attributes:
        key: Identifies its datagram.
        header: The headers in front of the fragmentable part.
        start: Offset of its octets in the fragmentable part.
        length: Octets of that part that it holds on the wire.
        more: Whether it is not the last.
        octets: Those of them that were captured.
    """

    key: bytes
    header: bytes
    start: int
    length: int
    more: bool
    octets: bytes

    def __init__(
        self,
        key: bytes,
        header: bytes,
        start: int,
        length: int,
        more: bool,  # noqa: FBT001 - positional on the packet path
        octets: bytes,
    ) -> None:
        self.key = key
        self.header = header
        self.start = start
        self.length = length
        self.more = more
        self.octets = octets


@final
class _Datagram:
    """The fragments of one datagram so far."""

    def __init__(self, expires: float) -> None:
        self.expires = expires
        self.pieces: list[_Fragment] = []
        self.length = -1
        self.received = 0
        self.cost = 0


def is_fragment(octets: bytes) -> bool:
    """Whether an IP packet is a fragment, as far as its headers were captured."""
    if len(octets) < 20:
        return False
    if octets[0] >> 4 == 4:
        return bool(octets[6] & 0x3F or octets[7])
    if octets[0] >> 4 != 6 or len(octets) < 40 or octets[6] not in EXTENSIONS:
        return False
    extensions = skip_extensions(octets, True)  # noqa: FBT003 - positional on the packet path
    if extensions is None or extensions.proto != FRAGMENT:
        return False
    at = extensions.offset
    # An atomic fragment has neither an offset nor further fragments.
    return bool(octets[at + 2] or octets[at + 3] & 0xF9)


def _read_v4(octets: bytes) -> _Fragment | None:
    header_len = (octets[0] & 15) << 2
    length = octets[2] << 8 | octets[3]
    if header_len < 20 or header_len > len(octets) or length <= header_len:
        return None
    field = octets[6] << 8 | octets[7]
    key = octets[12:20] + octets[4:6] + octets[9:10]
    return _Fragment(
        key,
        octets[:header_len],
        (field & 0x1FFF) << 3,
        length - header_len,
        field & 0x2000 != 0,
        octets[header_len:length],
    )


def _read_v6(octets: bytes) -> _Fragment | None:
    extensions = skip_extensions(octets, True)  # noqa: FBT003 - positional on the packet path
    if extensions is None or extensions.proto != FRAGMENT:
        return None
    at = extensions.offset
    announced = extensions.announced_at
    length = 40 + (octets[4] << 8 | octets[5])
    if length <= at + 8:
        return None
    field = octets[at + 2] << 8 | octets[at + 3]
    header = octets[:announced] + octets[at : at + 1] + octets[announced + 1 : at]
    return _Fragment(
        octets[8:40] + octets[at + 4 : at + 8],
        header,
        field & 0xFFF8,
        length - at - 8,
        field & 1 == 1,
        octets[at + 8 : length],
    )


@final
class Reassembler:
    """Holds the fragments of incomplete datagrams.

    Attributes:
        octets_held: Their cost, at most `memory` and one datagram.
    """

    def __init__(self, memory: int = MEMORY_OCTETS) -> None:
        """Hold at most `memory` octets."""
        self._memory = memory
        self._waiting: OrderedDict[bytes, _Datagram] = OrderedDict()
        self.octets_held = 0

    def __len__(self) -> int:
        """Number of incomplete datagrams."""
        return len(self._waiting)

    def offer(self, octets: bytes, now: float) -> bytes:
        """Add one fragment.

        Args:
            octets: The packet from its IP header on; `is_fragment` holds.
            now: Seconds, on one clock for all calls.

        Returns:
            The whole packet if this completes it, cut where a fragment's capture was cut;
            `WAITING` otherwise.
        """
        self._expire(now)
        v4 = octets[0] >> 4 == 4
        fragment = _read_v4(octets) if v4 else _read_v6(octets)
        if fragment is None or (fragment.more and fragment.length & 7):
            return WAITING
        key = fragment.key
        datagram = self._waiting.get(key)
        if datagram is not None and datagram.expires <= now:
            self._forget(key)
            datagram = None
        if datagram is None:
            if self.octets_held >= self._memory:
                return WAITING
            datagram = _Datagram(now + (TIMEOUT_V4_S if v4 else TIMEOUT_V6_S))
            self._waiting[key] = datagram
        if not self._take(datagram, fragment):
            self._forget(key)
            return WAITING
        if datagram.received != datagram.length:
            return WAITING
        self._forget(key)
        return _whole(datagram, v4=v4)

    def _expire(self, now: float) -> None:
        # In order of arrival: a datagram of IPv6, which is kept longer, keeps expired ones of IPv4
        # behind it in memory, but `offer` does not add to those.
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if oldest.expires > now:
                return
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        self.octets_held -= self._waiting.pop(key).cost

    def _take(self, datagram: _Datagram, fragment: _Fragment) -> bool:
        """Add a fragment; False if the datagram can no longer be completed."""
        end = fragment.start + fragment.length
        if end > _LONGEST or (0 <= datagram.length < end):
            return False
        for piece in datagram.pieces:
            if fragment.start < piece.start + piece.length and piece.start < end:
                # A repeated fragment is harmless; any other overlap discards the datagram.
                return fragment.start == piece.start and fragment.length == piece.length
        if not fragment.more:
            if datagram.length >= 0 or any(p.start > fragment.start for p in datagram.pieces):
                return False
            datagram.length = end
        datagram.pieces.append(fragment)
        datagram.received += fragment.length
        cost = len(fragment.octets) + _PIECE_COST
        datagram.cost += cost
        self.octets_held += cost
        return True


def _whole(datagram: _Datagram, *, v4: bool) -> bytes:
    pieces = sorted(datagram.pieces, key=lambda piece: piece.start)
    header = pieces[0].header
    length = len(header) + datagram.length
    if length > _LONGEST + (0 if v4 else 40):
        return WAITING
    if v4:
        # The header checksum is not recomputed, because conntrack does not verify it.
        header = header[:2] + struct.pack("!H", length) + header[4:6] + bytes(2) + header[8:]
    else:
        header = header[:4] + struct.pack("!H", length - 40) + header[6:]
    parts = [header]
    for piece in pieces:
        parts.append(piece.octets)
        if len(piece.octets) < piece.length:
            break
    return b"".join(parts)
