# SPDX-License-Identifier: MIT
"""The fate of a flow after one of its packets.

A packet was *followed by a reset* if an RST of its flow comes within `RESET_WITHIN_S`. Otherwise
its flow *continued* if any later packet of the flow is recorded. Otherwise the fate is *unknown*. A
flow is a pair of addresses and ports, in either direction.

A capture has every packet of its flows. Events have only the INVALID ones, so a flow that continued
with valid packets alone has the fate unknown.
"""

from collections import OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, Generic, TypeVar, final

from nfq_guard.flow import FlowKey
from nfq_guard.resets import RESET_WITHIN_S

# Bounds against recordings of floods: flows with an open fate, and packets of each. Beyond them,
# the flow that was silent longest, or the oldest packet, gets the fate known so far.
MOST_FLOWS: Final = 65_536
MOST_PACKETS: Final = 1_024

T = TypeVar("T")


class Fate(StrEnum):
    """The fate of a packet's flow."""

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
class Conversations(Generic[T]):
    """Determines the fate of packets in the order of the recording; `T` represents a packet."""

    def __init__(self, most_flows: int = MOST_FLOWS) -> None:
        """Start without flows."""
        self._flows: OrderedDict[FlowKey, _Waiting[T]] = OrderedDict()
        self._most_flows = most_flows

    def saw(self, key: FlowKey, time_s: float, *, is_rst: bool) -> Iterator[tuple[T, Fate]]:
        """Account for a packet of the flow `key`; returns the packets whose fate it decides."""
        flow = self._flows.get(key)
        if flow is None:
            return
        self._flows.move_to_end(key)
        packets = flow.packets
        late = 0
        while late < len(packets) and time_s - packets[late][0] > RESET_WITHIN_S:
            late += 1
        for index, (_, packet) in enumerate(packets[:late]):
            # A late RST is another packet of the flow, but no evidence that the flow continued.
            lived = index < flow.lived or not is_rst
            yield packet, Fate.LIVED if lived else Fate.UNKNOWN
        if is_rst:
            for _, packet in packets[late:]:
                yield packet, Fate.RESET
            packets.clear()
        else:
            del packets[:late]
        flow.lived = len(packets)

    def awaits(self, key: FlowKey, time_s: float, packet: T) -> Iterator[tuple[T, Fate]]:
        """Add `packet`; returns the packets evicted for it, with their fate as known so far."""
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._most_flows:
                _, oldest = self._flows.popitem(last=False)
                yield from _settled(oldest)
            flow = self._flows[key] = _Waiting()
        flow.packets.append((time_s, packet))
        if len(flow.packets) > MOST_PACKETS:
            # Later packets show that the flow lives.
            _, first = flow.packets.pop(0)
            flow.lived = max(flow.lived - 1, 0)
            yield first, Fate.LIVED

    def end(self) -> Iterator[tuple[T, Fate]]:
        """End the recording; returns the remaining packets with their fate."""
        for flow in self._flows.values():
            yield from _settled(flow)
        self._flows.clear()


def _settled(flow: _Waiting[T]) -> Iterator[tuple[T, Fate]]:
    for index, (_, packet) in enumerate(flow.packets):
        yield packet, Fate.LIVED if index < flow.lived else Fate.UNKNOWN
