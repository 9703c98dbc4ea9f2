# SPDX-License-Identifier: MIT
"""One bound queue, served from a loop until what waits in it has its verdict."""

import time
from collections.abc import Callable
from typing import Final, Protocol, final

from nfq_guard.engine import Mode
from nfq_guard.policy.decision import Policy
from nfq_guard.service.garbage import Garbage
from nfq_guard.service.loop import Loop
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.events import EventLog

# How long packets that wait at the end may take; a flood would never let us go.
_DRAIN_S: Final = 2.0
_SECOND_S: Final = 1.0


class BoundQueue(Protocol):
    """What is needed here of `nfqueue.reader.QueueReader`."""

    queue_num: int
    refused: list[str]

    @property
    def socket_buffer_bytes(self) -> int:
        """As granted."""

    def fileno(self) -> int:
        """For epoll."""

    def set_fail_open(self, *, on: bool) -> None:
        """Say whether packets pass when the queue is full."""

    def close(self) -> None:
        """Unbind."""


@final
class QueueServer:
    """What a daemon of one queue does itself, and each worker process of several queues.

    Attributes:
        queue: The bound queue.
        worker: Judges its packets.
    """

    def __init__(
        self, queue: BoundQueue, worker: Worker, events: EventLog, loop: Loop, *, fail_open: bool
    ) -> None:
        """Put the parts together; nothing happens before `begin`.

        Args:
            queue: The bound queue; closed at the end.
            worker: Serves it.
            events: Where events go.
            loop: The loop.
            fail_open: Whether packets pass when the queue is full; in dry-run they always do.
        """
        self.queue = queue
        self.worker = worker
        self._events = events
        self._loop = loop
        self._fail_open = fail_open
        self._garbage = Garbage()

    def begin(self) -> None:
        """Take packets whenever the loop goes round."""
        self._loop.watch(self.queue.fileno(), self.worker.process_batch)
        self._loop.every(_SECOND_S, self.worker.tick)
        self._loop.every(_SECOND_S, self._garbage.tick)
        self.set_mode(self.worker.engine.mode)
        self.worker.process_batch()  # brings in the kernel's answers to the queue's flags
        self._garbage.begin()

    def set_mode(self, mode: Mode) -> None:
        """Switch between two turns; the next packet is judged in the new mode."""
        self.worker.engine.mode = mode
        self.queue.set_fail_open(on=self._fail_open or mode is Mode.DRY_RUN)
        self.worker.stats.gauges["enforcing"] = float(mode is Mode.ENFORCE)
        self.worker.resync_offload()

    def adopt(self, policy: Policy) -> None:
        """Judge by another policy, from the next turn on."""
        self.worker.engine.policy = policy
        self.worker.resync_offload()

    def finish(self, hurried: Callable[[], bool]) -> None:
        """Answer what still waits, until the kernel says that nothing does; then unbind.

        The loop goes round meanwhile, at most two seconds, or until `hurried`.
        """
        deadline = time.monotonic() + _DRAIN_S
        while True:
            taken = self.worker.process_batch()
            self._loop.turn(0 if taken else 0.001)
            over = hurried() or time.monotonic() >= deadline
            if not taken:
                found = self.worker.kernel_counters()
                if found is None or found.waiting == 0:
                    break
            elif over:
                self._events.warning("stopped_under_load", waited_s=_DRAIN_S)
            if over:
                break
        self._garbage.end()
        self.worker.refresh()
        self.queue.close()
        self.worker.close(time.monotonic())
