# SPDX-License-Identifier: MIT
"""Feeds a Prometheus with synthetic nodes: `make fleet`, about two minutes, as root.

A guard that has judged packets of each reason gives the exposition of one node and the size of an
event. A server presents that exposition to Prometheus for each number of nodes, with growing
counters. The metrics of Prometheus itself and the times of the dashboard's queries are printed as
JSON, or written into docs/fleet.md.
"""

import argparse
import http.server
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from tests.deploy.test_prometheus import RULES, expressions
from tests.fleet import page
from tests.support.live import LiveConntrack
from tests.support.queue import QUEUE, GuardProcess, wait_for
from tests.support.reason_traces import REASON_TRACES
from tests.support.root import require_root
from tests.support.trace import PLACES, Ends, parse

_GUARD: Final = "127.0.0.1:9477"
_SCRAPE_S: Final = 10
# Lines of counters; other values stay the same.
_COUNTER: Final = re.compile(
    rb"^(nfq_guard_\w+_(?:total|count|bucket|sum)(?:\{[^}]*\})? )(\d+)\b", re.MULTILINE
)
# A query that the recording rules of the fleet replace.
_EVERYTHING: Final = "sum by (reason) (rate(nfq_guard_judged_packets_total[5m]))"
_FLEET: Final = re.compile(r"record: (job\w*:\S+)")


def one_node(place: Path) -> tuple[bytes, list[int]]:
    """The exposition of a guard that has seen each reason, and the size of each event."""
    config = place / "guard.toml"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\nmode = "enforce"\nmetrics_listen = "{_GUARD}"\n'
        f'control_socket = "{place / "s"}"\nlog_allowed = true\n'
        '[policy]\ninclude = "preset:default"\n'
    )
    with (
        LiveConntrack(DEFAULT_SYSCTLS) as live,
        GuardProcess(live.space, place / "log", "--config", str(config)).ready() as guard,
    ):
        for serial, traces in enumerate(REASON_TRACES.values()):
            for line in traces[0]:
                live.put(Ends(ports=(2000 + serial, 80)).octets(parse(line, PLACES["plain"])))
        wait_for(lambda: len(guard.events("packet_judged")) >= len(REASON_TRACES))
        time.sleep(2)  # the numbers of the endpoint are a second old
        with (
            live.space.entered(),
            urllib.request.urlopen(f"http://{_GUARD}/metrics", timeout=60) as response,
        ):
            text = response.read()
        lines = [line for line in (place / "log").read_bytes().splitlines() if b"_judged" in line]
        guard.stop()
    return text, [len(line) + 1 for line in lines]


class _Nodes(http.server.BaseHTTPRequestHandler):
    """Serves the exposition for the path of any node."""

    protocol_version = "HTTP/1.1"
    text = b""
    began = 0.0

    def handle(self) -> None:
        with suppress(ConnectionError):  # a Prometheus that ends cuts off what it scrapes
            super().handle()

    def do_GET(self) -> None:
        grown = int(time.monotonic() - self.began)
        body = _COUNTER.sub(lambda found: b"%s%d" % (found[1], int(found[2]) + grown), self.text)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401 - as the base class has it
        """Nothing: Prometheus says what it could not scrape."""


@contextmanager
def prometheus(place: Path, nodes: int, port: int) -> Iterator[str]:
    """A Prometheus that scrapes so many nodes of the server at the port; its address."""
    targets = [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"__metrics_path__": f"/{number}", "instance": f"node-{number}"},
        }
        for number in range(nodes)
    ]
    (place / "nodes.json").write_text(json.dumps(targets))
    (place / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {_SCRAPE_S}s, evaluation_interval: {_SCRAPE_S}s}}\n"
        f"rule_files: [{RULES}]\n"
        "scrape_configs:\n"
        f"  - {{job_name: nfq-guard, file_sd_configs: [{{files: [{place / 'nodes.json'}]}}]}}\n"
    )
    address = "127.0.0.1:9099"
    with (place / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={place / 'prometheus.yml'}",
                f"--storage.tsdb.path={place / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def _get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as response:
        return bytes(response.read())


def _own(address: str, name: str) -> float:
    text = _get(address, "/metrics").decode()
    found = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _query_s(address: str, expression: str) -> float:
    began = time.monotonic()
    words = urllib.parse.urlencode({"query": expression})
    answer = json.loads(_get(address, f"/api/v1/query?{words}"))
    assert answer["status"] == "success", answer
    return time.monotonic() - began


def _dashboard() -> list[str]:
    """The queries of the dashboard for one node."""
    return [
        each.replace("$__rate_interval", "1m").replace("$instance", "node-1")
        for each in expressions()
    ]


def _reachable(address: str) -> bool:
    try:
        return bool(_get(address, "/-/ready"))
    except OSError:
        return False


def measure(place: Path, nodes: int, port: int, seconds: float) -> dict[str, float]:
    """Scrape so many nodes for a while."""
    with prometheus(place, nodes, port) as address:
        wait_for(lambda: _reachable(address))
        time.sleep(_SCRAPE_S)  # each node is scraped once, at an offset of its own
        names = ("prometheus_tsdb_head_samples_appended_total", "process_cpu_seconds_total")
        before, began = [_own(address, name) for name in names], time.monotonic()
        time.sleep(seconds - _SCRAPE_S)
        took = time.monotonic() - began
        samples, cpu = (
            (_own(address, name) - old) / took for name, old in zip(names, before, strict=True)
        )
        node = [_query_s(address, each) for each in _dashboard()]
        fleet = _FLEET.findall(RULES.read_text(encoding="utf-8"))
        return {
            "nodes": nodes,
            "series": _own(address, "prometheus_tsdb_head_series"),
            "samples_per_s": round(samples),
            "cpu_share": round(cpu, 3),
            "memory_mb": round(_own(address, "process_resident_memory_bytes") / 1e6),
            "dashboard_ms": round(1000 * sum(node)),
            "slowest_ms": round(1000 * max(node)),
            "everything_ms": round(1000 * _query_s(address, _EVERYTHING)),
            "fleet_ms": round(1000 * sum(_query_s(address, each) for each in fleet)),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[10, 100, 300, 1000])
    parser.add_argument("--seconds", type=float, default=28, help="for each number of nodes")
    parser.add_argument("--page", action="store_true", help="write the figures into docs/fleet.md")
    args = parser.parse_args()
    require_root("fleet")
    with tempfile.TemporaryDirectory() as folder:
        text, events = one_node(Path(folder))
        _Nodes.text = text
        _Nodes.began = time.monotonic()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nodes)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with closing(server.socket):
            series = [line for line in text.splitlines() if not line.startswith(b"#")]
            record: dict[str, Any] = {
                "cpus": os.cpu_count(),
                "scrape_s": _SCRAPE_S,
                "series_of_a_node": len(series),
                "buckets_of_a_node": sum(b"_bucket{" in line for line in series),
                "exposition_bytes": len(text),
                "event_bytes": round(statistics.mean(events)),
                "runs": [],
            }
            for number in args.nodes:
                place = Path(folder) / str(number)
                place.mkdir()
                run = measure(place, number, server.server_port, args.seconds)
                sys.stderr.write(f"{run}\n")
                record["runs"].append(run)
            server.shutdown()
    if args.page:
        page.write(record)
    else:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
