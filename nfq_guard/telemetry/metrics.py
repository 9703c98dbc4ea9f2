# SPDX-License-Identifier: MIT
"""Counters as plain numbers, and their exposition by prometheus_client, imported on demand.

`metric_table` defines them. Every label value is a queue or from an enum and exists from the start,
so that no packet can add a series.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from nfq_guard.engine import Judgment
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence
from nfq_guard.policy.decision import Action
from nfq_guard.telemetry.metric_table import (
    DAEMON_COUNTERS,
    EVIDENCE,
    GAUGES,
    JUDGED,
    PREFIX,
    QUEUE_COUNTERS,
    Kind,
    Metric,
)

# Without that of a replay.
OF_KERNEL: Final = tuple(each for each in Evidence if each is not Evidence.REPLAY)

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.core import Metric as Family


@final
class Stats:
    """The numbers of one queue's worker, for `status` and metrics.

    Attributes:
        judged: Packets by reason and action; every pair is there from the start.
        rules: Packets by the rule that decided; bounded by the policies loaded so far.
        counters: By name; they never decrease.
        gauges: By name.
        evidence: Where flows are looked up.
        evidence_reason: Why there is no better evidence; None where there is none better.
    """

    def __init__(self) -> None:
        self.evidence = Evidence.NONE
        self.evidence_reason: str | None = None
        self.judged: dict[Reason, dict[Action, int]] = {
            reason: dict.fromkeys(Action, 0) for reason in Reason
        }
        self.rules: dict[str, int] = {}
        self.counters = dict.fromkeys([metric.name for metric in QUEUE_COUNTERS], 0)
        self.gauges = dict.fromkeys([metric.name for metric in GAUGES], 0.0)

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
        """The numbers in the form of JSON, without the pairs that have no packet."""
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
            "evidence": self.evidence,
            "evidence_reason": self.evidence_reason,
        }

    def sum_of(self, base: "Stats", plain: dict[str, Any]) -> None:
        """Set the numbers to the sum of `base` and `plain`; the rest is as in `plain`."""
        self.evidence = Evidence(plain["evidence"])
        self.evidence_reason = plain["evidence_reason"]
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
        """A copy that does not change."""
        copied = Stats()
        copied.sum_of(self, Stats().plain())
        copied.gauges = dict(self.gauges)
        copied.evidence = self.evidence
        copied.evidence_reason = self.evidence_reason
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
        """Read the numbers at each scrape.

        Args:
            workers: Returns the numbers of each queue.
            daemon: Returns the numbers of the daemon itself; missing ones are 0.
        """
        # prometheus_client takes 65 ms to import, and there may never be a scrape.
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - see above

        self._workers = workers
        self._daemon = daemon
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator["Family"]:
        """The metrics of one scrape; prometheus_client calls it."""
        from prometheus_client.core import (  # noqa: PLC0415 - see `__init__`
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        def family(
            metric: Metric, samples: Iterable[tuple[list[str], float]]
        ) -> "CounterMetricFamily | GaugeMetricFamily":
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            found = make(PREFIX + metric.name, metric.help, labels=metric.labels)
            for labels, value in samples:
                found.add_metric(labels, value)
            return found

        workers = {str(queue_num): stats for queue_num, stats in self._workers().items()}
        yield family(
            JUDGED,
            (
                ([queue, reason, action], packets)
                for queue, stats in workers.items()
                for reason, actions in stats.judged.items()
                for action, packets in actions.items()
            ),
        )
        for metric in QUEUE_COUNTERS:
            yield family(
                metric,
                [([queue], stats.counters[metric.name]) for queue, stats in workers.items()],
            )
        own = self._daemon()
        for metric in DAEMON_COUNTERS:
            yield family(metric, [([], own.get(metric.name, 0))])
        for metric in GAUGES:
            yield family(
                metric, [([queue], stats.gauges[metric.name]) for queue, stats in workers.items()]
            )

        yield family(
            EVIDENCE,
            (
                ([queue, evidence], float(stats.evidence is evidence))
                for queue, stats in workers.items()
                for evidence in OF_KERNEL
            ),
        )

    def text(self) -> bytes:
        """The exposition."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - see `__init__`

        return generate_latest(self.registry)

    def write(self, path: Path) -> None:
        """Write the exposition for node_exporter's textfile collector, atomically."""
        from prometheus_client import write_to_textfile  # noqa: PLC0415 - see `__init__`

        write_to_textfile(str(path), self.registry)


@final
class MetricsFile:
    """The file for node_exporter's textfile collector; a failed write never ends the daemon."""

    def __init__(self, exposition: Exposition, path: Path, complain: Callable[[str], None]) -> None:
        """Write nothing yet.

        Args:
            exposition: What to write.
            path: The file.
            complain: Called with the error of a failed write, once until a write succeeds.

        Raises:
            FileExistsError: The path exists and is not a regular file.
        """
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "is not a regular file")
        self._exposition = exposition
        self._path = path
        self._complain = complain
        self._failing = False

    def write(self, _now: float) -> None:
        """Replace the file, or leave the old one if that fails."""
        try:
            self._exposition.write(self._path)
        except OSError as error:
            if not self._failing:
                self._complain(error.strerror or str(error))
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Remove the file, whose numbers are no longer true."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def serve(exposition: Exposition, host: str, port: int) -> Callable[[], None]:
    """Serve /metrics in a thread of its own. Returns a function that stops it.

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
