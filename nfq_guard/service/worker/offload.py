# SPDX-License-Identifier: MIT
"""Offloads floods: the kernel drops the INVALID packets of a flow without the daemon.

One direction of a flow is offloaded once it has brought many INVALID packets within a second and
the policy would drop every packet that it can bring (`policy.offloadable`), unless rules before
conntrack hide its other half, whose packets pass (`raw_rules`). The offload ends after
a limited time, at the latest when the flow's conntrack entry expires. The next packet is judged by
the policy in force at that time; if it is dropped, the flow is offloaded again at once.

The kernel's drops can therefore differ from the daemon's decisions for at most that time: an entry
that `conntrack -D` or an RST removes early is noticed only when the offload ends.
"""

import errno
from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard.engine import VERDICT_DROP, Judgment
from nfq_guard.firewall.offload_sets import MOST_IN_ONE, OffloadSets, OneWay
from nfq_guard.flow import Hook
from nfq_guard.names import address
from nfq_guard.names import hook as hook_name
from nfq_guard.policy.decision import Action, Policy
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.offloadable import OffloadCheck
from nfq_guard.raw_rules import RawRules
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker.safe_judge import Judge
from nfq_guard.telemetry.events import Offloaded, OffloadedFlow, OffloadFailed
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Growth, Stats
from nfq_guard.wire.packet import Packet, Segment

# Maximum number of flows that are counted within a second. Forged addresses can reach it; the
# daemon then judges the packets of later flows itself.
_COUNTED_MAX: Final = 4096
# Maximum number of flows a second that are checked against the policy, and that are offloaded.
_CHECKED_MAX: Final = 512
_WINDOW_S: Final = 1.0
# Time without offloads after the kernel refused one.
_PAUSE_S: Final = 5.0
# The counters in the event that is logged at most once a second.
_LOGGED: Final = ("offloaded_flows", "offload_drops", "offload_refused", "offload_full")

_Key = tuple[int, str, bytes, bytes, int, int]


class Sets(Protocol):
    """The part of `firewall.offload_sets.OffloadSets` in use here; calls raise OSError."""

    def add(self, flows: Sequence[tuple[OneWay, float]]) -> None:
        """Add flows, each with its seconds to live: all of them or none."""

    def clear(self) -> None:
        """Remove all flows."""

    def take_dropped(self) -> int:
        """Packets that the kernel dropped since the last call."""

    def close(self) -> None:
        """Close the socket."""


@final
class Offloader:
    """Offloads flows of one queue."""

    def __init__(
        self,
        sets: Sets,
        judge: Judge,
        stats: Stats,
        events: EventLog,
        *,
        after: int,
        timeout_s: float,
        most: int,
    ) -> None:
        """Offload nothing before a packet is dropped.

        Args:
            sets: The kernel's sets of flows.
            judge: Judges the packets of the queue; its policy, its mode and its rules before
                conntrack decide what is offloaded.
            stats: Holds the counters.
            events: Logs offloads, at most once a second.
            after: Packets of one flow that must be dropped within a second before it is offloaded.
            timeout_s: Longest time for which a flow is offloaded.
            most: Maximum number of flows that are offloaded at a time.
        """
        self._sets = sets
        self._judge = judge
        self._stats = stats
        self._events = events
        self._after = after
        self._timeout_s = timeout_s
        self._most = most
        self._policy: Policy | None = None
        self._check: OffloadCheck | None = None
        self._raw_rules: RawRules | None = None
        # Whether the sets may hold flows of another policy or mode, of other rules before
        # conntrack, or of a daemon that was killed.
        self._stale = True
        self._window_end = 0.0
        self._counts: dict[_Key, int] = {}
        self._staying: set[_Key] = set()
        self._checked = 0
        # The end of each flow's offload, and the time until which one packet then suffices to
        # offload it again.
        self._offloaded: dict[_Key, float] = {}
        self._recent: dict[_Key, float] = {}
        self._not_before = 0.0
        self._problem = ""
        self._example: _Key | None = None
        self._growth = Growth(stats.counters, _LOGGED)

    def process_batch(self, judgments: Sequence[Judgment], now: float) -> None:
        """Count dropped packets, and offload flows with many of them; called after the verdicts."""
        if not self.resync(now):
            return
        if now >= self._window_end:
            self._window_end = now + _WINDOW_S
            self._counts.clear()
            self._staying.clear()
            self._checked = 0
        due: dict[_Key, float] = {}
        for judgment in judgments:
            if judgment.verdict == VERDICT_DROP and judgment.decision.action is Action.DROP:
                key = _key(judgment)
                if key is not None and key not in due and self._is_due(key, now):
                    seconds = self._seconds(key, judgment)
                    if seconds:
                        due[key] = seconds
        if due:
            self._offload(due, now)

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second, after `refresh`."""
        self.resync(now)
        for key in [key for key, end in self._offloaded.items() if end <= now]:
            end = self._offloaded.pop(key)
            if len(self._recent) < self._most:
                self._recent[key] = end + self._timeout_s
        for key in [key for key, end in self._recent.items() if end <= now]:
            del self._recent[key]
        self._stats.gauges["offload_entries"] = len(self._offloaded)
        self._report()

    def resync(self, now: float) -> bool:
        """Remove all flows from the kernel's sets if the mode, policy or raw rules changed.

        Returns whether flows may be offloaded.
        """
        policy = self._judge.enforced_policy
        raw_rules = self._judge.raw_rules
        if policy is not self._policy or raw_rules is not self._raw_rules or self._stale:
            if now < self._not_before:
                return False
            self._policy = policy
            self._raw_rules = raw_rules
            self._check = OffloadCheck(policy) if isinstance(policy, CompiledPolicy) else None
            self._clear(now)
        return self._check is not None and not self._stale

    def refresh(self) -> None:
        """Copy the kernel's counters into the stats."""
        self._stats.gauges["offload_entries"] = len(self._offloaded)
        try:
            self._stats.counters["offload_drops"] += self._sets.take_dropped()
        except OSError as error:
            self._failed(error)

    def close(self, now: float) -> None:
        """Remove all flows from the kernel's sets and close; log what no tick has logged."""
        self.refresh()
        self._clear(now)
        self._report()
        self._sets.close()

    def _is_due(self, key: _Key, now: float) -> bool:
        """Count a dropped packet. Returns whether its flow has had enough of them."""
        if key in self._staying:
            return False
        until = self._offloaded.get(key)
        if until is not None:
            # A packet before that time was in the queue when the flow was offloaded.
            return now >= until
        if key in self._recent:
            return True
        count = self._counts.get(key, 0) + 1
        if count > 1 or len(self._counts) < _COUNTED_MAX:
            self._counts[key] = count
        return count >= self._after

    def _seconds(self, key: _Key, judgment: Judgment) -> float:
        """Seconds for which the flow may be offloaded; 0 for not at all."""
        packet = judgment.packet
        snapshot = judgment.snapshot
        if self._check is None or not isinstance(packet, Packet) or self._checked >= _CHECKED_MAX:
            return 0.0
        self._checked += 1
        queued = judgment.queued
        rules = self._raw_rules
        if not self._check.all_dropped(queued, packet, snapshot) or (
            rules is not None and rules.hides_some(queued, packet, snapshot)
        ):
            self._staying.add(key)
            self._stats.counters["offload_refused"] += 1
            return 0.0
        if key not in self._offloaded and len(self._offloaded) >= self._most:
            self._staying.add(key)
            self._stats.counters["offload_full"] += 1
            return 0.0
        return self._timeout_s if snapshot is None else min(self._timeout_s, snapshot.timeout_s)

    def _offload(self, due: dict[_Key, float], now: float) -> None:
        if now < self._not_before:
            return
        keys = list(due)
        for start in range(0, len(keys), MOST_IN_ONE):
            part = keys[start : start + MOST_IN_ONE]
            try:
                self._sets.add([(OneWay(*key), due[key]) for key in part])
            except OSError as error:
                if error.errno == errno.ENFILE:
                    self._stats.counters["offload_full"] += len(part)
                    self._staying.update(part)
                    continue
                self._not_before = now + _PAUSE_S
                self._stats.counters["offload_errors"] += 1
                self._failed(
                    error,
                    missing="the offload table is missing; `nfq-guard rules install` creates it",
                )
                return
            self._stats.counters["offloaded_flows"] += len(part)
            self._example = part[0]
            for key in part:
                self._recent.pop(key, None)
                self._offloaded[key] = now + due[key]

    def _clear(self, now: float) -> None:
        self._offloaded.clear()
        self._recent.clear()
        self._counts.clear()
        self._staying.clear()
        self._stale = False
        try:
            self._sets.clear()
        except OSError as error:
            # Without a table there is nothing to remove.
            if error.errno != errno.ENOENT:
                self._stale = True
                self._not_before = now + _PAUSE_S
                self._stats.counters["offload_errors"] += 1
            self._failed(error)

    def _failed(self, error: OSError, *, missing: str = "") -> None:
        """Log a new problem once; without a table, log `missing` unless that is empty."""
        problem = missing if error.errno == errno.ENOENT else error.strerror or str(error)
        if problem and problem != self._problem:
            self._problem = problem
            self._events.emit(OffloadFailed(problem=problem))

    def _report(self) -> None:
        grown = self._growth.take()
        if not grown:
            return
        example = None
        if self._example is not None:
            hook, interface, src, dst, sport, dport = self._example
            self._example = None
            example = OffloadedFlow(
                hook=hook_name(hook),
                interface=interface,
                src=address(src),
                dst=address(dst),
                sport=sport,
                dport=dport,
            )
        self._events.emit(Offloaded(**grown, entries=len(self._offloaded), example=example))


def _key(judgment: Judgment) -> _Key | None:
    """The key of a flow in the kernel's sets; None for packets that are never offloaded."""
    packet = judgment.packet
    if not isinstance(packet, Packet):
        return None
    segment = packet.l4
    if not isinstance(segment, Segment):
        return None
    queued = judgment.queued
    if queued.hook == Hook.PREROUTING:
        interface = queued.indev
    elif queued.hook == Hook.OUTPUT:
        interface = queued.outdev
    else:
        return None
    if not interface:
        return None
    return queued.hook, interface, packet.src, packet.dst, segment.sport, segment.dport


def open_offloader(
    settings: Settings, judge: Judge, stats: Stats, events: EventLog
) -> Offloader | None:
    """Open an offloader in the network namespace of the calling thread; None if offload is off.

    Raises:
        UnavailableError: The kernel has no netfilter netlink.
    """
    if not settings.offload:
        return None
    return Offloader(
        OffloadSets(),
        judge,
        stats,
        events,
        after=settings.offload_after,
        timeout_s=settings.offload_timeout_s,
        most=settings.offload_max_entries,
    )
