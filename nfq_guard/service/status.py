# SPDX-License-Identifier: MIT
"""The response to the control command `status`, as a typed value on both ends of the socket.

To add a status field, add it to one of these types, and to `cli/status.py` a line that shows it. In
JSON the counters are beside the fields, not in a separate object; `encode` and `decode` convert
between the two forms, and a new counter needs no change here.
"""

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import msgspec
from msgspec import Struct, field

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.policy.decision import Action
from nfq_guard.telemetry.metrics import Stats

if TYPE_CHECKING:  # `supervisor.workers` imports `config`, which imports this module
    from nfq_guard.service.supervisor.workers import QueueState

# Number of samples for a rate, about one a second.
_SAMPLES: Final = 6
_COUNTERS: Final = "counters"


class PolicyFacts(Struct, frozen=True, kw_only=True):
    """The facts about a policy that logs and `status` show.

    Attributes:
        source: The file or preset of the policy.
        digest: Digest of the rules in their order; it does not depend on the file.
        rules: Number of rules.
    """

    source: str
    digest: str = field(name="hash")
    rules: int


class ActingPolicy(PolicyFacts, frozen=True, kw_only=True):
    """The policy in force.

    Attributes:
        restart_for: Names of the settings that changed in the file and require a restart.
    """

    restart_for: tuple[str, ...]


class RulesState(StrEnum):
    """The result of the last check of our rules in the packet filter."""

    CORRECT = "as configured"
    DIFFER = "differ"
    FOREIGN = "not ours"
    FORBIDDEN = "not checked"
    IN_PLACE = "in place"
    PENDING = "not checked yet"


class RulesStatus(Struct, frozen=True, kw_only=True):
    """Our rules in the packet filter.

    Attributes:
        state: The result of the last check.
        problem: Why that check failed; empty if it did not.
        differences: Every difference that it found, one sentence each.
        age_s: Seconds since that check; null before the first.
    """

    state: RulesState
    problem: str
    differences: tuple[str, ...]
    age_s: float | None


class RawRulesStatus(Struct, frozen=True, kw_only=True):
    """The host's rules before conntrack.

    Attributes:
        one_sided: Rules that hide one direction of flows from conntrack, one sentence each. Packets
            that they make INVALID are not dropped.
        problems: The reasons why some of these rules could not be read.
    """

    one_sided: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class PodsStatus(Struct, frozen=True, kw_only=True):
    """The files of `pods_dir`, by which events name pods.

    Attributes:
        read: Whether the last reading of the directory succeeded.
        addresses: Addresses of which events name the pod.
        skipped: Files that could not be used, or are beyond a bound; the event `pods_unread` has
            the first problem.
    """

    read: bool
    addresses: int
    skipped: int


class ReloadStatus(Struct, frozen=True, kw_only=True):
    """The outcome of a reload.

    Attributes:
        at: When it ended, as in events.
        mistakes: Why the new policy was refused; empty when it was adopted.
    """

    at: str
    mistakes: tuple[str, ...]


class QueueStatus(Struct, frozen=True, kw_only=True):
    """The state of one queue.

    Attributes:
        queue: Its number.
        state: How it is served: `starting`, `serving`, `stuck` (its worker did not report for too
            long and was killed, but has not ended yet) or `down`.
        pid: Process ID of the process that serves it; 0 for none.
        restarts: Number of restarts of its worker.
        packets_per_s: Packets a second, over the last few seconds.
        waiting: Packets that wait in the kernel for a verdict.
        offload_entries: Flows whose INVALID packets the kernel itself drops.
        healed_flows: Flows with a sender whose window conntrack does not check after a heal.
        counters: Counters of the queue, by name.
    """

    queue: int
    state: str
    pid: int
    restarts: int
    packets_per_s: float
    waiting: int
    offload_entries: int
    healed_flows: int
    counters: dict[str, int]

    def count(self, name: str) -> int:
        """One counter; 0 if the daemon has none of that name."""
        return self.counters.get(name, 0)


class Status(Struct, frozen=True, kw_only=True):
    """The state of the daemon.

    Attributes:
        version: Version of nfq-guard.
        pid: Process ID of the daemon.
        mode: Whether decisions are carried out.
        since: When the daemon started, as in events.
        uptime_s: Seconds since the start.
        config: The configuration file as the operator named it, or `defaults`.
        policy: The policy in force.
        shadow: The policy on trial; null without one.
        evidence: The source of a flow's state: `bpf`, `kernel-log`, `ctnetlink` or `none`.
        evidence_reason: Why there is no better evidence; null if there is none.
        fail_mode: The fail mode: `open`, `closed` or `kernel-drop`.
        max_rate_pps: Packets a second above which the kernel leaves packets to the fail mode; 0 for
            no limit.
        rules: Our rules in the packet filter.
        raw_rules: The host's rules before conntrack, and whether the guard spares packets because
            of them.
        pods: The files of `pods_dir`; null without that setting.
        queues: Every queue.
        reasons: Packets by reason and action; reasons without packets are omitted.
        actions: Packets by action.
        decided_by: Packets by the rule that decided.
        counters: Counters of the daemon, by name.
        last_reload: The last reload; null before the first.
        last_error: The last event of level error; null before the first.
    """

    version: str
    pid: int
    mode: Mode
    since: str
    uptime_s: float
    config: str
    policy: ActingPolicy
    shadow: PolicyFacts | None
    evidence: str
    evidence_reason: str | None
    fail_mode: str
    max_rate_pps: int
    rules: RulesStatus
    raw_rules: RawRulesStatus
    pods: PodsStatus | None = None
    queues: tuple[QueueStatus, ...]
    reasons: dict[str, dict[str, int]]
    actions: dict[str, int]
    decided_by: dict[str, int]
    counters: dict[str, int]
    last_reload: ReloadStatus | None
    last_error: dict[str, Any] | None

    def count(self, name: str) -> int:
        """One counter; 0 if the daemon does not have it."""
        return self.counters.get(name, 0)


def encode(status: Status) -> dict[str, Any]:
    """The JSON object of `status`."""
    table = _unfold(msgspec.to_builtins(status))
    table["queues"] = [_unfold(queue) for queue in table["queues"]]
    return table


def decode(table: object) -> Status:
    """Decode the result of `encode`.

    Raises:
        NfqGuardError: It lacks a field, because the daemon has another version.
    """
    try:
        folded = _fold(Status, table)
        folded["queues"] = [_fold(QueueStatus, queue) for queue in folded.get("queues", ())]
        return msgspec.convert(folded, Status)
    except (msgspec.ValidationError, TypeError) as error:
        raise another_version(error) from None


def another_version(error: Exception) -> NfqGuardError:
    """The error for a response of another shape, with what is wrong in it."""
    return NfqGuardError(f"the daemon has another version: {error}")


def _unfold(table: dict[str, Any]) -> dict[str, Any]:
    """Replace the field `counters` by its members."""
    unfolded: dict[str, Any] = {}
    for name, value in table.items():
        if name == _COUNTERS:
            unfolded.update(value)
        else:
            unfolded[name] = value
    return unfolded


def _fold(kind: type[Struct], table: object) -> dict[str, Any]:
    """Collect the numbers that are not fields of `kind` in its field `counters`."""
    plain = msgspec.convert(table, dict[str, Any])
    fields = kind.__struct_encode_fields__
    folded = {name: value for name, value in plain.items() if name in fields}
    folded[_COUNTERS] = {
        name: value
        for name, value in plain.items()
        if name not in fields and isinstance(value, int)
    }
    return folded


@final
class Rates:
    """Packets a second of each queue, over the last few seconds."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[float, int]]] = {}

    def note(self, queues: "list[QueueState]", now: float) -> None:
        """Take a sample; to be called about once a second, `now` in monotonic seconds."""
        for queue in queues:
            samples = self._samples.setdefault(queue.queue_num, deque(maxlen=_SAMPLES))
            samples.append((now, queue.stats.counters["packets"]))

    def of(self, queue_num: int) -> float:
        """Packets a second; 0 before the second sample."""
        samples = self._samples.get(queue_num)
        if not samples or len(samples) < 2:
            return 0.0
        (began, before), (ended, after) = samples[0], samples[-1]
        return round((after - before) / (ended - began), 1) if ended > began else 0.0


def queue_status(queue: "QueueState", packets_per_s: float) -> QueueStatus:
    """The status of one queue."""
    return QueueStatus(
        queue=queue.queue_num,
        state=queue.state.value,
        pid=queue.pid,
        restarts=queue.restarts,
        packets_per_s=packets_per_s,
        waiting=int(queue.stats.gauges["queue_waiting_packets"]),
        offload_entries=int(queue.stats.gauges["offload_entries"]),
        healed_flows=int(queue.stats.gauges["healed_flows"]),
        counters=dict(queue.stats.counters),
    )


def pods_status(queues: "list[QueueState]") -> PodsStatus:
    """Of the first queue: each worker reads the same files."""
    gauges = queues[0].stats.gauges
    return PodsStatus(
        read=bool(gauges["pods_dir_read"]),
        addresses=int(gauges["pod_addresses"]),
        skipped=int(gauges["pod_files_skipped"]),
    )


@final
class Totals(NamedTuple):
    """Packets of all queues.

    Attributes:
        reasons: By reason and action; reasons without packets are left out.
        actions: By action; every action is there.
        rules: By the rule that decided.
    """

    reasons: dict[str, dict[str, int]]
    actions: dict[str, int]
    rules: dict[str, int]


def totals(queues: "list[QueueState]") -> Totals:
    """Sum the packets of all queues."""
    sums = Totals({}, {action.value: 0 for action in Action}, {})
    for queue in queues:
        _add(queue.stats, sums)
    return sums


def _add(stats: Stats, sums: Totals) -> None:
    for reason, by_action in stats.judged.items():
        for action, packets in by_action.items():
            if packets:
                of_reason = sums.reasons.setdefault(reason.value, {})
                of_reason[action.value] = of_reason.get(action.value, 0) + packets
                sums.actions[action.value] += packets
    for rule, packets in stats.rules.items():
        sums.rules[rule] = sums.rules.get(rule, 0) + packets
