# SPDX-License-Identifier: MIT
"""Reassembles IP fragments (RFC 791 3.2, RFC 8200 4.5, RFC 5722).

Linux defragments before conntrack: not the fragments but the whole packet is judged, when its last
missing fragment arrives.
"""

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.flow import PROTO_ICMPV6, PROTO_TCP, PROTO_UDP
from nfq_guard.wire.ipv6 import EXTENSIONS, FRAGMENT, skip_extensions

# Seconds after which Linux gives up (sysctl ipfrag_time, nf_conntrack_frag6_timeout).
TIMEOUT_V4_S: Final = 30.0
TIMEOUT_V6_S: Final = 60.0

# A flood of fragments of incomplete datagrams would fill any table. As in Linux
# (ipfrag_high_thresh), new datagrams are refused above this bound until older ones expire.
MEMORY_OCTETS: Final = 4 << 20
_PIECE_COST: Final = 256

_LONGEST: Final = 65_535

# Octets of the transport header that the first fragment of IPv6 must contain, by protocol.
_SHORTEST: Final = {PROTO_TCP: 20, PROTO_UDP: 8, PROTO_ICMPV6: 8}

# The treatment of a fragment: accepted, ignored as a repetition, or ends its datagram.
_TAKEN: Final = 0
_REPEATED: Final = 1
_DISCARD: Final = 2

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
        length: Octets of that part in it, on the wire.
        more: Whether further fragments follow.
        octets: The captured octets of that part.
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
    """The fragments of one datagram so far.

    Attributes:
        expires: When the datagram expires.
        pieces: Its fragments, in order of arrival.
        runs: Start and end of each run of contiguous fragments that arrived in order.
        length: The highest end of any fragment.
        ended: Whether the last fragment is known, and so the length.
        received: Octets received.
        cost: Its share of the memory bound.
    """

    def __init__(self, expires: float) -> None:
        self.expires = expires
        self.pieces: list[_Fragment] = []
        self.runs: list[list[int]] = []
        self.length = 0
        self.ended = False
        self.received = 0
        self.cost = _PIECE_COST  # its own cost, even without an accepted fragment

    def place(self, start: int, end: int) -> int:
        """Add a fragment to the runs; returns `_TAKEN`, `_REPEATED` or `_DISCARD`.

        Linux treats a fragment within one run as a repetition, and any other overlap as an attack.
        """
        runs = self.runs
        place = 0
        while place < len(runs) and runs[place][1] <= start:
            place += 1
        if place < len(runs):
            first, last = runs[place]
            if end <= first:
                runs.insert(place, [start, end])
                return _TAKEN
            return _REPEATED if first <= start and end <= last else _DISCARD
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])
        return _TAKEN


def is_fragment(octets: bytes) -> bool:
    """Whether an IP packet is a fragment, as far as its headers were captured.

    In IPv6, a packet with a fragment header, even if it is the only one of its datagram.
    """
    if len(octets) < 20:
        return False
    if octets[0] >> 4 == 4:
        return bool(octets[6] & 0x3F or octets[7])
    if octets[0] >> 4 != 6 or len(octets) < 40 or octets[6] not in EXTENSIONS:
        return False
    extensions = skip_extensions(octets, True)  # noqa: FBT003 - positional on the packet path
    return extensions is not None and extensions.proto == FRAGMENT


def _read_v4(octets: bytes) -> _Fragment | None:
    header_len = (octets[0] & 15) << 2
    length = octets[2] << 8 | octets[3]
    if header_len < 20 or header_len > len(octets) or length < header_len:
        return None
    field = octets[6] << 8 | octets[7]
    key = octets[12:20] + octets[4:6] + octets[9:10]
    more = field & 0x2000 != 0
    size = length - header_len
    if more:
        size &= ~7  # Linux drops the rest
    return _Fragment(
        key,
        octets[:header_len],
        (field & 0x1FFF) << 3,
        size,
        more,
        octets[header_len : header_len + size],
    )


def _read_v6(octets: bytes) -> _Fragment | None:
    extensions = skip_extensions(octets, True)  # noqa: FBT003 - positional on the packet path
    if extensions is None or extensions.proto != FRAGMENT:
        return None
    at = extensions.offset
    announced = extensions.announced_at
    length = 40 + (octets[4] << 8 | octets[5])
    if length < at + 8:
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


def _lacks_transport(octets: bytes) -> bool:
    """Whether the first fragment of an IPv6 datagram ends before its transport header does."""
    extensions = skip_extensions(octets)
    if extensions is None:
        return False
    end = 40 + (octets[4] << 8 | octets[5])
    return extensions.offset + _SHORTEST.get(extensions.proto, 1) > end


@final
class Reassembler:
    """Holds the fragments of incomplete datagrams.

    Attributes:
        octets_held: Their cost, at most `memory` plus one datagram.
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
            The whole packet if this completes it, truncated where a fragment's capture was; the
            fragment itself if Linux abandons its datagram and passes the fragment to conntrack;
            else `WAITING`.
        """
        self._expire(now)
        v4 = octets[0] >> 4 == 4
        fragment = _read_v4(octets) if v4 else _read_v6(octets)
        if fragment is None:
            return WAITING
        key = fragment.key
        datagram = self._waiting.get(key)
        if datagram is not None and datagram.expires <= now:
            self._forget(key)
            datagram = None
        if not v4:
            if fragment.start == 0 and _lacks_transport(octets):
                return octets
            if fragment.more and fragment.length & 7:
                if datagram is not None:
                    self._forget(key)
                return octets
        if datagram is None:
            if self.octets_held >= self._memory:
                return WAITING
            datagram = _Datagram(now + (TIMEOUT_V4_S if v4 else TIMEOUT_V6_S))
            self._waiting[key] = datagram
            self.octets_held += datagram.cost
        fate = self._take(datagram, fragment, v4=v4)
        if fate == _DISCARD:
            self._forget(key)
        elif fate == _TAKEN and datagram.ended and datagram.received == datagram.length:
            self._forget(key)
            return _whole(datagram, v4=v4)
        return WAITING

    def _expire(self, now: float) -> None:
        # In order of arrival: an IPv6 datagram, which is kept longer, keeps later expired IPv4 ones
        # in memory, but `offer` does not add to those.
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if oldest.expires > now:
                return
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        self.octets_held -= self._waiting.pop(key).cost

    def _take(self, datagram: _Datagram, fragment: _Fragment, *, v4: bool) -> int:
        """Add a fragment; returns `_TAKEN`, `_REPEATED` or `_DISCARD`.

        A contradiction to an earlier fragment ends the datagram in IPv4, and is ignored in IPv6.
        """
        wrong = _DISCARD if v4 else _REPEATED
        end = fragment.start + fragment.length
        if not v4 and end > _LONGEST:
            return wrong
        if not fragment.more:
            if end < datagram.length or (datagram.ended and end != datagram.length):
                return wrong
            datagram.ended = True
        elif end > datagram.length and datagram.ended:
            return wrong
        datagram.length = max(datagram.length, end)
        if fragment.length == 0:
            return wrong
        fate = datagram.place(fragment.start, end)
        if fate != _TAKEN:
            return fate
        datagram.pieces.append(fragment)
        datagram.received += fragment.length
        cost = len(fragment.octets) + _PIECE_COST
        datagram.cost += cost
        self.octets_held += cost
        return _TAKEN


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
