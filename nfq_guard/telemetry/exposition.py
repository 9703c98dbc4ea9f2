# SPDX-License-Identifier: MIT
"""The metrics of a daemon in Prometheus's text format, by prometheus_client, imported on demand.

The loop of the daemon hands over an `Observed` about once a second; a scrape, in another thread,
reads only that. Neither packets nor scrapes can add a series or cause work in the loop.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, final

from nfq_guard.flow import Evidence
from nfq_guard.outfile import replacing
from nfq_guard.telemetry import metric_table as table
from nfq_guard.telemetry.metric_table import Kind, Metric, Part
from nfq_guard.telemetry.metrics import Buckets, Stats

if TYPE_CHECKING:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.core import Metric as Family

# Maximum number of rules with their own series, and the name of the series of all others.
_RULES_MAX: Final = 256
_OTHER_RULES: Final = "..."
_MICROSECOND: Final = 1e-6
# Permissions of the file for node_exporter.
_READABLE: Final = 0o644
# Upper bounds of the exported buckets, as numbers of bits: 32 us to 16.8 s, and 15 bytes to half of
# the number space.
_LATENCY_BITS: Final = range(5, 25)
_DISTANCE_BITS: Final = (4, 8, 10, 11, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 30, 31)
# All evidence except that of a replay.
_OF_KERNEL: Final = tuple(each for each in Evidence if each is not Evidence.REPLAY)
# The names of process metrics in prometheus_client, by ours.
_OF_PROCESS: Final = {
    "worker_cpu_seconds": "process_cpu_seconds",
    "worker_resident_memory_bytes": "process_resident_memory_bytes",
    "worker_open_fds": "process_open_fds",
}

Samples = Iterable[tuple[list[str], float]]


class ObservedQueue(NamedTuple):
    """One queue.

    Attributes:
        queue_num: Its number.
        pid: The process that serves it; 0 for none.
        stats: Its numbers; read-only.
    """

    queue_num: int
    pid: int
    stats: Stats


class Observed(NamedTuple):
    """The data of a scrape: a daemon at one moment.

    Attributes:
        at: The moment, monotonic seconds.
        queues: Its queues.
        counters: Counters of the daemon, by name; missing ones are 0.
        gauges: Gauges of the daemon, by name.
        rules: Names of the rules of the policy in force.
        infos: The values of the labels of each info metric, by name.
        outputs: Lines dropped and failed writes of each output of the log.
        parts: The parts that the daemon has.
        problems: Why it is not healthy, one sentence each.
    """

    at: float
    queues: tuple[ObservedQueue, ...]
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    rules: tuple[str, ...]
    infos: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[int, int]]
    parts: frozenset[Part]
    problems: tuple[str, ...]


@final
class Exposition:
    """An `Observed` in Prometheus's text format.

    Attributes:
        observed: The data to show; replaced as a whole.
    """

    def __init__(self, observed: Observed) -> None:
        """Show `observed`."""
        self.observed = observed
        self._rendered: tuple[Observed, bytes] | None = None
        self._rules = _RuleSeries(frozenset(), frozenset())

    def collect(self) -> Iterator["Family"]:
        """The metrics of one scrape; prometheus_client calls it."""
        observed = self.observed
        for metric in table.METRICS:
            if metric.part is None or metric.part in observed.parts:
                samples = list(self._samples(metric, observed))
                if samples:
                    yield _family(metric, samples)
        for metric in table.HISTOGRAMS:
            yield from _histogram(metric, observed)
        yield from _process(os.getpid())

    def text(self) -> bytes:
        """The exposition; rendered once for each `observed`."""
        # Importing prometheus_client takes 65 ms, and there may never be a scrape.
        from prometheus_client import generate_latest  # noqa: PLC0415 - see above

        observed = self.observed
        rendered = self._rendered
        if rendered is None or rendered[0] is not observed:
            rendered = self._rendered = observed, generate_latest(self)
        return rendered[1]

    def write(self, path: Path) -> None:
        """Write the exposition for node_exporter's textfile collector, atomically.

        All users may read it, because node_exporter is another one, whatever the umask is.
        """
        with replacing(path, _READABLE) as file:
            file.write(self.text())

    def _samples(self, metric: Metric, observed: Observed) -> Samples:
        """The samples of a counter or gauge."""
        name = metric.name
        if metric is table.JUDGED:
            return _judged(observed)
        if metric is table.RULES:
            self._rules = series = _rule_series(self._rules, observed)
            return _rules(observed, series)
        if metric is table.EVIDENCE:
            return (
                ([str(one.queue_num), each], float(one.stats.evidence is each))
                for one in observed.queues
                for each in _OF_KERNEL
            )
        if metric in table.QUEUE_COUNTERS:
            return (([str(one.queue_num)], one.stats.counters[name]) for one in observed.queues)
        if metric in table.GAUGES:
            return (([str(one.queue_num)], one.stats.gauges[name]) for one in observed.queues)
        if metric in table.WORKER_PROCESSES:
            return _of_workers(_OF_PROCESS[name], observed)
        if metric in table.OUTPUTS:
            place = table.OUTPUTS.index(metric)
            return (([output], counts[place]) for output, counts in observed.outputs.items())
        if metric in table.INFOS:
            labels = observed.infos.get(name)
            return [] if labels is None else [(list(labels), 1)]
        if metric in table.DAEMON_COUNTERS:
            return [([], observed.counters.get(name, 0))]
        value = observed.gauges.get(name)
        return [] if value is None else [([], value)]


def _of_workers(name: str, observed: Observed) -> Samples:
    for one in observed.queues:
        for family in _process(one.pid) if one.pid else ():
            if family.name == name:
                yield [str(one.queue_num)], family.samples[0].value


def _process(pid: int) -> Iterable["Family"]:
    """The metrics of a process, with the names that all Prometheus client libraries use."""
    from prometheus_client import ProcessCollector  # noqa: PLC0415 - see `Exposition.text`

    return ProcessCollector(pid=partial(int, pid), registry=None).collect()


def _judged(observed: Observed) -> Samples:
    for one in observed.queues:
        for reason, actions in one.stats.judged.items():
            for action, packets in actions.items():
                yield [str(one.queue_num), reason.value, action.value], packets


class _RuleSeries(NamedTuple):
    """The series of rules.

    Attributes:
        own: Names with a series of their own.
        others: Names whose packets the series of all others has.
    """

    own: frozenset[str]
    others: frozenset[str]


def _rule_series(before: _RuleSeries, observed: Observed) -> _RuleSeries:
    """Assign rules to series, those in force first.

    A name with packets keeps its series at a reload: else the series of all others would decrease.
    """
    counted = {rule for one in observed.queues for rule in one.stats.rules}
    own = before.own & (counted | set(observed.rules))
    names = dict.fromkeys((*observed.rules, *sorted(counted)))
    free = [rule for rule in names if rule not in own and rule not in before.others]
    own |= set(free[: _RULES_MAX - len(own)])
    return _RuleSeries(own, frozenset(counted - own))


def _rules(observed: Observed, series: _RuleSeries) -> Samples:
    """The rules in force first, including those without a packet, so that rates begin at 0."""
    for one in observed.queues:
        packets = one.stats.rules
        names = dict.fromkeys((*observed.rules, *packets))
        for rule in names:
            if rule in series.own:
                yield [str(one.queue_num), rule], packets.get(rule, 0)
        if any(rule not in series.own for rule in names):
            rest = sum(count for rule, count in packets.items() if rule not in series.own)
            yield [str(one.queue_num), _OTHER_RULES], rest


def _family(metric: Metric, samples: Samples) -> "CounterMetricFamily | GaugeMetricFamily":
    from prometheus_client.core import (  # noqa: PLC0415 - see `Exposition.text`
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    found = make(table.PREFIX + metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        found.add_metric(labels, value)
    return found


def _histogram(metric: Metric, observed: Observed) -> Iterator["HistogramMetricFamily"]:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - see `Exposition.text`

    name = table.PREFIX + metric.name
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    for one in observed.queues:
        queue = str(one.queue_num)
        if metric is table.JUDGE_LATENCY:
            family.add_metric([queue], *_latency(one.stats.judge_us))
        elif metric is table.QUEUE_LATENCY:
            if any(one.stats.queue_us.counts):
                family.add_metric([queue], *_latency(one.stats.queue_us))
        else:
            for bound, found in one.stats.distances.items():
                family.add_metric([queue, bound.value], *_distance(found))
    if family.samples:
        yield family


def _latency(found: Buckets) -> tuple[list[tuple[str, float]], float]:
    """Buckets in seconds: a number of microseconds with n bits is below 2**n."""
    ends = [(bits, (1 << bits) * _MICROSECOND) for bits in _LATENCY_BITS]
    return _cumulated(found, ends), found.total * _MICROSECOND


def _distance(found: Buckets) -> tuple[list[tuple[str, float]], float]:
    """Buckets in bytes: a distance with n bits is at most 2**n - 1."""
    ends = [(bits, float((1 << bits) - 1)) for bits in _DISTANCE_BITS]
    return _cumulated(found, ends), float(found.total)


def _cumulated(found: Buckets, ends: list[tuple[int, float]]) -> list[tuple[str, float]]:
    shown = [(f"{end:.10g}", float(sum(found.counts[: bits + 1]))) for bits, end in ends]
    return [*shown, ("+Inf", float(sum(found.counts)))]


# Time for which the end of a daemon waits for the removal of its file, seconds.
_REMOVED_WITHIN_S: Final = 1.0


@final
class MetricsFile:
    """The file for node_exporter's textfile collector; a failed write never ends the daemon.

    A disk may be slow, so threads call `write`; the loop calls `wrote`.
    """

    def __init__(self, exposition: Exposition, path: Path, complain: Callable[[str], None]) -> None:
        """Write nothing yet.

        Args:
            exposition: The metrics to write.
            path: The file.
            complain: Called with the path and the error of a failed write, once until a write
                succeeds.

        Raises:
            FileExistsError: The path exists and is not a regular file.
        """
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "is not a regular file")
        self._exposition = exposition
        self._path = path
        self._complain = complain
        self._failing = False
        self._closed = False
        self._lock = threading.Lock()

    def write(self) -> None:
        """Replace the file, or keep the old one if that fails.

        Do nothing after `close`, and while another thread writes: one at a time waits for a file
        system that does not answer.

        Raises:
            OSError: The file cannot be written.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._closed:
                self._exposition.write(self._path)
        finally:
            self._lock.release()

    def wrote(self, error: Exception | None = None) -> None:
        """Record the end of a `write`, and its error."""
        if error is not None and not self._failing:
            strerror = error.strerror if isinstance(error, OSError) else ""
            self._complain(f"{self._path}: {strerror or error}")
        self._failing = error is not None

    def close(self) -> None:
        """Remove the file, whose numbers are no longer true, unless its file system hangs."""
        self._closed = True
        remover = threading.Thread(target=self._remove, daemon=True)
        try:
            remover.start()
        except (RuntimeError, MemoryError):  # no further thread can be started
            if not self._lock.locked():
                self._remove()
        else:
            remover.join(_REMOVED_WITHIN_S)

    def _remove(self) -> None:
        with self._lock, suppress(OSError):
            self._path.unlink(missing_ok=True)
