# SPDX-License-Identifier: MIT
"""What became of a flow after one of its packets.

A packet was *followed by a reset* when a RST of its flow comes within `RESET_WITHIN_S`; its flow
*lived on* when it was not, and another packet of the flow comes at any time after it; else what
became of the flow is *unknown*. A flow is a pair of addresses and ports, whichever way it goes.

A capture has every packet of its flows. Events have the INVALID ones only: there a flow that
lived on by valid packets alone is unknown.
"""

from collections import OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, Generic, TypeVar, final

# The RST that answers a stray packet comes within a round trip.
RESET_WITHIN_S: Final = 5.0
# Bounds against recordings of floods: flows whose end is awaited, and packets of each. The flow
# that was silent longest, and the oldest packet, are settled with what is known by then.
MOST_FLOWS: Final = 65_536
MOST_PACKETS: Final = 1_024

T = TypeVar("T")


class Fate(StrEnum):
    """What became of the flow of a packet."""

    LIVED = "lived"
    RESET = "reset"
    UNKNOWN = "unknown"


@final
class _Waiting(Generic[T]):
    """Packets of one flow whose fate is open, oldest first."""

    def __init__(self) -> None:
        self.packets: list[tuple[float, T]] = []
        self.lived = 0


@final
class Aftermath(Generic[T]):
    """Tells the fate of packets as the recording goes on; `T` is whatever stands for a packet."""

    def __init__(self, most_flows: int = MOST_FLOWS) -> None:
        """Begin with no flow."""
        self._flows: OrderedDict[bytes, _Waiting[T]] = OrderedDict()
        self._most_flows = most_flows

    def saw(self, key: bytes, time_s: float, *, is_rst: bool) -> Iterator[tuple[T, Fate]]:
        """A packet of the flow `key` came by; the packets whose fate it settles."""
        flow = self._flows.get(key)
        if flow is None:
            return
        self._flows.move_to_end(key)
        packets = flow.packets
        late = 0
        while late < len(packets) and time_s - packets[late][0] > RESET_WITHIN_S:
            late += 1
        for index, (_, packet) in enumerate(packets[:late]):
            # A late RST is another packet of the flow, but no sign of life.
            lived = index < flow.lived or not is_rst
            yield packet, Fate.LIVED if lived else Fate.UNKNOWN
        if is_rst:
            for _, packet in packets[late:]:
                yield packet, Fate.RESET
            packets.clear()
        else:
            del packets[:late]
        flow.lived = len(packets)

    def awaits(self, key: bytes, time_s: float, packet: T) -> Iterator[tuple[T, Fate]]:
        """Remember `packet`; those that are given up for it, with their fate as far as known."""
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._most_flows:
                _, oldest = self._flows.popitem(last=False)
                yield from _settled(oldest)
            flow = self._flows[key] = _Waiting()
        flow.packets.append((time_s, packet))
        if len(flow.packets) > MOST_PACKETS:
            # What comes after it lives.
            _, first = flow.packets.pop(0)
            flow.lived = max(flow.lived - 1, 0)
            yield first, Fate.LIVED

    def end(self) -> Iterator[tuple[T, Fate]]:
        """The recording is over."""
        for flow in self._flows.values():
            yield from _settled(flow)
        self._flows.clear()


def _settled(flow: _Waiting[T]) -> Iterator[tuple[T, Fate]]:
    for index, (_, packet) in enumerate(flow.packets):
        yield packet, Fate.LIVED if index < flow.lived else Fate.UNKNOWN
