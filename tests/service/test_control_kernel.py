# SPDX-License-Identifier: MIT
"""The daemon, and the commands that contact it, as an operator runs them."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.queue import (
    QUEUE,
    THAT_PORT_POLICY,
    Datagrams,
    GuardProcess,
    kernel_line,
    queue_udp,
    typed,
    wait_for,
)

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


class Operated:
    """A daemon with its control socket, and the commands of an operator."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self.socket = directory / "s"
        self.config = directory / "c.toml"
        self.configure()
        self.guard = GuardProcess(namespace, directory / "log", "--config", str(self.config))
        self.guard.ready()

    def configure(self, policy: str = THAT_PORT_POLICY, *lines: str) -> None:
        head = ["[daemon]", f"queue = {QUEUE}", 'rules = "none"', "log_interval_s = 0"]
        text = "\n".join([*head, f'control_socket = "{self.socket}"', *lines])
        self.config.write_text(f"{text}\n{policy}")

    def type(self, *words: str, status: int = 0) -> str:
        return typed(self.socket, *words, status=status)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.type("status", "--format", "json"))
        return found


@pytest.fixture
def operated(namespace: Make, tmp_path: Path) -> Iterator[Operated]:
    inside = namespace("control")
    queue_udp(inside)
    one = Operated(inside, tmp_path)
    with one.guard:
        yield one


def test_status_counts(operated: Operated) -> None:
    with Datagrams(operated.namespace) as udp:
        udp.send(120)
        wait_for(lambda: len(operated.guard.events("packet_judged")) == 120)
    status = operated.status()
    (queue,) = status["queues"]
    assert (queue["queue"], queue["state"], queue["packets"]) == (QUEUE, "serving", 120)
    assert queue["pid"] == status["pid"] == operated.guard.process.pid
    assert status["actions"] == {"drop": 120, "log": 0, "allow": 0, "heal": 0}
    assert status["decided_by"] == {"that-port": 120}
    assert sum(sum(one.values()) for one in status["reasons"].values()) == 120
    assert (status["mode"], status["fail_mode"]) == ("dry-run", "open")
    assert status["policy"]["source"] == str(operated.config)
    assert status["rules"]["state"] in {"not ours", "not checked yet"}
    text = operated.type("status")
    for word in ("dry-run", "queue 7", "that-port", status["policy"]["hash"], str(operated.config)):
        assert word in text


def test_mode_at_run_time(operated: Operated) -> None:
    judged = operated.guard.events
    with Datagrams(operated.namespace) as udp:
        udp.send(10)
        wait_for(lambda: len(judged("packet_judged")) == 10)
        assert len(udp.received()) == 10
        assert "mode is enforce" in operated.type("mode", "enforce")
        assert operated.status()["mode"] == "enforce"
        udp.send(10)
        wait_for(lambda: len(judged("packet_judged")) == 20)
        assert udp.received() == []
        operated.type("mode", "dry-run")
        udp.send(10)
        wait_for(lambda: len(judged("packet_judged")) == 30)
        assert len(udp.received()) == 10
    changed = judged("mode_changed")
    assert [one["now"] for one in changed] == ["enforce", "dry-run"]


def test_reload_and_its_outcome(operated: Operated) -> None:
    before = operated.status()
    assert before["last_reload"] is None
    operated.configure(THAT_PORT_POLICY.replace('"drop"', '"log"'), "queue_length = 77")
    said = operated.type("reload", "--wait", status=1)
    assert "daemon.queue_length changed too; that requires a restart" in said
    middle = operated.status()
    assert middle["policy"]["hash"] != before["policy"]["hash"]
    assert middle["policy"]["rules"] == 1
    assert middle["policy"]["restart_for"] == ["queue_length"]
    operated.configure('[policy]\ndefault = "dorp"\non_unknwon = "log"\n')
    complaint = operated.type("reload", "--wait", status=1)
    assert len(complaint.splitlines()) == 2
    assert "policy.default" in complaint
    after = operated.status()
    assert after["policy"] == middle["policy"]
    assert len(after["last_reload"]["mistakes"]) == 2
    assert after["last_error"]["event"] == "reload_failed"
    assert (after["reloads"], after["reload_failures"]) == (1, 1)
    assert "refused" in operated.type("status")


def test_dump_shows_flows(operated: Operated) -> None:
    assert "no flow" in operated.type("dump")
    with Datagrams(operated.namespace) as udp:
        udp.send(20)
        wait_for(lambda: len(operated.guard.events("packet_judged")) == 20)
    (line,) = operated.type("dump", "--format", "json").splitlines()
    flow = json.loads(line)
    assert flow["packets"] == 20
    assert len(flow["events"]) == 8
    assert flow["events"][-1]["rule"] == "that-port"
    assert operated.type("dump", "10.1.1.1", "--format", "json") == ""
    assert "127.0.0.1" in operated.type("dump", "127.0.0.1", "--flows", "1")


def test_no_daemon_is_running(operated: Operated, tmp_path: Path) -> None:
    assert operated.guard.stop() == 0
    assert not operated.socket.exists()
    for command in (["status"], ["reload"], ["mode", "enforce"], ["dump"]):
        assert "not running" in operated.type(*command, status=3)
    operated.socket = tmp_path / "log"
    assert "expected a control socket" in operated.type("status", status=2)


def test_a_second_instance(operated: Operated, namespace: Make, tmp_path: Path) -> None:
    """It exits and names the first, even in another namespace with the same path configured."""
    config = tmp_path / "other.toml"
    text = operated.config.read_text()
    config.write_text(text.replace(f"queue = {QUEUE}", f"queue = {QUEUE + 1}"))
    other = namespace("other")
    with GuardProcess(other, tmp_path / "log2", "--config", str(config)) as second:
        assert second.process.wait(timeout=60) == 75
        pid = operated.guard.process.pid
        assert second.stderr() == (
            f"nfq-guard: another nfq-guard (pid {pid}) listens at {operated.socket}\n"
        )
    assert operated.status()["mode"] == "dry-run"


def test_restart_after_a_kill(operated: Operated, tmp_path: Path) -> None:
    operated.guard.process.kill()
    operated.guard.process.wait(timeout=60)
    assert operated.socket.exists()
    with GuardProcess(
        operated.namespace, tmp_path / "log2", "--config", str(operated.config)
    ).ready():
        assert operated.status()["mode"] == "dry-run"


def test_status_shows_a_policy_on_trial(operated: Operated) -> None:
    trial = operated.config.parent / "trial.toml"
    trial.write_text('[policy]\ndefault = "allow"\non_unknown = "allow"\n')
    operated.configure(THAT_PORT_POLICY, f'shadow = "{trial}"')
    operated.type("reload", "--wait")
    assert operated.status()["shadow"]["source"] == str(trial)
    with Datagrams(operated.namespace) as udp:
        udp.send(20)
        wait_for(lambda: len(operated.guard.events("packet_judged")) == 20)
    (queue,) = operated.status()["queues"]
    assert queue["shadow_would_pass"] == 20
    assert "let pass 20 that are dropped" in operated.type("status")
    assert operated.guard.events("packet_judged")[0]["shadow"]["action"] == "allow"
    trial.write_text('[policy]\ndefault = "dorp"\n')
    assert "trial.toml) policy.default" in operated.type("reload", "--wait", status=1)


def test_abuse_of_the_socket_costs_no_packet(operated: Operated) -> None:
    """Thousands of idle, malformed, oversized and unread requests, while packets flow."""
    lines = [b"x" * 70_000, b'{"command": "status"}\n' * 200, b"{", b"\xff\n" * 50, b""]
    kept: list[socket.socket] = []
    sent = 0
    with Datagrams(operated.namespace) as udp:
        for number in range(1500):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(0)
            with suppress(BlockingIOError):
                client.connect(str(operated.socket))
                client.send(lines[number % len(lines)])
            kept.append(client)
            if len(kept) > 100:
                kept.pop(0).close()
            udp.send(2)
            sent += 2
            time.sleep(0.001)
        wait_for(lambda: kernel_line(operated.namespace).waiting == 0)
        line = kernel_line(operated.namespace)
        assert len(udp.received()) == sent
        assert (line.queue_dropped, line.user_dropped) == (0, 0)
    for client in kept:
        client.close()
    status = operated.status()
    assert status["queues"][0]["packets"] == sent
    descriptors = Path("/proc", str(operated.guard.process.pid), "fd")
    assert len(list(descriptors.iterdir())) < 60
