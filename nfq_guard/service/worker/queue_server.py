# SPDX-License-Identifier: MIT
"""Serves one bound queue from the loop; at the end until the queue is empty, within a bound."""

import gc
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Protocol, final

import msgspec

from nfq_guard.engine import Mode
from nfq_guard.policy.decision import Policy
from nfq_guard.raw_rules import RawRule, RawRules
from nfq_guard.service.loop import Loop
from nfq_guard.service.worker.capture_files import CaptureFiles
from nfq_guard.service.worker.frames import records
from nfq_guard.service.worker.history import DumpEntry, History, SeenFlow, newest
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.events import StoppedUnderLoad, exception_texts
from nfq_guard.telemetry.log import EventLog

# Maximum time for which `finish` sends verdicts; under a flood the queue is never empty.
_DRAIN_S: Final = 2.0
_TICK_S: Final = 1.0
# The oldest generation of the garbage collector that a tick collects.
_YOUNG: Final = 1
# Ticks between two full collections. A full collection also finds cycles that grew old before they
# became unreachable, such as those of a policy that a reload replaced.
_FULL_COLLECTION_TICKS: Final = 60


class BoundQueue(Protocol):
    """The part of `nfqueue.reader.QueueReader` that a server uses."""

    queue_num: int
    refused: list[str]
    taken_over: bool

    @property
    def socket_buffer_bytes(self) -> int:
        """The size that the kernel granted."""

    def fileno(self) -> int:
        """The descriptor for epoll."""

    def set_fail_open(self, *, on: bool) -> None:
        """Choose whether packets pass when the queue is full."""

    def close(self) -> None:
        """Unbind the queue, unless something else keeps it; may be called twice."""


class FollowedEvidence(Protocol):
    """The part of `evidence.EvidenceFollower` that a server uses."""

    def begin(self) -> None:
        """Follow changes of the evidence."""

    def end(self) -> None:
        """Stop following changes."""


class Keeper(Protocol):
    """The part of `passed_sockets.QueueKeeper` that a server uses."""

    def keep(self, fd: int) -> None:
        """Keep the socket of the queue open after the end of this process."""

    def forget(self) -> None:
        """Keep no socket."""


class FollowedPods(Protocol):
    """The part of `pods.PodFollower` that a server uses."""

    def begin(self) -> None:
        """Follow the pods of this node."""


@final
class GarbageCollection:
    """Garbage collection by time instead of by allocations, from `begin` to `end`.

    Judging creates no reference cycles: its values are freed with the last reference. The
    collector's own trigger, a few hundred new objects, would fire twice a batch and find nothing;
    that took a seventh of the CPU time of a packet.
    """

    def __init__(self) -> None:
        self._ticks = 0

    def begin(self) -> None:
        """Exempt existing objects from collection, and disable the collector's own trigger."""
        gc.freeze()
        gc.disable()

    def tick(self, _now: float) -> None:
        """Collect the young generations, and once a minute all objects created since `begin`."""
        self._ticks += 1
        if self._ticks % _FULL_COLLECTION_TICKS:
            gc.collect(_YOUNG)
        else:
            gc.collect()

    def end(self) -> None:
        """Undo `begin`."""
        gc.enable()
        gc.unfreeze()


@final
class KeptPackets:
    """The last packets of a queue, and the files that contain them.

    Attributes:
        ring: The packets.
        files: Writes files of them; None for none.
        payload: Whether dumps include the payload of packets.
    """

    def __init__(self, ring: PacketRing, files: CaptureFiles | None, *, payload: bool) -> None:
        self.ring = ring
        self.files = files
        self.payload = payload

    def entries(self, end: str | None, most: int) -> list[DumpEntry]:
        """The last packets, of one address or of all, newest first."""
        epoch_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.monotonic_ns()
        found = records(self.ring.batches(), epoch_ns, payload=self.payload, end=end)
        return newest(
            (
                DumpEntry(last=f"{one.time_ns:020}", json=msgspec.json.encode(one))
                for one in deque(found, maxlen=most)
            ),
            most,
        )


@final
class QueueServer:
    """Serves one queue: in the daemon itself, or in a worker process for each of several queues.

    Attributes:
        queue: The bound queue.
        worker: Processes its packets.
        history: The events of its packets by flow.
        packets: Its last packets.
    """

    def __init__(
        self,
        queue: BoundQueue,
        worker: Worker,
        history: History,
        evidence: FollowedEvidence,
        events: EventLog,
        loop: Loop,
        *,
        fail_open: bool,
        packets: KeptPackets,
        opened: ExitStack,
        keeper: Keeper | None = None,
        pods: FollowedPods | None = None,
    ) -> None:
        """Do nothing before `begin`.

        Args:
            queue: The bound queue.
            worker: Processes its packets.
            history: Keeps the events of `worker` by flow.
            evidence: Follows changes of the evidence.
            events: The log of events.
            loop: The loop that calls the worker.
            fail_open: Whether packets pass when the queue is full; in dry-run they always do.
            packets: Keeps the last packets.
            opened: The queue and all that was opened for it; closed by `finish`.
            keeper: Keeps the queue bound afterwards; None without one.
            pods: Follows the pods that events name; None to name none.
        """
        self.queue = queue
        self.worker = worker
        self.history = history
        self._evidence = evidence
        self.packets = packets
        self._events = events
        self._loop = loop
        self._fail_open = fail_open
        self._opened = opened
        self._keeper = keeper
        self._pods = pods
        self._garbage = GarbageCollection()

    def begin(self) -> None:
        """Serve the queue from the loop."""
        self._loop.watch(self.queue.fileno(), self.worker.process_batch)
        self._loop.every(_TICK_S, self.worker.tick)
        self._loop.every(_TICK_S, self._garbage.tick)
        self._evidence.begin()
        if self._pods is not None:
            self._pods.begin()
        if self.packets.files is not None:
            self._loop.every(_TICK_S, self.packets.files.tick)
        self.set_mode(self.worker.mode, self.worker.unjudged_mark)
        self.worker.process_batch()  # reads the kernel's responses to the queue's flags
        self._garbage.begin()

    def dump_packets(
        self,
        end: str | None,
        most: int,
        done: Callable[[list[DumpEntry]], None],
        failed: Callable[[str], None],
    ) -> None:
        """Call `done` from the loop with the last packets, newest first; or `failed` with a line.

        A thread formats them: thousands would delay packets. Out of memory, it may not start.
        """

        def refuse(error: Exception) -> None:
            failed(f"the packets cannot be dumped: {exception_texts(error)[0]}")

        self._loop.background(lambda: self.packets.entries(end, most), done, refuse)

    def set_mode(self, mode: Mode, unjudged_mark: int) -> None:
        """Switch the mode between two batches; the next packet is judged in `mode`.

        `unjudged_mark` are the mark bits that the rules set on a packet before they queue it.
        """
        passes = self._fail_open or mode is Mode.DRY_RUN
        self.queue.set_fail_open(on=passes)
        if self._keeper is not None:
            # In fail mode open, packets pass a queue that is not bound; in the other modes they are
            # lost.
            if passes:
                self._keeper.forget()
            else:
                self._keeper.keep(self.queue.fileno())
        self.worker.set_mode(mode, unjudged_mark)

    def set_raw_rules(self, rules: tuple[RawRule, ...]) -> None:
        """Allow packets that these rules before conntrack make INVALID, from the next batch on."""
        self.worker.set_raw_rules(RawRules(rules) if rules else None)

    def adopt(self, policy: Policy) -> None:
        """Judge by another policy from the next batch on."""
        self.worker.adopt(policy)

    def flows(self, address: str | None, limit: int) -> list[SeenFlow]:
        """At most `limit` flows, most recent first; only those with `address` unless None."""
        return self.history.seen(address, limit, self.worker.pending())

    def finish(self, hurried: Callable[[], bool]) -> None:
        """Send verdicts until the kernel reports no waiting packet; then unbind the queue.

        The loop continues meanwhile. Packets that still wait after two seconds, or once `hurried`
        returns true, are left to the kernel, which drops them.
        """
        deadline = time.monotonic() + _DRAIN_S
        while True:
            packets = self.worker.process_batch()
            self._loop.turn(0 if packets else 0.001)
            over = hurried() or time.monotonic() >= deadline
            if not packets:
                counters = self.worker.refresh()
                if counters is None or counters.waiting == 0:
                    break
            elif over:
                self._events.emit(StoppedUnderLoad(waited_s=_DRAIN_S))
                self.worker.refresh()
            if over:
                break
        passes = self._fail_open or self.worker.mode is Mode.DRY_RUN
        self.worker.unbinds(drops_waiting=not passes)
        self.queue.close()  # at once: the kernel drops what is queued meanwhile
        self._garbage.end()
        self._evidence.end()
        self._opened.close()
        self.worker.close(time.monotonic())
