# SPDX-License-Identifier: MIT
"""Aggregates recorded events in one pass and bounded memory."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, final

from nfq_guard.names import endpoint

# A port scan creates a flow with every packet; beyond this number, new flows count as `others`.
_FLOWS_MAX: Final = 50_000
_SECONDS_MAX: Final = 1_000_000
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
    state: str = ""
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
        skipped: Lines that are not packet events.
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
    skipped: int = 0


def summarise(events: Iterable[Mapping[str, Any] | None]) -> Summary:
    """Aggregate events; None and events without a packet count as skipped."""
    summary = Summary()
    for event in events:
        if event is None or event.get("event") != "packet_judged" or not _add(summary, event):
            summary.skipped += 1
    return summary


def _add(summary: Summary, event: Mapping[str, Any]) -> bool:
    try:
        when = datetime.fromisoformat(event["timestamp"])
        count = int(event.get("count", 1))
        reason, rule, action = str(event["reason"]), str(event["rule"]), str(event["action"])
        drops = event["would"] == "drop"
        nat = str(event["nat"])
        breach = event["breach"]
        bound = None if breach is None else str(breach["bound"])
        octets = 0 if breach is None else int(breach["distance"])
    except (KeyError, TypeError, ValueError):
        return False
    summary.packets += count
    summary.drops += count * drops
    summary.dropped += count * (event.get("verdict") == "drop")
    summary.first = when if summary.first is None else min(summary.first, when)
    summary.last = when if summary.last is None else max(summary.last, when)
    summary.modes[str(event.get("mode"))] += count
    summary.reasons[reason] += count
    summary.reason_drops[reason] += count * drops
    summary.nats[nat, reason] += count
    summary.rules[rule, action] += count
    second = (int(when.timestamp()), drops)
    if second in summary.seconds or len(summary.seconds) < _SECONDS_MAX:
        summary.seconds[second] += count
    if bound is not None:
        summary.distances[bound, min(octets.bit_length(), DISTANCE_CLASSES - 1)] += count
    flow = _flow(summary, event)
    if flow is None:
        summary.others += count
        return True
    flow.packets += count
    flow.drops += count * drops
    flow.reasons[reason] += count
    flow.nat, flow.rule = nat, rule
    flow.state = str(event.get("state") or "")
    flow.furthest = max(flow.furthest, octets)
    return True


def _flow(summary: Summary, event: Mapping[str, Any]) -> FlowSummary | None:
    ends = sorted(
        endpoint(str(event.get(host) or "?"), event.get(port))
        for host, port in (("src", "sport"), ("dst", "dport"))
    )
    name = (str(event.get("proto")), ends[0], ends[1])
    found = summary.flows.get(name)
    if found is None and len(summary.flows) < _FLOWS_MAX:
        found = summary.flows[name] = FlowSummary()
    return found
