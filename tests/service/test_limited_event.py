# SPDX-License-Identifier: MIT
"""An event that a fault may trigger at any rate is always counted and rarely logged."""

import json
import time
from pathlib import Path

import pytest

from nfq_guard.service.limited_event import LimitedEvent
from nfq_guard.telemetry.events import MessageRefused
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink


def refused(since_last: int) -> MessageRefused:
    return MessageRefused(sender="worker", queue=1, problem="odd", since_last=since_last)


def test_at_most_one_each_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "log"
    sink = LineSink(path)
    limited = LimitedEvent(EventLog(sink))
    for moment in (100.0, 100.1, 109.9, 110.0, 110.1, 500.0):
        now[0] = moment
        limited.happened(refused)
    sink.close(0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["since_last"] for line in lines] == [1, 3, 2]
    assert limited.count == 6
