# SPDX-License-Identifier: MIT
"""Who owns our queue, and how it fares."""

from collections.abc import Iterator

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.nfqueue.counters import QueueCounters


def queue(
    number: int, counters: QueueCounters | None, owner: str, *, ours: bool
) -> Iterator[Check]:
    """One queue.

    Args:
        number: Of the queue.
        counters: The kernel's; None while nobody has it.
        owner: The process that has it, as `nfqueue.counters.process_of` says.
        ours: Whether that is a guard.
    """
    if counters is None:
        yield note(
            "queue.owner",
            f"queue {number} is free: no guard is running here",
            "start nfq-guard, or see its service",
        )
        return
    if ours:
        yield ok("queue.owner", f"queue {number} is ours: {owner}")
    elif owner.startswith("unknown"):
        yield note(
            "queue.owner",
            f"queue {number} belongs to a process that cannot be seen from here (port id "
            f"{counters.port_id})",
        )
    else:
        yield problem(
            "queue.owner",
            f"queue {number} belongs to {owner}",
            "give the guard another queue (queue in its configuration)",
        )
    lost = counters.queue_dropped + counters.user_dropped
    if lost:
        yield warning(
            "queue.drops",
            f"{counters.queue_dropped} packets found queue {number} full and "
            f"{counters.user_dropped} found the socket's buffer full",
            "set max_rate_pps, or raise queue_length and socket_buffer_bytes",
        )
