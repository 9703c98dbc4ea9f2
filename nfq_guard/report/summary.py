# SPDX-License-Identifier: MIT
"""Aggregates recorded events in one pass and bounded memory."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Final, final

from nfq_guard.conntrack.bounds import BoundCheck
from nfq_guard.finding import Reason
from nfq_guard.flow import Nat, escapes
from nfq_guard.glossary import Cause
from nfq_guard.names import endpoint
from nfq_guard.report.timeline import Timeline
from nfq_guard.seqno import Seq, after
from nfq_guard.telemetry.events import PacketJudged
from nfq_guard.telemetry.reader import ReadEvent
from nfq_guard.whatif.causes import cause_in_event
from nfq_guard.whatif.events import bounds_of

# A port scan creates a flow with every packet; beyond this number, new flows count as `others`.
_FLOWS_MAX: Final = 50_000
_SERVICES_MAX: Final = 10_000
_SECONDS_MAX: Final = 1_000_000
# Events that are kept for the page, of all flows and of one.
_EVENTS_MAX: Final = 100_000
_FLOW_EVENTS_MAX: Final = 200
# Of one flow, events whose bounds are kept.
_FLOW_BOUNDS_MAX: Final = 20
# Resets that are kept with the packet that they answer.
_RESETS_MAX: Final = 200
# Of one flow, sequence numbers in which a repetition is looked for.
_FLOW_NUMBERS_MAX: Final = 64
_PLACES_MAX: Final = 100
# The largest window without the window scale option.
_UNSCALED: Final = 65_535
# Distances are counted by powers of two; the last exponent includes all larger ones.
DISTANCE_CLASSES: Final = 33

FlowName = tuple[str, str, str]


class Fate(IntEnum):
    """What became of a packet; the page has one colour for each."""

    ESCAPED = 0
    PASSED = 1
    DROPPED = 2


def fate_of(event: PacketJudged) -> Fate:
    """What became of the packets of an event."""
    if event.verdict == "drop":
        return Fate.DROPPED
    escaped = escapes(event.verdict, event.nat, leak=event.leak)
    return Fate.ESCAPED if escaped else Fate.PASSED


@final
@dataclass(slots=True)
class Counts:
    """Packets that have something in common: a reason, a service, a flow, or nothing.

    Attributes:
        packets: Number of packets.
        fates: Packets by `Fate`.
        drops: Packets that the policy drops, or would drop in dry-run.
        resets: RSTs that answered one of the packets.
        reasons: Packets by reason.
        nats: Packets by translation.
        first: When the first was judged.
        last: When the last was.
    """

    packets: int = 0
    fates: list[int] = field(default_factory=lambda: [0] * len(Fate))
    drops: int = 0
    resets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nats: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, read: ReadEvent, fate: Fate) -> None:
        """Add the packets of one event."""
        event = read.event
        self.packets += event.count
        self.fates[fate] += event.count
        if event.would == "drop":
            self.drops += event.count
        self.reasons[event.reason] += event.count
        self.nats[event.nat] += event.count
        self.first = read.first if self.first is None else min(self.first, read.first)
        self.last = read.when if self.last is None else max(self.last, read.when)


@final
@dataclass(frozen=True, slots=True)
class KeptEvent:
    """One event of a flow, and the window bounds that its first packet was checked against."""

    read: ReadEvent
    bounds: tuple[BoundCheck, ...]


class Again(StrEnum):
    """How a segment came again, by the sender's clock in its timestamp option.

    A copy that was made on the way has the clock of its original, a retransmission a later one. An
    earlier clock is that of an original which a retransmission overtook.
    """

    COPY = "the same timestamp"
    LATER = "a later timestamp"
    EARLIER = "an earlier timestamp"
    UNKNOWN = "no timestamp to compare"


@final
@dataclass(slots=True)
class Repetition:
    """Events outside the window whose first packet has a number that their flow had before.

    Attributes:
        events: Events with a number, whether repeated or not.
        repeated: Those whose number came before.
        clocks: The repeated ones by how they came again.
        directions: By direction; empty for an unknown one.
        states: By the state of their flow; empty for an unknown one.
        nearest: The shortest distance from a bound.
        furthest: The longest.
    """

    events: int = 0
    repeated: int = 0
    clocks: Counter[Again] = field(default_factory=Counter)
    directions: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    nearest: int = 0
    furthest: int = 0


@final
@dataclass(slots=True)
class FlowSummary:
    """One flow, identified by its endpoints.

    Attributes:
        service: The end that accepted the connection, or the likelier one.
        counts: Its packets.
        nat: How the host translates it, by the last event that tells it.
        state: Its state at the last event that has one.
        furthest: The largest distance from a bound, in bytes; 0 if there is none.
        events: Its first events.
        left_out: Number of the events after those.
        numbers: The first sequence numbers of its packets outside the window, each with the clock
            that it came with last.
        causes: Its causes so far.
        entry: The last state in which it was seen, and when, seconds since the epoch.
    """

    service: str
    counts: Counts = field(default_factory=Counts)
    nat: str = ""
    state: str | None = None
    furthest: int = 0
    events: list[KeptEvent] = field(default_factory=list)
    left_out: int = 0
    numbers: dict[tuple[bool, int], int | None] = field(default_factory=dict)
    causes: set[Cause] = field(default_factory=set)
    entry: tuple[str, float] | None = None


@final
@dataclass(slots=True)
class Summary:
    """All events of a page.

    Attributes:
        counts: All packets, including folded ones.
        escaped_since: When the first packet of a translated flow got through untranslated.
        escaped_until: When the last did.
        modes: Packets by mode.
        reasons: Packets by reason.
        causes: By cause, where the events tell it: packets and flows.
        lost: Flows by the second in which the first packet came that no entry was found for.
        services: Packets by service, at most a bounded number.
        rules: Packets by rule and action.
        timeline: Packets by time and `Fate`.
        distances: Packets by bound and power of two of the distance.
        flows: The flows, at most a bounded number.
        others: Packets of flows beyond that number.
        service_others: Packets of services beyond theirs.
        untold: Packets that got through and of which the translation is unknown.
        resets: The first events of RSTs that answered a packet.
        kept: Events that flows keep.
        repetition: Events outside the window whose segment came again.
        beyond_unscaled: Packets further over bound I than the largest window without window
            scaling, whose receiver has shown no larger one.
        flags: Packets by reason and TCP flags, without RSTs whose cause is known.
        states: Packets by reason and TCP state.
        checksum_places: Packets with a wrong checksum by the interface that they came in by.
    """

    counts: Counts = field(default_factory=Counts)
    escaped_since: datetime | None = None
    escaped_until: datetime | None = None
    modes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counts] = field(default_factory=dict)
    causes: dict[Cause, tuple[int, int]] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)
    services: dict[str, Counts] = field(default_factory=dict)
    rules: Counter[tuple[str, str]] = field(default_factory=Counter)
    timeline: Timeline = field(default_factory=lambda: Timeline(len(Fate)))
    distances: Counter[tuple[str, int]] = field(default_factory=Counter)
    flows: dict[FlowName, FlowSummary] = field(default_factory=dict)
    others: int = 0
    service_others: int = 0
    untold: int = 0
    resets: list[ReadEvent] = field(default_factory=list)
    kept: int = 0
    repetition: Repetition = field(default_factory=Repetition)
    beyond_unscaled: int = 0
    flags: Counter[tuple[str, str]] = field(default_factory=Counter)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    checksum_places: Counter[str] = field(default_factory=Counter)


def add_event(summary: Summary, read: ReadEvent) -> None:
    """Add one event to a summary."""
    event = read.event
    count = event.count
    fate = fate_of(event)
    summary.counts.add(read, fate)
    _note_fate(summary, read, fate)
    summary.modes[event.mode] += count
    summary.rules[event.rule, event.action] += count
    summary.timeline.add(read.first, read.when, count, fate)
    summary.reasons.setdefault(event.reason, Counts()).add(read, fate)
    _add_distances(summary, event)
    flow = _flow(summary, event)
    service = server_of(event) if flow is None else flow.service
    groups = [_service(summary, service)]
    if groups[0] is None:
        summary.service_others += count
    _add_cause(summary, flow, read)
    if flow is None:
        summary.others += count
    else:
        groups.append(flow.counts)
        # An RST from an address that escaped its translation belongs to no entry.
        if event.nat != Nat.UNKNOWN or not flow.nat:
            flow.nat = event.nat
        if event.state is not None:
            flow.state = event.state
        flow.furthest = max(flow.furthest, furthest_of(event))
        _keep(summary, flow, read)
        _note_repetition(summary, flow, event)
    for group in groups:
        if group is not None:
            group.add(read, fate)
    _note_pattern(summary, event)
    if event.caused_by is not None:
        if len(summary.resets) < _RESETS_MAX:
            summary.resets.append(read)
        cause = summary.reasons.setdefault(event.caused_by.reason, Counts())
        for group in (summary.counts, cause, *groups):
            if group is not None:
                group.resets += count


def _note_fate(summary: Summary, read: ReadEvent, fate: Fate) -> None:
    """Note since when packets escape, and how many may have."""
    if fate is Fate.ESCAPED:
        since, until = summary.escaped_since, summary.escaped_until
        summary.escaped_since = read.first if since is None else min(since, read.first)
        summary.escaped_until = read.when if until is None else max(until, read.when)
    elif fate is Fate.PASSED and read.event.nat == Nat.UNKNOWN:
        summary.untold += read.event.count


def _note_pattern(summary: Summary, event: PacketJudged) -> None:
    """Count what `hints` look for."""
    if event.tcp_flags is not None and event.caused_by is None:
        summary.flags[event.reason, event.tcp_flags] += event.count
    if event.state is not None:
        summary.states[event.reason, event.state] += event.count
    if event.reason is Reason.BAD_CHECKSUM:
        place = event.indev or event.outdev
        if place in summary.checksum_places or len(summary.checksum_places) < _PLACES_MAX:
            summary.checksum_places[place] += event.count
    window = event.window
    if (
        event.reason is Reason.SEQ_OVER
        and window is not None
        and window.receiver_td_maxwin <= _UNSCALED
    ):
        summary.beyond_unscaled += sum(
            packets for distance, packets in _distances(event) if distance > _UNSCALED
        )


def _note_repetition(summary: Summary, flow: FlowSummary, event: PacketJudged) -> None:
    """Count segments outside the window that repeat a sequence number of their flow.

    Of several packets that share an event only the first one's number is known.
    """
    if event.breach is None or event.seq is None or not event.payload:
        return
    found = summary.repetition
    found.events += 1
    number = endpoint(event.src, event.sport) < endpoint(event.dst, event.dport), event.seq
    if number in flow.numbers:
        found.repeated += 1
        found.clocks[_again(flow.numbers[number], event.tcp_timestamp)] += 1
        found.directions[event.direction or ""] += 1
        found.states[event.state or ""] += 1
        nearest = event.breach.distance
        found.nearest = nearest if found.repeated == 1 else min(found.nearest, nearest)
        found.furthest = max(found.furthest, furthest_of(event))
        flow.numbers[number] = event.tcp_timestamp
    elif len(flow.numbers) < _FLOW_NUMBERS_MAX:
        flow.numbers[number] = event.tcp_timestamp


def _again(last: int | None, now: int | None) -> Again:
    if last is None or now is None:
        return Again.UNKNOWN
    if last == now:
        return Again.COPY
    # Clocks are compared as sequence numbers are (RFC 7323, section 5.2).
    return Again.EARLIER if after(Seq(last), Seq(now)) else Again.LATER


def _add_cause(summary: Summary, flow: FlowSummary | None, read: ReadEvent) -> None:
    event = read.event
    first = read.first.timestamp()
    before = None
    if flow is not None:
        if flow.entry is not None:
            before = flow.entry[0], first - flow.entry[1]
        lost = event.reason is Reason.NO_ENTRY and event.reason not in flow.counts.reasons
        if lost and (int(first) in summary.lost or len(summary.lost) < _SECONDS_MAX):
            summary.lost[int(first)] += 1
        if event.state is not None:
            flow.entry = event.state, read.when.timestamp()
    if event.caused_by is not None:  # its cause is known
        return
    cause = cause_in_event(
        event.reason,
        event.tcp_flags,
        event.direction,
        event.state,
        event.src,
        event.dst,
        before=before,
    )
    if cause is None:
        return
    packets, flows = summary.causes.get(cause, (0, 0))
    if flow is not None and cause not in flow.causes:
        flow.causes.add(cause)
        flows += 1
    summary.causes[cause] = packets + event.count, flows


def server_of(event: PacketJudged) -> str:
    """The end that accepted the connection; without a known flow the end with the lower port."""
    src, dst = endpoint(event.src, event.sport), endpoint(event.dst, event.dport)
    if event.direction is not None:
        return src if event.direction == "reply" else dst
    if event.sport is not None and event.dport is not None and event.sport < event.dport:
        return src
    return dst


def furthest_of(event: PacketJudged) -> int:
    """The largest distance from a bound, in bytes; 0 if no bound was broken."""
    return max((distance for distance, _ in _distances(event)), default=0)


def _distances(event: PacketJudged) -> tuple[tuple[int, int], ...]:
    if event.breach is None:
        return ()
    return event.distances or ((event.breach.distance, event.count),)


def _add_distances(summary: Summary, event: PacketJudged) -> None:
    for distance, packets in _distances(event):
        power = min(distance.bit_length(), DISTANCE_CLASSES - 1)
        summary.distances[event.reason, power] += packets


def _service(summary: Summary, name: str) -> Counts | None:
    service = summary.services.get(name)
    if service is None and len(summary.services) < _SERVICES_MAX:
        service = summary.services[name] = Counts()
    return service


def _flow(summary: Summary, event: PacketJudged) -> FlowSummary | None:
    one, other = sorted((endpoint(event.src, event.sport), endpoint(event.dst, event.dport)))
    name = (event.proto, one, other)
    flow = summary.flows.get(name)
    if flow is None and len(summary.flows) < _FLOWS_MAX:
        flow = summary.flows[name] = FlowSummary(server_of(event))
    return flow


def _keep(summary: Summary, flow: FlowSummary, read: ReadEvent) -> None:
    """Keep an event for the page, within the bounds."""
    if summary.kept >= _EVENTS_MAX or len(flow.events) >= _FLOW_EVENTS_MAX:
        flow.left_out += 1
        return
    summary.kept += 1
    bounds = bounds_of(read.event) if len(flow.events) < _FLOW_BOUNDS_MAX else []
    flow.events.append(KeptEvent(read, tuple(bounds)))
