# SPDX-License-Identifier: MIT
"""Several queues, one worker process each, in separate namespaces."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.lab.netns import Namespace
from nfq_guard.telemetry.reader import EventReader
from tests.support.cni import write
from tests.support.queue import PORT, GuardProcess, wait_for
from tests.support.supervised import HOSTS, QUEUES, Supervised, queue_all

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


@pytest.fixture
def supervised(namespace: Make, tmp_path: Path) -> Iterator[Supervised]:
    inside = namespace("super")
    queue_all(inside, bypass=True)
    one = Supervised(inside, tmp_path)
    yield one
    one.udp.close()


def test_all_queues_one_log_one_account(supervised: Supervised) -> None:
    with supervised.start() as guard:
        sent = supervised.send(3)
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        assert supervised.received() == sent
        (started,) = guard.events("started")
        assert started["queues"] == QUEUES
        wait_for(lambda: supervised.status()["actions"]["log"] == sent)
        status = supervised.status()
        by_queue = {queue["queue"]: queue["packets"] for queue in status["queues"]}
        assert sum(by_queue.values()) == sent
        assert all(by_queue[number] > 0 for number in QUEUES)
        assert len({queue["pid"] for queue in status["queues"]} | {status["pid"]}) == 4
        assert {one["queue"] for one in guard.events("packet_judged")} == set(QUEUES)
        flows = supervised.ask("dump", "--format", "json").splitlines()
        assert len(flows) == len(HOSTS)
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
        assert (stopped["packets"], stopped["actions"]) == (sent, {"log": sent})
    assert supervised.bound() == {}


def test_a_killed_worker_is_replaced_alone(supervised: Supervised) -> None:
    """Its packets pass meanwhile, by the fail mode; its counters continue; the mode stays."""
    with supervised.start() as guard:
        sent = supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        supervised.ask("mode", "dry-run")
        before = supervised.pids()
        wait_for(lambda: supervised.status()["actions"]["log"] == sent)
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: bool(guard.events("worker_ended")))
        supervised.received()
        sent_meanwhile = supervised.send()
        wait_for(supervised.idle)
        assert supervised.received() == sent_meanwhile
        wait_for(lambda: bool(guard.events("worker_restarted")) and supervised.all_serving())
        after = supervised.pids()
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
        (ended,) = guard.events("worker_ended")
        assert (ended["queue"], ended["how"]) == (QUEUES[1], "SIGKILL")
        # Workers report a few times a second: wait until every logged packet is counted.
        wait_for(
            lambda: supervised.status()["actions"]["log"] == len(guard.events("packet_judged"))
        )
        total = supervised.status()["actions"]["log"]
        assert total > sent
        supervised.send()
        wait_for(lambda: supervised.status()["actions"]["log"] == total + len(HOSTS))
        assert supervised.status()["queues"][1]["restarts"] == 1
        assert guard.events("packet_judged")[-1]["mode"] == "dry-run"
        assert guard.stop() == 0


def test_what_a_killed_worker_had_not_recorded_is_a_gap(supervised: Supervised) -> None:
    """Folded packets, those above the limit of events, and allowed ones without an event."""
    file = supervised.directory / "events.jsonl"
    supervised.configure("log", f'events_file = "{file}"', "log_events_per_s = 1")
    with supervised.start() as guard:
        sent = supervised.send(20)
        wait_for(lambda: supervised.status()["actions"]["log"] == sent)
        for pid in supervised.pids():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(guard.events("worker_ended")) == len(QUEUES))
        wait_for(supervised.all_serving)
        assert guard.stop() == 0
    reader = EventReader()
    with file.open("rb") as stream:
        recorded = sum(read.event.count for read in reader.read(stream))
    missing = reader.unrecorded
    assert missing.lost_judged > 0
    assert recorded + missing.suppressed + missing.lost_judged == sent


def test_what_a_killed_worker_had_not_reported_is_counted(supervised: Supervised) -> None:
    """It reports four times a second; what it judged since is in a page of shared memory."""
    sent = 0
    with supervised.start() as guard:
        for round_number in range(1, 4):
            sent += supervised.send(3)
            wait_for(lambda: len(guard.events("packet_judged")) == sent)  # noqa: B023 - at once
            for pid in supervised.pids():
                os.kill(pid, signal.SIGKILL)
            ended = round_number * len(QUEUES)
            wait_for(lambda: len(guard.events("worker_ended")) == ended)  # noqa: B023 - at once
            wait_for(supervised.all_serving)
        status = supervised.status()
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert sum(status["actions"].values()) == sent
    assert stopped["packets"] == sent
    for kind in ("reasons", "actions", "rules"):
        assert sum(stopped[kind].values()) == sent


def test_lines_that_the_log_of_the_daemon_lost(supervised: Supervised) -> None:
    """Its process writes the lines of all workers, and serves no queue that would count them."""
    supervised.configure("log", 'log = ["-", "/dev/full"]')
    with supervised.start() as guard:
        sent = supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        wait_for(lambda: supervised.status()["log_errors"] > 0)
        assert "to the log" in supervised.ask("status")
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    assert stopped["log_errors"] > 0
    (lost,) = guard.events("log_lines_dropped")
    assert stopped["log_lines_dropped"] == lost["lines"] > sent


def test_without_bypass_the_queue_of_a_dead_worker_drops(namespace: Make, tmp_path: Path) -> None:
    inside = namespace("closed")
    queue_all(inside, bypass=False)
    supervised = Supervised(inside, tmp_path)
    supervised.configure("log", 'fail_mode = "closed"')
    with supervised.start() as guard:
        os.kill(supervised.pids()[0], signal.SIGSTOP)
        sent = supervised.send()
        wait_for(lambda: bool(guard.events("worker_stuck")))
        wait_for(supervised.all_serving)
        received = supervised.received()
        assert 0 < received < sent
        supervised.send()
        wait_for(supervised.idle)
        assert supervised.received() == sent
        assert guard.stop() == 0
    supervised.udp.close()


def test_signals_of_the_service_reach_workers_too_and_do_nothing(supervised: Supervised) -> None:
    """The service manager sends SIGTERM to all processes of a service."""
    with supervised.start() as guard:
        pids = supervised.pids()
        for pid in pids:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        sent = supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        assert supervised.pids() == pids
        assert guard.stop() == 0


def test_a_policy_is_taken_by_all_or_by_none(supervised: Supervised) -> None:
    with supervised.start() as guard:
        supervised.configure("drop")
        supervised.ask("reload", "--wait")
        supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == len(HOSTS))
        assert supervised.received() == 0
        supervised.configure("dorp")
        assert "policy.rule[0].action" in supervised.ask("reload", "--wait", status=1)
        os.kill(supervised.pids()[2], signal.SIGKILL)
        wait_for(lambda: bool(guard.events("worker_restarted")) and supervised.all_serving())
        supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == 2 * len(HOSTS))
        assert {one["rule"] for one in guard.events("packet_judged")} == {"rule-drop"}
        assert supervised.received() == 0
        assert guard.stop() == 0


def test_workers_end_when_their_daemon_is_killed(supervised: Supervised) -> None:
    with supervised.start() as guard:
        pids = supervised.pids()
        guard.process.kill()
        guard.process.wait(timeout=60)
        wait_for(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))
        assert supervised.bound() == {}
    with supervised.start("log2") as again:
        assert again.stop() == 0


def test_one_queue_of_somebody_else(supervised: Supervised, tmp_path: Path) -> None:
    """Everything is released, and the rules of the queue's owner stay."""
    words = ("--queue", str(QUEUES[1]))
    with GuardProcess(supervised.namespace, tmp_path / "first", *words).ready() as first:
        text = supervised.config.read_text().replace('rules = "none"', 'rules = "install"')
        supervised.config.write_text(text)
        with GuardProcess(
            supervised.namespace, tmp_path / "log", "--config", str(supervised.config)
        ) as second:
            assert second.process.wait(timeout=60) == 75
            said = second.stderr()
            assert said.startswith(f"nfq-guard: queue {QUEUES[1]} is owned by")
            assert len(said.splitlines()) == 1
        assert list(supervised.bound()) == [QUEUES[1]]
        assert "NFQ_GUARD" in supervised.namespace.run("iptables-save").stdout
        assert first.stop() == 0


def test_one_set_of_metrics(supervised: Supervised) -> None:
    port = 19_477
    supervised.configure("log", f'metrics_listen = "127.0.0.1:{port}"')
    with supervised.start() as guard:
        supervised.send()
        wait_for(lambda: supervised.status()["actions"]["log"] == len(HOSTS))
        url = f"http://127.0.0.1:{port}/metrics"
        code = f"import urllib.request as u; print(u.urlopen('{url}').read().decode())"

        def values(name: str) -> list[float]:
            text = supervised.namespace.run(sys.executable, "-c", code).stdout
            found = [line for line in text.splitlines() if line.partition("{")[0] == name]
            found += [line for line in text.splitlines() if line.startswith(f"{name} ")]
            return [float(line.split()[-1]) for line in found]

        # They are at most a second old.
        wait_for(lambda: sum(values("nfq_guard_packets_total")) == len(HOSTS))
        assert len(values("nfq_guard_packets_total")) == len(QUEUES)
        assert values("nfq_guard_worker_restarts_total") == [0]
        assert all(value > 1e6 for value in values("nfq_guard_worker_resident_memory_bytes"))
        assert guard.stop() == 0


@pytest.mark.no_cover  # many of what other tests do once
def test_many_reloads_under_load(supervised: Supervised) -> None:
    """Each packet is judged by one policy as a whole, in whichever worker, and none is lost."""
    with supervised.start() as guard:
        sent = 0
        arrived = 0
        reloads = 60
        for number in range(reloads):
            supervised.configure("log" if number % 2 else "allow")
            guard.process.send_signal(signal.SIGHUP)
            sent += supervised.send(2)
            arrived += supervised.received()
            wait_for(lambda done=number + 1: len(guard.events("reloaded")) >= done)  # type: ignore[misc]  # bound
        wait_for(supervised.idle)
        arrived += supervised.received()
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
    assert arrived == sent == stopped["packets"]
    assert stopped["reloads"] == reloads
    assert set(stopped["rules"]) <= {"rule-log", "rule-allow"}
    assert sum(stopped["rules"].values()) == sent


def test_each_worker_names_the_pods_of_the_node(supervised: Supervised, tmp_path: Path) -> None:
    """Also a pod that is added later. The directory itself is made after the daemon's start."""
    results = tmp_path / "results"
    inside = supervised.namespace
    inside.run("ip", "address", "add", "10.244.0.1/16", "dev", "lo")
    supervised.configure("log", f'pods_dir = "{results}"')
    hosts = [f"10.244.0.{number}" for number in range(2, 26)]
    with supervised.start() as guard:

        def judged() -> list[dict[str, Any]]:
            """Send one packet to each host; returns the events."""
            start = guard.log.stat().st_size
            for host in hosts:
                supervised.udp.sender.sendto(b"1234", (host, PORT))

            def lines() -> list[bytes]:
                fresh = guard.log.read_bytes()[start:].splitlines(keepends=True)
                return [line for line in fresh if b"packet_judged" in line and line[-1:] == b"\n"]

            wait_for(lambda: len(lines()) == len(hosts))
            return [json.loads(line) for line in lines()]

        def named(end: str) -> dict[str, int]:
            """The queue by destination, of packets with a pod at this end."""
            return {one["dst"]: one["queue"] for one in judged() if end in one}

        wait_for(lambda: bool(guard.events("pods_unread")))
        (unread,) = guard.events("pods_unread")
        assert (unread["files"], str(results) in unread["problem"]) == (0, True)
        unread_pods = {"read": False, "addresses": 0, "skipped": 0}
        assert supervised.status()["pods"] == unread_pods
        results.mkdir(mode=0o700)
        write(results, "front-0", "10.244.0.1/16", container="f0")
        wait_for(lambda: set(named("src_pod").values()) == set(QUEUES))
        write(results, "cart-7", "10.244.0.7/16", container="c7")
        wait_for(lambda: list(named("dst_pod")) == ["10.244.0.7"])
        (one,) = [event for event in judged() if event["dst"] == "10.244.0.7"]
        assert one["src_pod"] == {"namespace": "shop", "name": "front-0", "container": "f0"}
        assert one["dst_pod"] == {"namespace": "shop", "name": "cart-7", "container": "c7"}
        assert len(guard.events("pods_unread")) == 1
        (results / "broken").touch()
        counted = {"read": True, "addresses": 2, "skipped": 1}
        wait_for(lambda: supervised.status()["pods"] == counted)
        assert guard.stop() == 0
