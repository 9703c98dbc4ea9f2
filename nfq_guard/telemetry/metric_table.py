# SPDX-License-Identifier: MIT
"""The table of metrics, for the exposition, `status`, events and the reference."""

from enum import StrEnum
from typing import Final, NamedTuple

PREFIX: Final = "nfq_guard_"

_QUEUE: Final = ("queue",)


class Kind(StrEnum):
    """The kind of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Part(StrEnum):
    """An optional part of a daemon; without the part its metrics have no series."""

    SHADOW = "a policy on trial"
    OFFLOAD = "`offload`"
    HEAL = "a policy that heals"
    PODS = "`pods_dir`"
    RATE_LIMIT = "`max_rate_pps`"
    KERNEL_DROP = "the fail mode `kernel-drop`"
    WORKERS = "several queues"
    KERNEL_COUNTERS = "the kernel's counters of queues, where the daemon may read them"
    CONNTRACK = "the kernel's counts of conntrack, where the daemon may read them"
    RULES = "rules of the daemon's own, once they were verified"
    RAW_RULES = "a host whose rules before conntrack were read"
    RELOAD = "a reload, once there was one"


class Metric(NamedTuple):
    """One metric.

    Attributes:
        kind: Counter, gauge or histogram.
        name: The name in `status` and in events, without `nfq_guard_` and `_total`.
        help: One sentence.
        unit: The unit, or the thing counted; empty for a number without a unit.
        labels: Names of its labels; none for a number of the whole daemon.
        part: The part without which the metric has no series; None if it always has one.
    """

    kind: Kind
    name: str
    help: str
    unit: str
    labels: tuple[str, ...] = _QUEUE
    part: Part | None = None

    @property
    def full_name(self) -> str:
        """The name in the exposition."""
        return PREFIX + self.name + ("_total" if self.kind is Kind.COUNTER else "")


JUDGED: Final = Metric(
    Kind.COUNTER,
    "judged_packets",
    "Packets by reason and action.",
    "packets",
    ("queue", "reason", "action"),
)
RULES: Final = Metric(
    Kind.COUNTER,
    "rule_packets",
    "Packets by the rule that decided; the rule `...` has those of further rules.",
    "packets",
    ("queue", "rule"),
)
QUEUE_COUNTERS: Final = (
    Metric(Kind.COUNTER, "packets", "Packets read from the queue.", "packets"),
    Metric(
        Kind.COUNTER,
        "escaped_packets",
        "Packets of translated flows that were accepted and left untranslated, by the policy or in"
        " dry-run.",
        "packets",
    ),
    Metric(
        Kind.COUNTER,
        "verdict_messages",
        "Verdict messages sent; one may carry the verdict of many packets.",
        "messages",
    ),
    Metric(
        Kind.COUNTER,
        "verdict_errors",
        "Verdict messages that came too late: their packets, one or many, had been dropped by the "
        "kernel, as when an interface goes down. It has no count of those packets.",
        "messages",
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
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.COUNTER,
        "buffer_full_drops",
        "Packets that the kernel dropped because the socket buffer was full.",
        "packets",
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.COUNTER,
        "buffer_full_passes",
        "Packets that passed unjudged because the socket buffer was full, in the fail mode open.",
        "packets",
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.COUNTER,
        "unread_packets",
        "Packets that a killed daemon had read, which got the verdict of the fail mode.",
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
        part=Part.SHADOW,
    ),
    Metric(
        Kind.COUNTER,
        "shadow_would_drop",
        "Packets that the policy accepts and the policy on trial drops.",
        "packets",
        part=Part.SHADOW,
    ),
    Metric(
        Kind.COUNTER,
        "shadow_differs_otherwise",
        "Packets to which the policy on trial gives another action or mark, but the same verdict.",
        "packets",
        part=Part.SHADOW,
    ),
    Metric(
        Kind.COUNTER,
        "offloaded_flows",
        "Flows whose remaining packets were left to the kernel to drop.",
        "flows",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.COUNTER,
        "offload_drops",
        "Packets of offloaded flows that the kernel dropped.",
        "packets",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.COUNTER,
        "offload_refused",
        "Flows not offloaded because the policy may accept some of their packets.",
        "flows",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.COUNTER,
        "offload_full",
        "Flows not offloaded because as many as allowed are offloaded.",
        "flows",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.COUNTER,
        "offload_errors",
        "Changes of the offloaded flows that the kernel refused.",
        "changes",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.COUNTER,
        "heals",
        "Flows for which conntrack's window check of a sender was ended.",
        "flows",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "would_heal",
        "Flows that would have been healed in mode enforce.",
        "flows",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "heals_undone",
        "Healed flows whose window check was restored.",
        "flows",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "heals_refused",
        "Packets not healed: their flow is gone or ends, or they are far from its window.",
        "packets",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "heals_over_limit",
        "Packets of flows that were not healed because of a limit on heals.",
        "packets",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "heal_errors",
        "Changes of healed flows that the kernel refused.",
        "changes",
        part=Part.HEAL,
    ),
    Metric(
        Kind.COUNTER,
        "events_suppressed",
        "Packets without an event because of the limit on all events, or of the size of the file.",
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
        part=Part.RATE_LIMIT,
    ),
    Metric(
        Kind.COUNTER,
        "queue_full_passes",
        "Packets that passed unjudged in fail mode open: a queue was full, or its worker or the "
        "daemon was replaced. "
        "Only those that nfq-guard's own rules queue are known.",
        "packets",
        (),
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.COUNTER,
        "unserved_drops",
        "Packets dropped because a worker or the daemon was replaced: in fail mode closed or "
        "kernel-drop those that came meanwhile, and in every mode those that waited for a worker "
        "that was killed because it hung. "
        "Only those that nfq-guard's own rules queue are known.",
        "packets",
        (),
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.COUNTER,
        "unjudged_drops",
        "Packets that were not judged and that the fail mode kernel-drop dropped.",
        "packets",
        (),
        part=Part.KERNEL_DROP,
    ),
    Metric(Kind.COUNTER, "reloads", "Reloads that put a new policy in force.", "reloads", ()),
    Metric(
        Kind.COUNTER,
        "reload_failures",
        "Reloads that kept the old policy because the new policy has mistakes.",
        "reloads",
        (),
    ),
    Metric(
        Kind.COUNTER,
        "worker_restarts",
        "Workers that were started again.",
        "workers",
        (),
        part=Part.WORKERS,
    ),
    Metric(
        Kind.COUNTER,
        "messages_refused",
        "Messages between the daemon and its workers that could not be sent or decoded.",
        "messages",
        (),
        part=Part.WORKERS,
    ),
)
GAUGES: Final = (
    Metric(
        Kind.GAUGE,
        "queue_waiting_packets",
        "Packets that wait in the kernel for a verdict.",
        "packets",
        part=Part.KERNEL_COUNTERS,
    ),
    Metric(
        Kind.GAUGE,
        "offload_entries",
        "Flows whose packets the kernel drops at present.",
        "flows",
        part=Part.OFFLOAD,
    ),
    Metric(
        Kind.GAUGE, "healed_flows", "Flows of which the window of a sender is not checked.", "flows"
    ),
    Metric(
        Kind.GAUGE,
        "pods_dir_read",
        "1 where the last reading of the directory succeeded, else 0: events name no pods then.",
        "",
        part=Part.PODS,
    ),
    Metric(
        Kind.GAUGE,
        "pod_addresses",
        "Addresses of which events name the pod.",
        "addresses",
        part=Part.PODS,
    ),
    Metric(
        Kind.GAUGE,
        "pod_files_skipped",
        "Files of the directory that could not be used, or are beyond a bound. Events do not name "
        "their pods.",
        "files",
        part=Part.PODS,
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
HISTOGRAMS: Final = (
    Metric(
        Kind.HISTOGRAM,
        "judge_latency_seconds",
        "Time from reading a packet to the end of sending its verdict, of one batch in eight.",
        "seconds",
    ),
    Metric(
        Kind.HISTOGRAM,
        "queue_latency_seconds",
        "How long packets waited since the kernel received them, of one batch in eight; only while"
        " the kernel stamps packets with a time, as it does for a program that captures.",
        "seconds",
    ),
    Metric(
        Kind.HISTOGRAM,
        "breach_distance_bytes",
        "How far packets are beyond the bound that they broke.",
        "bytes",
        ("queue", "bound"),
    ),
)
JUDGE_LATENCY, QUEUE_LATENCY, BREACH_DISTANCE = HISTOGRAMS
WORKER_PROCESSES: Final = (
    Metric(
        Kind.COUNTER,
        "worker_cpu_seconds",
        "CPU time of the worker that runs at present.",
        "seconds",
        part=Part.WORKERS,
    ),
    Metric(
        Kind.GAUGE,
        "worker_resident_memory_bytes",
        "Resident memory of the worker.",
        "bytes",
        part=Part.WORKERS,
    ),
    Metric(
        Kind.GAUGE,
        "worker_open_fds",
        "Descriptors that the worker has open.",
        "",
        part=Part.WORKERS,
    ),
)
OUTPUTS: Final = (
    Metric(
        Kind.COUNTER,
        "log_output_lines_dropped",
        "Log lines of all processes that this output of the log lost.",
        "lines",
        ("output",),
    ),
    Metric(
        Kind.COUNTER,
        "log_output_errors",
        "Failed writes to this output of the log.",
        "writes",
        ("output",),
    ),
)
INFOS: Final = (
    Metric(Kind.GAUGE, "build_info", "Versions; always 1.", "", ("version", "python")),
    Metric(Kind.GAUGE, "kernel_info", "The running kernel; always 1.", "", ("release",)),
    Metric(Kind.GAUGE, "policy_info", "The policy in force; always 1.", "", ("source", "digest")),
    Metric(
        Kind.GAUGE,
        "shadow_policy_info",
        "The policy on trial; always 1.",
        "",
        ("source", "digest"),
        Part.SHADOW,
    ),
)
DAEMON_GAUGES: Final = (
    Metric(
        Kind.GAUGE, "queues_serving", "Queues whose packets are judged at present.", "queues", ()
    ),
    Metric(Kind.GAUGE, "queues", "Queues that the daemon is to serve.", "queues", ()),
    Metric(
        Kind.GAUGE,
        "conntrack_entries",
        "Entries of conntrack in the daemon's network namespace.",
        "entries",
        (),
        Part.CONNTRACK,
    ),
    Metric(
        Kind.GAUGE,
        "conntrack_entries_max",
        "How many entries conntrack may have.",
        "entries",
        (),
        Part.CONNTRACK,
    ),
    Metric(
        Kind.GAUGE,
        "rules_in_place",
        "1 where the last check found the rules as configured, else 0.",
        "",
        (),
        Part.RULES,
    ),
    Metric(
        Kind.GAUGE,
        "one_sided_raw_rules",
        "Rules before conntrack that hide one direction of flows from it. The rule hidden-half "
        "allows what they make INVALID.",
        "",
        (),
        Part.RAW_RULES,
    ),
    Metric(
        Kind.GAUGE,
        "last_reload_timestamp_seconds",
        "When the last reload ended, in seconds of the Unix epoch.",
        "seconds",
        (),
        Part.RELOAD,
    ),
    Metric(
        Kind.GAUGE,
        "last_reload_success",
        "1 where the last reload put a policy in force, 0 where it was refused.",
        "",
        (),
        Part.RELOAD,
    ),
)
METRICS: Final = (
    JUDGED,
    RULES,
    *QUEUE_COUNTERS,
    *DAEMON_COUNTERS,
    *OUTPUTS,
    *GAUGES,
    EVIDENCE,
    *DAEMON_GAUGES,
    *INFOS,
    *WORKER_PROCESSES,
)
"""All counters and gauges, in the order of the exposition. After them come `HISTOGRAMS`, and of the
daemon's process `process_*`, as of every client library."""
