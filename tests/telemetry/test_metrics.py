# SPDX-License-Identifier: MIT
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action
from nfq_guard.telemetry.metric_table import METRICS, PREFIX
from nfq_guard.telemetry.metrics import Exposition, MetricsFile, Stats, serve
from tests.support.judgments import DROP_TRANSLATED, LOG_REST, judgment


def test_runs_are_counted() -> None:
    stats = Stats()
    drop = judgment()
    keep = judgment(decision=LOG_REST, reason=Reason.NO_ENTRY)
    stats.count([drop, drop, keep, drop])
    stats.count([])
    assert stats.judged[Reason.SEQ_OVER][Action.DROP] == 3
    assert stats.judged[Reason.NO_ENTRY][Action.LOG] == 1
    assert stats.rules == {DROP_TRANSLATED.rule: 3, LOG_REST.rule: 1}
    assert sum(sum(one.values()) for one in stats.judged.values()) == 4


def test_all_series_exist_from_the_start() -> None:
    text = Exposition(lambda: {7: Stats()}).text().decode()
    families = {one.name: one for one in text_string_to_metric_families(text)}
    judged = families["nfq_guard_judged_packets"]
    assert len(judged.samples) == len(Reason) * len(Action)
    assert all(name.startswith("nfq_guard_") for name in families)


def test_the_exposition_is_the_table() -> None:
    """The same metrics in the same order, with their help, kind and labels."""
    found = list(Exposition(lambda: {7: Stats()}).collect())
    assert [(one.name, one.documentation, one.type) for one in found] == [
        (PREFIX + metric.name, metric.help, metric.kind.value) for metric in METRICS
    ]
    for family, metric in zip(found, METRICS, strict=True):
        assert metric.help.endswith(".")
        for sample in family.samples:
            assert sample.name == metric.full_name
            assert tuple(sample.labels) == metric.labels


def test_http_endpoint(unused_port: int) -> None:
    stats = Stats()
    stats.counters["packets"] = 42
    stop = serve(Exposition(lambda: {7: stats}), "127.0.0.1", unused_port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=5) as answer:
            assert b'nfq_guard_packets_total{queue="7"} 42.0' in answer.read()
    finally:
        stop()


def test_textfile(tmp_path: Path) -> None:
    Exposition(lambda: {7: Stats()}).write(tmp_path / "nfq_guard.prom")
    assert "nfq_guard_packets_total" in (tmp_path / "nfq_guard.prom").read_text()


def test_failed_write_of_the_file_is_reported_once(tmp_path: Path) -> None:
    """It raises nothing, and is reported again after a success."""
    told: list[str] = []
    path = tmp_path / "there" / "guard.prom"
    file = MetricsFile(Exposition(dict), path, told.append)
    file.write(1.0)
    file.write(2.0)
    assert told == ["No such file or directory"]
    path.parent.mkdir()
    file.write(3.0)
    assert path.read_text(encoding="utf-8")
    path.unlink()
    path.parent.rmdir()
    file.write(4.0)
    assert len(told) == 2
    file.close()


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(FileExistsError, match="not a regular file"):
        MetricsFile(Exposition(dict), Path("/dev/full"), print)
