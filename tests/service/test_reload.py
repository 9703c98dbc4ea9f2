# SPDX-License-Identifier: MIT
"""Reloads run one at a time in a thread while others are requested."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_guard.engine import Mode
from nfq_guard.errors import ConfigError, Mistake
from nfq_guard.service.config import LoadedPolicy, load_policy_for
from nfq_guard.service.control.protocol import Response
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.reload import Reloader
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import PolicyFacts
from nfq_guard.service.supervisor.workers import Workers
from nfq_guard.telemetry.events import Event
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink


class FakeWorkers:
    """Workers that adopt a policy at once, or refuse it with `problem`."""

    def __init__(self) -> None:
        self.adopted: list[str] = []
        self.problem = ""

    def adopt(self, loaded: LoadedPolicy, done: Callable[[str], None]) -> None:
        if not self.problem:
            self.adopted.append(loaded.digest)
        done(self.problem)


class Reads:
    """Reads policies numbered from 1, each after a release of `may`."""

    def __init__(self) -> None:
        self.count = 0
        self.may = threading.Semaphore(0)
        self.fault: Exception | None = None
        self.mode = Mode.DRY_RUN
        self.policy = load_policy_for(Settings(), None).policy
        self.empty = ""

    def __call__(self) -> LoadedPolicy:
        assert self.may.acquire(timeout=60)
        self.count += 1
        if self.fault is not None:
            raise self.fault
        facts = PolicyFacts(source="file", digest=str(self.count), rules=1)
        return LoadedPolicy(policy=self.policy, facts=facts, mode=self.mode, empty=self.empty)


class Bench:
    def __init__(self, log: Path) -> None:
        self.loop = Loop()
        self.workers = FakeWorkers()
        self.reads = Reads()
        self.answers: list[tuple[str, Response]] = []
        self.modes: list[Mode] = []
        self.kept: list[str] = []
        self.rules_problem = ""
        self._sink = LineSink(log)
        self.events = EventLog(self._sink)
        facts = PolicyFacts(source="file", digest="0", rules=1)
        self.reloader = Reloader(
            loaded=LoadedPolicy(policy=self.reads.policy, facts=facts, mode=Mode.DRY_RUN),
            read=self.reads,
            workers=_as_workers(self.workers),
            loop=self.loop,
            events=self.events,
            notifier=Notifier("", ""),
            keep=lambda loaded: self.kept.append(loaded.digest),
            set_mode=self._set_mode,
        )

    def _set_mode(self, mode: Mode, done: Callable[[str], None]) -> None:
        self.modes.append(mode)
        done(self.rules_problem)

    def ask(self, who: str) -> None:
        self.reloader.request(lambda answer: self.answers.append((who, answer)))

    def go(self, reads: int = 1) -> None:
        for _ in range(reads):
            self.reads.may.release()
        for _ in range(200):
            self.loop.turn(0.01)
            if not self.reloader.busy:
                return
        pytest.fail("a reload that does not end")

    def who(self) -> list[str]:
        return [who for who, _ in self.answers]

    def close(self) -> None:
        self.loop.close()
        self._sink.close(0)


def _as_workers(fake: FakeWorkers) -> Workers:
    return fake  # type: ignore[return-value]  # all that a reload asks of the workers


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path / "log")
    yield one
    one.close()


def test_requests_during_a_reload_share_the_next_one(bench: Bench) -> None:
    """The file may have changed since the first one was read."""
    bench.ask("first")
    bench.ask("second")
    bench.ask("third")
    assert bench.reloader.loaded.digest == "0"
    bench.go(2)
    assert bench.who() == ["first", "second", "third"]
    assert bench.reads.count == 2
    assert bench.workers.adopted == bench.kept == ["1", "2"]
    assert bench.reloader.loaded.digest == "2"
    assert (bench.reloader.taken, bench.reloader.refused) == (2, 0)


def test_a_changed_mode_of_the_file_is_taken_once(bench: Bench) -> None:
    """The next reload does not undo a mode set through the control socket afterwards."""
    bench.ask("unchanged")
    bench.go()
    assert bench.modes == []
    bench.reads.mode = Mode.ENFORCE
    bench.ask("changed")
    bench.go()
    bench.ask("as before")
    bench.go()
    assert bench.modes == [Mode.ENFORCE]
    messages = [answer.message for _, answer in bench.answers]
    assert ["mode" in str(message) for message in messages] == [False, True, False]


def test_rules_that_do_not_follow_the_mode_are_said(bench: Bench) -> None:
    bench.reads.mode = Mode.ENFORCE
    bench.rules_problem = "a lock is held"
    bench.ask("one")
    bench.go()
    ((_, answer),) = bench.answers
    assert isinstance(answer.message, dict)
    assert answer.message["rules_problem"] == "a lock is held"


def test_a_file_with_mistakes_changes_nothing(bench: Bench) -> None:
    bench.reads.fault = ConfigError("c", [Mistake("a", "b", "c"), Mistake("d", "e", "f")])
    bench.ask("one")
    bench.go()
    ((_, answer),) = bench.answers
    assert not answer.succeeded
    assert bench.reloader.last is not None
    assert bench.reloader.last.mistakes == (
        "c: a: expected b, found c",
        "c: d: expected e, found f",
    )
    assert bench.workers.adopted == []
    bench.reads.fault = None
    bench.ask("two")
    bench.go()
    assert bench.workers.adopted == ["2"]
    assert bench.reloader.refused == 1


def test_a_crash_while_reading_refuses_the_reload(bench: Bench) -> None:
    bench.reads.fault = RecursionError("too deep")
    bench.ask("one")
    bench.go()
    ((_, answer),) = bench.answers
    assert answer == Response(succeeded=False, message="RecursionError: too deep")
    assert bench.reloader.loaded.digest == "0"


def test_workers_that_disagree_keep_the_old_policy(bench: Bench) -> None:
    bench.workers.problem = "the worker of queue 3 read another policy: the file changed meanwhile"
    bench.ask("one")
    bench.go()
    ((_, answer),) = bench.answers
    assert answer == Response(succeeded=False, message=bench.workers.problem)
    assert bench.reloader.loaded.digest == "0"
    assert bench.reloader.refused == 1


def test_a_responder_that_raises_holds_up_nothing(bench: Bench) -> None:
    """The other requests get their responses, and the next reload begins."""

    def raises(answer: Response) -> None:
        raise BrokenPipeError(str(answer))

    bench.reloader.request(raises)
    bench.ask("second")
    bench.reads.may.release()
    bench.reads.may.release()
    with pytest.raises(BrokenPipeError):
        bench.loop.turn(10)
    bench.go(0)
    assert bench.who() == ["second"]
    assert (bench.reads.count, bench.reloader.busy) == (2, False)


def test_a_log_that_raises_leaves_no_reload_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emit(event: Event) -> None:
        raise OSError(str(event))

    monkeypatch.setattr(bench.events, "emit", emit)
    for problem in ("", "refused"):
        bench.workers.problem = problem
        bench.ask("one")
        bench.reads.may.release()
        with pytest.raises(OSError, match="Reload"):
            bench.loop.turn(10)
        assert not bench.reloader.busy
    assert len(bench.answers) == 2


def test_a_file_without_tables_does_not_replace_one_with_tables(bench: Bench) -> None:
    """A file that was cut to nothing must not end enforcement: all its settings are defaults."""
    bench.reads.mode = Mode.ENFORCE
    bench.ask("valid")
    bench.go()
    bench.reads.mode = Mode.DRY_RUN
    bench.reads.empty = "guard.toml"
    bench.ask("empty")
    bench.go()
    _, answer = bench.answers[-1]
    assert answer == Response.error(
        "guard.toml: expected a table [daemon] or [policy], as in the configuration in force, "
        "found none; a line with [daemon] stands for the defaults"
    )
    assert (bench.workers.adopted, bench.modes) == (["1"], [Mode.ENFORCE])
    assert bench.reloader.loaded.mode is Mode.ENFORCE


def test_a_daemon_of_an_empty_file_reloads_it(bench: Bench) -> None:
    bench.reloader.loaded = replace(bench.reloader.loaded, empty="guard.toml")
    bench.reads.empty = "guard.toml"
    bench.ask("empty")
    bench.go()
    assert bench.reloader.taken == 1


@pytest.mark.parametrize(
    ("text", "empty"), [("", True), ("# [daemon]\n", True), ("[daemon]\n", False)]
)
def test_a_file_without_tables_is_known(tmp_path: Path, text: str, empty: bool) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(text)
    assert load_policy_for(Settings(), file).empty == (str(file) if empty else "")
