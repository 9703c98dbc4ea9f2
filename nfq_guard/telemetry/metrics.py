# SPDX-License-Identifier: MIT
"""Counters as plain numbers, and their exposition by prometheus_client, imported when asked for.

Every label value is from an enum and exists from the start, so that no packet can add a series.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from nfq_guard.engine import Judgment
from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX: Final = "nfq_guard_"

# Name without `nfq_guard_` and `_total`, and what is counted.
_COUNTERS: Final = {
    "packets": "Packets read from the queue.",
    "verdict_messages": "Verdict messages sent; one may answer many packets.",
    "verdict_errors": "Verdicts for packets that were gone.",
    "judging_failures": "Packets whose judging raised; they got the fail-mode verdict.",
    "lookup_errors": "Flow lookups that failed; their packets were judged without evidence.",
    "event_failures": "Events that could not be written for a fault of ours.",
    "queue_full_drops": "Packets that the kernel dropped because the queue was full.",
    "buffer_full_drops": "Packets that the kernel dropped because the socket buffer was full.",
    "buffer_overruns": "Times that the kernel said ENOBUFS.",
    "shadow_would_pass": "Packets that the policy drops and the one on trial lets pass.",
    "shadow_would_drop": "Packets that the policy lets pass and the one on trial drops.",
    "shadow_differs_otherwise": "Packets with another action or mark by the policy on trial.",
    "offloaded_flows": "Times that the kernel was told to drop the rest of a flow.",
    "offload_drops": "Packets that the kernel dropped by itself, as told.",
    "offload_refused": "Times that a flow stayed: the policy may let some of its packets pass.",
    "offload_full": "Times that a flow stayed because the kernel was told of as many as it may be.",
    "offload_errors": "Times that the kernel could not be told.",
    "events_suppressed": "Packets without an event because of the limit on all events.",
    "log_lines_dropped": "Log lines dropped because the log did not take them.",
    "log_errors": "Failed writes to the log.",
}
_DAEMON_COUNTERS: Final = {
    "rules_changed": "Checks that found our rules missing or changed.",
    "shed_packets": "Packets that the kernel left to the fail mode for being above max_rate_pps.",
    "unjudged_drops": "Packets that the fail mode kernel-drop dropped, because nobody judged them.",
    "reloads": "Reloads that took a new policy.",
    "reload_failures": "Reloads that kept the old policy because the new one is wrong.",
    "worker_restarts": "Workers that had to be started again.",
    "messages_refused": "Messages between the daemon and its workers that could not be decoded.",
}
_GAUGES: Final = {
    "queue_waiting_packets": "Packets that wait in the kernel for a verdict.",
    "offload_entries": "Flows of which the kernel drops the rest.",
    "enforcing": "1 when decisions are carried out, 0 in dry-run.",
    "start_time_seconds": "When the daemon started, seconds of the Unix epoch.",
}


@final
class Stats:
    """The numbers of one queue's worker; the one place where `status` and metrics look.

    Attributes:
        judged: Packets by reason and action, all pairs from the start.
        rules: Packets by the rule that decided; as many as the policies loaded so far have.
        counters: By name; only ever grow.
        gauges: By name.
    """

    def __init__(self) -> None:
        self.judged: dict[Reason, dict[Action, int]] = {
            reason: dict.fromkeys(Action, 0) for reason in Reason
        }
        self.rules: dict[str, int] = {}
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self.gauges = dict.fromkeys(_GAUGES, 0.0)

    def count(self, judgments: Sequence[Judgment]) -> None:
        """Count a batch by runs of equal reason and rule: hashing an enum costs more."""
        run = 0
        last: Judgment | None = None
        for judgment in judgments:
            if last is not None and (
                judgment.decision is not last.decision
                or judgment.finding.reason is not last.finding.reason
            ):
                self._add(last, run)
                run = 0
            last = judgment
            run += 1
        if last is not None:
            self._add(last, run)

    def plain(self) -> dict[str, Any]:
        """The numbers as JSON can carry them; packets of pairs that have none are left out."""
        judged = {
            reason.value: {
                action.value: packets for action, packets in by_action.items() if packets
            }
            for reason, by_action in self.judged.items()
        }
        return {
            "judged": judged,
            "rules": self.rules,
            "counters": self.counters,
            "gauges": self.gauges,
        }

    def sum_of(self, base: "Stats", plain: dict[str, Any]) -> None:
        """Become the sum of `base` and of what `plain` said; gauges are the latter's."""
        for reason, by_action in self.judged.items():
            said = plain["judged"].get(reason.value, {})
            for action in by_action:
                by_action[action] = base.judged[reason][action] + said.get(action.value, 0)
        rules = dict(base.rules)
        for rule, packets in plain["rules"].items():
            rules[rule] = rules.get(rule, 0) + packets
        self.rules = rules
        for name, count in plain["counters"].items():
            self.counters[name] = base.counters[name] + count
        for name, value in plain["gauges"].items():
            if name != "start_time_seconds":
                self.gauges[name] = value

    def copy(self) -> "Stats":
        """The numbers as they are now."""
        copied = Stats()
        copied.sum_of(self, Stats().plain())
        copied.gauges = dict(self.gauges)
        return copied

    def _add(self, judgment: Judgment, packets: int) -> None:
        decision = judgment.decision
        self.judged[judgment.finding.reason][decision.action] += packets
        self.rules[decision.rule] = self.rules.get(decision.rule, 0) + packets


@final
class Exposition:
    """The numbers of some workers, by queue, in Prometheus's text format."""

    def __init__(
        self,
        workers: Callable[[], dict[int, Stats]],
        daemon: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """Ask for the numbers each time that somebody looks.

        Args:
            workers: Those of each queue.
            daemon: Those of the daemon itself; what it leaves out is 0.
        """
        # prometheus_client takes 65 ms to import and nobody may ever look.
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - see above

        self._workers = workers
        self._daemon = daemon
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator["Metric"]:
        """What prometheus_client calls."""
        from prometheus_client.core import (  # noqa: PLC0415 - see `__init__`
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        workers = self._workers()
        judged = CounterMetricFamily(
            _PREFIX + "judged_packets",
            "Packets by reason and action.",
            labels=["queue", "reason", "action"],
        )
        for queue_num, stats in workers.items():
            for reason, actions in stats.judged.items():
                for action, packets in actions.items():
                    judged.add_metric([str(queue_num), reason, action], packets)
        yield judged
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(_PREFIX + name, text, labels=["queue"])
            for queue_num, stats in workers.items():
                counter.add_metric([str(queue_num)], stats.counters[name])
            yield counter
        own = self._daemon()
        for name, text in _DAEMON_COUNTERS.items():
            yield CounterMetricFamily(_PREFIX + name, text, value=own.get(name, 0))
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["queue"])
            for queue_num, stats in workers.items():
                gauge.add_metric([str(queue_num)], stats.gauges[name])
            yield gauge

    def text(self) -> bytes:
        """The exposition."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - see `__init__`

        return generate_latest(self.registry)

    def write(self, path: Path) -> None:
        """Write it for node_exporter's textfile collector, whole or not at all."""
        from prometheus_client import write_to_textfile  # noqa: PLC0415 - see `__init__`

        write_to_textfile(str(path), self.registry)


@final
class MetricsFile:
    """The file for node_exporter's textfile collector; never what ends the daemon."""

    def __init__(self, exposition: Exposition, path: Path, complain: Callable[[str], None]) -> None:
        """Write nothing yet.

        Args:
            exposition: What to write.
            path: Where.
            complain: Told why a write failed, once until one succeeds again.

        Raises:
            FileExistsError: There is something that is no file, and must not be replaced by one.
        """
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "is no regular file")
        self._exposition = exposition
        self._path = path
        self._complain = complain
        self._failing = False

    def write(self, _now: float) -> None:
        """Write it whole, or leave the old one."""
        try:
            self._exposition.write(self._path)
        except OSError as error:
            if not self._failing:
                self._complain(error.strerror or str(error))
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Remove it: what it says holds no more."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def serve(exposition: Exposition, host: str, port: int) -> Callable[[], None]:
    """Serve /metrics in a thread of its own; call what is returned to stop.

    Raises:
        OSError: The address cannot be bound.
    """
    from prometheus_client import start_http_server  # noqa: PLC0415 - see `Exposition`

    server, thread = start_http_server(port, host, registry=exposition.registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=1)

    return stop
