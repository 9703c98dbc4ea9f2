# SPDX-License-Identifier: MIT
"""Debian's Prometheus scrapes a guard under traffic, and each query of the dashboard is checked.

Conntrack, the queue, the daemon and Prometheus are in one network namespace. The test sends the
packets, so it knows the result of each query.
"""

import json
import math
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.nfqueue.counters import QUEUES
from nfq_guard.nfqueue.counters import parse as parse_counters
from tests.deploy.test_prometheus import RULES, panels
from tests.support.live import LiveConntrack
from tests.support.queue import QUEUE, GuardProcess, wait_for
from tests.support.trace import PLACES, Ends, parse

# One process has the Prometheus.
pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("dashboard")]

_PROMETHEUS: Final = "127.0.0.1:9090"
_GUARD: Final = "127.0.0.1:9477"
_POLICY: Final = """
[policy]
default = "log"
on_unknown = "log"
[[policy.rule]]
name = "far"
reason = "seq-over"
action = "drop"
[[policy.rule]]
name = "near"
reason = "ack-over"
action = "heal"
"""
_OPEN: Final = (
    "> S 0:0(0) win 65535 <mss 1460,sackOK,wscale 7>",
    "< S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,wscale 7>",
    "> . 1:1(0) ack 1 win 512",
    "> P. 1:101(100) ack 1 win 512",
)
# The last segment of each is INVALID, and how many such flows there are.
_FLOWS: Final = {
    "seq-over": ((*_OPEN, "< P. 300000:300001(1) ack 101 win 512"), 20),
    # A hundred bytes beyond what the other end has sent.
    "ack-over": ((*_OPEN, "< . 1:1(0) ack 201 win 512"), 6),
    "no-entry": (("> R 1:1(0)",), 12),
    # To the port that is translated.
    "bad-transition": (("> S 0:0(0)", "> . 1:1(0) ack 1"), 8),
}
_COUNTS: Final = {reason: number for reason, (_, number) in _FLOWS.items()}
_ACTIONS: Final = {
    "seq-over": "drop",
    "ack-over": "heal",
    "no-entry": "log",
    "bad-transition": "log",
}
_ALL: Final = sum(_COUNTS.values())
# In bytes, of the packets outside a window.
_DISTANCES: Final = {"seq-over": 233_765, "ack-over": 100}
# asm-generic/socket.h; Python does not name it.
_SO_TIMESTAMP: Final = 29

Result = list[tuple[dict[str, str], float]]


class Prometheus:
    """A real one, which scrapes the guard each second."""

    def __init__(self, directory: Path) -> None:
        config = directory / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{RULES}]\n"
            "scrape_configs:\n"
            f"  - {{job_name: nfq-guard, static_configs: [{{targets: ['{_GUARD}']}}]}}\n"
        )
        self._log = (directory / "prometheus.log").open("wb")
        words = [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={_PROMETHEUS}",
        ]  # fmt: skip
        self._process = subprocess.Popen(words, stdout=self._log, stderr=self._log)
        self.at = 0.0

    def get(self, path: str, **query: object) -> Any:  # noqa: ANN401 - JSON
        url = f"http://{_PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> Result:
        """The series of an expression at the time `at`; 0 for now."""
        when = {"time": self.at} if self.at else {}
        found = self.get("query", query=expression, **when)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def has(self, expression: str) -> bool:
        try:
            return bool(self.query(expression))
        except OSError:  # it does not listen yet
            return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        self._log.close()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    config = directory / "guard.toml"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\nmode = "enforce"\nmetrics_listen = "{_GUARD}"\n'
        f'control_socket = "{directory / "s"}"\n{_POLICY}'
    )
    with (
        LiveConntrack(DEFAULT_SYSCTLS) as live,
        GuardProcess(live.space, directory / "log", "--config", str(config)).ready() as guard,
        closing(Prometheus(directory)) as prometheus,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stamped,
    ):
        # The kernel stamps packets with a time while a socket asks for it.
        stamped.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
        wait_for(lambda: prometheus.has("nfq_guard_rules_in_place == 1"))
        translated = "-t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.77.7.7"
        live.space.run("iptables", *translated.split())
        _send(live, 0)
        # The series is there from the first wait on that is known.
        wait_for(lambda: prometheus.has("nfq_guard_queue_latency_seconds_count"))
        _send(live, 1)
        total = f"sum(nfq_guard_judged_packets_total) == {_ALL}"
        wait_for(lambda: prometheus.has(total))
        healed = f"sum(nfq_guard_heals_total) == {_COUNTS['ack-over']}"
        wait_for(lambda: prometheus.has(healed))
        wait_for(lambda: prometheus.has("instance_action:nfq_guard_judged_packets:rate5m > 0"))
        prometheus.at = time.clock_gettime(time.CLOCK_REALTIME)
        yield prometheus
        assert guard.stop() == 0


def _send(live: LiveConntrack, part: int) -> None:
    """Send half of the flows, each packet when the one before has its verdict."""
    for place, (reason, (lines, number)) in enumerate(_FLOWS.items()):
        for serial in range(part, number, 2):
            ports = (2000 + 100 * place + serial, 8080 if reason == "bad-transition" else 80)
            for line in lines:
                live.put(Ends(ports=ports).octets(parse(line, PLACES["plain"])))
                wait_for(lambda: parse_counters(QUEUES.read_text())[QUEUE].waiting == 0)


def _value(found: Result) -> float:
    ((_, value),) = found
    return value


def _by(found: Result, label: str) -> dict[str, float]:
    return {series[label]: value for series, value in found}


def _is(expected: float) -> Callable[[Prometheus, Result], bool]:
    return lambda _, found: _value(found) == expected


def _nothing(_: Prometheus, found: Result) -> bool:
    return bool(found) and all(value == 0 for _, value in found)


def _positive(_: Prometheus, found: Result) -> bool:
    return _value(found) > 0


def _packets(label: str, expected: dict[str, int]) -> Callable[[Prometheus, Result], bool]:
    """Rates that are those numbers of packets; what is not named is 0."""

    def holds(prometheus: Prometheus, found: Result) -> bool:
        per_packet = _value(prometheus.query(_total("rate", "1m"))) / _ALL
        rates = {name: value / per_packet for name, value in _by(found, label).items() if value}
        return rates == pytest.approx(expected)

    return holds


def _total(function: str, window: str) -> str:
    return f"sum({function}(nfq_guard_judged_packets_total[{window}]))"


def _increase(reason: str) -> Callable[[Prometheus, Result], bool]:
    """As many as packets with that reason."""

    def holds(prometheus: Prometheus, found: Result) -> bool:
        per_packet = _value(prometheus.query(_total("increase", "1m"))) / _ALL
        return _value(found) / per_packet == pytest.approx(_COUNTS[reason])

    return holds


def _escaped(window: str, function: str) -> Callable[[Prometheus, Result], bool]:
    def holds(prometheus: Prometheus, found: Result) -> bool:
        per_packet = _value(prometheus.query(_total(function, window))) / _ALL
        return _value(found) / per_packet == pytest.approx(_COUNTS["bad-transition"])

    return holds


def _table(_: Prometheus, found: Result) -> bool:
    counts = {(series["reason"], series["action"]): value for series, value in found}
    return counts == {(reason, _ACTIONS[reason]): number for reason, number in _COUNTS.items()}


def _distances(prometheus: Prometheus, found: Result) -> bool:
    """Of two classes, those of the distances that the traces have."""
    per_packet = _value(prometheus.query(_total("increase", "1m"))) / _ALL
    classes = {float(end): value / per_packet for end, value in _by(found, "le").items()}
    expected = {
        end: sum(_COUNTS[reason] for reason, distance in _DISTANCES.items() if distance <= end)
        for end in classes
    }
    return classes == pytest.approx(expected)


def _median(_: Prometheus, found: Result) -> bool:
    """Each within its class; bounds that nothing broke have none."""
    medians = {
        bound: value for bound, value in _by(found, "bound").items() if not math.isnan(value)
    }
    return (
        set(medians) == set(_DISTANCES)
        and (1 << 16) < medians["seq-over"] < (1 << 18)
        and (1 << 6) <= medians["ack-over"] <= (1 << 8)
    )


def _latency(_: Prometheus, found: Result) -> bool:
    return 0 < _value(found) < 17 and not math.isnan(_value(found))


def _share(_: Prometheus, found: Result) -> bool:
    return 0 < _value(found) < 1


def _one(_: Prometheus, found: Result) -> bool:
    return _value(found) == 1


# By the title of a panel: what holds of each of its queries.
_EXPECTED: Final[dict[str, tuple[Callable[[Prometheus, Result], bool], ...]]] = {
    "Mode": (_is(1),),
    "Rules": (_is(1),),
    "Queues not served": (_is(0),),
    "Evidence": (lambda _, found: _by(found, "evidence") == {"bpf": 1},),
    "Policy": (_one,),
    "Escaped in the last hour": (_escaped("1h", "increase"),),
    "Conntrack table": (_share,),
    "INVALID packets by reason": (_packets("reason", _COUNTS),),
    "INVALID packets by action": (_packets("action", {"drop": 20, "heal": 6, "log": 20}),),
    "Packets since the start": (_table,),
    "By rule": (_packets("rule", {"far": 20, "near": 6, "default": 20}),),
    "Escaped": (_escaped("1m", "rate"),),
    "Distance beyond the bound": (_distances,),
    "Distance, median by bound": (_median,),
    "Latency of judging": (_latency, _latency),
    "Wait in the queue": (_latency,),
    "Waiting packets": (_nothing,),
    "Dropped by the kernel": (_nothing, _nothing),
    "Not recorded": (_nothing, _nothing, _nothing),
    "Faults": (_nothing, _nothing, _nothing),
    "CPU": (_positive,),
    "Memory": (_positive,),
    "Rules and reloads": (_nothing, _nothing),
    "Heals": (_increase("ack-over"), _nothing, _nothing, _is(_COUNTS["ack-over"])),
    "Packets that were not healed": (_nothing, _nothing),
}


def test_every_panel_has_its_expectation() -> None:
    assert {panel["title"]: len(panel["targets"]) for panel in panels()} == {
        title: len(expected) for title, expected in _EXPECTED.items()
    }


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_query_has_the_value_of_what_was_sent(scraped: Prometheus, panel: dict[str, Any]) -> None:
    for target, holds in zip(panel["targets"], _EXPECTED[panel["title"]], strict=True):
        expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        found = scraped.query(expression)
        assert holds(scraped, found), (expression, found)


def test_every_rule_can_be_evaluated(scraped: Prometheus) -> None:
    """Only the alert about escaped packets fires."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in scraped.get("rules")["groups"] for rule in group["rules"]]

    def firing() -> set[str]:
        return {rule["name"] for rule in rules() if rule.get("state") == "firing"}

    # It takes two evaluations, whenever the first of them was.
    wait_for(lambda: bool(firing()), 60)
    assert {rule["health"] for rule in rules()} == {"ok"}
    assert firing() == {"NfqGuardTranslatedFlowsEscape"}
