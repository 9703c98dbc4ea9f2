# SPDX-License-Identifier: MIT
"""Every signal, sent to a worker and to a daemon: neither hangs."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.queue import GuardProcess, wait_for
from tests.support.supervised import Supervised

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

ALL = range(1, 65)
# By their default action, or because Python ignores them: SIGPIPE and SIGXFSZ.
IGNORED = {
    *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT),
    *(signal.SIGPIPE, signal.SIGXFSZ),
}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
# Signals for the service as a whole; workers ignore them.
OF_THE_SERVICE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
# Reserved by the C library, which handles them once it has started a thread.
OF_THE_LIBRARY = {32, 33}
WORKERS = 8
# Many processes share the machine.
PATIENCE_S = 120


def name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@pytest.fixture(autouse=True)
def _no_core_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_to_a_worker(namespace: Make, tmp_path: Path) -> None:
    """It is replaced, or continues; the daemon and the other workers stay, and end cleanly."""
    supervised = Supervised(namespace("sig"), tmp_path)
    go_on = IGNORED | OF_THE_SERVICE
    text = supervised.text("log").replace('"3-5"', f'"1-{WORKERS}"')
    supervised.config.write_text(text)
    with supervised.start() as guard:
        sent: dict[int, int] = {}
        for first in range(1, 65, WORKERS):
            numbers = range(first, first + WORKERS)
            before = supervised.pids()
            for pid, number in zip(before, numbers, strict=True):
                sent[pid] = number
                os.kill(pid, number)

            def settled(before: list[int] = before) -> bool:
                queues = supervised.status()["queues"]
                stuck = {event["pid"] for event in guard.events("worker_stuck")}
                return all(
                    queue["state"] == "serving"
                    # A worker that gets no CPU for seconds is replaced like one that is stopped.
                    and (
                        sent[pid] in OF_THE_LIBRARY
                        or (queue["pid"] == pid) is (sent[pid] in go_on and pid not in stuck)
                    )
                    for queue, pid in zip(queues, before, strict=True)
                )

            wait_for(settled, PATIENCE_S)
        stuck = {event["pid"] for event in guard.events("worker_stuck")}
        assert {number for pid, number in sent.items() if pid in stuck} >= STOPPING
        ended = {event["pid"]: event["how"] for event in guard.events("worker_ended")}
        for pid, number in sent.items():
            if pid in stuck:
                assert ended[pid] in {"SIGKILL", name_of(number)}
            elif number in OF_THE_LIBRARY:
                assert ended.get(pid) in {None, name_of(number)}
            elif number in go_on:
                assert pid not in ended
            else:
                assert ended[pid] == name_of(number)
        assert guard.events("supervision_failed") == guard.events("daemon_failed") == []
        assert guard.stop() == 0
        assert guard.events("worker_killed") == []
    assert supervised.bound() == {}
    supervised.udp.close()


def test_to_a_daemon_that_goes_on(namespace: Make, tmp_path: Path) -> None:
    """Signals that it ignores, reloads at or stops at; at its end its rules are removed."""
    supervised = Supervised(namespace("sig"), tmp_path)
    supervised.config.write_text(supervised.text("log").replace('"none"', '"install"'))
    with supervised.start() as guard:
        before = supervised.pids()
        for number in IGNORED:
            guard.process.send_signal(number)
        for number in STOPPING:
            guard.process.send_signal(number)
            guard.process.send_signal(signal.SIGCONT)
        guard.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: bool(guard.events("counters")), PATIENCE_S)
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reloaded")), PATIENCE_S)
        assert supervised.all_serving()
        assert supervised.pids() == before
        assert "NFQ_GUARD" in supervised.namespace.run("iptables-save").stdout
        assert guard.stop() == 0
    assert "NFQ_GUARD" not in supervised.namespace.run("iptables-save").stdout
    assert supervised.bound() == {}
    supervised.udp.close()


@pytest.mark.long
def test_to_a_daemon_that_was_stopped_for_long(namespace: Make, tmp_path: Path) -> None:
    """As by Ctrl-Z: workers do not count as silent for the time in which it did not read."""
    supervised = Supervised(namespace("sig"), tmp_path)
    with supervised.start() as guard:
        before = supervised.pids()
        for pid in (*before, guard.process.pid):
            os.kill(pid, signal.SIGSTOP)
        # Longer than a worker may be silent.
        with pytest.raises(AssertionError):
            wait_for(lambda: False, 2.5)
        for pid in (guard.process.pid, *before):
            os.kill(pid, signal.SIGCONT)
        supervised.ask("reload", "--wait")
        assert supervised.pids() == before
        assert guard.events("worker_stuck") == []
        assert guard.stop(signal.SIGINT) == 130
    supervised.udp.close()


@pytest.mark.no_cover  # starts a daemon for each signal
@pytest.mark.long
@pytest.mark.timeout(600)
def test_to_a_daemon_that_ends(namespace: Make, tmp_path: Path) -> None:
    """Each of the others ends it at once; its workers notice, and unbind their queues."""
    inside = namespace("sig")
    config = tmp_path / "c.toml"
    config.write_text('[daemon]\ncontrol_socket = ""\n')
    caught: dict[int, int] = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT}
    goes_on = IGNORED | STOPPING | {signal.SIGHUP, signal.SIGUSR1}
    fatal = [number for number in ALL if number not in goes_on]
    # Daemons with one queue, and some with two, which have workers.
    two = {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV, 40, 64}
    together = 6
    words = ("--no-rules", "--config", str(config))
    for first in range(0, len(fatal), together):
        with ExitStack() as running:
            guards: list[tuple[int, GuardProcess]] = []
            for number in fatal[first : first + together]:
                queue = 2 * number
                queues = (
                    ("--queues", f"{queue}:{queue + 1}")
                    if number in two
                    else ("--queue", f"{queue}")
                )
                guard = GuardProcess(inside, tmp_path / f"log{number}", *words, *queues)
                guards.append((number, running.enter_context(guard)))
            for number, guard in guards:
                wait_for(lambda guard=guard: bool(guard.events("started")), PATIENCE_S)  # type: ignore[misc]  # bound
                guard.process.send_signal(number)
                if number in OF_THE_LIBRARY:
                    guard.process.terminate()
                    assert guard.process.wait(PATIENCE_S) in {0, -number}, name_of(number)
                    continue
                status = guard.process.wait(PATIENCE_S)
                assert status == caught.get(number, -number), name_of(number)
                assert bool(guard.events("stopped")) is (number in caught)
    path = Path("/proc/net/netfilter/nfnetlink_queue")
    wait_for(lambda: inside.run("cat", str(path)).stdout == "", PATIENCE_S)
