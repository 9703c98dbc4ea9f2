# SPDX-License-Identifier: MIT
"""Workers that do not end, end during an operation, or send invalid messages."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nfq_guard.errors import EXIT_NOT_FINE
from nfq_guard.lab.netns import Namespace
from tests.support.queue import GuardProcess, import_path, wait_for
from tests.support.supervised import HOSTS, QUEUES, Reads, Supervised, queue_all, record_sockets_of

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]
Make = Callable[[str], Namespace]

_SO_SNDBUFFORCE = 32
# Messages of an unknown type, of invalid octets, and larger than a record may be.
UNREADABLE = (msgspec.msgpack.encode({"type": "dance"}), b"\xc1", bytes(600_000))


@pytest.fixture
def supervised(namespace: Make, tmp_path: Path) -> Iterator[Supervised]:
    inside = namespace("corner")
    queue_all(inside, bypass=True)
    one = Supervised(inside, tmp_path)
    yield one
    one.udp.close()


def send_unreadable(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 << 20)
    for message in UNREADABLE:
        end.send(message)


def has_unread_order(pid: int) -> bool:
    """Whether a worker that is stopped has an unread order in its socket."""
    with record_sockets_of(pid) as ends:
        waiting = [fcntl.ioctl(end, termios.FIONREAD, bytes(4)) for end in ends]
    return any(int.from_bytes(count, sys.byteorder) for count in waiting)


def judged_by_all(supervised: Supervised, guard: GuardProcess, rule: str) -> None:
    """Assert that the next packets of each queue are judged by `rule`."""
    wait_for(supervised.all_serving)
    before = len(guard.events("packet_judged"))
    supervised.send()
    wait_for(lambda: len(guard.events("packet_judged")) == before + len(HOSTS))
    events = guard.events("packet_judged")[before:]
    assert {event["queue"] for event in events} == set(QUEUES)
    assert {event["rule"] for event in events} == {rule}


def test_a_worker_that_does_not_end_is_killed(supervised: Supervised) -> None:
    with supervised.start() as guard:
        pid = supervised.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        assert guard.stop() == 0
        (killed,) = guard.events("worker_killed")
        assert (killed["queue"], killed["pid"]) == (QUEUES[1], pid)
    assert supervised.bound() == {}


def test_a_worker_that_is_killed_while_it_starts(supervised: Supervised) -> None:
    """No feature is missing: after exit status 69 systemd would not restart the daemon."""
    code = (
        "import os, signal, sys\n"
        "from nfq_guard.cli import main\n"
        "from nfq_guard.service import assemble\n"
        "assemble.open_queue = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(main(['run', '--config', sys.argv[1]]))\n"
    )
    with supervised.namespace.entered():
        done = subprocess.run(
            [sys.executable, "-c", code, str(supervised.config)],
            env={**os.environ, "PYTHONPATH": import_path()},
            capture_output=True,
            text=True,
            check=False,
        )
    assert re.fullmatch(r"nfq-guard: the worker of queue [345] does not start\n", done.stderr)
    assert done.returncode == EXIT_NOT_FINE


@pytest.mark.parametrize("ends", [False, True], ids=["stuck", "at the end"])
def test_drops_of_a_worker_that_hangs_are_counted(supervised: Supervised, *, ends: bool) -> None:
    """The kernel's counts of its queue vanish with it, and it reports nothing."""
    text = supervised.config.read_text()
    lines = 'fail_mode = "closed"\nqueue_length = 20\nrules = "none"'
    supervised.config.write_text(text.replace('rules = "none"', lines))
    with supervised.start() as guard:
        pid = supervised.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        supervised.send(10)
        dropped = supervised.bound()[QUEUES[1]].queue_dropped
        assert dropped > 0
        if not ends:
            wait_for(lambda: bool(guard.events("worker_restarted")))
        guard.process.terminate()  # what waits in the queue of the worker has no fate to count
        assert guard.process.wait(60) == 0
        events = guard.events("kernel_dropped_packets")
        assert [one["queue_full"] for one in events if one["queue"] == QUEUES[1]] == [dropped]
        assert guard.events("stopped")[-1]["queue_full_drops"] >= dropped


def test_a_second_sigterm_shortens_the_wait(supervised: Supervised) -> None:
    with supervised.start() as guard:
        pid = supervised.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        guard.process.terminate()
        wait_for(lambda: len(supervised.bound()) == 1)  # the others have ended
        guard.process.terminate()
        assert guard.process.wait(60) == 0
        # A worker that was just about to exit may be among them.
        assert pid in {event["pid"] for event in guard.events("worker_killed")}
    assert supervised.bound() == {}


def test_a_worker_dies_during_a_reload(supervised: Supervised) -> None:
    """The other workers take the new policy, and its successor starts with it."""
    with supervised.start() as guard, Reads(supervised.config) as reads:
        pid = supervised.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        supervised.configure("drop")
        with supervised.asked("reload", wait=True) as response:
            wait_for(reads.seen)
            os.kill(pid, signal.SIGKILL)
            assert response()["return"] == "OK"
        judged_by_all(supervised, guard, "rule-drop")
        assert guard.stop() == 0


def test_a_worker_reads_another_policy_than_the_daemon(supervised: Supervised) -> None:
    """The file changes between the daemon's read and a worker's, so all keep the old policy."""
    with supervised.start() as guard:
        pid = supervised.pids()[1]
        supervised.configure("drop")
        os.kill(pid, signal.SIGSTOP)
        with Reads(supervised.config) as reads, supervised.asked("reload", wait=True) as response:
            wait_for(reads.seen)
            supervised.configure("allow")
            os.kill(pid, signal.SIGCONT)
            answer = response()
        assert answer["return"] == "NOK"
        assert "read another policy" in str(answer["message"])
        wait_for(lambda: len(guard.events("reload_failed")) == 1)
        judged_by_all(supervised, guard, "rule-log")
        supervised.configure("drop")
        supervised.ask("reload", "--wait")
        judged_by_all(supervised, guard, "rule-drop")
        assert guard.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["dies", "is silent"])
def test_a_worker_during_a_dump(supervised: Supervised, number: signal.Signals | None) -> None:
    """The flows of the other workers are shown, and the queue is served again."""
    with supervised.start() as guard:
        sent = supervised.send()
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        pid = supervised.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        with supervised.asked("dump") as response:
            if number is not None:
                wait_for(lambda: has_unread_order(pid))
                os.kill(pid, number)
            answer = response()
        assert answer["return"] == "OK"
        assert 0 < len(answer["message"]) < len(HOSTS)
        wait_for(lambda: bool(guard.events("worker_restarted")) and supervised.all_serving())
        assert guard.stop() == 0


def test_a_lost_part_of_a_dump_is_counted(supervised: Supervised) -> None:
    """Its record is larger than the buffer of the worker's socket."""
    with supervised.start() as guard:
        sent = supervised.send(8)
        wait_for(lambda: len(guard.events("packet_judged")) == sent)
        with record_sockets_of(supervised.pids()[1]) as to_daemon:
            for end in to_daemon:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with supervised.asked("dump") as response:
            assert 0 < len(response()["message"]) < len(HOSTS)
        wait_for(lambda: supervised.status()["messages_refused"] == 1)
        (refused,) = guard.events("message_refused")
        assert (refused["sender"], refused["queue"]) == ("worker", QUEUES[1])
        assert refused["problem"].startswith("no room for a message 'flows'")
        assert guard.stop() == 0


def test_unreadable_messages_are_counted_and_end_nobody(supervised: Supervised) -> None:
    with supervised.start() as guard:
        before = supervised.pids()
        with record_sockets_of(guard.process.pid) as to_workers:
            assert len(to_workers) == 2 * len(QUEUES)
            for end in to_workers:
                send_unreadable(end)
        refused_by_workers = len(QUEUES) * len(UNREADABLE)
        wait_for(lambda: supervised.status()["messages_refused"] == refused_by_workers)
        for pid in before:
            with record_sockets_of(pid) as to_daemon:
                for end in to_daemon:
                    send_unreadable(end)
        refused = 3 * refused_by_workers  # orders, reports and lines of the log
        wait_for(lambda: supervised.status()["messages_refused"] >= refused)

        def senders() -> set[str]:
            return {event["sender"] for event in guard.events("message_refused")}

        wait_for(lambda: senders() == {"daemon", "worker"})
        assert supervised.pids() == before
        assert guard.events("worker_ended") == guard.events("supervision_failed") == []
        supervised.configure("drop")
        supervised.ask("reload", "--wait")
        judged_by_all(supervised, guard, "rule-drop")
        assert supervised.status()["messages_refused"] == refused
        assert guard.stop() == 0
