# SPDX-License-Identifier: MIT
"""Every metric: the exposition, the counters of `status` and events, and the reference follow."""

from enum import StrEnum
from typing import Final, NamedTuple

PREFIX: Final = "nfq_guard_"

_QUEUE: Final = ("queue",)


class Kind(StrEnum):
    """The kind of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"


class Metric(NamedTuple):
    """One metric.

    Attributes:
        kind: Counter or gauge.
        name: The name in `status` and in events, without `nfq_guard_` and `_total`.
        help: One sentence.
        unit: What is counted; empty for a number without a unit.
        labels: Names of its labels; none for a number of the daemon and not of a queue.
    """

    kind: Kind
    name: str
    help: str
    unit: str
    labels: tuple[str, ...] = _QUEUE

    @property
    def full_name(self) -> str:
        """As in the exposition."""
        return PREFIX + self.name + ("_total" if self.kind is Kind.COUNTER else "")


JUDGED: Final = Metric(
    Kind.COUNTER,
    "judged_packets",
    "Packets by reason and action.",
    "packets",
    ("queue", "reason", "action"),
)
QUEUE_COUNTERS: Final = (
    Metric(Kind.COUNTER, "packets", "Packets read from the queue.", "packets"),
    Metric(
        Kind.COUNTER,
        "verdict_messages",
        "Verdict messages sent; one may carry the verdict of many packets.",
        "messages",
    ),
    Metric(
        Kind.COUNTER,
        "verdict_errors",
        "Verdicts that the kernel refused because the packet was gone.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "judging_failures",
        "Packets whose judgment raised an exception; they got the fail-mode verdict.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "lookup_errors",
        "Flow lookups that failed; their packets were judged without evidence.",
        "lookups",
    ),
    Metric(
        Kind.COUNTER,
        "kernel_log_lost",
        "Messages of the kernel's log of INVALID packets that did not reach the daemon.",
        "messages",
    ),
    Metric(
        Kind.COUNTER,
        "event_failures",
        "Events that were not written because of a bug of the daemon.",
        "events",
    ),
    Metric(
        Kind.COUNTER,
        "queue_full_drops",
        "Packets that the kernel dropped because the queue was full.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "buffer_full_drops",
        "Packets that the kernel dropped because the socket buffer was full.",
        "packets",
    ),
    Metric(Kind.COUNTER, "buffer_overruns", "Reads that failed with ENOBUFS.", "reads"),
    Metric(
        Kind.COUNTER,
        "caused_resets",
        "RSTs that answered an INVALID packet which had got through.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "shadow_would_pass",
        "Packets that the policy drops and the policy on trial accepts.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "shadow_would_drop",
        "Packets that the policy accepts and the policy on trial drops.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "shadow_differs_otherwise",
        "Packets to which the policy on trial gives another action or mark, but the same verdict.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "offloaded_flows",
        "Flows whose remaining packets were left to the kernel to drop.",
        "flows",
    ),
    Metric(
        Kind.COUNTER,
        "offload_drops",
        "Packets of offloaded flows that the kernel dropped.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "offload_refused",
        "Flows not offloaded because the policy may accept some of their packets.",
        "flows",
    ),
    Metric(
        Kind.COUNTER,
        "offload_full",
        "Flows not offloaded because as many as allowed are offloaded.",
        "flows",
    ),
    Metric(
        Kind.COUNTER,
        "offload_errors",
        "Changes of the offloaded flows that the kernel refused.",
        "changes",
    ),
    Metric(
        Kind.COUNTER,
        "events_suppressed",
        "Packets without an event because of the limit on all events.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "log_lines_dropped",
        "Log lines dropped because the log did not accept them.",
        "lines",
    ),
    Metric(Kind.COUNTER, "log_errors", "Failed writes to the log.", "writes"),
)
DAEMON_COUNTERS: Final = (
    Metric(
        Kind.COUNTER,
        "rules_changed",
        "Checks that found the rules missing or changed.",
        "checks",
        (),
    ),
    Metric(
        Kind.COUNTER,
        "shed_packets",
        "Packets above max_rate_pps, which the kernel left to the fail mode.",
        "packets",
        (),
    ),
    Metric(
        Kind.COUNTER,
        "unjudged_drops",
        "Packets that were not judged and that the fail mode kernel-drop dropped.",
        "packets",
        (),
    ),
    Metric(Kind.COUNTER, "reloads", "Reloads that put a new policy in force.", "reloads", ()),
    Metric(
        Kind.COUNTER,
        "reload_failures",
        "Reloads that kept the old policy because the new policy has mistakes.",
        "reloads",
        (),
    ),
    Metric(Kind.COUNTER, "worker_restarts", "Workers that were started again.", "workers", ()),
    Metric(
        Kind.COUNTER,
        "messages_refused",
        "Messages between the daemon and its workers that could not be decoded.",
        "messages",
        (),
    ),
)
GAUGES: Final = (
    Metric(
        Kind.GAUGE,
        "queue_waiting_packets",
        "Packets that wait in the kernel for a verdict.",
        "packets",
    ),
    Metric(
        Kind.GAUGE, "offload_entries", "Flows whose packets the kernel drops at present.", "flows"
    ),
    Metric(Kind.GAUGE, "enforcing", "1 in mode enforce, 0 in dry-run.", ""),
    Metric(
        Kind.GAUGE,
        "start_time_seconds",
        "When the daemon started, in seconds of the Unix epoch.",
        "seconds",
    ),
)
EVIDENCE: Final = Metric(
    Kind.GAUGE,
    "evidence",
    "1 for where flows are looked up at present, 0 for the others.",
    "",
    ("queue", "evidence"),
)
METRICS: Final = (JUDGED, *QUEUE_COUNTERS, *DAEMON_COUNTERS, *GAUGES, EVIDENCE)
"""All metrics, in the order of the exposition."""
