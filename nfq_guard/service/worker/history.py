# SPDX-License-Identifier: MIT
"""The last events of each flow, for `nfq-guard dump` and `top`.

The history gets only events that are written, and their rate is limited (`telemetry.limiter`). It
holds a bounded number of flows, with the last few events of each. A flood of forged flows evicts
the flow that was seen longest ago.
"""

from collections import OrderedDict, deque
from typing import Annotated, Final, TypedDict, final

import orjson

from nfq_guard import names
from nfq_guard.flow import FlowKey
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.log import json_fields

_FLOWS_MAX: Final = 256
_EVENTS_MAX: Final = 8


class EndsRecord(TypedDict):
    """The protocol and the ends of a flow, ordered by the bytes of their addresses, then by port.

    Attributes:
        proto: Protocol: `tcp`, `udp`, `icmp`, or its number.
        a: Address of one end; empty where the packets have no address.
        a_port: Its port; 0 without one.
        b: Address of the other end; empty where the packets have no address.
        b_port: Its port; 0 without one.
    """

    proto: str
    a: str
    a_port: int
    b: str
    b_port: int


class DumpedFlowRecord(TypedDict):
    """One flow with its last events, as `dump` and `top` print it.

    Attributes:
        flow: Its protocol and its ends.
        first: Time of its first event, as in events.
        last: Time of its last event, as in events.
        packets: Packets of all its events, also of those that are no longer kept.
        events: Its last events, the oldest first.
    """

    flow: EndsRecord
    first: str
    last: str
    packets: int
    events: list[Annotated[orjson.Fragment, PacketJudged]]


@final
class _Flow:
    __slots__ = ("events", "first", "last", "packets")

    def __init__(self, first: str) -> None:
        self.first = first
        self.last = first
        self.packets = 0
        self.events: deque[PacketJudged] = deque(maxlen=_EVENTS_MAX)


@final
class History:
    """The flows of one worker."""

    def __init__(self, flows_max: int = _FLOWS_MAX) -> None:
        """Keep at most `flows_max` flows."""
        self._max = flows_max
        self._flows: OrderedDict[FlowKey, _Flow] = OrderedDict()

    def add(self, key: FlowKey, event: PacketJudged) -> None:
        """Add one event of the flow `key`."""
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._max:
                self._flows.popitem(last=False)
            flow = self._flows[key] = _Flow(event.timestamp)
        else:
            self._flows.move_to_end(key)
        flow.last = event.timestamp
        flow.packets += event.count
        flow.events.append(event)

    def flows(self, address: str | None, limit: int) -> list[DumpedFlowRecord]:
        """At most `limit` flows, the one seen last first; only those with `address` unless None."""
        found: list[DumpedFlowRecord] = []
        for key, flow in reversed(self._flows.items()):
            proto, one_end, other_end, one_port, other_port = key
            one, other = names.address(one_end) or "", names.address(other_end) or ""
            if address not in {None, one, other}:
                continue
            found.append(
                {
                    "flow": {
                        "proto": names.protocol(proto),
                        "a": one,
                        "a_port": one_port,
                        "b": other,
                        "b_port": other_port,
                    },
                    "first": flow.first,
                    "last": flow.last,
                    "packets": flow.packets,
                    "events": [orjson.Fragment(json_fields(event)) for event in flow.events],
                }
            )
            if len(found) >= limit:
                break
        return found
