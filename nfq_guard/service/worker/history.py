# SPDX-License-Identifier: MIT
"""The last events of each flow, for `nfq-guard dump` and `top`.

The history contains only events that are logged, whose rate is limited (`telemetry.limiter`). It
holds a bounded number of flows, with the last few events of each. A flood of forged flows evicts
the least recently seen flow.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple, TypedDict, final

import msgspec
import orjson

from nfq_guard import names
from nfq_guard.finding import Reason
from nfq_guard.flow import FlowKey
from nfq_guard.telemetry.event_json import json_octets
from nfq_guard.telemetry.events import PacketJudged

_FLOWS_MAX: Final = 256
_EVENTS_MAX: Final = 8
# Bound on all entries of a dump, in bytes.
_BYTES_MAX: Final = 3 << 20


class EndsRecord(TypedDict):
    """The protocol and the ends of a flow, ordered by the bytes of their addresses, then by port.

    Attributes:
        proto: Protocol: `icmp`, `tcp`, `udp`, `gre`, `icmpv6`, `sctp`, or its number.
        a: Address of one end; empty if the packets have no address.
        a_port: Its port; 0 without one.
        b: Address of the other end; empty if the packets have no address.
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
        packets: Number of its packets since `first`, including those whose events are no longer
            kept or not due yet, but not those that have no event: beyond a limit, or allowed
            without `log_allowed`.
        reasons: These packets by reason.
        resets: RSTs among them that answered an INVALID packet.
        events: Its last events, the oldest first.
    """

    flow: EndsRecord
    first: str
    last: str
    packets: int
    reasons: dict[str, int]
    resets: int
    events: list[Annotated[orjson.Fragment, PacketJudged]]


class Pending(NamedTuple):
    """Packets of a flow whose event is not due yet.

    Attributes:
        key: The flow.
        reason: Why they are INVALID.
        packets: Number of packets.
        last: When the last was judged, as in events.
        resets: RSTs among them that answered an INVALID packet.
        at: When the last was judged, monotonic seconds.
    """

    key: FlowKey
    reason: Reason
    packets: int
    last: str
    resets: int
    at: float


class DumpEntry(msgspec.Struct, frozen=True):
    """One flow or packet of a dump.

    Attributes:
        last: The sort key, a time of the same length in all entries: the monotonic one of a flow's
            last packet, or that of a packet.
        json: The entry as in the response.
    """

    last: str
    json: bytes


def newest(entries: Iterable[DumpEntry], most: int) -> list[DumpEntry]:
    """The latest entries, newest first: at most `most`, and as many as fit into a response."""
    found: list[DumpEntry] = []
    size = 0
    for entry in sorted(entries, key=lambda entry: entry.last, reverse=True)[:most]:
        size += len(entry.json)
        if size > _BYTES_MAX:
            break
        found.append(entry)
    return found


class SeenFlow(NamedTuple):
    """A flow of the history.

    Attributes:
        at: When its last packet was judged, as given to `History.add`.
        record: The flow.
    """

    at: float
    record: DumpedFlowRecord


@final
class _Flow:
    __slots__ = ("at", "events", "first", "last", "reasons", "resets")

    def __init__(self, first: str, at: float) -> None:
        self.first = first
        self.last = first
        self.at = at
        self.reasons: dict[str, int] = {}
        self.resets = 0
        self.events: deque[PacketJudged] = deque(maxlen=_EVENTS_MAX)


@final
class History:
    """The flows of one worker."""

    def __init__(self, flows_max: int = _FLOWS_MAX) -> None:
        """Keep at most `flows_max` flows."""
        self._max = flows_max
        self._flows: OrderedDict[FlowKey, _Flow] = OrderedDict()

    def add(self, key: FlowKey, event: PacketJudged, at: float) -> None:
        """Add one event of the flow `key`.

        Args:
            key: The flow.
            event: Its event.
            at: When its last packet was judged. The order of flows follows from it, and must not
                depend on steps of the wall clock: monotonic seconds, or the time of a recording.
        """
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._max:
                self._flows.popitem(last=False)
            flow = self._flows[key] = _Flow(event.timestamp, at)
        else:
            self._flows.move_to_end(key)
        if at >= flow.at:  # events of packets that were counted together are late
            flow.at = at
            flow.last = event.timestamp
        reason = event.reason.value
        flow.reasons[reason] = flow.reasons.get(reason, 0) + event.count
        if event.caused_by is not None:
            flow.resets += event.count
        flow.events.append(event)

    def flows(
        self, address: str | None, limit: int, pending: Iterable[Pending] = ()
    ) -> list[DumpedFlowRecord]:
        """The records of `seen`."""
        return [flow.record for flow in self.seen(address, limit, pending)]

    def seen(
        self, address: str | None, limit: int, pending: Iterable[Pending] = ()
    ) -> list[SeenFlow]:
        """The flows, most recently seen first.

        Args:
            address: Only flows with this end; None for all.
            limit: Maximum number of flows.
            pending: Packets that have no event yet; ignored for flows without an event.
        """
        waiting: dict[FlowKey, list[Pending]] = {}
        for some in pending:
            waiting.setdefault(some.key, []).append(some)
        found: list[SeenFlow] = []
        for key, flow in reversed(self._flows.items()):
            ends = _ends(key)
            if address in {None, ends["a"], ends["b"]}:
                found.append(_seen(ends, flow, waiting.get(key, ())))
        found.sort(key=lambda flow: flow.at, reverse=True)
        return found[:limit]


def _ends(key: FlowKey) -> EndsRecord:
    proto, one_end, other_end, one_port, other_port = key
    return {
        "proto": names.protocol(proto),
        "a": names.address(one_end) or "",
        "a_port": one_port,
        "b": names.address(other_end) or "",
        "b_port": other_port,
    }


def _seen(ends: EndsRecord, flow: _Flow, pending: Sequence[Pending]) -> SeenFlow:
    reasons = dict(flow.reasons)
    for some in pending:
        reason = some.reason.value
        reasons[reason] = reasons.get(reason, 0) + some.packets
    at, last = max([(flow.at, flow.last), *((some.at, some.last) for some in pending)])
    record: DumpedFlowRecord = {
        "flow": ends,
        "first": flow.first,
        "last": last,
        "packets": sum(reasons.values()),
        "reasons": reasons,
        "resets": flow.resets + sum(some.resets for some in pending),
        "events": [orjson.Fragment(json_octets(event)) for event in flow.events],
    }
    return SeenFlow(at, record)
