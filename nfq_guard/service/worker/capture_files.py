# SPDX-License-Identifier: MIT
"""Writes the INVALID packets of one queue to files, at an alert or continuously.

An alert is a burst of one reason, packets that the kernel dropped, or a judgment that failed. Its
file is written `_AFTER_S` later, and has the packets before and after the alert. A thread of the
loop writes, so a slow or full disk delays no packet. The first alert may be days away, so a
directory that takes no files is reported at the start.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, final

from nfq_guard.capture.anonymise import Anonymiser
from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import RAW
from nfq_guard.capture.writer import PcapngWriter
from nfq_guard.service.worker.frames import Batches, records
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.telemetry.events import Event, PacketsNotSaved, PacketsSaved
from nfq_guard.telemetry.metrics import Stats

_AFTER_S: Final = 2.0
# Minimum time between two files of alerts; without alerts, maximum time until packets are written.
_PAUSE_S: Final = 60.0
# A second of which there may be a file: two ticks may share one, and the clock may be set back.
_NAMED_S: Final = 60
_COUNTERS: Final = ("queue_full_drops", "buffer_full_drops", "judging_failures")


class Background(Protocol):
    """The part of `loop.Loop` that this uses."""

    def background(
        self,
        work: Callable[[], int],
        done: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Do `work` in a thread, and then call `done` or `failed`."""


@final
class CaptureFiles:
    """Writes files for one queue, and removes the oldest."""

    def __init__(
        self,
        directory: Path,
        queue_num: int,
        ring: PacketRing,
        stats: Stats,
        loop: Background,
        emit: Callable[[Event], None],
        *,
        alert_packets: int,
        files_max: int,
        payload: bool,
        hash_addresses: bool,
    ) -> None:
        """Write nothing before `tick`.

        Args:
            directory: Directory of the files.
            queue_num: The queue.
            ring: Its packets.
            stats: Its numbers.
            loop: Runs the writing thread.
            emit: Logs an event.
            alert_packets: Packets of one reason within a second that are an alert; 0 to write all
                packets.
            files_max: Number of files of the queue that are kept.
            payload: Whether packets include their payload.
            hash_addresses: Whether addresses are replaced.
        """
        self._directory = directory
        self._name = f"nfq-guard-q{queue_num}-"
        self._queue_num = queue_num
        self._ring = ring
        self._stats = stats
        self._loop = loop
        self._emit = emit
        self._alert_packets = alert_packets
        self._files_max = files_max
        self._payload = payload
        # An address has the same replacement in all files of this process.
        self._anonymiser = Anonymiser(os.urandom(32)) if hash_addresses else None
        self._before = self._counted()
        self._due: tuple[float, str] | None = None
        self._not_before = float("-inf")
        self._written_until = float("-inf")
        self._written_added = 0
        self._named = 0
        self._writing = False
        self._failing = False
        self._tried = False

    def tick(self, now: float) -> None:
        """Check for an alert, and start to write a file if one is due; called once a second."""
        if not self._tried:
            self._tried = self._writing = True
            self._loop.background(self._try, self._idle, self._failed)
        cause = self._cause(now)
        if cause and self._due is None and not self._alert_packets:
            self._due = now, cause
        elif cause and self._due is None and now >= self._not_before:
            self._due = now + _AFTER_S, cause
        if self._due is not None and now >= self._due[0] and not self._writing:
            self._begin(now, self._due[1])

    def _cause(self, now: float) -> str:
        """Why a file is to be written; empty if none is."""
        before, self._before = self._before, self._counted()
        if not self._alert_packets:
            new = self._ring.added - self._written_added
            full = new >= self._ring.packets_max // 2
            return "all packets" if full or (new and now >= self._not_before) else ""
        for name in _COUNTERS:
            if self._before[name] > before[name]:
                return name
        for reason in self._stats.judged:
            packets = self._before[reason.value] - before[reason.value]
            if packets >= self._alert_packets:
                return f"{packets} packets within a second that are {reason.value}"
        return ""

    def _counted(self) -> dict[str, int]:
        found = {name: self._stats.counters[name] for name in _COUNTERS}
        for reason, actions in self._stats.judged.items():
            found[reason.value] = sum(actions.values())
        return found

    def _begin(self, now: float, cause: str) -> None:
        batches = [batch for batch in self._ring.batches() if batch[0] > self._written_until]
        self._due = None
        self._not_before = now + _PAUSE_S
        self._written_added = self._ring.added
        if not batches:
            return
        self._written_until = batches[-1][0]
        wall = datetime.now(UTC)
        second = int(wall.timestamp())
        if self._named - _NAMED_S <= second <= self._named:
            second = self._named + 1  # that file has the name already
        self._named = second
        name = f"{datetime.fromtimestamp(second, UTC):%Y%m%dT%H%M%SZ}"
        path = self._directory / f"{self._name}{name}.pcapng"
        epoch_ns = int((wall.timestamp() - now) * 1e9)
        self._writing = True

        def saved(packets: int) -> None:
            self._failing = False
            self._idle(packets)
            self._emit(
                PacketsSaved(queue=self._queue_num, path=str(path), packets=packets, cause=cause)
            )

        self._loop.background(lambda: self._write(path, batches, epoch_ns), saved, self._failed)

    def _idle(self, _packets: int) -> None:
        self._writing = False

    def _failed(self, error: Exception) -> None:
        self._writing = False
        if not self._failing:
            problem = (error.strerror if isinstance(error, OSError) else "") or str(error)
            self._emit(
                PacketsNotSaved(queue=self._queue_num, problem=f"{self._directory}: {problem}")
            )
        self._failing = True

    def _try(self) -> int:
        """Make an empty file and remove it, in a thread."""
        trial = self._directory / f"{self._name}trial.part"
        os.close(_create(trial))
        trial.unlink(missing_ok=True)
        return 0

    def _write(self, path: Path, batches: Batches, epoch_ns: int) -> int:
        """Write a file, in a thread. Returns the number of packets."""
        unfinished = path.with_suffix(".part")
        count = 0
        try:
            with os.fdopen(_create(unfinished), "wb") as file:
                writer = PcapngWriter(file)
                for record in records(batches, epoch_ns, payload=self._payload):
                    octets = record.octets
                    if self._anonymiser is not None:
                        octets = self._anonymiser.packet(octets)
                    count += 1
                    frame = Frame(count, record.time_ns, RAW, record.wire_len, octets, 0)
                    writer.write(frame, record.comment, record.interface)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        # Files with later names are from before the clock was set back.
        files = sorted(
            self._directory.glob(f"{self._name}*.pcapng"),
            key=lambda file: (file.name <= path.name, file.name),
        )
        for old in files[: -self._files_max]:
            old.unlink(missing_ok=True)
        return count


def _create(path: Path) -> int:
    """A new file: never one that an earlier daemon left or another user planted."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
