# SPDX-License-Identifier: MIT
"""Several queues, and the control socket, under a real systemd and in its sandbox."""

import json
import re
from typing import Any

import pytest

from nfq_guard.lab.pace import limit
from tests.systemd.conftest import Guest

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.xdist_group("installed"),
    pytest.mark.timeout(limit(180)),
]


def status(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(guest.sh("nfq-guard status --format json"))
    return found


def serving(guest: Guest) -> list[int]:
    """The pids of the workers, once every queue is served."""

    def all_serve() -> bool:
        return all(queue["state"] == "serving" for queue in status(guest)["queues"])

    guest.until(all_serve, "all queues served")
    return [queue["pid"] for queue in status(guest)["queues"]]


def test_workers_of_several_queues(guest: Guest) -> None:
    guest.configure('queues = "0-2"')
    guest.sh("systemctl restart nfq-guard")
    guest.until(lambda: guest.show("ActiveState") == "active", "active")
    before = serving(guest)
    assert len(set(before)) == 3
    assert guest.sh("iptables-save 2>/dev/null | grep -c 'queue-balance 0:2'").strip() == "2"
    guest.sh(f"kill -9 {before[1]}")
    guest.until(lambda: status(guest)["worker_restarts"] == 1, "a new worker")
    after = serving(guest)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert guest.show("NRestarts") == "0"
    assert status(guest)["evidence"] == "bpf"
    held = set()
    for pid in after:
        # The workers may not load a program: each has opened a pin of its own.
        opened = guest.sh(f"ls -l /proc/{pid}/fd")
        assert opened.count("anon_inode:bpf-prog") == 1
        held |= set(re.findall(r"/[0-9a-f]{16}-(\d+)$", opened, re.MULTILINE))
    assert held == {"0", "1", "2"}
    told = guest.sh("journalctl -u nfq-guard --no-pager -o json")
    events = [json.loads(line).get("NFQ_EVENT") for line in told.splitlines()]
    assert "worker_ended" in events
    guest.sh("systemctl stop nfq-guard")
    assert guest.sh("pgrep -cu nfq-guard", check=False).strip() == "0"
    assert guest.sh("iptables-save 2>/dev/null | grep -c NFQUEUE", check=False).strip() == "0"


def test_rules_are_looked_at_from_within_the_sandbox(guest: Guest) -> None:
    """Where the sandbox forbids it, the status says why."""
    guest.until(lambda: status(guest)["rules"]["state"] != "not checked yet", "a look")
    rules = status(guest)["rules"]
    assert rules["state"] in {"as configured", "not checked"}
    assert bool(rules["problem"]) is (rules["state"] == "not checked")


def test_who_may_ask_what(guest: Guest) -> None:
    guest.sh("usermod -a -G nfq-guard daemon")
    words = "runuser -u {} -- nfq-guard {} 2>&1; true"
    assert '"mode"' in guest.sh(words.format("daemon", "status --format json"))
    assert "is for root" in guest.sh(words.format("daemon", "mode enforce"))
    assert "only root and the group" in guest.sh(words.format("nobody", "status"))
    assert "in force" in guest.sh("nfq-guard reload --wait")
