# SPDX-License-Identifier: MIT
"""When the rules before conntrack are read, and the events that follow."""

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from nfq_guard.errors import UnavailableError
from nfq_guard.flow import IPV4, PROTO_TCP, Hook
from nfq_guard.raw_rules import UNTRACKED, RawAct, RawReading, RawRule
from nfq_guard.service.loop import Loop
from nfq_guard.service.raw_rule_monitor import RawRuleMonitor
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink

RULE = RawRule("r", IPV4, PROTO_TCP, Hook.PREROUTING, "raw", RawAct.TRACKING, UNTRACKED)


class Monitored:
    """A monitor of made-up rules, whose loop is driven by the test."""

    def __init__(self, log: Path) -> None:
        self.reading = RawReading()
        self.error: Exception | None = None
        self.generation: int | None = 1
        self.now = 1000.0
        self.takes_s = 0.0
        self.cpu_s = 0.0
        self.reads = 0
        self.adopted: list[tuple[RawRule, ...]] = []
        self.loop = Loop()
        self._log = log
        self._sink = LineSink(log)
        self.monitor = RawRuleMonitor(
            self._read,
            lambda: self.generation,
            self.adopted.append,
            EventLog(self._sink),
            self.loop,
            lambda: self.now,
            lambda: self.cpu_s,
        )

    def _read(self) -> RawReading:
        self.reads += 1
        self.cpu_s += self.takes_s
        self.now += 10 * self.takes_s  # on a busy machine
        if self.error is not None:
            raise self.error
        return self.reading

    def check(self, *, watch: bool = False) -> None:
        (self.monitor.watch if watch else self.monitor.check)(self.now)
        assert self.loop.run_until(lambda: not self.loop.busy, lambda: time.monotonic() + 30)

    def events(self) -> list[str]:
        self._sink.close(0)
        lines = [orjson.loads(line) for line in self._log.read_bytes().splitlines()]
        return [line["event"] for line in lines]

    def close(self) -> None:
        self.loop.close()


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[Monitored]:
    made = Monitored(tmp_path / "log")
    yield made
    made.close()


def test_rules_come_and_go(monitored: Monitored) -> None:
    assert monitored.monitor.status().problems  # unknown rules are not "no rules"
    monitored.check()
    assert monitored.monitor.status().problems == ()
    assert monitored.adopted == []
    monitored.reading = RawReading((RULE,), ("it hides",))
    for _ in range(2):
        monitored.check()
    assert monitored.adopted == [(RULE,)]
    assert monitored.monitor.status().one_sided == ("it hides",)
    # Another rule makes it complete: the judge learns of it, and no event is needed.
    monitored.reading = RawReading((RULE, RULE))
    monitored.check()
    assert monitored.adopted == [(RULE,), (RULE, RULE)]
    assert monitored.monitor.status().one_sided == ()
    assert monitored.events() == ["half_hidden", "half_hidden_over"]


def test_what_could_not_be_read_is_said_once(monitored: Monitored) -> None:
    for problems in (("old",), ("old",), ("old", "new"), (), ("new",)):
        monitored.reading = RawReading((), (), problems)
        monitored.check()
        assert monitored.monitor.status().problems == problems
    assert monitored.events() == ["note", "note", "note"]


def test_a_failure_keeps_the_rules(monitored: Monitored) -> None:
    monitored.reading = RawReading((RULE,), ("it hides",))
    monitored.check()
    for error in (UnavailableError("no program"), ZeroDivisionError("a bug")):
        monitored.error = error
        for _ in range(2):
            monitored.check()
        assert str(error) in monitored.monitor.status().problems[0]
    assert monitored.monitor.status().one_sided == ("it hides",)
    assert monitored.adopted == [(RULE,)]
    assert monitored.events() == ["half_hidden", "note", "note"]


def test_a_changed_ruleset_is_read_soon_and_not_too_often(monitored: Monitored) -> None:
    monitored.takes_s = 0.1
    monitored.check()
    monitored.check(watch=True)
    assert monitored.reads == 1
    monitored.generation = 2
    monitored.check(watch=True)
    assert monitored.reads == 1  # a reading took 0.1 s of CPU time, so the next waits for 5 s
    monitored.now += 5.1
    monitored.check(watch=True)
    monitored.now += 5.1
    monitored.check(watch=True)
    assert monitored.reads == 2


def test_one_reading_at_a_time(monitored: Monitored) -> None:
    monitored.monitor.check(monitored.now)
    monitored.check()
    assert monitored.reads == 1


def test_none_after_the_end(monitored: Monitored) -> None:
    monitored.monitor.close()
    monitored.check()
    assert monitored.reads == 0
