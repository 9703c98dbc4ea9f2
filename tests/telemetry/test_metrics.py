# SPDX-License-Identifier: MIT
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nfq_guard.finding import BOUNDS, Breach, Finding, Reason
from nfq_guard.flow import IPS_DST_NAT, IPS_SRC_NAT
from nfq_guard.lab.pace import limit
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.seqno import Seq
from nfq_guard.telemetry import metric_table
from nfq_guard.telemetry.exposition import Exposition, MetricsFile
from nfq_guard.telemetry.metric_table import HISTOGRAMS, METRICS, PREFIX, Part
from nfq_guard.telemetry.metrics import LONGEST, Buckets, Stats
from tests.support.judgments import DROP_TRANSLATED, LOG_REST, judgment, snapshot
from tests.support.observed import observed

INFOS = {metric.name: metric.labels for metric in metric_table.INFOS}


def whole() -> Exposition:
    """The exposition of a daemon that has every part."""
    stats = Stats()
    stats.count([judgment()])
    stats.queue_us.add(5, 1)
    return Exposition(
        observed(
            stats,
            gauges=dict.fromkeys([one.name for one in metric_table.DAEMON_GAUGES], 1.0),
            infos=INFOS,
            outputs={"journal": (3, 1), "-": (0, 0)},
            parts=frozenset(Part),
        )
    )


def _order(label: tuple[str, str]) -> int:
    return ("queue", label[0] if label[0] != "le" else "", "le").index(label[0])


def samples(exposition: Exposition) -> dict[tuple[str, ...], float]:
    """Values by name and label values: the queue first, the bound of a bucket last."""
    return {
        (
            sample.name.removeprefix(PREFIX),
            *(value for _, value in sorted(sample.labels.items(), key=_order)),
        ): sample.value
        for family in text_string_to_metric_families(exposition.text().decode())
        for sample in family.samples
    }


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


@pytest.mark.parametrize(
    ("status", "verdict", "escaped"),
    [(IPS_SRC_NAT, 1, 1), (IPS_DST_NAT, 1, 1), (IPS_DST_NAT, 0, 0), (0, 1, 0), (None, 1, 0)],
)
def test_accepted_packets_of_translated_flows_have_escaped(
    status: int | None, verdict: int, escaped: int
) -> None:
    flow = None
    if status is not None:
        flow = snapshot()
        flow.status = status
    stats = Stats()
    stats.count([judgment(flow=flow, verdict=verdict)])
    assert stats.counters["escaped_packets"] == escaped


def test_all_series_exist_from_the_start() -> None:
    found = samples(Exposition(observed(Stats())))
    judged = [name for name in found if name[0] == "judged_packets_total"]
    assert len(judged) == len(Reason) * len(Action)
    assert ("breach_distance_bytes_count", "7", "seq-over") in found


def test_what_the_daemon_does_not_have_has_no_series() -> None:
    """No zero for an offload that is off, and no wait of packets that carry no time."""
    names = {name for name, *_ in samples(Exposition(observed(Stats())))}
    parts = {metric.full_name for metric in METRICS if metric.part is not None}
    assert not names & {name.removeprefix(PREFIX) for name in parts}
    assert "queue_latency_seconds_count" not in names
    assert "rule_packets_total" not in names


def test_the_exposition_is_the_table() -> None:
    """The same metrics in the same order, with their help, kind and labels."""
    found = list(whole().collect())
    expected = (*METRICS, *HISTOGRAMS)
    own = found[: len(expected)]
    assert [(one.name, one.documentation, one.type) for one in own] == [
        (PREFIX + metric.name, metric.help, metric.kind.value) for metric in expected
    ]
    for family, metric in zip(own, expected, strict=True):
        assert metric.help.endswith(".")
        for sample in family.samples:
            assert sample.name.startswith(metric.full_name)
            assert tuple(sample.labels)[: len(metric.labels)] == metric.labels
    assert {one.name.partition("_")[0] for one in found[len(expected) :]} == {"process"}


def test_promtool_finds_nothing() -> None:
    words = ["promtool", "check", "metrics"]
    done = subprocess.run(words, input=whole().text(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_rules_have_a_bound() -> None:
    """Thousands of rules, or of policies, make a bounded number of series."""
    stats = Stats()
    for number in range(1000):
        stats.count([judgment(decision=Decision(Action.DROP, f"rule {number}"))])
    found = samples(Exposition(observed(stats)))
    rules = {name[2]: value for name, value in found.items() if name[0] == "rule_packets_total"}
    assert len(rules) == 257
    assert (rules["rule 0"], rules["..."]) == (1, 744)


def test_no_series_of_rules_decreases_at_a_reload() -> None:
    """Although the rules in force come first, and one of them was among the others before."""
    stats = Stats()
    stats.rules = {f"rule {number}": 10 for number in range(300)}
    exposition = Exposition(observed(stats, rules=tuple(f"rule {n}" for n in range(300))))
    before = samples(exposition)
    exposition.observed = observed(stats, rules=("rule 299", "rule 298", "new"))
    after = samples(exposition)
    rules = {name: value for name, value in before.items() if name[0] == "rule_packets_total"}
    assert {name: after[name] for name in rules} == rules


def test_rules_of_the_policy_exist_from_the_start() -> None:
    """Even after policies with many rules."""
    stats = Stats()
    for number in range(300):
        stats.count([judgment(decision=Decision(Action.DROP, f"rule {number}"))])
    found = samples(Exposition(observed(stats, rules=("new", "rule 299"))))
    assert found["rule_packets_total", "7", "new"] == 0
    assert found["rule_packets_total", "7", "rule 299"] == 1
    assert found["rule_packets_total", "7", "..."] == 300 - 255


@given(st.lists(st.integers(0, LONGEST), max_size=20))
def test_classes_hold_every_value(values: list[int]) -> None:
    found = Buckets()
    for value in values:
        found.add(value, 2)
    assert sum(found.counts) == 2 * len(values)
    assert found.total == 2 * sum(values)
    for bits in range(33):
        assert sum(found.counts[: bits + 1]) == 2 * sum(value < 1 << bits for value in values)


@pytest.mark.parametrize("distance", [1, 15, 16, 1000, 1023, 1024, 1 << 31])
def test_distances_are_in_their_class(distance: int) -> None:
    stats = Stats()
    made = judgment()
    made.finding = Finding(
        Reason.ACK_OVER, Breach(Reason.ACK_OVER, Seq(distance), Seq(0), distance)
    )
    stats.count([made])
    found = samples(Exposition(observed(stats)))
    classes = {
        float(name[3]): value
        for name, value in found.items()
        if name[:3] == ("breach_distance_bytes_bucket", "7", "ack-over")
    }
    assert all((value == 1) is (distance <= end) for end, value in classes.items())
    assert found["breach_distance_bytes_sum", "7", "ack-over"] == distance


def test_latencies_are_in_seconds() -> None:
    stats = Stats()
    stats.judge_us.add(31, 3)
    stats.judge_us.add(2_000_000, 1)
    found = samples(Exposition(observed(stats)))
    assert found["judge_latency_seconds_bucket", "7", "3.2e-05"] == 3
    assert found["judge_latency_seconds_bucket", "7", "1.048576"] == 3
    assert found["judge_latency_seconds_bucket", "7", "2.097152"] == 4
    assert found["judge_latency_seconds_sum", "7"] == pytest.approx(2.000093)


def test_the_numbers_of_a_worker_are_added_to_those_of_the_one_before() -> None:
    """They pass between the processes as JSON."""
    before, now, both = Stats(), Stats(), Stats()
    for stats, times in ((before, 2), (now, 3)):
        stats.count([judgment()] * times)
        stats.judge_us.add(40, times)
        stats.counters["packets"] = times
    plain = msgspec.json.decode(msgspec.json.encode(now.plain()))
    both.sum_of(before, plain)
    copied = both.copy()
    both.count([judgment()])
    assert copied.counters["packets"] == 5
    assert sum(copied.distances[Reason.SEQ_OVER].counts) == 5
    assert copied.judge_us.total == 200
    assert set(copied.distances) == set(BOUNDS)


def test_several_workers_are_in_one_exposition() -> None:
    one, other = Stats(), Stats()
    one.counters["packets"], other.counters["packets"] = 5, 6
    found = samples(Exposition(observed(one, other, parts=frozenset({Part.WORKERS}))))
    assert (found["packets_total", "7"], found["packets_total", "8"]) == (5, 6)
    assert found["worker_open_fds", "8"] > 0
    assert ("process_open_fds",) in found


def test_a_queue_without_a_worker_has_no_process() -> None:
    exposition = Exposition(observed(Stats(), parts=frozenset({Part.WORKERS})))
    (queue,) = exposition.observed.queues
    for pid in (0, 1 << 22):  # no process, and a pid that no process has
        exposition.observed = exposition.observed._replace(queues=(queue._replace(pid=pid),))
        assert ("worker_open_fds", "7") not in samples(exposition)


def test_textfile(tmp_path: Path) -> None:
    Exposition(observed(Stats())).write(tmp_path / "nfq_guard.prom")
    assert "nfq_guard_packets_total" in (tmp_path / "nfq_guard.prom").read_text()


def test_the_unfinished_textfile_has_no_name_that_others_can_guess(tmp_path: Path) -> None:
    """prometheus_client's own has the process and the thread in its name."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    guess = f"nfq_guard.prom.{os.getpid()}.{threading.get_ident()}"
    for name in (guess, "nfq_guard.prom"):
        (tmp_path / name).symlink_to(victim)
    Exposition(observed(Stats())).write(tmp_path / "nfq_guard.prom")
    assert victim.read_bytes() == b"theirs"
    assert "nfq_guard_packets_total" in (tmp_path / "nfq_guard.prom").read_text()


def test_the_file_is_for_another_user(tmp_path: Path) -> None:
    """Whatever the umask of the service, and the permissions that an earlier version gave it."""
    path = tmp_path / "guard.prom"
    umask = os.umask(0o077)
    try:
        for _ in range(2):
            Exposition(observed()).write(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            path.chmod(0o640)
    finally:
        os.umask(umask)


def test_failed_write_of_the_file_is_reported_once(tmp_path: Path) -> None:
    """A failure after a success is reported again; after `close` nothing is written."""
    told: list[str] = []
    path = tmp_path / "there" / "guard.prom"
    file = MetricsFile(Exposition(observed()), path, told.append)

    def write() -> None:
        try:
            file.write()
        except OSError as error:
            file.wrote(error)
        else:
            file.wrote()

    write()
    write()
    gone = f"{path}: No such file or directory"
    assert told == [gone]
    path.parent.mkdir()
    write()
    assert path.read_text(encoding="utf-8")
    path.unlink()
    path.parent.rmdir()
    write()
    file.wrote(ValueError("again"))
    assert told == [gone] * 2
    path.parent.mkdir()
    file.wrote()
    file.wrote(ValueError("a bug"))
    assert told[-1] == f"{path}: a bug"
    file.close()
    write()
    assert not path.exists()


def test_a_metrics_file_whose_disk_hangs_keeps_one_thread_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that is frozen for a snapshot, or whose server is gone."""
    begun = threading.Event()
    thawed = threading.Event()

    def frozen(_exposition: Exposition, path: Path) -> None:
        begun.set()
        thawed.wait()
        path.write_bytes(b"late")

    monkeypatch.setattr(Exposition, "write", frozen)
    path = tmp_path / "metrics.prom"
    file = MetricsFile(Exposition(observed()), path, print)
    first = threading.Thread(target=file.write, daemon=True)
    first.start()
    assert begun.wait(limit(5))
    later = threading.Thread(target=file.write, daemon=True)
    later.start()
    later.join(limit(5))
    assert not later.is_alive()
    ending = threading.Thread(target=file.close, daemon=True)
    ending.start()
    ending.join(limit(5))
    assert not ending.is_alive()
    thawed.set()
    first.join(limit(5))
    deadline = time.monotonic() + limit(5)
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not path.exists()


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(FileExistsError, match="not a regular file"):
        MetricsFile(Exposition(observed()), Path("/dev/full"), print)
