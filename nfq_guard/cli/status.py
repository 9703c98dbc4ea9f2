# SPDX-License-Identifier: MIT
"""`nfq-guard status`: prints the status of the running daemon."""

import argparse
from typing import Any, Final

from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format
from nfq_guard.cli.terminal import paint, write_json, write_line
from nfq_guard.engine import Mode
from nfq_guard.errors import EXIT_OK
from nfq_guard.names import counted, visible
from nfq_guard.service.status import (
    PolicyFacts,
    QueueStatus,
    RulesState,
    RulesStatus,
    Status,
    decode,
)
from nfq_guard.telemetry.palette import Style

_LABEL_WIDTH: Final = 12
# Texts of heals by their counter; shown unless 0.
_HEALS: Final = {
    "heals": "heal{s} made",
    "would_heal": "would be made in enforce",
    "heals_undone": "undone",
    "heals_refused": "refused for the flow or the packet",
    "heals_over_limit": "packet{s} over a limit on heals",
    "heal_errors": "refused by the kernel",
}
# Texts of losses by their counter; shown unless 0.
_LOSSES: Final = {
    "queue_full_drops": "dropped because the queue was full",
    "buffer_full_drops": "dropped because the socket buffer was full",
    "buffer_full_passes": "passed unjudged because the socket buffer was full",
    "unread_packets": "read by a daemon that was killed: by the fail mode",
    "buffer_overruns": "overrun{s} of the socket buffer",
    "verdict_errors": "verdict message{s} for packets that the kernel had dropped already",
    "judging_failures": "packet{s} that could not be judged",
    "lookup_errors": "flow lookup{s} that failed",
    "event_failures": "event{s} that could not be written",
    "events_suppressed": "packet{s} without an event because of a limit",
    "log_lines_dropped": "log line{s} dropped",
    "log_errors": "failed write{s} to the log",
}

# Those that a daemon with several queues counts for itself too.
_OF_THE_LOG: Final = ("log_lines_dropped", "log_errors")

# Texts of the daemon's counters of its rules; shown unless 0.
_RULE_COUNTS: Final = {
    "shed_packets": "packet{s} above the rate left to the fail mode",
    "queue_full_passes": (
        "packet{s} passed unjudged because a queue was full, or its worker or the daemon replaced"
    ),
    "unserved_drops": "packet{s} dropped because a worker or the daemon was replaced",
    "unjudged_drops": "packet{s} dropped by the fail mode without being judged",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_socket(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status; exit status 3 when no daemon runs."""
    with connected(args) as client:
        status = client.request("status")
    if args.format == "json":
        write_json(status)
    else:
        for line in lines(decode(printable(status))):
            write_line(line)
    return EXIT_OK


def printable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """A value of JSON whose texts are safe for a terminal: names and mistakes may hold anything."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(name): printable(one) for name, one in value.items()}
    return [printable(one) for one in value] if isinstance(value, list) else value


def lines(status: Status) -> list[str]:
    """The status as text."""
    enforcing = status.mode is Mode.ENFORCE
    mode = paint(status.mode, Style.GREEN if enforcing else Style.YELLOW, Style.BOLD)
    policy = status.policy
    shown = [
        _line("mode", mode if enforcing else f"{mode} (every packet is accepted)"),
        _line("since", f"{status.since} ({_duration(status.uptime_s)}), pid {status.pid}"),
        _line("config", status.config),
    ]
    shown += [
        _line("", f"daemon.{name} changed in the file; that requires a restart")
        for name in policy.restart_for
    ]
    shown += [
        _line("policy", _policy(policy)),
        _line("evidence", status.evidence),
        *([] if status.evidence_reason is None else [_line("", status.evidence_reason)]),
        _line("fail mode", status.fail_mode + _rate_limit(status)),
        _line("rules", _rules(status.rules)),
    ]
    shown += [
        _line("", paint(_told(status.count(name), text), Style.YELLOW))
        for name, text in _RULE_COUNTS.items()
        if status.count(name)
    ]
    shown += _raw_rules(status)
    shown += _pods(status)
    if status.shadow is not None:
        shown += [_line("shadow", _policy(status.shadow)), _line("", _on_trial(status))]
    shown += [_line("reload", _reload(status))]
    if status.last_error is not None:
        shown.append(_line("last error", _error(status.last_error)))
    for queue in status.queues:
        shown += _queue(queue)
    lost = [name for name in _OF_THE_LOG if status.count(name)]
    if lost:
        told = ", ".join(_told(status.count(name), _LOSSES[name]) for name in lost)
        shown.append(_line("log", paint(told, Style.YELLOW)))
    shown += _counted(status)
    return shown


def _told(count: int, text: str) -> str:
    """A number, and a text of the tables above for one or for others."""
    return f"{count} {text.format(s='' if count == 1 else 's')}"


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _policy(policy: PolicyFacts) -> str:
    return f"{policy.source}, {counted(policy.rules, 'rule')}, hash {policy.digest}"


def _on_trial(status: Status) -> str:
    """The differences between the policy on trial and the policy in force."""
    counts = [
        sum(queue.count(name) for queue in status.queues)
        for name in ("shadow_would_drop", "shadow_would_pass", "shadow_differs_otherwise")
    ]
    return (
        f"it would drop {counts[0]} packets that pass, let pass {counts[1]} that are dropped, and "
        f"treat {counts[2]} otherwise"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else ""]
    parts += [f"{minutes} min" if minutes and not days else ""]
    parts += [f"{rest} s" if not hours and not days else ""]
    return " ".join(part for part in parts if part)


def _rate_limit(status: Status) -> str:
    rate = status.max_rate_pps
    return f", also above {rate} packets/s" if rate else ""


def _rules(rules: RulesStatus) -> str:
    age = rules.age_s
    when = "" if age is None else f" ({age:.0f} s ago)"
    state = rules.state
    if rules.state is RulesState.DIFFER:
        differences = "; ".join(rules.differences)
        return paint(f"differ{when}: {differences}", Style.RED)
    # The kernel has shown the jumps to our chains, not what is in them.
    compared = ", not compared with the configuration" if state is RulesState.IN_PLACE else ""
    problem = f": {rules.problem}" if rules.problem else ""
    return f"{state}{when}{compared}{problem}"


def _raw_rules(status: Status) -> list[str]:
    """The rules before conntrack because of which the guard spares packets; no line without any."""
    texts = [
        *(f"not enforced where {rule}" for rule in status.raw_rules.one_sided),
        *status.raw_rules.problems,
    ]
    label = "raw rules"
    shown: list[str] = []
    for text in texts:
        shown.append(_line(label, paint(text, Style.YELLOW)))
        label = ""
    return shown


def _pods(status: Status) -> list[str]:
    """The pods that events name; no line without `pods_dir`."""
    pods = status.pods
    if pods is None:
        return []
    if not pods.read:
        return [_line("pods", paint("pods_dir has not been read: events name none", Style.YELLOW))]
    shown = [_line("pods", f"events name those of {pods.addresses} addresses")]
    if pods.skipped:
        skipped = f"{counted(pods.skipped, 'file')} of pods_dir skipped"
        shown.append(_line("", paint(skipped, Style.YELLOW)))
    return shown


def _reload(status: Status) -> str:
    last = status.last_reload
    if last is None:
        return "none"
    counts = f"{status.count('reloads')} taken, {status.count('reload_failures')} refused"
    if not last.mistakes:
        return f"{last.at} taken; {counts}"
    mistakes = "; ".join(last.mistakes)
    return paint(f"{last.at} refused: {mistakes}", Style.RED) + f"; {counts}"


def _error(error: dict[str, Any]) -> str:
    rest = " ".join(
        f"{key}={'; '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in error.items()
        if key not in {"at", "event", "traceback", "octets"}
    )
    return paint(f"{error['at']} {error['event']} {rest}", Style.RED)


def _queue(queue: QueueStatus) -> list[str]:
    state = queue.state
    if state != "serving":
        state = paint(state, Style.RED)
    restarts = f", restarted {queue.restarts}x" if queue.restarts else ""
    told = [
        _line(
            f"queue {queue.queue}",
            f"{state} by pid {queue.pid}{restarts}: {queue.packets_per_s:.1f} packets/s, "
            f"{queue.count('packets')} in all, {queue.waiting} waiting",
        )
    ]
    told += _heals(queue)
    told += [
        _line("", paint(_told(queue.count(name), text), Style.YELLOW))
        for name, text in _LOSSES.items()
        if queue.count(name)
    ]
    return told


def _heals(queue: QueueStatus) -> list[str]:
    """The heals, and those that enforce would make; no line without any."""
    counts = [_told(queue.count(name), text) for name, text in _HEALS.items() if queue.count(name)]
    if not counts:
        return []
    return [
        _line("", f"{counted(queue.healed_flows, 'flow')} healed at present; {', '.join(counts)}")
    ]


def _counted(status: Status) -> list[str]:
    names = list(status.actions)
    rows = [(reason, by_action) for reason, by_action in sorted(status.reasons.items())]
    if not rows:
        return ["", "no INVALID packet so far"]
    head = f"{'reason':<16}" + "".join(f"{name:>10}" for name in names)
    table = ["", paint(head, Style.BOLD)]
    for reason, by_action in rows:
        cells = "".join(f"{by_action.get(name, 0):>10}" for name in names)
        table.append(f"{reason:<16}{cells}")
    total = "".join(f"{status.actions[name]:>10}" for name in names)
    table.append(f"{'total':<16}{total}")
    table += ["", paint(f"{'rule':<32}{'packets':>10}", Style.BOLD)]
    by_count = sorted(status.decided_by.items(), key=lambda pair: -pair[1])
    table += [f"{rule:<32}{packets:>10}" for rule, packets in by_count]
    return table
