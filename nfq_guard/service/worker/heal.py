# SPDX-License-Identifier: MIT
"""Heals flows: disables conntrack's window check for one sender of one flow.

A rule with the action `heal` drops its packet and sets the flag BE_LIBERAL for the packet's sender
in its flow, so that the retransmission passes and is translated. This is `be_liberal` for one
sender of one flow instead of the whole host, and it is limited: to a number of heals a minute, for
each flow and for all, to a number of flows at a time, and to packets that are close to every bound
of their window (`conntrack.window.is_near`).

A heal is undone after some time without a packet of the flow that the policy heals, when the mode
or the policy ends heals, and when the daemon ends. Heals of a killed daemon are undone by the next
one (`heal_record`). A flow that had the flag already is not changed.

If conntrack restarts a flow, after a SYN that it ignored, the flag is lost; the next INVALID packet
heals the flow again, within the same limits.
"""

import errno
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, final

from nfq_guard.conntrack.window import is_near
from nfq_guard.engine import VERDICT_DROP, Judgment
from nfq_guard.errors import UnavailableError
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_DYING,
    IPS_OFFLOAD,
    Direction,
    FlowSnapshot,
    FlowTuple,
)
from nfq_guard.flows.liberal import LiberalFlag, LiberalFlow
from nfq_guard.names import address
from nfq_guard.policy.decision import Action, Policy
from nfq_guard.policy.healable import HEALED_STATES
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker.heal_record import HealedEntry, HealFile, HealRecord, NoRecord
from nfq_guard.service.worker.safe_judge import Judge
from nfq_guard.telemetry.events import Healed, HealedFlow, HealFailed
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Growth, Stats
from nfq_guard.wire.packet import Packet, Segment

_MINUTE_S: Final = 60.0
# Maximum number of flows whose heals are counted; the oldest is evicted.
_COUNTED_MAX: Final = 1 << 14
# Maximum number of packets a second that may lead to a heal; each takes a request to the kernel.
_CONSIDERED_MAX: Final = 512
# Maximum number of heals that one tick undoes; each takes two requests to the kernel of about 10
# us.
_UNDONE_A_TICK: Final = 256
# Time without heals after the kernel refused one for a reason that does not concern the flow.
_PAUSE_S: Final = 5.0
# Maximum number of attempts to undo a heal.
_TRIES: Final = 5
# Errors that concern the flow alone: it has gone, or may not be changed.
_OF_FLOW: Final = frozenset({errno.ENOENT, errno.EBUSY})
_BOTH: Final = frozenset(Direction)
_LOGGED: Final = ("heals", "would_heal", "heals_undone", "heals_refused", "heals_over_limit")

_Key = tuple[int, int, bytes, bytes, int, int]


class Liberal(Protocol):
    """The part of `flows.liberal.LiberalFlag` in use here; calls raise OSError."""

    def read(self, wanted: FlowTuple, zone: int) -> LiberalFlow | None:
        """The entry of a tuple; ENOENT without one."""

    def write(
        self, wanted: FlowTuple, zone: int, directions: frozenset[Direction], *, on: bool
    ) -> None:
        """Set or clear the flag of the senders of `directions`."""

    def close(self) -> None:
        """Close the connection."""


class Limits(NamedTuple):
    """The settings of a healer.

    Attributes:
        flow_per_minute: Maximum number of heals of one flow a minute.
        per_minute: Maximum number of heals a minute.
        most: Maximum number of flows that are healed at a time.
        timeout_s: Time without a packet that leads to a heal, after which a heal is undone.
        both: Whether a heal applies to both senders.
    """

    flow_per_minute: int
    per_minute: int
    most: int
    timeout_s: float
    both: bool


@final
class _Flow:
    """A healed flow: its heal, when it is undone, and the remaining attempts to undo it."""

    __slots__ = ("entry", "tries", "until")

    def __init__(self, entry: HealedEntry, until: float) -> None:
        self.entry = entry
        self.until = until
        self.tries = _TRIES


@final
class Healer:
    """Heals flows of one queue."""

    def __init__(
        self,
        liberal: Liberal,
        record: HealRecord,
        judge: Judge,
        stats: Stats,
        events: EventLog,
        limits: Limits,
    ) -> None:
        """Undo the heals of a daemon that was killed.

        Args:
            liberal: The kernel's flag.
            record: Keeps heals beyond the end of this process.
            judge: Judges the packets of the queue; its policy and mode determine the heals.
            stats: Holds the counters.
            events: Logs heals, at most once a second.
            limits: The settings.
        """
        self._liberal = liberal
        self._record = record
        self._judge = judge
        self._stats = stats
        self._events = events
        self._limits = limits
        self._policy: Policy | None = None
        self._heals = False
        self._healed: dict[_Key, _Flow] = {}
        self._window_end = 0.0
        self._minute_end = 0.0
        self._considered = 0
        self._counted: dict[_Key, int] = {}
        self._in_minute = 0
        self._not_before = 0.0
        self._problem = ""
        self._example: FlowTuple | None = None
        self._growth = Growth(stats.counters, _LOGGED)
        self._undo_those_left()

    def process_batch(self, judgments: Sequence[Judgment], now: float) -> None:
        """Heal the flows of packets whose rule says so; called after the verdicts."""
        if self._judge.policy is not self._policy:
            self._adopt()
        if not self._heals:
            return
        if now >= self._window_end:
            self._window_end = now + 1
            self._considered = 0
        for judgment in judgments:
            if judgment.decision.action is Action.HEAL and self._considered < _CONSIDERED_MAX:
                self._considered += 1
                self._consider(judgment, now)

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second."""
        self.resync()
        due = [key for key, flow in self._healed.items() if flow.until <= now]
        if due:
            self._undo(due[:_UNDONE_A_TICK])
        self._stats.gauges["healed_flows"] = len(self._healed)
        self._report()

    def resync(self) -> None:
        """Undo all heals if the mode or the policy no longer heals."""
        self._adopt()
        if self._healed and (not self._heals or self._judge.enforced_policy is None):
            self._undo(list(self._healed))
            self._stats.gauges["healed_flows"] = len(self._healed)

    def close(self) -> None:
        """Undo all heals and close."""
        self._undo(list(self._healed))
        self._stats.gauges["healed_flows"] = len(self._healed)
        self._report()
        self._record.close()
        self._liberal.close()

    def _adopt(self) -> None:
        policy = self._judge.policy
        if policy is not self._policy:
            self._policy = policy
            self._heals = heals(policy)

    def _consider(self, judgment: Judgment, now: float) -> None:
        packet = judgment.packet
        snapshot = judgment.snapshot
        breach = judgment.finding.breach
        if not isinstance(packet, Packet) or snapshot is None or breach is None:
            return
        segment = packet.l4
        if not isinstance(segment, Segment) or snapshot.peers is None:
            return
        key = _key(snapshot.zone, snapshot.original)
        healed = self._healed.get(key)
        if healed is not None:
            healed.until = now + self._limits.timeout_s
        sender = snapshot.peers[snapshot.direction]
        receiver = snapshot.peers[1 - snapshot.direction]
        counters = self._stats.counters
        if not is_near(segment, sender, receiver, breach.distance):
            counters["heals_refused"] += 1
        elif not self._is_within_limits(key, now):
            counters["heals_over_limit"] += 1
        elif judgment.verdict != VERDICT_DROP:
            self._would_heal(key, snapshot)
        elif now >= self._not_before:
            self._heal(key, snapshot, now)

    def _is_within_limits(self, key: _Key, now: float) -> bool:
        limits = self._limits
        if now >= self._minute_end:
            self._minute_end = now + _MINUTE_S
            self._in_minute = 0
            self._counted.clear()
        return (
            self._in_minute < limits.per_minute
            and self._counted.get(key, 0) < limits.flow_per_minute
            and (key in self._healed or len(self._healed) < limits.most)
        )

    def _count(self, key: _Key) -> None:
        self._in_minute += 1
        self._counted[key] = self._counted.pop(key, 0) + 1
        if len(self._counted) > _COUNTED_MAX:
            del self._counted[next(iter(self._counted))]

    def _would_heal(self, key: _Key, snapshot: FlowSnapshot) -> None:
        """Count a heal that dry-run omits, once a minute for each flow."""
        if key not in self._counted:
            self._count(key)
            self._stats.counters["would_heal"] += 1
            self._example = snapshot.original

    def _heal(self, key: _Key, snapshot: FlowSnapshot, now: float) -> None:
        counters = self._stats.counters
        original, zone = snapshot.original, snapshot.zone
        try:
            wanted, found = self._entry_of(snapshot)
            if found is None or not _can_be_healed(found.snapshot):
                counters["heals_refused"] += 1
                return
            sender = frozenset({Direction(snapshot.direction)})
            # A packet may have been queued before the flow was healed.
            directions = (_BOTH if self._limits.both else sender) - found.liberal
            if not sender <= directions:
                return
            before = self._healed.get(key)
            entry = HealedEntry(zone, wanted, found.identity, directions)
            self._record.add(entry)
            self._liberal.write(wanted, zone, directions, on=True)
        except OSError as error:
            self._refused(error, now)
            return
        self._count(key)
        counters["heals"] += 1
        self._example = original
        self._healed[key] = _Flow(_united(before, entry), now + self._limits.timeout_s)

    def _entry_of(self, snapshot: FlowSnapshot) -> tuple[FlowTuple, LiberalFlow | None]:
        """The entry of a flow, and the tuple by which the zone of the flow has it.

        A zone may be that of the reply direction alone (`CT --zone-reply`); the original direction
        is in zone 0 then, where another flow may have the same tuple.
        """
        original, zone = snapshot.original, snapshot.zone
        try:
            return original, self._liberal.read(original, zone)
        except OSError as error:
            if error.errno != errno.ENOENT or not zone:
                raise
        found = self._liberal.read(snapshot.reply, zone)
        if found is not None and found.snapshot.original != original:
            found = None
        return snapshot.reply, found

    def _refused(self, error: OSError, now: float) -> None:
        if error.errno in _OF_FLOW:
            self._stats.counters["heals_refused"] += 1
            return
        self._not_before = now + _PAUSE_S
        self._failed(error)

    def _undo(self, keys: Sequence[_Key]) -> None:
        """Undo heals; if the kernel refuses, try again for a few more ticks."""
        for key in keys:
            flow = self._healed[key]
            try:
                undone = self._clear(flow.entry)
            except OSError as error:
                self._failed(error)
                flow.tries -= 1
                if flow.tries:
                    continue
                undone = False
            del self._healed[key]
            self._stats.counters["heals_undone"] += undone
        try:
            self._record.replace([flow.entry for flow in self._healed.values()])
        except OSError as error:
            self._failed(error)

    def _clear(self, entry: HealedEntry) -> bool:
        """Clear the flag. Returns whether the flow still had the flag from us."""
        try:
            found = self._liberal.read(entry.wanted, entry.zone)
            if (
                found is None
                or found.identity != entry.identity
                or found.snapshot.status & IPS_OFFLOAD
            ):
                return False
            ours = entry.directions & found.liberal
            if ours:
                self._liberal.write(entry.wanted, entry.zone, ours, on=False)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return bool(ours)

    def _undo_those_left(self) -> None:
        try:
            left = self._record.take()
        except OSError as error:
            self._failed(error)
            return
        for each in left:
            key = _key(each.zone, each.wanted)
            self._healed[key] = _Flow(_united(self._healed.get(key), each), -math.inf)
        if left:
            self._undo(list(self._healed))

    def _failed(self, error: OSError) -> None:
        """Count an error; log a new problem once."""
        self._stats.counters["heal_errors"] += 1
        problem = error.strerror or str(error)
        if problem != self._problem:
            self._problem = problem
            self._events.emit(HealFailed(problem=problem))

    def _report(self) -> None:
        grown = self._growth.take()
        if not grown:
            return
        example = None
        if self._example is not None:
            flow = self._example
            self._example = None
            example = HealedFlow(
                src=address(flow.src), dst=address(flow.dst), sport=flow.sport, dport=flow.dport
            )
        self._events.emit(Healed(**grown, entries=len(self._healed), example=example))


def _united(before: _Flow | None, entry: HealedEntry) -> HealedEntry:
    """A heal, with the directions of an earlier one of the same flow."""
    if before is None or before.entry.identity != entry.identity:
        return entry
    return entry._replace(directions=entry.directions | before.entry.directions)


def heals(policy: Policy) -> bool:
    """Whether a policy has a rule that heals."""
    return isinstance(policy, CompiledPolicy) and policy.model.heals


def _can_be_healed(snapshot: FlowSnapshot) -> bool:
    """Whether a flow may be healed in its current state."""
    bits = IPS_ASSURED | IPS_DYING | IPS_OFFLOAD
    return snapshot.status & bits == IPS_ASSURED and snapshot.state in HEALED_STATES


def _key(zone: int, original: FlowTuple) -> _Key:
    return zone, original.proto, original.src, original.dst, original.sport, original.dport


def open_healer(
    settings: Settings, queue_num: int, judge: Judge, stats: Stats, events: EventLog
) -> Healer | None:
    """Open a healer in the network namespace of the calling thread; None without ctnetlink.

    Without a control socket there is no place for a record, so the heals of a killed daemon stay.
    """
    try:
        liberal = LiberalFlag()
    except UnavailableError:
        return None
    record: HealRecord = NoRecord()
    if settings.control_socket:
        socket = Path(settings.control_socket)
        record = HealFile(socket.with_name(f"{socket.name}.healed-{queue_num}"))
    return Healer(
        liberal,
        record,
        judge,
        stats,
        events,
        Limits(
            flow_per_minute=settings.heal_flow_per_minute,
            per_minute=settings.heal_per_minute,
            most=settings.heal_max_flows,
            timeout_s=settings.heal_timeout_s,
            both=settings.heal_both_directions,
        ),
    )
