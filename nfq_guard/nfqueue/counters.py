# SPDX-License-Identifier: MIT
"""The kernel's counters of a queue, and its owner."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

# Of the calling thread's network namespace, not of the process's first thread.
QUEUES: Final = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_PART_BYTES: Final = 1 << 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounters:
    """One line of /proc/net/netfilter/nfnetlink_queue (kernel.md 5).

    Attributes:
        port_id: Netlink port id of the owner.
        waiting: Packets that wait for a verdict.
        copy_bytes: Bytes of each packet that are copied to the owner.
        queue_dropped: Packets dropped because the queue was full, since it was bound.
        user_dropped: Packets dropped because the owner's buffer was full, since it was bound.
        last_id: Id of the last packet queued.
    """

    port_id: int
    waiting: int
    copy_bytes: int
    queue_dropped: int
    user_dropped: int
    last_id: int


def parse(text: str) -> dict[int, QueueCounters]:
    """Parse the text of that file, by queue number."""
    found: dict[int, QueueCounters] = {}
    for line in text.splitlines():
        columns = line.split()
        if len(columns) < 8:
            continue
        number, port, waiting, _, copied, full, buffer, last = (int(c) for c in columns[:8])
        found[number] = QueueCounters(
            port_id=port,
            waiting=waiting,
            copy_bytes=copied,
            queue_dropped=full,
            user_dropped=buffer,
            last_id=last,
        )
    return found


@final
class CounterFile:
    """The kernel's file, kept open: it stays readable after privileges are dropped."""

    def __init__(self, path: Path = QUEUES) -> None:
        """Open the file.

        Raises:
            OSError: The file does not exist (no NFQUEUE in this kernel) or is not readable.
        """
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, queue_num: int) -> QueueCounters | None:
        """The counters of one queue; None while it is not bound."""
        return self.read_all().get(queue_num)

    def read_all(self) -> dict[int, QueueCounters]:
        """The counters of all queues, by number."""
        octets = b""
        # The kernel returns whole lines, at most one page of them at once.
        while part := os.pread(self._fd, _PART_BYTES, len(octets)):
            octets += part
        return parse(octets.decode("ascii"))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def all_queues() -> dict[int, QueueCounters]:
    """The counters of all queues of this network namespace that are bound and visible."""
    try:
        with CounterFile() as file:
            return file.read_all()
    except OSError:
        return {}


def owner(queue_num: int) -> QueueCounters | None:
    """The counters of a queue of this network namespace; None if it is not bound or not visible."""
    return all_queues().get(queue_num)
