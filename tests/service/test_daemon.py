# SPDX-License-Identifier: MIT
"""The order of a daemon's start and stop under any failure, with fakes for its parts."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import orjson
import pytest

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError, PrivilegeError, UnavailableError, UsageError
from nfq_guard.firewall import UNJUDGED_MARK, Difference, FailMode, RuleCounters, RulesSpec
from nfq_guard.flow import Evidence
from nfq_guard.raw_rules import RawReading, RawRule
from nfq_guard.service.config import LoadedPolicy, load_policy_for
from nfq_guard.service.control.protocol import Responder
from nfq_guard.service.daemon import Daemon, Parts
from nfq_guard.service.ledger import Ledger
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.passed import PassedPackets
from nfq_guard.service.settings import Settings
from nfq_guard.service.supervisor.workers import QueueState, ServedQueues, WorkerState
from nfq_guard.telemetry.events import Event
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from tests.support.queue import wait_for

LIMIT_S = 30.0


@dataclass(frozen=True)
class Change:
    done: Sequence[str] = ()
    notes: Sequence[str] = ()


class FakeWorkers:
    """Two queues without workers."""

    evidence = Evidence.BPF
    messages_refused = 0

    def __init__(self, story: "Story") -> None:
        self._story = story
        self.hurried: Callable[[], bool] = bool
        self.marks: list[int] = []

    def begin(self, started_at: float) -> ServedQueues:
        assert started_at > 0
        self._story.happened("queues served")
        return ServedQueues(queues=[3, 4], pids=[1, 2])

    def queues(self) -> list[QueueState]:
        return [
            QueueState(
                queue_num=number, pid=1, state=WorkerState.SERVING, restarts=0, stats=Stats()
            )
            for number in (3, 4)
        ]

    def refresh(self) -> None:
        return

    def settle(self, hurried: Callable[[], bool]) -> None:
        assert not hurried()
        self._story.happened("counts read")

    def last_error(self) -> dict[str, object] | None:
        return None

    def set_mode(self, _mode: Mode, unjudged_mark: int) -> None:
        self.marks.append(unjudged_mark)

    def set_raw_rules(self, rules: tuple[RawRule, ...]) -> None: ...

    def adopt(self, loaded: LoadedPolicy, done: Callable[[str], None]) -> None:
        assert loaded.rule_names
        done("")

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None: ...

    def alive(self, now: float) -> bool:
        return now > 0

    def finish(self, hurried: Callable[[], bool]) -> None:
        self.hurried = hurried
        self._story.happened("queues unbound")


class FakeRules:
    """Fake rules; `install` and `remove` run in threads of the loop."""

    def __init__(self, story: "Story") -> None:
        self._story = story
        self.spec = RulesSpec()
        self.missing = ""
        self.may_remove = threading.Event()
        self.may_remove.set()

    def require(self) -> None:
        if self.missing:
            raise UnavailableError(self.missing)

    def install(self) -> Change:
        self._story.happened("rules installed")
        return Change(done=["made a chain"])

    def remove(self) -> Change:
        self._story.happened("removal begun")
        assert self.may_remove.wait(LIMIT_S)
        self._story.happened("rules removed")
        return Change()

    def verify(self) -> Sequence[Difference]:
        return ()

    def generation(self) -> int | None:
        return 1

    def rule_counters(self) -> RuleCounters:
        self._story.happened("counters read")
        return RuleCounters(shed=self._story.lines.count("counters read"))


class Story:
    """What happened, in order: calls of the fakes, and messages to systemd."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.then: dict[str, Callable[[], None]] = {}
        self.daemon: Daemon | None = None
        self.keep: Callable[[LoadedPolicy], None] | None = None
        self.workers = FakeWorkers(self)
        self.rules = FakeRules(self)
        self._log = folder / "log"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))
        self._manager.settimeout(0)
        self._notifier = Notifier(str(folder / "notify"), str(300_000))

    def happened(self, line: str) -> None:
        self.told()
        self.lines += [f"event {name}" for name in self.events()[self._seen() :]]
        self.lines.append(line)
        self.then.pop(line, lambda: None)()
        if line in self.fails:
            raise self.fails[line]

    def _seen(self) -> int:
        return sum(line.startswith("event ") for line in self.lines)

    def events(self) -> list[str]:
        if not self._log.exists():
            return []
        return [orjson.loads(line)["event"] for line in self._log.read_bytes().splitlines()]

    def told(self) -> None:
        """Take the messages to systemd so far."""
        while True:
            try:
                words = self._manager.recv(1000).decode()
            except BlockingIOError:
                return
            if words != "WATCHDOG=1" or "STOPPING=1" in self.lines:
                self.lines.append(words.partition("\n")[0])

    def run(
        self,
        *,
        rules: Literal["install", "keep", "none"] = "install",
        files: Mapping[str, bytes] | None = None,
        fail_mode: FailMode = FailMode.OPEN,
    ) -> None:
        """Run a daemon to its end; it watches `files` if there are any."""
        settings = Settings(
            mode=Mode.DRY_RUN,
            fail_mode=fail_mode.value,
            rules=rules,
            verify_rules_s=0,
            control_socket="",
            follow_files_s=0.01 if files else 0,
        )
        loaded = replace(load_policy_for(Settings(), None), files=files or {})
        sink = LineSink(self._log)
        ledger = Ledger([None], None, [])
        ledger.begin()

        def open_more(daemon: Daemon) -> Callable[[], None]:
            self.daemon = daemon
            self.happened("endpoints opened")
            return lambda: self.happened("endpoints closed")

        def survey() -> Event:
            self.happened("survey begun")
            time.sleep(0.2)
            self.happened("survey ended")
            raise NfqGuardError("not here")

        try:
            with Loop() as loop:
                Daemon(
                    Parts(
                        settings=settings,
                        source="file",
                        workers=self.workers,
                        loop=loop,
                        events=EventLog(sink),
                        rules=self.rules,
                        loaded=loaded,
                        read=self.read,
                        ledger=ledger,
                        notifier=self._notifier,
                        open_more=open_more,
                        jumps=lambda: self.happened("jumps read"),
                        raw_rules=RawReading,
                        passed=PassedPackets(lambda: self.happened("passed read"), lambda: None),
                        unserved=PassedPackets(lambda: None, lambda: None),
                        survey=survey,
                        keep=self.keep,
                    )
                ).run()
        finally:
            sink.close(0)
            self.told()
            self.lines += [f"event {name}" for name in self.events()[self._seen() :]]

    def stop_at(self, *names: str) -> None:
        """End the daemon once its log has these events."""

        def wait() -> None:
            until = time.monotonic() + LIMIT_S
            while time.monotonic() < until:
                if not Counter(names) - Counter(self.events()):
                    break
                time.sleep(0.01)
            terminate()

        threading.Thread(target=wait).start()

    def read(self) -> LoadedPolicy:
        self.happened("policy read")
        return load_policy_for(Settings(), None)

    def at(self, line: str) -> int:
        return self.lines.index(line)

    def close(self) -> None:
        self._manager.close()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    one = Story(tmp_path)
    yield one
    one.close()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_done_is_undone_in_reverse(story: Story) -> None:
    """Rules exist only while queues are served; the endpoints are closed last."""
    # Before the loop runs, so that the result does not depend on the timing of a thread.
    story.then["rules installed"] = terminate
    story.run()
    begun = ["queues served", "endpoints opened", "rules installed"]
    ended = ["rules removed", "queues unbound", "endpoints closed"]
    assert [line for line in story.lines if line in {*begun, *ended}] == begun + ended
    assert story.at("STOPPING=1") < story.at("removal begun")
    assert story.at("counts read") < story.at("removal begun"), "counts that went with the rules"
    *_, last = (at for at, line in enumerate(story.lines) if line == "counters read")
    assert story.at("STOPPING=1") < last < story.at("removal begun")
    assert story.at("event stopped") > story.at("queues unbound")
    assert "event daemon_failed" not in story.lines
    assert story.workers.hurried() is False


def test_ready_is_said_once_rules_are_installed(story: Story) -> None:
    """The watchdog is not fed once the daemon is ending."""

    def stop_soon() -> None:
        threading.Timer(0.5, terminate).start()

    story.then["rules installed"] = stop_soon
    story.run()
    assert story.at("rules installed") < story.at("event started")
    # What is compared with these may happen once others know that the daemon serves.
    assert story.at("rules installed") < story.at("passed read") < story.at("event started")
    assert story.at("jumps read") < story.at("event started")
    assert story.at("READY=1") < story.at("STOPPING=1")
    assert "WATCHDOG=1" not in story.lines


def test_a_survey_that_fails_is_said(story: Story) -> None:
    story.stop_at("note")
    story.run()
    assert story.at("READY=1") < story.at("survey begun") < story.at("event note")


@pytest.mark.parametrize("fails", [False, True])
def test_the_newest_policy_is_kept_last_whatever_the_disk(story: Story, *, fails: bool) -> None:
    """A save of an earlier one that a disk delays does not replace it."""
    begun: list[LoadedPolicy] = []
    kept: list[LoadedPolicy] = []
    may_keep = threading.Event()

    def keep(loaded: LoadedPolicy) -> None:
        begun.append(loaded)
        if len(begun) == 1:
            assert may_keep.wait(LIMIT_S)
            if fails:
                raise NfqGuardError("the disk is full")
        kept.append(loaded)

    def reload_twice() -> None:
        try:
            for number in (1, 2):
                os.kill(os.getpid(), signal.SIGHUP)
                wait_for(lambda: story.events().count("reloaded") == number)  # noqa: B023 - called here
            may_keep.set()
            wait_for(lambda: len(kept) + fails == len(begun) > 1)
        finally:
            terminate()

    story.keep = keep
    story.then["survey begun"] = threading.Thread(target=reload_twice).start
    story.run()
    assert story.daemon is not None
    assert len(begun) == 2
    assert kept[-1] is story.daemon.reloader.loaded


def test_threads_end_before_rules_are_removed(story: Story) -> None:
    """One of them may be about to install the rules again."""
    story.then["survey begun"] = terminate
    story.run()
    assert story.at("survey ended") < story.at("removal begun")


def test_rules_of_others_are_left_alone(story: Story) -> None:
    """With `rules = "none"` they are neither installed nor removed."""
    story.then["endpoints opened"] = terminate
    story.run(rules="none")
    assert not {"rules installed", "rules removed"} & set(story.lines)
    assert story.at("queues unbound") < story.at("endpoints closed")


@pytest.mark.parametrize(
    ("where", "undone"),
    [
        ("queues served", ["queues unbound"]),
        ("endpoints opened", ["queues unbound"]),
        ("rules installed", ["removal begun", "rules removed", "queues unbound"]),
    ],
)
@pytest.mark.parametrize("error", [NfqGuardError("no such thing"), ZeroDivisionError("oh")])
def test_a_step_that_fails(story: Story, where: str, undone: list[str], error: Exception) -> None:
    """The reason is logged first; then every step taken is undone."""
    story.fails[where] = error
    with pytest.raises(type(error), match=str(error)):
        story.run()
    after = story.lines[story.at(where) + 1 :]
    failed = after.index("event daemon_failed")
    assert all(after.index(line) > failed for line in undone)
    assert "READY=1" not in story.lines
    assert after.count("STOPPING=1") == 1
    assert ("endpoints closed" in after) is (where == "rules installed")


@pytest.mark.parametrize("where", ["removal begun", "queues unbound", "endpoints closed"])
def test_a_step_of_the_end_that_fails(story: Story, where: str) -> None:
    """The other steps are taken all the same."""
    story.then["rules installed"] = terminate
    story.fails[where] = NfqGuardError("it does not go")
    if where == "removal begun":
        story.run()  # reported as rules left behind
        assert "event rules_left_behind" in story.lines
    else:
        with pytest.raises(NfqGuardError, match="it does not go"):
            story.run()
    assert {"removal begun", "queues unbound", "endpoints closed"} <= set(story.lines)
    assert "event stopped" in story.lines


def test_a_second_sigterm_shortens_the_wait(story: Story) -> None:
    """Rules whose removal does not end are given up, and the workers are ended sooner."""
    story.rules.may_remove.clear()
    story.then["rules installed"] = terminate
    story.then["removal begun"] = terminate
    story.run()
    assert "rules removed" not in story.lines
    assert "event rules_left_behind" in story.lines
    assert story.workers.hurried() is True
    assert story.at("queues unbound") < story.at("endpoints closed")
    story.rules.may_remove.set()


def test_root_installs_the_rules_that_a_mode_takes(story: Story) -> None:
    """Until they are installed, the mark of the rules of either mode is cleared."""
    problems: list[str] = []
    modes: list[FailMode] = []
    story.fails["rules installed"] = PrivilegeError("CAP_NET_RAW is missing")

    def switch() -> None:
        assert story.daemon is not None
        with pytest.raises(UsageError, match="itself"):
            story.daemon.hand_rules_over()
        story.daemon.set_mode(Mode.ENFORCE, refused)

    def refused(problem: str) -> None:
        assert story.daemon is not None
        problems.append(problem)
        modes.append(story.daemon.fail_mode)
        assert story.daemon.hand_rules_over().mode is Mode.ENFORCE
        story.daemon.rules_installed(None)
        modes.append(story.daemon.fail_mode)
        assert story.daemon.hand_rules_over().mode is Mode.ENFORCE
        story.daemon.rules_installed(FailMode.KERNEL_DROP)
        modes.append(story.daemon.fail_mode)
        terminate()

    story.then["endpoints opened"] = switch
    story.run(rules="keep", fail_mode=FailMode.KERNEL_DROP)
    assert problems == ["CAP_NET_RAW is missing"]
    assert modes == [FailMode.OPEN, FailMode.OPEN, FailMode.KERNEL_DROP]
    handed = UNJUDGED_MARK
    assert story.workers.marks == [handed, 0, handed, 0, handed, handed]
    changes = [name for name in story.events() if name in {"mode_changed", "rules_installed"}]
    assert changes == ["mode_changed", "rules_installed"]


def test_kept_rules_that_are_impossible_fail_the_start(story: Story) -> None:
    """By an exit status that prevents restarts, before READY."""
    story.rules.missing = "the kernel lacks it"
    with pytest.raises(UnavailableError, match="the kernel lacks it"):
        story.run(rules="keep")
    assert "READY=1" not in story.lines
    assert "event daemon_failed" in story.lines


def test_a_changed_file_is_reloaded(story: Story, tmp_path: Path) -> None:
    """Without a request, when the content of a file of the current configuration changes."""
    file = tmp_path / "c.toml"
    file.write_bytes(b"new")
    story.fails["policy read"] = NfqGuardError("a mistake")
    story.then["rules installed"] = lambda: story.stop_at("reload_failed")
    story.run(files={str(file): b"old"})
    assert story.lines.count("policy read") == 1


def test_a_file_that_is_being_written_is_left_alone(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file is valid: its defaults would put a guard in enforce into dry-run."""

    class Written:
        """Changes for three looks, and then no more."""

        looks = 0

        def look(self, _loaded: Mapping[str, bytes]) -> bool:
            self.looks += 1
            story.happened("changed" if self.looks <= 3 else "unchanged")
            return self.looks <= 3

    monkeypatch.setattr("nfq_guard.service.daemon.ChangedFiles", Written)
    story.fails["policy read"] = NfqGuardError("a mistake")
    story.then["rules installed"] = lambda: story.stop_at("reload_failed")
    story.run(files={"c.toml": b""})
    assert story.lines.count("changed") == 3
    assert story.at("unchanged") < story.at("policy read")
    assert story.lines.count("policy read") == 1


def test_files_that_cannot_be_compared_end_nothing(story: Story) -> None:
    """The daemon logs that, and tries again."""
    story.then["rules installed"] = lambda: story.stop_at("note", "note", "note")
    story.run(files={"\0": b""})
    assert "policy read" not in story.lines
