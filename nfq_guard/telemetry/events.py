# SPDX-License-Identifier: MIT
"""The events of the daemon, one class each, which `telemetry.log` writes.

The names of events and fields, and the order of fields, are an interface. A field with a default is
absent from an event if it has that value; every other field is always present.
`telemetry.event_fields` lists `EVENTS` for the reference.
"""

import traceback
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal, final

import msgspec

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.finding import BOUNDS, Reason
from nfq_guard.flow import Evidence, Nat
from nfq_guard.names import DirectionName, StatusName
from nfq_guard.policy.decision import Action

Level = Literal["info", "warning", "error"]
Verdict = Literal["drop", "accept"]

_BOUND_VALUES: Final = [str(reason) for reason in Reason if reason in BOUNDS]
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
# No daemon can have counted more packets than this.
_COUNT_MAX: Final = 1 << 53


def _text(description: str, *, ecs: str = "") -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema=_keywords("", ecs))


def _number(
    description: str, unit: str = "", *, low: int = 0, high: int = _COUNT_MAX, ecs: str = ""
) -> msgspec.Meta:
    return msgspec.Meta(
        ge=low, le=high, description=description, extra_json_schema=_keywords(unit, ecs)
    )


def _keywords(unit: str, ecs: str) -> dict[str, str] | None:
    """Keywords of ours in the JSON Schema: the unit, and the field of the Elastic Common Schema."""
    found = {key: value for key, value in (("unit", unit), ("ecs", ecs)) if value}
    return found or None


def timestamp(at: float | None = None) -> str:
    """The time of day in the format of events: ISO 8601, UTC, microseconds.

    Args:
        at: Seconds since the epoch; None for now.
    """
    when = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return when.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def exception_texts(error: BaseException) -> tuple[str, str]:
    """The texts of an exception for events: one line, and the traceback.

    An error for the operator, and one of the system, say all; other exceptions have their name.
    """
    if isinstance(error, NfqGuardError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = f"{type(error).__name__}: {error}"
    return text, "".join(traceback.format_exception(error))


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    """Any event.

    Attributes:
        level: Its severity, the same for all events of a class.
    """

    level: ClassVar[Level] = "info"


@final
class BrokenBound(msgspec.Struct, frozen=True, gc=False):
    """The bound of the window that a segment broke, with the numbers that prove it."""

    bound: Annotated[
        Reason,
        msgspec.Meta(
            description="The bound.",
            extra={"values": _BOUND_VALUES},
        ),
    ]
    actual: Annotated[int, _number("The number that the segment carries.", high=_U32)]
    limit: Annotated[int, _number("The last number that would have passed.", high=_U32)]
    distance: Annotated[
        int, _number("How far `actual` is beyond `limit`.", "bytes", low=1, high=_U32)
    ]


@final
class FlowWindow(msgspec.Struct, frozen=True, gc=False):
    """Conntrack's state of both ends of a TCP flow when it checked the packet."""

    sender_td_end: Annotated[
        int, _number("Highest number that the packet's sender had sent.", high=_U32)
    ]
    sender_td_maxend: Annotated[
        int, _number("Highest number that its receiver had agreed to take.", high=_U32)
    ]
    sender_td_maxwin: Annotated[
        int, _number("Largest window that its sender had offered.", "bytes", high=_U32)
    ]
    sender_td_maxack: Annotated[
        int, _number("Highest number that its sender had acknowledged.", high=_U32)
    ]
    receiver_td_end: Annotated[
        int, _number("Highest number that its receiver had sent.", high=_U32)
    ]
    receiver_td_maxend: Annotated[
        int, _number("Highest number that its sender had agreed to take.", high=_U32)
    ]
    receiver_td_maxwin: Annotated[
        int, _number("Largest window that its receiver had offered.", "bytes", high=_U32)
    ]
    receiver_td_maxack: Annotated[
        int, _number("Highest number that its receiver had acknowledged.", high=_U32)
    ]
    acknowledged: Annotated[
        int,
        _number(
            "What the packet acknowledges, by its ACK field and its SACK blocks; `receiver_td_end`"
            " if it acknowledges nothing.",
            high=_U32,
        ),
    ]


@final
class AnsweredPacket(msgspec.Struct, frozen=True, gc=False):
    """An INVALID packet that was accepted, and that an RST answers."""

    timestamp: Annotated[str, _text("When it was judged: ISO 8601, UTC.")]
    reason: Annotated[Reason, _text("Why it is INVALID.")]
    rule: Annotated[str, _text("The rule that let it through, or would have dropped it.")]
    delay_us: Annotated[int, _number("From it to the RST.", "microseconds")]


@final
class ShadowDecision(msgspec.Struct, frozen=True, gc=False):
    """The decision of the policy on trial, if it differs from that of the policy in force."""

    rule: Annotated[str, _text("The rule that decided.")]
    action: Annotated[Action, _text("Its action.")]


@final
class Pod(msgspec.Struct, frozen=True, gc=False):
    """A pod of Kubernetes on this node, from the files in `pods_dir`."""

    namespace: Annotated[str, _text("Its namespace.")]
    name: Annotated[str, _text("Its name.")]
    container: Annotated[
        str,
        _text(
            "Id of its sandbox, the container with the network namespace that all containers of the"
            " pod share."
        ),
    ]


class PacketJudged(
    Event,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    gc=False,
    tag="packet_judged",
    rename={"indev": "in", "outdev": "out"},
):
    """A packet was judged, or `count` packets that are the same for every policy.

    A field that a packet does not have, such as `seq` of a UDP datagram, is null.
    """

    timestamp: Annotated[
        str,
        _text(
            "When the packet, or the last of several, was judged: ISO 8601, UTC.", ecs="@timestamp"
        ),
    ]
    mode: Annotated[Mode, _text("Whether verdicts are carried out.")]
    queue: Annotated[int, _number("Number of the queue.", high=_U16)]
    hook: Annotated[str, _text("The netfilter hook at which the packet was queued.")]
    indev: Annotated[
        str,
        _text(
            "The interface it came in by; empty for none.", ecs="observer.ingress.interface.name"
        ),
    ]
    outdev: Annotated[
        str,
        _text(
            "The interface it would leave by; empty for none.", ecs="observer.egress.interface.name"
        ),
    ]
    mark: Annotated[int, _number("The packet mark.", high=_U32)]
    family: Annotated[
        int, _number("IP version; 0 where it cannot be read.", high=6, ecs="network.type")
    ]
    proto: Annotated[
        str, _text("Transport protocol by name, or its number.", ecs="network.transport")
    ]
    src: Annotated[str | None, _text("Source address.", ecs="source.ip")]
    dst: Annotated[str | None, _text("Destination address.", ecs="destination.ip")]
    sport: Annotated[int, _number("Source port.", high=_U16, ecs="source.port")] | None
    dport: Annotated[int, _number("Destination port.", high=_U16, ecs="destination.port")] | None
    tcp_flags: Annotated[str | None, _text("TCP flags, the letters SFRPAUEC in this order.")]
    seq: Annotated[int, _number("TCP sequence number.", high=_U32)] | None
    ack: Annotated[int, _number("TCP acknowledgement number.", high=_U32)] | None
    payload: Annotated[int, _number("Data after the transport header.", "bytes")] | None
    reason: Annotated[Reason, _text("Why the packet is INVALID.", ecs="event.reason")]
    breach: Annotated[BrokenBound | None, _text("The bound that it broke.")]
    state: Annotated[
        str | None,
        _text("TCP state of its flow in conntrack; for an ICMP error, of the flow that it quotes."),
    ]
    nat: Annotated[Nat, _text("How the host translates its flow.")]
    evidence: Annotated[Evidence, _text("Where the flow was looked up.")]
    direction: Annotated[DirectionName | None, _text("Direction of the packet in its flow.")]
    status: Annotated[
        tuple[StatusName, ...] | None,
        _text("Status of the conntrack entry, by the names that policies have for it."),
    ]
    ct_mark: Annotated[int, _number("Mark of the conntrack entry.", high=_U32)] | None
    rule: Annotated[str, _text("The rule that decided.", ecs="rule.name")]
    action: Annotated[Action, _text("Its action.")]
    verdict: Annotated[Verdict, _text("The verdict that was sent to the kernel.", ecs="event.type")]
    would: Annotated[Verdict, _text("The verdict in mode enforce.")]
    shadow: Annotated[
        ShadowDecision | None, _text("The decision of the policy on trial, where it differs.")
    ] = None
    lookup_error: Annotated[
        str | None, _text("Name of the errno, for a packet whose flow lookup failed.")
    ] = None
    count: Annotated[
        int, _number("Packets that this event stands for.", "packets", low=1, ecs="network.packets")
    ] = 1
    first: Annotated[
        str | None,
        _text(
            "When the first of several packets was judged; absent for one packet.",
            ecs="event.start",
        ),
    ] = None
    distances: (
        Annotated[
            tuple[
                tuple[
                    Annotated[int, msgspec.Meta(ge=1, le=_U32)],
                    Annotated[int, msgspec.Meta(ge=1, le=_COUNT_MAX)],
                ],
                ...,
            ],
            _text(
                "Pairs of a distance and the number of packets with it, where the distances of"
                " several packets differ; `breach` is of the first."
            ),
        ]
        | None
    ) = None
    leak: Annotated[
        bool,
        _text(
            "Whether a private source sends to a global destination and no flow was found, as"
            " after a translation has expired."
        ),
    ] = False
    window: Annotated[
        FlowWindow | None,
        _text(
            "The window of its flow, for a reason that is about the window; of the first packet."
        ),
    ] = None
    caused_by: Annotated[
        AnsweredPacket | None,
        _text(
            "The packet that this RST answers, an INVALID one that got through. Of several RSTs all"
            " answer packets of the same reason and rule, and the times are of the first."
        ),
    ] = None
    tcp_timestamp: (
        Annotated[
            int,
            _number(
                "TSval of the segment's timestamp option, the sender's clock; of the first packet.",
                high=_U32,
            ),
        ]
        | None
    ) = None
    community_id: Annotated[
        str | None,
        _text(
            "Community ID of the flow, version 1, as Zeek, Suricata and Wireshark compute it;"
            " absent where the headers cannot be read.",
            ecs="network.community_id",
        ),
    ] = None
    src_pod: Annotated[
        Pod | None,
        _text(
            "The pod that has the source address when the event is written, where the setting"
            " `pods_dir` has it."
        ),
    ] = None
    dst_pod: Annotated[Pod | None, _text("As `src_pod`, of the destination address.")] = None
    hidden_half: Annotated[
        bool,
        _text(
            "Whether no policy drops it, because rules before conntrack may hide the other"
            " direction of its flow."
        ),
    ] = False


class _Queued(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An event about one queue."""

    queue: Annotated[int, _number("Number of the queue.", high=_U16)]


class _WorkerProcess(_Queued, frozen=True, kw_only=True, omit_defaults=True):
    """An event about one worker process."""

    pid: Annotated[int, _number("Process id of the worker.", ecs="process.pid")]


class Totals(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Counts since the start."""

    queues: Annotated[list[int], _text("Numbers of the queues.")]
    reasons: Annotated[dict[str, int], _text("Packets by reason.")]
    actions: Annotated[dict[str, int], _text("Packets by action.")]
    rules: Annotated[dict[str, int], _text("Packets by rule.")]
    counters: Annotated[
        dict[str, int],
        msgspec.Meta(
            description="Every counter of the metrics, each a field of the event by its own name.",
            extra={"flattened": True},
        ),
    ]


class _RuleChange(Event, frozen=True, kw_only=True, omit_defaults=True):
    done: Annotated[list[str], _text("One sentence for each change.")]
    notes: Annotated[list[str], _text("Notes for the operator.")]


@final
class Started(Event, frozen=True, kw_only=True, omit_defaults=True, tag="started"):
    """All queues are served and the rules are installed."""

    queue: Annotated[int | None, _text("Number of the queue, if there is one only.")] = None
    queues: Annotated[list[int] | None, _text("Numbers of the queues, if there are several.")] = (
        None
    )
    pids: Annotated[list[int] | None, _text("Process ids of their workers.")] = None
    socket_buffer_bytes: (
        Annotated[int, _number("Receive buffer of a queue's socket, as granted.", "bytes")] | None
    ) = None
    flags_refused: Annotated[
        list[str] | None, _text("Flags of the queue that the kernel does not know.")
    ] = None
    mode: Annotated[Mode, _text("Whether verdicts are carried out.")]
    config: Annotated[str, _text("Where the settings come from.")]
    policy: Annotated[str, _text("Digest of the policy.")]
    evidence: Annotated[Evidence, _text("Where flows are looked up.")]
    evidence_reason: Annotated[str | None, _text("Why there is no better evidence.")] = None
    fail_mode: Annotated[str, _text("What happens to packets while no worker serves.")]
    uid: Annotated[int, _number("User that the daemon runs as.")]
    capabilities: Annotated[list[str], _text("All capabilities that the daemon has.")]


@final
class EvidenceChanged(Event, frozen=True, kw_only=True, omit_defaults=True, tag="evidence_changed"):
    """The source of flow lookups has changed."""

    level: ClassVar[Level] = "warning"
    queue: Annotated[int, _text("Number of the queue.")]
    before: Annotated[Evidence, _text("Where they were looked up.")]
    evidence: Annotated[Evidence, _text("Where they are looked up.")]
    evidence_reason: Annotated[str | None, _text("Why there is no better evidence.")] = None


@final
class Stopped(Totals, frozen=True, kw_only=True, omit_defaults=True, tag="stopped"):
    """The daemon ends; the last event of an orderly end."""


@final
class Counters(Totals, frozen=True, kw_only=True, omit_defaults=True, tag="counters"):
    """The counters, requested by SIGUSR1."""


@final
class DaemonFailed(Event, frozen=True, kw_only=True, omit_defaults=True, tag="daemon_failed"):
    """An error ends the daemon."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The error.", ecs="error.message")]
    traceback: Annotated[str | None, _text("Where it was raised, for a bug of the daemon.")] = None


@final
class Note(Event, frozen=True, kw_only=True, omit_defaults=True, tag="note"):
    """A note for the operator, at the start."""

    level: ClassVar[Level] = "warning"
    text: Annotated[str, _text("One sentence.", ecs="message")]


@final
class HostAccepts(Event, frozen=True, kw_only=True, omit_defaults=True, tag="host_accepts"):
    """At the start: no rule of the host affects packets that the policy allows."""

    unread: Annotated[list[str] | None, _text("Rules that could not be read.")] = None


@final
class HostTakes(Event, frozen=True, kw_only=True, omit_defaults=True, tag="host_takes"):
    """At the start: rules of the host drop, reset or divert packets that the policy allows."""

    level: ClassVar[Level] = "warning"
    fates: Annotated[list[str], _text("Their fate, one text a hook, as in `doctor`.")]
    unread: Annotated[list[str] | None, _text("Rules that could not be read.")] = None


@final
class ModeChanged(Event, frozen=True, kw_only=True, omit_defaults=True, tag="mode_changed"):
    """An operator switched between dry-run and enforce."""

    level: ClassVar[Level] = "warning"
    before: Annotated[Mode, _text("The mode until then.")]
    now: Annotated[Mode, _text("The mode from then on.")]
    fail_mode_until_restart: Annotated[
        str | None,
        _text(
            "The fail mode that stays in the rules until root installs others, at the latest at a "
            "restart; absent where it is that of `now`."
        ),
    ] = None
    problem: Annotated[str | None, _text("Why the daemon could not change the rules.")] = None


@final
class RulesInstalled(_RuleChange, frozen=True, kw_only=True, tag="rules_installed"):
    """The rules in the packet filter were installed."""


@final
class RulesRemoved(_RuleChange, frozen=True, kw_only=True, tag="rules_removed"):
    """The rules in the packet filter were removed."""


@final
class RulesChanged(Event, frozen=True, kw_only=True, tag="rules_changed"):
    """A check found that another program changed or removed the rules."""

    level: ClassVar[Level] = "error"
    differences: Annotated[tuple[str, ...], _text("One sentence for each difference.")]
    reinstalled: Annotated[bool, _text("Whether the rules were installed again.")]


@final
class RulesContested(Event, frozen=True, kw_only=True, tag="rules_contested"):
    """Another program keeps adding rules behind our jumps; queued packets skip them meanwhile."""

    level: ClassVar[Level] = "warning"
    differences: Annotated[tuple[str, ...], _text("One sentence for each difference.")]


@final
class RulesRestored(Event, frozen=True, kw_only=True, tag="rules_restored"):
    """The rules are correct again; the daemon did not change them."""


@final
class RulesCheckFailed(Event, frozen=True, kw_only=True, tag="rules_check_failed"):
    """The rules could not be checked or reinstalled."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The error.", ecs="error.message")]


@final
class HalfHidden(Event, frozen=True, kw_only=True, tag="half_hidden"):
    """Rules before conntrack hide one direction of flows from it, so the guard spares the other.

    The packets of the other direction are INVALID only because of that. The rule `hidden-half`
    allows them, whatever the policy says.
    """

    level: ClassVar[Level] = "warning"
    rules: Annotated[tuple[str, ...], _text("The rules, one sentence each.")]


@final
class HalfHiddenOver(Event, frozen=True, kw_only=True, tag="half_hidden_over"):
    """No rule before conntrack hides one direction of flows any longer."""


@final
class RulesLeftBehind(Event, frozen=True, kw_only=True, tag="rules_left_behind"):
    """The rules could not be removed at the end."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The error.", ecs="error.message")]


@final
class ConfigRefused(Event, frozen=True, kw_only=True, tag="config_refused"):
    """At the start: the file has mistakes, and the last good configuration is in force."""

    level: ClassVar[Level] = "error"
    mistakes: Annotated[list[str], _text("Every mistake, with its key.")]
    last_good: Annotated[str, _text("When a daemon took the configuration in force.")]


@final
class Reloaded(Event, frozen=True, kw_only=True, omit_defaults=True, tag="reloaded"):
    """A new policy is in force."""

    policy: Annotated[str, _text("Digest of the policy.")]
    rules: Annotated[int, _number("How many rules it has.")]
    shadow: Annotated[str | None, _text("Digest of the policy on trial, if there is one.")] = None
    mode: Annotated[Mode | None, _text("The mode of the file, if it changed.")] = None
    restart_for: Annotated[
        list[str] | None, _text("Changed settings that take effect only after a restart.")
    ] = None
    rules_problem: Annotated[
        str | None, _text("Why the rules keep their fail mode although the mode changed.")
    ] = None


@final
class ReloadFailed(Event, frozen=True, kw_only=True, tag="reload_failed"):
    """The policy on disk was refused; the policy in force stays."""

    level: ClassVar[Level] = "error"
    mistakes: Annotated[list[str], _text("Every mistake, with its key.")]


@final
class ReloadCrashed(Event, frozen=True, kw_only=True, tag="reload_crashed"):
    """A bug of the daemon occurred while it read the policy; the policy in force stays."""

    level: ClassVar[Level] = "error"
    traceback: Annotated[str, _text("Where it was raised.", ecs="error.stack_trace")]


@final
class ControlSocketRestored(Event, frozen=True, kw_only=True, tag="control_socket_restored"):
    """The control socket had vanished from the file system, and was recreated."""

    level: ClassVar[Level] = "warning"
    path: Annotated[str, _text("Its path.")]


@final
class MetricsFileFailed(Event, frozen=True, kw_only=True, tag="metrics_file_failed"):
    """The metrics file could not be written; logged once until a write succeeds."""

    level: ClassVar[Level] = "warning"
    problem: Annotated[str, _text("The file and the error.", ecs="error.message")]


@final
class WorkerFailed(_Queued, frozen=True, kw_only=True, tag="worker_failed"):
    """A worker reported an error and ends."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The error, or a traceback.")]


@final
class WorkerEnded(_WorkerProcess, frozen=True, kw_only=True, tag="worker_ended"):
    """A worker process exited unexpectedly."""

    level: ClassVar[Level] = "error"
    how: Annotated[str, _text("Its exit status or signal.")]


@final
class WorkerStuck(_WorkerProcess, frozen=True, kw_only=True, tag="worker_stuck"):
    """A worker did not report for too long and was killed."""

    level: ClassVar[Level] = "error"


@final
class WorkerKilled(_WorkerProcess, frozen=True, kw_only=True, tag="worker_killed"):
    """A worker did not end in time while the daemon was ending, and was killed."""

    level: ClassVar[Level] = "error"


@final
class WorkerLeftBehind(_WorkerProcess, frozen=True, kw_only=True, tag="worker_left_behind"):
    """A worker was killed at the end and has not exited."""

    level: ClassVar[Level] = "error"


@final
class WorkerRestarted(_WorkerProcess, frozen=True, kw_only=True, tag="worker_restarted"):
    """A new worker process was started in place of one that ended."""

    level: ClassVar[Level] = "warning"


@final
class WorkerRestartFailed(_Queued, frozen=True, kw_only=True, tag="worker_restart_failed"):
    """A new worker process could not be started; the daemon will try again."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The error.", ecs="error.message")]


@final
class MessageRefused(Event, frozen=True, kw_only=True, omit_defaults=True, tag="message_refused"):
    """A message between the daemon and a worker was dropped; limited in rate."""

    level: ClassVar[Level] = "error"
    sender: Annotated[Literal["daemon", "worker"], _text("The sender.")]
    queue: Annotated[int | None, _text("Queue of the worker.")] = None
    problem: Annotated[str, _text("The mistake in it, or that there was no room for it.")]
    since_last: Annotated[int, _number("How many since the last such event.")]


@final
class SupervisionFailed(Event, frozen=True, kw_only=True, tag="supervision_failed"):
    """A bug of the daemon occurred while it handled a worker; limited in rate."""

    level: ClassVar[Level] = "error"
    queue: Annotated[int, _number("Queue of the worker.", high=_U16)]
    problem: Annotated[str, _text("The exception.", ecs="error.message")]
    traceback: Annotated[str, _text("Where it was raised.", ecs="error.stack_trace")]
    since_last: Annotated[int, _number("How many since the last such event.")]


@final
class HousekeepingFailed(Event, frozen=True, kw_only=True, tag="housekeeping_failed"):
    """A bug of the daemon occurred in periodic work or in a request; limited in rate."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The exception.", ecs="error.message")]
    traceback: Annotated[str, _text("Where it was raised.", ecs="error.stack_trace")]
    since_last: Annotated[int, _number("How many since the last such event.")]


@final
class JudgingFailed(_Queued, frozen=True, kw_only=True, tag="judging_failed"):
    """A bug of the daemon occurred while it judged a packet, which got the fail-mode verdict."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The exception.", ecs="error.message")]
    where: Annotated[str, _text("File and line.")]
    hook: Annotated[int, _number("Number of the hook at which the packet was queued.")]
    octets: Annotated[
        str, _text("Its headers, in hexadecimal; the first 60 bytes where they cannot be read.")
    ]
    traceback: Annotated[str, _text("Where it was raised; empty after the first time.")]


@final
class EventFailed(Event, frozen=True, kw_only=True, tag="event_failed"):
    """A bug of the daemon occurred while it wrote an event; logged once."""

    level: ClassVar[Level] = "error"
    problem: Annotated[str, _text("The exception.", ecs="error.message")]
    traceback: Annotated[str, _text("Where it was raised.", ecs="error.stack_trace")]


@final
class KernelDroppedPackets(_Queued, frozen=True, kw_only=True, tag="kernel_dropped_packets"):
    """The kernel dropped packets before they could be judged."""

    level: ClassVar[Level] = "warning"
    queue_full: Annotated[
        int, _number("Dropped because the queue was full, since the queue was bound.", "packets")
    ]
    buffer_full: Annotated[
        int, _number("Dropped because the socket buffer was full, since then.", "packets")
    ]
    since_last: Annotated[
        int,
        _number(
            "Dropped since the last such event, or since this daemon has the queue.", "packets"
        ),
    ]
    waiting: Annotated[int, _number("Packets that wait in the queue.", "packets")]


@final
class KernelPassedPackets(Event, frozen=True, kw_only=True, tag="kernel_passed_packets"):
    """Packets passed unjudged in fail mode open: more than could be judged, or without a worker."""

    level: ClassVar[Level] = "warning"
    queue_full: Annotated[
        int,
        _number(
            "Passed because a queue was full, or its worker or the daemon replaced, since the end"
            " of the daemon before.",
            "packets",
        ),
    ]
    buffer_full: Annotated[
        int, _number("Passed because a socket buffer was full, since then.", "packets")
    ]
    since_last: Annotated[int, _number("Passed since the last such event.", "packets")]


@final
class PacketsUnserved(Event, frozen=True, kw_only=True, tag="packets_unserved"):
    """Packets were dropped because a worker or the daemon was replaced.

    The fail mode dropped those that came meanwhile; the kernel dropped, in every fail mode, those
    that waited for a worker that was killed because it hung.
    """

    level: ClassVar[Level] = "warning"
    packets: Annotated[int, _number("How many since the last such event.", "packets")]


@final
class PacketsShed(Event, frozen=True, kw_only=True, tag="packets_shed"):
    """Packets above `max_rate_pps` were left to the fail mode; logged at checks of the rules."""

    level: ClassVar[Level] = "warning"
    packets: Annotated[int, _number("How many since the last such event.", "packets")]


@final
class PacketsUnjudged(_Queued, frozen=True, kw_only=True, tag="packets_unjudged"):
    """Packets got the verdict of the fail mode instead of being judged."""

    level: ClassVar[Level] = "warning"
    unread: Annotated[
        int,
        _number(
            "Read by a daemon that was killed, or lost on the way to it, since the last such"
            " event.",
            "packets",
        ),
    ]
    failed: Annotated[
        int, _number("Judging them failed, by a bug of the daemon, since then.", "packets")
    ]


@final
class LookupsFailed(_Queued, frozen=True, kw_only=True, tag="lookups_failed"):
    """The kernel refused flow lookups; their packets were judged without evidence."""

    level: ClassVar[Level] = "warning"
    lookups: Annotated[int, _number("How many since the last such event.")]
    last_error: Annotated[str, _text("Name of the last errno.")]


@final
class EventsSuppressed(Event, frozen=True, kw_only=True, tag="events_suppressed"):
    """Packets have no event because of a limit; logged at most once a minute for each limit."""

    level: ClassVar[Level] = "warning"
    packets: Annotated[int, _number("How many since the last such event.", "packets")]
    file_full: Annotated[
        bool, _text("Whether `events_file` has its full size; else events are limited by rate.")
    ] = False


@final
class AllowedUnrecorded(Event, frozen=True, kw_only=True, tag="allowed_unrecorded"):
    """Packets that the policy allowed have no event, because `log_allowed` is off."""

    packets: Annotated[int, _number("How many since the last such event.", "packets")]


@final
class PacketsUnrecorded(_Queued, frozen=True, kw_only=True, tag="packets_unrecorded"):
    """A process was killed or crashed before all packets that it had judged had an event.

    That of an earlier daemon is in the log of the next one.
    """

    level: ClassVar[Level] = "warning"
    packets: Annotated[
        int,
        _number("How many, with those that it was judging.", "packets"),
    ]


@final
class UnservedTime(Event, frozen=True, kw_only=True, tag="unserved_time"):
    """No daemon served the queues, and how many packets came is unknown.

    The one before was killed, or a restart replaced the rules that count. What happened to the
    packets of that time is the fail mode's.
    """

    level: ClassVar[Level] = "warning"
    unserved_s: Annotated[
        float, msgspec.Meta(ge=0, description="How long, seconds; up to a second less.")
    ]


@final
class LogLinesDropped(Event, frozen=True, kw_only=True, tag="log_lines_dropped"):
    """Some lines were lost because the log did not accept them."""

    level: ClassVar[Level] = "warning"
    lines: Annotated[int, _number("How many since the last such event.", "lines")]
    last_error: Annotated[str, _text("The last failed write; empty if the log was only slow.")]


@final
class PodsUnread(Event, frozen=True, kw_only=True, tag="pods_unread"):
    """Some or all pods are not named in events; logged once for each problem."""

    level: ClassVar[Level] = "warning"
    problem: Annotated[
        str, _text("Why `pods_dir`, or one of its files, cannot be used.", ecs="error.message")
    ]
    files: Annotated[
        int, _number("Files that are skipped at present; 0 where the directory cannot be read.")
    ]


@final
class OffloadFailed(Event, frozen=True, kw_only=True, tag="offload_failed"):
    """A flow could not be offloaded to the kernel; logged once for each problem."""

    level: ClassVar[Level] = "warning"
    problem: Annotated[str, _text("The error.", ecs="error.message")]


@final
class OffloadedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a flow whose packets the kernel drops."""

    hook: Annotated[str, _text("The netfilter hook.")]
    interface: Annotated[str, _text("The interface at that hook.")]
    src: Annotated[str | None, _text("Source address.")]
    dst: Annotated[str | None, _text("Destination address.")]
    sport: Annotated[int, _number("Source port.", high=_U16)]
    dport: Annotated[int, _number("Destination port.", high=_U16)]


@final
class Offloaded(Event, frozen=True, kw_only=True, tag="offloaded"):
    """Flows offloaded and packets dropped by the kernel in the last second; only after a change."""

    offloaded_flows: Annotated[int, _number("Flows newly left to the kernel.")]
    offload_drops: Annotated[int, _number("Packets that the kernel dropped.", "packets")]
    offload_refused: Annotated[
        int, _number("Flows that stayed: the policy may accept some of their packets.")
    ]
    offload_full: Annotated[int, _number("Flows that stayed: the sets were full.")]
    entries: Annotated[int, _number("Flows that the kernel holds.")]
    example: Annotated[OffloadedFlow | None, _text("One of the new flows.")]


@final
class PacketsSaved(_Queued, frozen=True, kw_only=True, tag="packets_saved"):
    """INVALID packets were written into a file of `capture_dir`."""

    path: Annotated[str, _text("The file, pcapng.", ecs="file.path")]
    packets: Annotated[int, _number("How many packets it has.", "packets")]
    cause: Annotated[str, _text("Why it was written.")]


@final
class PacketsNotSaved(_Queued, frozen=True, kw_only=True, tag="packets_not_saved"):
    """`capture_dir` takes no file, tried at the start too; logged once until a write succeeds."""

    level: ClassVar[Level] = "warning"
    problem: Annotated[str, _text("The directory and the error.", ecs="error.message")]


@final
class HealFailed(Event, frozen=True, kw_only=True, tag="heal_failed"):
    """A flow could not be healed, or a heal could not be undone; logged once for each problem."""

    level: ClassVar[Level] = "warning"
    problem: Annotated[str, _text("The error.", ecs="error.message")]


@final
class HealedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a flow whose window conntrack no longer checks."""

    src: Annotated[str | None, _text("Source address.")]
    dst: Annotated[str | None, _text("Destination address.")]
    sport: Annotated[int, _number("Source port.", high=_U16)]
    dport: Annotated[int, _number("Destination port.", high=_U16)]


@final
class Healed(Event, frozen=True, kw_only=True, tag="healed"):
    """Flows healed in the last second; only after a change."""

    heals: Annotated[int, _number("Flows newly healed.")]
    would_heal: Annotated[int, _number("Flows that mode enforce would have healed.")]
    heals_undone: Annotated[int, _number("Flows whose window is checked again.")]
    heals_refused: Annotated[
        int, _number("Packets whose flow is gone or ends, or that are far from their window.")
    ]
    heals_over_limit: Annotated[
        int, _number("Packets whose flow stayed because of a limit.", "packets")
    ]
    entries: Annotated[int, _number("Flows that are healed at present.")]
    example: Annotated[HealedFlow | None, _text("The last flow that was, or would be, healed.")]


@final
class StoppedUnderLoad(Event, frozen=True, kw_only=True, tag="stopped_under_load"):
    """A queue was still receiving packets when the time to drain it ended."""

    level: ClassVar[Level] = "warning"
    waited_s: Annotated[float, _text("How long it was drained, seconds.")]


Gap = (
    KernelDroppedPackets
    | KernelPassedPackets
    | PacketsUnserved
    | PacketsShed
    | PacketsUnjudged
    | Offloaded
)
"""Events about missing packets that may come once a second."""


EVENTS: Final[tuple[type[Event], ...]] = (
    PacketJudged,
    Started,
    EvidenceChanged,
    Stopped,
    Counters,
    DaemonFailed,
    ConfigRefused,
    Note,
    HostAccepts,
    HostTakes,
    ModeChanged,
    RulesInstalled,
    RulesRemoved,
    RulesChanged,
    RulesContested,
    RulesRestored,
    RulesCheckFailed,
    HalfHidden,
    HalfHiddenOver,
    RulesLeftBehind,
    Reloaded,
    ReloadFailed,
    ReloadCrashed,
    ControlSocketRestored,
    MetricsFileFailed,
    WorkerFailed,
    WorkerEnded,
    WorkerStuck,
    WorkerKilled,
    WorkerLeftBehind,
    WorkerRestarted,
    WorkerRestartFailed,
    MessageRefused,
    SupervisionFailed,
    HousekeepingFailed,
    JudgingFailed,
    EventFailed,
    KernelDroppedPackets,
    KernelPassedPackets,
    PacketsUnserved,
    PacketsShed,
    PacketsUnjudged,
    LookupsFailed,
    EventsSuppressed,
    AllowedUnrecorded,
    PacketsUnrecorded,
    UnservedTime,
    LogLinesDropped,
    PodsUnread,
    OffloadFailed,
    Offloaded,
    PacketsSaved,
    PacketsNotSaved,
    HealFailed,
    Healed,
    StoppedUnderLoad,
)
"""All events, in the order of the reference."""


def name_of(event: type[Event]) -> str:
    """The name of an event: the value of its field `event`."""
    return str(event.__struct_config__.tag)


def all_fields(event: Event, at: str | None = None) -> dict[str, Any]:
    """All fields of an event, in the order and the form of JSON.

    Args:
        event: The event.
        at: The time of an event other than `packet_judged`, which has its own; None for now.
    """
    if isinstance(event, PacketJudged):
        found: dict[str, Any] = msgspec.to_builtins(event)
        return found
    return {
        "event": name_of(type(event)),
        "timestamp": at or timestamp(),
        **own_fields(event),
        "level": event.level,
    }


def own_fields(event: Event) -> dict[str, Any]:
    """The fields that the class of an event declares, in the form of JSON."""
    found: dict[str, Any] = msgspec.to_builtins(event)
    del found["event"]
    if isinstance(event, Totals):
        found |= found.pop("counters")
    return found
