# SPDX-License-Identifier: MIT
"""Aggregates recorded events in one pass and bounded memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from nfq_guard.names import endpoint
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.reader import ReadEvent

# A port scan creates a flow with every packet; beyond this number, new flows count as `others`.
_FLOWS_MAX: Final = 50_000
_SECONDS_MAX: Final = 1_000_000
# Seconds over which the packets of one event are spread.
_MOMENTS_MAX: Final = 64
# Distances are counted by powers of two; the last exponent includes all larger ones.
DISTANCE_CLASSES: Final = 33

FlowName = tuple[str, str, str]


@final
@dataclass(slots=True)
class FlowSummary:
    """One flow, identified by its endpoints.

    Attributes:
        packets: Number of packets.
        drops: Packets that the policy drops, or would drop in dry-run.
        reasons: Packets by reason.
        nat: How the host translates it.
        state: Its state at the last event.
        rule: The rule that decided last.
        furthest: The largest distance from a bound, in bytes; 0 if there is none.
    """

    packets: int = 0
    drops: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nat: str = ""
    state: str | None = None
    rule: str = ""
    furthest: int = 0


@final
@dataclass(slots=True)
class Summary:
    """All events of a report.

    Attributes:
        packets: Number of packets, including folded ones.
        drops: Packets that the policy drops, or would drop in dry-run.
        dropped: Packets that were dropped.
        first: Time of the earliest event; None if there is none.
        last: Time of the latest.
        modes: Packets by mode.
        reasons: Packets by reason.
        reason_drops: Packets that are or would be dropped, by reason.
        nats: Packets by translation and reason.
        rules: Packets by rule and action.
        seconds: Packets by second since the epoch and by whether they are dropped.
        distances: Packets by bound and power of two of the distance.
        flows: The flows, at most a bounded number.
        others: Packets of flows beyond that number.
    """

    packets: int = 0
    drops: int = 0
    dropped: int = 0
    first: datetime | None = None
    last: datetime | None = None
    modes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    reason_drops: Counter[str] = field(default_factory=Counter)
    nats: Counter[tuple[str, str]] = field(default_factory=Counter)
    rules: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Counter[tuple[int, bool]] = field(default_factory=Counter)
    distances: Counter[tuple[str, int]] = field(default_factory=Counter)
    flows: dict[FlowName, FlowSummary] = field(default_factory=dict)
    others: int = 0


def add_event(summary: Summary, read: ReadEvent) -> None:
    """Add one event to a summary."""
    event = read.event
    count = event.count
    drops = event.would == "drop"
    summary.packets += count
    summary.drops += count * drops
    summary.dropped += count * (event.verdict == "drop")
    summary.first = read.first if summary.first is None else min(summary.first, read.first)
    summary.last = read.when if summary.last is None else max(summary.last, read.when)
    summary.modes[event.mode] += count
    summary.reasons[event.reason] += count
    summary.reason_drops[event.reason] += count * drops
    summary.nats[event.nat, event.reason] += count
    summary.rules[event.rule, event.action] += count
    for when, packets in _spread(read):
        second = (when, drops)
        if second in summary.seconds or len(summary.seconds) < _SECONDS_MAX:
            summary.seconds[second] += packets
    furthest = 0
    if event.breach is not None:
        for distance, packets in event.distances or ((event.breach.distance, count),):
            furthest = max(furthest, distance)
            power = min(distance.bit_length(), DISTANCE_CLASSES - 1)
            summary.distances[event.breach.bound, power] += packets
    flow = _flow(summary, event)
    if flow is None:
        summary.others += count
        return
    flow.packets += count
    flow.drops += count * drops
    flow.reasons[event.reason] += count
    flow.nat, flow.rule = event.nat, event.rule
    flow.state = event.state
    flow.furthest = max(flow.furthest, furthest)


def _spread(read: ReadEvent) -> Iterator[tuple[int, int]]:
    """The packets of an event spread evenly over its time: seconds, each with its packets."""
    count = read.event.count
    first, last = read.first.timestamp(), read.when.timestamp()
    moments = min(count, int(last) - int(first) + 1, _MOMENTS_MAX)
    for moment in range(moments):
        packets = count * (moment + 1) // moments - count * moment // moments
        yield int(first + (last - first) * moment / max(moments - 1, 1)), packets


def _flow(summary: Summary, event: PacketJudged) -> FlowSummary | None:
    one, other = sorted((endpoint(event.src, event.sport), endpoint(event.dst, event.dport)))
    name = (event.proto, one, other)
    flow = summary.flows.get(name)
    if flow is None and len(summary.flows) < _FLOWS_MAX:
        flow = summary.flows[name] = FlowSummary()
    return flow
