# SPDX-License-Identifier: MIT
"""The daemon with the kernel's log as its evidence: its events, and the state it leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.errors import BusyError
from nfq_guard.finding import Reason
from nfq_guard.flow import IPV4, IPV6, Evidence, EvidenceChoice
from nfq_guard.flows import log_settings
from nfq_guard.flows.kernel_log import KernelLog
from nfq_guard.flows.open import open_lookup
from tests.fuzz_kernel.compare import ends_of
from tests.fuzz_kernel.evidence import Tally, run_chunk
from tests.support.kernel_log import prints_bounds
from tests.support.live import LiveConntrack
from tests.support.queue import QUEUE, GuardProcess, typed, wait_for
from tests.support.trace import parse

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]

_ON = {"nf_log/2": "nfnetlink_log", "nf_log/10": "nfnetlink_log", "nf_conntrack_log_invalid": "255"}
_OPEN = (
    "> S 0:0(0) win 65535 <mss 1460,sackOK,wscale 7>",
    "< S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,wscale 7>",
    "> . 1:1(0) ack 1 win 512",
    "> P. 1:101(100) ack 1 win 512",
    "< P. 1:201(200) ack 101 win 512",
    "> . 101:101(0) ack 201 win 512",
)
# The INVALID packet, its reason, and the number of the bound.
_CASES = (
    ("< P. 300000:300001(1) ack 101 win 512", Reason.SEQ_OVER, "seq-over"),
    ("< . 201:201(0) ack 102 win 512", Reason.ACK_OVER, "ack-over"),
    ("< R 200:200(0)", Reason.RST_OUTSIDE, None),
    ("> S. 101:101(0) ack 201", Reason.BAD_TRANSITION, None),
    ("> SF 101:101(0)", Reason.BAD_FLAGS, None),
)


def values() -> dict[str, str]:
    return {name: (log_settings.SYSCTLS / name).read_text().strip() for name in _ON}


def files() -> list[str]:
    folder = log_settings.FOLDER
    name = str(Path("/proc/thread-self/ns/net").stat().st_ino)
    return [each.name for each in folder.glob(name)] if folder.exists() else []


@pytest.fixture
def live() -> Iterator[LiveConntrack]:
    with LiveConntrack(DEFAULT_SYSCTLS, reads_log=False) as made:
        assert values()["nf_conntrack_log_invalid"] == "0"
        yield made


class Guard:
    """A daemon with the kernel's log as evidence, in the namespace of `live`."""

    def __init__(
        self,
        live: LiveConntrack,
        folder: Path,
        settings: str = "",
        evidence: EvidenceChoice = "kernel-log",
    ) -> None:
        self.socket = folder / "socket"
        self.config = folder / "one.toml"
        self.config.write_text(
            f'[daemon]\nqueue = {QUEUE}\nevidence = "{evidence}"\nlog_interval_s = 0\n'
            f'control_socket = "{self.socket}"\nmode = "enforce"\n{settings}\n'
            '[policy]\ndefault = "log"\non_unknown = "log"\n'
        )
        self._live = live
        self._folder = folder
        self._starts = 0

    def started(self) -> GuardProcess:
        self._starts += 1
        log = self._folder / f"log{self._starts}"
        return GuardProcess(self._live.space, log, "--config", str(self.config))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(typed(self.socket, "status", "--format", "json"))
        return found


def test_reason_and_bound_come_from_the_log(live: LiveConntrack, tmp_path: Path) -> None:
    before = values()
    numbers = prints_bounds(os.uname().release)
    guard = Guard(live, tmp_path)
    with guard.started().ready() as process:
        assert values() == _ON
        (started,) = process.events("started")
        assert started["evidence"] == "kernel-log"
        assert "chosen by the setting" in started["evidence_reason"]
        for serial, (line, _, _) in enumerate(_CASES * 2):
            ends = ends_of(IPV4 if serial < len(_CASES) else IPV6, serial)
            for each in (*_OPEN, line):
                live.send_through_queue(ends.octets(parse(each)))
        wait_for(lambda: len(process.events("packet_judged")) == 2 * len(_CASES))
        for event, (_, reason, bound) in zip(
            process.events("packet_judged"), _CASES * 2, strict=True
        ):
            assert (event["reason"], event["evidence"]) == (reason, "kernel-log")
            assert (event["breach"] and event["breach"]["bound"]) == (bound if numbers else None)
        status = guard.status()
        assert (status["evidence"], status["evidence_reason"]) == (
            "kernel-log",
            started["evidence_reason"],
        )
        assert status["queues"][0]["kernel_log_lost"] == 0
        assert process.stop() == 0
    assert values() == before
    assert files() == []


def test_the_choice_of_the_daemon(live: LiveConntrack, tmp_path: Path) -> None:
    """It takes the kernel's log if it has no window, and sets no sysctl if it has one."""
    before = values()
    flows, why = open_lookup()
    flows.close()
    has_window = flows.evidence is Evidence.BPF
    guard = Guard(live, tmp_path, evidence="auto")
    with guard.started().ready() as process:
        (started,) = process.events("started")
        assert started["evidence"] == ("bpf" if has_window else "kernel-log")
        assert values() == (before if has_window else _ON)
        if not has_window:
            assert started["evidence_reason"] == f"the kernel's window cannot be read: {why}"
        assert process.stop() == 0
    assert values() == before


def test_a_crash_and_the_next_start(live: LiveConntrack, tmp_path: Path) -> None:
    before = values()
    guard = Guard(live, tmp_path)
    with guard.started().ready() as process:
        process.stop(signal.SIGKILL)
    assert values() == _ON
    assert len(files()) == 1
    with guard.started().ready() as process:
        assert guard.status()["evidence"] == "kernel-log"
        assert process.stop() == 0
    assert values() == before
    assert files() == []


def test_it_follows_what_others_set(live: LiveConntrack, tmp_path: Path) -> None:
    guard = Guard(live, tmp_path)
    with guard.started().ready() as process:
        setting = log_settings.SYSCTLS / "nf_conntrack_log_invalid"

        def changes() -> list[dict[str, Any]]:
            return process.events("evidence_changed")

        for value, evidence in (("0", "ctnetlink"), ("255", "kernel-log")):
            setting.write_text(value)
            wait_for(lambda: evidence in [event["evidence"] for event in changes()])  # noqa: B023 - called here
            assert changes()[-1]["evidence"] == evidence
            assert guard.status()["evidence"] == evidence
        assert process.stop() == 0
    assert values()["nf_conntrack_log_invalid"] == "0"


def test_a_host_that_logs_is_left_alone(live: LiveConntrack, tmp_path: Path) -> None:
    (log_settings.SYSCTLS / "nf_conntrack_log_invalid").write_text("6")
    before = values()
    guard = Guard(live, tmp_path)
    with guard.started().ready() as process:
        (started,) = process.events("started")
        assert started["evidence"] == "ctnetlink"
        notes = " ".join(note["text"] for note in process.events("note"))
        assert "left alone: net.netfilter.nf_conntrack_log_invalid is 6 already" in notes
        assert process.stop() == 0
    assert values() == before


def test_another_reader_keeps_the_group(live: LiveConntrack, tmp_path: Path) -> None:
    before = values()
    guard = Guard(live, tmp_path)
    log = KernelLog(guess_rules(os.uname().release), lambda: False)
    with log, guard.started().ready() as process:
        (started,) = process.events("started")
        assert started["evidence"] == "ctnetlink"
        notes = " ".join(note["text"] for note in process.events("note"))
        assert f"(pid {os.getpid()}) reads NFLOG group 0" in notes
        assert process.stop() == 0
    assert values() == before


def test_prepare_while_the_daemon_runs(live: LiveConntrack, tmp_path: Path) -> None:
    """It changes nothing, and no other process can bind the group."""
    guard = Guard(live, tmp_path)
    with guard.started().ready() as process:
        (started,) = process.events("started")
        assert started["evidence"] == "kernel-log", process.events("note")
        words = ["prepare", "--user", "root", "--config", str(guard.config)]
        done = subprocess.run(
            live.space.argv([sys.executable, "-m", "nfq_guard", *words]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert values() == _ON
        with pytest.raises(BusyError):
            KernelLog(guess_rules(os.uname().release), lambda: False)
        assert process.stop() == 0
        assert process.events("evidence_changed") == []


def messages_dropped(process: GuardProcess) -> int:
    """Messages for which a process's netlink sockets had no room, as the kernel counts them."""
    inodes = set()
    for file in Path(f"/proc/{process.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a thread has closed it: SIGSTOP takes a moment
            inodes.add(str(file.stat().st_ino))
    header, *lines = Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines()
    rows = [dict(zip(header.split(), line.split(), strict=True)) for line in lines]
    return sum(int(row["Drops"]) for row in rows if row["Inode"] in inodes)


def test_messages_that_are_lost_are_counted(live: LiveConntrack, tmp_path: Path) -> None:
    """While the daemon is stopped, more packets are logged than its socket buffer holds."""
    guard = Guard(live, tmp_path, "queue_length = 1")
    with guard.started().ready() as process:
        ends = ends_of(IPV4, 1)
        process.process.send_signal(signal.SIGSTOP)
        # Every kernel logs these; not every one logs a packet without an entry.
        flood = [ends.octets(parse(f"> SF {number}:{number}(0)")) for number in range(16)]

        def is_full() -> bool:
            for octets in flood * 16:
                live.put(octets)
            return messages_dropped(process) > 0

        wait_for(is_full)
        process.process.send_signal(signal.SIGCONT)

        def is_counted() -> bool:
            live.put(flood[0])  # its sequence number shows how many were lost before it
            return bool(guard.status()["queues"][0]["kernel_log_lost"])

        wait_for(is_counted)
        assert process.stop() == 0


def test_the_two_sources_agree() -> None:
    """The short form of `make fuzz-evidence`."""
    tally = Tally()
    for number in range(2):
        run_chunk(7, number, tally, 500)
    assert tally.differences == []
    assert {*_REASONS_OF_BOTH} <= set(tally.reasons)


_REASONS_OF_BOTH = (Reason.SEQ_OVER, Reason.ACK_OVER, Reason.BAD_TRANSITION, Reason.NO_ENTRY)
