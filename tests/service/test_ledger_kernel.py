# SPDX-License-Identifier: MIT
"""After a SIGKILL the next process states the packets that the killed one had not recorded."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from nfq_guard.telemetry.reader import EventReader
from tests.support.queue import (
    QUEUE,
    Datagrams,
    GuardProcess,
    configured,
    kernel_line,
    queue_udp,
    wait_for,
)
from tests.support.supervised import Supervised, queue_all

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


def read(path: Path) -> tuple[int, int, int]:
    """The packets with an event, those that a limit suppressed, and those lost with a process."""
    reader = EventReader()
    with path.open("rb") as stream:
        recorded = sum(each.event.count for each in reader.read(stream))
    return recorded, reader.unrecorded.suppressed, reader.unrecorded.lost_judged


def kill(guard: GuardProcess) -> None:
    guard.process.kill()
    guard.process.wait(timeout=60)


def test_a_killed_daemon(namespace: Make, tmp_path: Path) -> None:
    """Folded and suppressed packets; the second daemon is killed before it has said so."""
    inside = namespace("ledger")
    queue_udp(inside)
    file = tmp_path / "events.jsonl"
    lines = (f'events_file = "{file}"', 'mode = "dry-run"', "log_events_per_s = 1")
    words = ("--config", configured(tmp_path / "c.toml", *lines))
    with Datagrams(inside) as udp:
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            udp.send(100)
            udp.send(10, size=40)
            wait_for(lambda: len(udp.received()) > 0 and kernel_line(inside).waiting == 0)
            wait_for(lambda: file.exists() and bool(file.read_bytes()))
            kill(guard)
        assert (tmp_path / "c.toml.sock.ledger").exists()
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            assert guard.stop() == 0
        recorded, suppressed, lost = read(file)
        assert recorded + suppressed + lost == 110
        assert lost > 100
        (unserved,) = guard.events("unserved_time")
        assert 0 < unserved["unserved_s"] < 60
        assert f'"unserved_s":{unserved["unserved_s"]}' in file.read_text()
        said = guard.events("packets_unrecorded")
        assert [(each["queue"], each["packets"]) for each in said] == [(QUEUE, lost)]
        assert not (tmp_path / "c.toml.sock.ledger").exists()
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            assert guard.stop() == 0
        assert len(guard.events("packets_unrecorded")) == 1


def test_a_first_manual_start(namespace: Make, tmp_path: Path) -> None:
    """Without /run/nfq-guard, which root's daemon makes, in a mount namespace with a /run."""
    inside = namespace("manual")
    queue_udp(inside)
    (tmp_path / "run").mkdir()
    config = tmp_path / "c.toml"
    configured(config, 'mode = "dry-run"', "log_interval_s = 100")
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "control_socket" not in line))
    words = ("--config", str(config))
    mounted = f'mount --bind {tmp_path}/run /run && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", mounted, "sh")
    with Datagrams(inside) as udp:
        with GuardProcess(inside, tmp_path / "log", *words, prefix=prefix).ready() as guard:
            udp.send(100)
            wait_for(lambda: len(udp.received()) > 0 and kernel_line(inside).waiting == 0)
            kill(guard)
        with GuardProcess(inside, tmp_path / "log", *words, prefix=prefix).ready() as guard:
            assert guard.stop() == 0
    with guard.log.open("rb") as stream:
        recorded = sum(each.event.count for each in EventReader().read(stream))
    lost = sum(each["packets"] for each in guard.events("packets_unrecorded"))
    assert recorded + lost == 100
    assert lost > 0
    assert len(guard.events("unserved_time")) == 1


def test_a_start_that_fails_after_a_kill(namespace: Make, tmp_path: Path) -> None:
    """It leaves what it could not state to the one after it, with the time without a daemon."""
    inside = namespace("fails")
    queue_udp(inside)
    file = tmp_path / "mounted" / "events.jsonl"
    file.parent.mkdir()
    lines = (f'events_file = "{file}"', 'mode = "dry-run"', "log_interval_s = 100")
    words = ("--config", configured(tmp_path / "c.toml", *lines))
    with Datagrams(inside) as udp:
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            udp.send(100)
            wait_for(lambda: len(udp.received()) > 0 and kernel_line(inside).waiting == 0)
            wait_for(lambda: file.exists() and bool(file.read_bytes()))
            kill(guard)
        file.parent.rename(tmp_path / "unmounted")
        with GuardProcess(inside, tmp_path / "other", *words) as guard:
            assert "cannot be opened" in guard.stderr()
        (tmp_path / "unmounted").rename(file.parent)
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            assert guard.stop() == 0
    recorded, _, lost = read(file)
    assert recorded + lost == 100
    assert lost > 0
    assert len(guard.events("unserved_time")) == 1
    assert not (tmp_path / "c.toml.sock.ledger").exists()


def test_a_daemon_that_is_killed_in_a_flood(namespace: Make, tmp_path: Path) -> None:
    """What arrived has an event or is stated, but for the batch that was being judged."""
    inside = namespace("flood")
    queue_udp(inside, bypass=False)
    file = tmp_path / "events.jsonl"
    lines = [f'events_file = "{file}"', 'mode = "dry-run"', "batch = 64"]
    # None passes because there is no room for it.
    lines += ["queue_length = 16384", "socket_buffer_bytes = 33554432"]
    words = ("--config", configured(tmp_path / "c.toml", *lines))
    arrived = 0
    with Datagrams(inside) as udp:
        for _ in range(5):
            with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
                for number in range(6000):
                    with suppress(PermissionError):  # without a daemon the kernel drops it
                        udp.send(1)
                    if number == 5000:
                        kill(guard)
                arrived += len(udp.received())
        with GuardProcess(inside, tmp_path / "log", *words).ready() as guard:
            assert guard.stop() == 0
    recorded, _, lost = read(file)
    assert arrived <= recorded + lost <= arrived + 5 * 64
    assert lost > 0


@pytest.mark.parametrize("recording", [True, False])
def test_a_daemon_that_is_killed_with_its_workers(
    namespace: Make, tmp_path: Path, *, recording: bool
) -> None:
    """Workers that live on for a moment have nobody who writes their events into the log."""
    inside = namespace("all")
    queue_all(inside, bypass=True)
    supervised = Supervised(inside, tmp_path)
    file = tmp_path / "events.jsonl"
    lines = ["log_interval_s = 100", *([f'events_file = "{file}"'] if recording else [])]
    text = supervised.text("log", *lines).replace("log_interval_s = 0\n", "")
    supervised.config.write_text(text)
    with supervised.start() as guard:
        sent = supervised.send(20)
        wait_for(lambda: supervised.status()["actions"]["log"] == sent)
        first, *others = supervised.pids()
        os.kill(first, signal.SIGKILL)
        kill(guard)
        wait_for(lambda: not any(Path("/proc", str(pid)).exists() for pid in others))
    with supervised.start() as guard:
        assert guard.stop() == 0
    with guard.log.open("rb") as stream:
        in_log = sum(each.event.count for each in EventReader().read(stream))
    lost = sum(each["packets"] for each in guard.events("packets_unrecorded"))
    in_file = read(file)[0] if recording else 0
    assert in_log + in_file + lost == sent
    assert 0 < lost < sent
    supervised.udp.close()
