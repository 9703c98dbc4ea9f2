# SPDX-License-Identifier: MIT
"""Leaves floods of repeats to the kernel.

A repeat is one direction of a flow that keeps bringing INVALID packets, of which the policy drops
whatever it may bring (`policy.offloadable`). The kernel is told for a while only, and never for
longer than the flow's entry has to live. When that is over the next packet is judged anew, by the
policy of that moment, and if it is dropped the kernel is told again at once. What may differ from
the daemon's own judgment is bounded by that while: that an entry was removed before its time, by
`conntrack -D` or a RST, is noticed no sooner.
"""

import errno
from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard.engine import VERDICT_DROP, Judgment, Mode
from nfq_guard.firewall.offload_sets import MOST_IN_ONE, OffloadSets, OneWay
from nfq_guard.flow import Hook
from nfq_guard.names import address
from nfq_guard.names import hook as hook_name
from nfq_guard.policy.decision import Action, Policy
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.offloadable import OffloadCheck
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker.safe_judge import Judge
from nfq_guard.telemetry.events import Offloaded, OffloadedFlow, OffloadFailed
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.wire.packet import Packet, Segment

# Flows counted within a second. Who forges addresses can fill this; then flows that come later in
# that second are not counted, and stay with the daemon.
_COUNTED_MAX: Final = 4096
# Flows a second that the policy is asked about, and so that the kernel is told of, at most.
_ASKED_MAX: Final = 512
_WINDOW_S: Final = 1.0
# After the kernel could not be told, how long it is not tried again.
_PAUSE_S: Final = 5.0
# What the event of a second tells of.
_SAID: Final = ("offloaded_flows", "offload_drops", "offload_refused", "offload_full")

_Key = tuple[int, str, bytes, bytes, int, int]


class Sets(Protocol):
    """What is needed of `firewall.offload_sets.OffloadSets`."""

    def add(self, flows: Sequence[tuple[OneWay, float]]) -> None:
        """All of them or none."""

    def clear(self) -> None:
        """Empty them."""

    def take_dropped(self) -> int:
        """Packets dropped since this was asked last."""

    def close(self) -> None:
        """Let go."""


@final
class Offloader:
    """Of one worker."""

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
        """Nothing is told before a packet is dropped.

        Args:
            sets: The kernel's.
            judge: Whose policy and mode count.
            stats: Where the numbers go.
            events: Where it is told, once a second at most.
            after: Packets of one flow dropped within a second before the kernel is told of it.
            timeout_s: For how long the kernel is told.
            most: Flows that the kernel is told of at a time.
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
        # Whether the kernel may hold flows of another policy, of another mode, or of a daemon
        # that died.
        self._stale = True
        self._window_end = 0.0
        self._counts: dict[_Key, int] = {}
        self._staying: set[_Key] = set()
        self._asked = 0
        # Until when the kernel drops; and until when, after that, one packet is enough.
        self._held: dict[_Key, float] = {}
        self._recent: dict[_Key, float] = {}
        self._not_before = 0.0
        self._problem = ""
        self._example: _Key | None = None
        self._said = dict.fromkeys(_SAID, 0)

    def process_batch(self, judgments: Sequence[Judgment], now: float) -> None:
        """Count what was dropped, and tell the kernel of flows that keep coming; after verdicts."""
        if not self.resync(now):
            return
        if now >= self._window_end:
            self._window_end = now + _WINDOW_S
            self._counts.clear()
            self._staying.clear()
            self._asked = 0
        found: dict[_Key, float] = {}
        for judgment in judgments:
            if judgment.verdict == VERDICT_DROP and judgment.decision.action is Action.DROP:
                key = _key(judgment)
                if key is not None and key not in found and self._is_due(key, now):
                    seconds = self._leave(key, judgment)
                    if seconds:
                        found[key] = seconds
        if found:
            self._tell(found, now)

    def tick(self, now: float) -> None:
        """After a `refresh`: follow mode and policy, forget what is over, say what happened."""
        self.resync(now)
        for key in [key for key, end in self._held.items() if end <= now]:
            end = self._held.pop(key)
            if len(self._recent) < self._most:
                self._recent[key] = end + self._timeout_s
        for key in [key for key, end in self._recent.items() if end <= now]:
            del self._recent[key]
        self._stats.gauges["offload_entries"] = len(self._held)
        self._report()

    def resync(self, now: float) -> bool:
        """Take everything back if mode or policy changed; whether there is anything to leave."""
        judge = self._judge
        policy = judge.policy if judge.mode is Mode.ENFORCE else None
        if policy is not self._policy or self._stale:
            if now < self._not_before:
                return False
            self._policy = policy
            self._check = OffloadCheck(policy) if isinstance(policy, CompiledPolicy) else None
            self._clear(now)
        return self._check is not None and not self._stale

    def refresh(self) -> None:
        """Bring the numbers up to date that the kernel counts."""
        self._stats.gauges["offload_entries"] = len(self._held)
        try:
            self._stats.counters["offload_drops"] += self._sets.take_dropped()
        except OSError as error:
            self._failed(error)

    def close(self, now: float) -> None:
        """Take everything back and let go."""
        self.refresh()
        self._clear(now)
        self._sets.close()

    def _is_due(self, key: _Key, now: float) -> bool:
        """Count a packet; whether it is enough of them."""
        if key in self._staying:
            return False
        held = self._held.get(key)
        if held is not None:
            # Before that time it waited in the queue when the kernel was told.
            return now >= held
        if key in self._recent:
            return True
        count = self._counts.get(key, 0) + 1
        if count > 1 or len(self._counts) < _COUNTED_MAX:
            self._counts[key] = count
        return count >= self._after

    def _leave(self, key: _Key, judgment: Judgment) -> float:
        """For how many seconds the flow may be left to the kernel; 0 for not at all."""
        packet = judgment.packet
        snapshot = judgment.snapshot
        if self._check is None or not isinstance(packet, Packet) or self._asked >= _ASKED_MAX:
            return 0.0
        self._asked += 1
        if not self._check.all_dropped(judgment.queued, packet, snapshot):
            self._staying.add(key)
            self._stats.counters["offload_refused"] += 1
            return 0.0
        if key not in self._held and len(self._held) >= self._most:
            self._staying.add(key)
            self._stats.counters["offload_full"] += 1
            return 0.0
        return self._timeout_s if snapshot is None else min(self._timeout_s, snapshot.timeout_s)

    def _tell(self, found: dict[_Key, float], now: float) -> None:
        if now < self._not_before:
            return
        keys = list(found)
        for start in range(0, len(keys), MOST_IN_ONE):
            part = keys[start : start + MOST_IN_ONE]
            try:
                self._sets.add([(OneWay(*key), found[key]) for key in part])
            except OSError as error:
                if error.errno == errno.ENFILE:
                    self._stats.counters["offload_full"] += len(part)
                    self._staying.update(part)
                    continue
                self._not_before = now + _PAUSE_S
                self._stats.counters["offload_errors"] += 1
                self._failed(error, missing="the table for it is not there: rules install makes it")
                return
            self._stats.counters["offloaded_flows"] += len(part)
            self._example = part[0]
            for key in part:
                self._recent.pop(key, None)
                self._held[key] = now + found[key]

    def _clear(self, now: float) -> None:
        self._held.clear()
        self._recent.clear()
        self._counts.clear()
        self._staying.clear()
        self._stale = False
        try:
            self._sets.clear()
        except OSError as error:
            # Where there is no table it holds nothing.
            if error.errno != errno.ENOENT:
                self._stale = True
                self._not_before = now + _PAUSE_S
                self._stats.counters["offload_errors"] += 1
            self._failed(error)

    def _failed(self, error: OSError, *, missing: str = "") -> None:
        """Say what is wrong, once; of a table that is not there only what `missing` says."""
        problem = missing if error.errno == errno.ENOENT else error.strerror or str(error)
        if problem and problem != self._problem:
            self._problem = problem
            self._events.emit(OffloadFailed(problem=problem))

    def _report(self) -> None:
        counters = self._stats.counters
        grown = {name: counters[name] - before for name, before in self._said.items()}
        if not any(grown.values()):
            return
        self._said = {name: counters[name] for name in _SAID}
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
        self._events.emit(Offloaded(**grown, entries=len(self._held), example=example))


def _key(judgment: Judgment) -> _Key | None:
    """What the kernel tells packets apart by; None where it is not told of such ones."""
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
    """As the settings want it, in the namespace of the calling thread; None when they do not.

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
