# SPDX-License-Identifier: MIT
"""What was said of each flow lately, for `nfq-guard dump` and `top`.

It is fed with the events that come out, which are limited already (`telemetry.limits`), so it
costs packets nothing. It holds as many flows as fit, and of each its last few events; a flood of
made-up flows pushes out the one that was seen longest ago.
"""

from collections import OrderedDict, deque
from typing import Any, Final, final

import orjson

_FLOWS_MAX: Final = 256
_EVENTS_MAX: Final = 8

Key = tuple[str, str, int, str, int]


@final
class _Flow:
    __slots__ = ("events", "first", "last", "packets")

    def __init__(self, first: str) -> None:
        self.first = first
        self.last = first
        self.packets = 0
        self.events: deque[bytes] = deque(maxlen=_EVENTS_MAX)


@final
class History:
    """The flows of one worker."""

    def __init__(self, flows_max: int = _FLOWS_MAX) -> None:
        """Remember so many."""
        self._max = flows_max
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()

    def add(self, fields: dict[str, Any], count: int) -> None:
        """One event `packet_judged` that stands for `count` packets."""
        key = _key(fields)
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._max:
                self._flows.popitem(last=False)
            flow = self._flows[key] = _Flow(fields["timestamp"])
        else:
            self._flows.move_to_end(key)
        flow.last = fields["timestamp"]
        flow.packets += count
        flow.events.append(orjson.dumps(fields, default=str))

    def flows(self, address: str | None, limit: int) -> list[dict[str, object]]:
        """Flows, the one seen last first; `address` names one of their ends."""
        found: list[dict[str, object]] = []
        for key, flow in reversed(self._flows.items()):
            proto, one, one_port, other, other_port = key
            if address not in {None, one, other}:
                continue
            found.append(
                {
                    "flow": {
                        "proto": proto,
                        "a": one,
                        "a_port": one_port,
                        "b": other,
                        "b_port": other_port,
                    },
                    "first": flow.first,
                    "last": flow.last,
                    "packets": flow.packets,
                    "events": [orjson.Fragment(octets) for octets in flow.events],
                }
            )
            if len(found) >= limit:
                break
        return found


def _key(fields: dict[str, Any]) -> Key:
    """The flow, the same for both of its directions."""
    one = (fields["src"] or "", fields["sport"] or 0)
    other = (fields["dst"] or "", fields["dport"] or 0)
    if other < one:
        one, other = other, one
    return fields["proto"], *one, *other
