# SPDX-License-Identifier: MIT
import time
from pathlib import Path

import orjson

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall import RuleCounters
from nfq_guard.service.rule_monitor import RuleMonitor
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink


class FakeRules:
    def __init__(self) -> None:
        self.differences: list[str] = []
        self.broken = False
        self.forbidden = False
        self.installed = 0

    def verify(self) -> list[str]:
        if self.forbidden:
            raise PrivilegeError("CAP_NET_ADMIN is missing")
        if self.broken:
            raise UnavailableError("iptables is gone")
        return list(self.differences)

    def install(self) -> None:
        self.installed += 1
        self.differences.clear()


class Watched:
    def __init__(self, log: Path, *, reinstall: bool, ours: bool = True) -> None:
        self.rules = FakeRules()
        self.counted = 0
        self._log = log
        self._sink = LineSink(log)
        events = EventLog(self._sink)
        self.kernel = RuleCounters()
        self.watch = RuleMonitor(
            self.rules,
            events,
            ours=ours,
            reinstall=reinstall,
            count=self._count,
            counted=lambda: self.kernel,
        )

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


def test_what_the_kernel_counts_only_grows(tmp_path: Path) -> None:
    """Rules that were made anew count from 0, and the sum goes on."""
    one = Watched(tmp_path / "log", reinstall=True)
    for shed, total in ((5, 5), (9, 9), (2, 11), (2, 11), (10, 19)):
        one.kernel = RuleCounters(shed=shed, unjudged=0)
        one.look()
        assert one.watch.packets.shed == total
    one.close()


def test_rules_of_the_operator_are_not_missed(tmp_path: Path) -> None:
    """Where they are not ours to install, only what was there once can be missing."""
    one = Watched(tmp_path / "log", reinstall=False, ours=False)
    one.rules.differences.append("mangle NFQ_GUARD: missing")
    one.look()
    assert one.told() == []
    assert one.watch.status()["state"] == "not ours"
    one.rules.differences.clear()
    one.look()
    assert one.watch.status()["state"] == "as they should be"
    one.rules.differences.append("mangle NFQ_GUARD: missing")
    one.look()
    assert one.told() == ["rules_changed"]
    assert one.watch.status()["state"] == "differ"
    one.close()


def test_who_may_not_look_says_so_and_stops(tmp_path: Path) -> None:
    one = Watched(tmp_path / "log", reinstall=False)
    one.rules.forbidden = True
    one.look()
    assert one.watch.status()["state"] == "not looked at"
    assert one.watch.status()["problem"] == "CAP_NET_ADMIN is missing"
    one.watch.check(0)
    assert not one.watch.busy
    one.close()
