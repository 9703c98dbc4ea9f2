# SPDX-License-Identifier: MIT
"""The program of a worker: what it does on its own."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from nfq_guard.engine import Mode
from nfq_guard.policy.default import default_policy
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.loop import Loop
from nfq_guard.service.status import PolicyFacts
from nfq_guard.service.supervisor.messages import pair
from nfq_guard.service.supervisor.worker_main import WorkerProcess
from nfq_guard.service.worker.queue_server import QueueServer
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink


def test_it_serves_despite_failed_housekeeping(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = LineSink(path)
    calls: list[float] = []

    def open_queue(
        _loaded: LoadedPolicy, _events: EventLog, loop: Loop, _notes: list[str]
    ) -> QueueServer:
        def fail(now: float) -> None:
            calls.append(now)
            if len(calls) == 3:
                loop.stop()
            raise RuntimeError("no such name")

        loop.every(0.001, fail)
        server = SimpleNamespace(
            queue=SimpleNamespace(socket_buffer_bytes=1, refused=[]),
            worker=SimpleNamespace(
                stats=Stats(), keep_unreported=lambda: None, reported=lambda: None
            ),
            begin=lambda: None,
            finish=lambda _hurried: None,
        )
        return cast("QueueServer", server)

    ours, theirs = pair()
    with ours, theirs:
        facts = PolicyFacts(source="preset:default", digest="0123", rules=7)
        loaded = LoadedPolicy(policy=default_policy(), facts=facts, mode=Mode.DRY_RUN)
        WorkerProcess(ours, 7, EventLog(sink), loaded, lambda: loaded).run(open_queue)
    sink.close(0)
    (event,) = map(json.loads, path.read_text().splitlines())
    assert event["event"] == "housekeeping_failed"
    assert event["problem"] == "RuntimeError: no such name"
