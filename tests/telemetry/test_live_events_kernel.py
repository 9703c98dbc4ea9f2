# SPDX-License-Identifier: MIT
"""The events of live daemons: each matches its schema, and no output of the log delays a packet."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.queue import (
    THAT_PORT_POLICY,
    Datagrams,
    GuardProcess,
    configured,
    kernel_line,
    queue_udp,
    wait_for,
)
from tests.support.reference import DIRECTORY
from tests.support.supervised import Supervised, queue_all

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]
VALIDATOR = jsonschema.Draft202012Validator(
    json.loads((DIRECTORY / "events.schema.json").read_text(encoding="utf-8"))
)


@pytest.fixture
def inside(namespace: Make) -> Namespace:
    made = namespace("live-events")
    queue_udp(made)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]


def idle(namespace: Namespace) -> bool:
    return kernel_line(namespace).waiting == 0


def test_every_event_of_a_run_fits_the_schema(inside: Namespace, tmp_path: Path) -> None:
    """Packets, reloads, one of them refused, counters and the stop; the same events in EVE JSON."""
    eve = tmp_path / "eve"
    config = configured(
        tmp_path / "c", 'log_format = "eve"', f'log = ["-", "{eve}"]', "log_interval_s = 1"
    )
    log = tmp_path / "log"
    with Datagrams(inside) as udp, GuardProcess(inside, log, "--config", config) as guard:
        wait_for(lambda: b'"started"' in log.read_bytes())
        udp.send(20)
        wait_for(lambda: b'"packet_judged"' in log.read_bytes())
        configured(tmp_path / "c", 'log_format = "eve"', policy=THAT_PORT_POLICY + "x = 1")
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: b'"reload_failed"' in log.read_bytes())
        configured(tmp_path / "c", 'log_format = "eve"')
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: b'"reloaded"' in log.read_bytes())
        guard.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: b'"counters"' in log.read_bytes())
        assert guard.stop() == 0
    found = lines(log)
    assert found == lines(eve)
    names = {line["nfq_guard"]["event"] for line in found}
    assert names >= {"started", "packet_judged", "reload_failed", "reloaded", "counters", "stopped"}
    for line in found:
        VALIDATOR.validate(line["nfq_guard"])


def test_every_event_of_several_workers_fits_the_schema(namespace: Make, tmp_path: Path) -> None:
    """Both outputs get the lines of all workers, also of one that was killed and restarted."""
    made = namespace("live-events")
    queue_all(made, bypass=True)
    guarded = Supervised(made, tmp_path)
    second = tmp_path / "second"
    guarded.configure("log", f'log = ["-", "{second}"]')
    try:
        with guarded.start() as guard:
            guarded.send()
            wait_for(lambda: len(guard.events("packet_judged")) >= 24)
            os.kill(guard.events("started")[0]["pids"][0], signal.SIGKILL)
            wait_for(lambda: bool(guard.events("worker_restarted")))
            assert guard.stop() == 0
    finally:
        guarded.udp.close()
    assert sorted(map(str, guard.events())) == sorted(map(str, lines(second)))
    assert {"worker_ended", "worker_restarted"} <= {event["event"] for event in lines(second)}
    for event in lines(second):
        VALIDATOR.validate(event)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_delays_nothing_and_the_log_comes_back(
    inside: Namespace, tmp_path: Path, small: Path
) -> None:
    """Every packet passes, another output has every line, and the log says what it lost."""
    full = small / "log"
    config = configured(
        tmp_path / "c", f'log = ["-", "{full}"]', "log_interval_s = 0", "log_events_per_s = 100000"
    )
    log = tmp_path / "log"
    with Datagrams(inside) as udp, GuardProcess(inside, log, "--config", config).ready() as guard:
        with (small / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        for _ in range(10):
            udp.send(300)
            wait_for(lambda: idle(inside))
        assert len(udp.received()) == 3000
        wait_for(lambda: len(guard.events("packet_judged")) == 3000)
        (small / "ballast").unlink()
        wait_for(lambda: "log_lines_dropped" in full.read_text())
        assert guard.stop() == 0
    lost = [line for line in lines(full) if line["event"] == "log_lines_dropped"]
    judged = [line for line in lines(full) if line["event"] == "packet_judged"]
    assert lost[0]["last_error"] == "No space left on device"
    missing = sum(line["lines"] for line in lost) - (3000 - len(judged))
    assert missing in {0, 1}  # `started` may be lost


def test_a_pipe_that_nobody_reads_keeps_the_newest(inside: Namespace, tmp_path: Path) -> None:
    """The oldest lines are lost and counted, and the loss is logged at most once a minute."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config = configured(
        tmp_path / "c", f'log = ["-", "{pipe}"]', "log_interval_s = 0", "log_events_per_s = 100000"
    )
    log = tmp_path / "log"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Datagrams(inside) as udp, GuardProcess(inside, log, "--config", config).ready() as guard:
        for _ in range(10):
            udp.send(300)
            wait_for(lambda: idle(inside))
        assert len(udp.received()) == 3000
        wait_for(lambda: len(guard.events("packet_judged")) == 3000)
        wait_for(lambda: bool(guard.events("log_lines_dropped")))
        got = b""

        def read() -> bytes:
            nonlocal got
            with suppress(BlockingIOError):
                while part := os.read(reader, 1 << 20):
                    got += part
            return got

        newest = guard.events("packet_judged")[-1]
        wait_for(lambda: json.dumps(newest, separators=(",", ":")).encode() in read())
        wait_for(lambda: b'"log_lines_dropped"' in read())
        warned = [
            datetime.fromisoformat(one["timestamp"]) for one in guard.events("log_lines_dropped")
        ]
        assert all(after - before >= timedelta(seconds=59) for before, after in pairwise(warned))
        assert guard.stop() == 0
        read()
    os.close(reader)
    told = [json.loads(line) for line in got.splitlines()]
    judged = [one for one in told if one["event"] == "packet_judged"]
    assert 0 < len(judged) < 3000
    lost = sum(one["lines"] for one in guard.events("log_lines_dropped"))
    assert len(guard.events()) - len(told) == lost
    # The pipe holds the lines from before the loss, and the ring those from after it.
    assert judged[0] == guard.events("packet_judged")[0]
    assert judged[-1] == newest
