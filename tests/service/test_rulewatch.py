# SPDX-License-Identifier: MIT
import time
from pathlib import Path

import orjson

from nfq_guard.errors import UnavailableError
from nfq_guard.service.rulewatch import RulesWatch
from nfq_guard.telemetry.events import EventLog
from nfq_guard.telemetry.sink import LineSink


class FakeRules:
    def __init__(self) -> None:
        self.differences: list[str] = []
        self.broken = False
        self.installed = 0

    def verify(self) -> list[str]:
        if self.broken:
            raise UnavailableError("iptables is gone")
        return list(self.differences)

    def install(self) -> None:
        self.installed += 1
        self.differences.clear()


class Watched:
    def __init__(self, log: Path, *, reinstall: bool) -> None:
        self.rules = FakeRules()
        self.counted = 0
        self._log = log
        self._sink = LineSink(log)
        events = EventLog(self._sink)
        self.watch = RulesWatch(self.rules, events, reinstall=reinstall, count=self._count)

    def _count(self) -> None:
        self.counted += 1

    def look(self) -> None:
        self.watch.check(0)
        deadline = time.monotonic() + 5
        while self.watch.busy and time.monotonic() < deadline:
            time.sleep(0.001)
        self.watch.collect(0)

    def told(self) -> list[str]:
        self._sink.push(0)
        return [orjson.loads(line)["event"] for line in self._log.read_bytes().splitlines()]

    def close(self) -> None:
        self._sink.close(0)


def test_put_back(tmp_path: Path) -> None:
    one = Watched(tmp_path / "log", reinstall=True)
    one.look()
    one.rules.differences.append("mangle NFQ_GUARD: missing")
    one.look()
    one.look()
    assert (one.rules.installed, one.counted, one.told()) == (1, 1, ["rules_changed"])
    one.close()


def test_told_once_and_when_they_are_back(tmp_path: Path) -> None:
    one = Watched(tmp_path / "log", reinstall=False)
    one.rules.differences.append("mangle NFQ_GUARD: missing")
    for _ in range(3):
        one.look()
    one.rules.differences.clear()
    one.look()
    assert (one.rules.installed, one.counted) == (0, 3)
    assert one.told() == ["rules_changed", "rules_restored"]
    one.close()


def test_check_that_fails(tmp_path: Path) -> None:
    one = Watched(tmp_path / "log", reinstall=True)
    one.rules.broken = True
    one.look()
    assert one.told() == ["rules_check_failed"]
    one.close()


def test_closed(tmp_path: Path) -> None:
    """Nothing puts the rules back while they are being removed."""
    one = Watched(tmp_path / "log", reinstall=True)
    one.rules.differences.append("mangle NFQ_GUARD: missing")
    one.watch.close()
    one.look()
    assert one.rules.installed == 0
    one.close()
