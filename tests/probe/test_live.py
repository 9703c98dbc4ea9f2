# SPDX-License-Identifier: MIT
"""The running kernel is probed for its rules."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.lab.netns import Namespace
from nfq_guard.probe.live import ask
from nfq_guard.probe.recognise import recognise
from tests.support.conversation import Conversation

pytestmark = pytest.mark.kernel

GUARD = (sys.executable, "-m", "nfq_guard")
RUNNING = rules_of(platform.release())


@pytest.fixture
def capture(tmp_path: Path) -> str:
    talk = Conversation()
    talk.open()
    return talk.save(tmp_path / "talk.pcap")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_this_kernel_follows_the_rules_of_its_release() -> None:
    found = recognise(ask())
    assert (found.rules, found.differences) == (RUNNING, ())


def test_nothing_is_left_behind() -> None:
    """Neither an interface, a namespace, a thread nor an open file."""

    def state() -> tuple[object, ...]:
        return (
            run("ip", "-o", "link").stdout.count("\n"),
            run("ip", "netns").stdout,
            Path("/proc/thread-self/ns/net").readlink(),
            len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())),
        )

    def leaves_nothing() -> bool:
        before = state()
        ask()
        return state() == before

    ask()
    # Other tests come and go in other processes; what a probe leaves is there each time.
    assert any(leaves_nothing() for _ in range(20))


def test_the_sysctls_of_the_host_do_not_count() -> None:
    """From a namespace with a liberal conntrack the probe still has one of its own."""
    with Namespace("host") as host:
        host.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)
        host.sysctl("netfilter.nf_conntrack_tcp_loose", 0)
        host.sysctl("ipv4.conf.all.rp_filter", 1)
        with host.entered():
            assert recognise(ask()).rules == RUNNING


def test_replay_by_the_rules_of_this_kernel(capture: str) -> None:
    done = run(*GUARD, "replay", "--summary", "--format", "json", "--kernel", "live", capture)
    assert (done.returncode, done.stderr) == (0, "")
    whole = json.loads(done.stdout)
    assert (whole["kernel"], whole["kernel_doubt"]) == (RUNNING.name, None)


def test_doctor_tells_the_generation() -> None:
    checks = map(json.loads, run(*GUARD, "doctor", "--format", "json").stdout.splitlines())
    (check,) = (one for one in checks if one["id"] == "kernel.rules")
    assert check["status"] == "ok"
    assert check["what"].endswith(f"follows the rules of {RUNNING.name}")


@pytest.mark.parametrize("lost", ["sys_admin", "net_admin"])
def test_without_a_privilege_one_line_says_so(capture: str, lost: str) -> None:
    done = run(
        "setpriv", f"--bounding-set=-{lost}", "--inh-caps=-all", "--",
        *GUARD, "replay", "--kernel", "live", capture,
    )  # fmt: skip
    assert done.returncode == 77
    assert done.stderr.count("\n") == 1
    assert "asking the kernel takes root" in done.stderr
    doctor = run("setpriv", f"--bounding-set=-{lost}", "--inh-caps=-all", "--", *GUARD, "doctor")
    assert "not confirmed: asking the kernel takes root" in doctor.stdout


def test_without_tun_one_line_says_so(capture: str) -> None:
    """In a mount namespace whose /dev is empty."""
    done = run(
        "unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh",
        *GUARD, "replay", "--kernel", "live", capture,
    )  # fmt: skip
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert "/dev/net/tun is missing" in done.stderr
