# SPDX-License-Identifier: MIT
"""The owner of our queue, and the packets that the queue lost."""

from collections.abc import Iterator

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.names import counted
from nfq_guard.netlink.owner import is_kept
from nfq_guard.nfqueue.counters import QueueCounters


def queue(
    number: int, counters: QueueCounters | None, owner: str, *, ours: bool
) -> Iterator[Check]:
    """One queue.

    Args:
        number: The queue's number.
        counters: The kernel's counters; None if the queue is not bound.
        owner: The process that has bound it, as `netlink.owner.process_of` formats it.
        ours: Whether that process is a guard.
    """
    if counters is None:
        yield note(
            "queue.owner",
            f"queue {number} is free: no guard is running here",
            "start the guard, or check its service with `systemctl status nfq-guard`",
        )
        return
    if ours:
        yield ok("queue.owner", f"queue {number} is ours: {owner}")
    elif is_kept(owner):
        yield note(
            "queue.owner",
            f"queue {number} is kept by {owner} for the next start of a service, and no process "
            "serves it",
            "start the guard, or check its service with `systemctl status nfq-guard`",
        )
    elif owner.startswith("unknown"):
        yield note(
            "queue.owner",
            f"queue {number} belongs to a process that is not visible from here (port id "
            f"{counters.port_id})",
        )
    else:
        yield problem(
            "queue.owner",
            f"queue {number} belongs to {owner}",
            "configure another queue for the guard (`queue` under `[daemon]`)",
        )
    lost = counters.queue_dropped + counters.user_dropped
    if lost:
        yield warning(
            "queue.drops",
            f"queue {number} lost {counted(counters.queue_dropped, 'packet')} to a full queue and "
            f"{counters.user_dropped} to a full socket buffer",
            "set max_rate_pps, or raise queue_length and socket_buffer_bytes",
        )
