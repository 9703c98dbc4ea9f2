# SPDX-License-Identifier: MIT
"""The last events of each flow, for `nfq-guard dump` and `top`.

Only events that are written reach it, and their rate is limited (`telemetry.limiter`). It holds a
bounded number of flows, and of each the last few events. A flood of forged flows evicts the flow
that was seen longest ago.
"""

from collections import OrderedDict, deque
from typing import Final, final

import orjson

from nfq_guard import names
from nfq_guard.flow import FlowKey
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.log import json_fields

_FLOWS_MAX: Final = 256
_EVENTS_MAX: Final = 8


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
        """Remember at most `flows_max` flows."""
        self._max = flows_max
        self._flows: OrderedDict[FlowKey, _Flow] = OrderedDict()

    def add(self, key: FlowKey, event: PacketJudged) -> None:
        """Remember one event of the flow `key`."""
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

    def flows(self, address: str | None, limit: int) -> list[dict[str, object]]:
        """At most `limit` flows, the one seen last first; only those with `address` unless None."""
        found: list[dict[str, object]] = []
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
