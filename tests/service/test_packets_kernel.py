# SPDX-License-Identifier: MIT
"""The last packets of a live daemon, as `dump --pcap` and `capture_dir` write them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.queue import (
    PORT,
    QUEUE,
    THAT_PORT_POLICY,
    Datagrams,
    GuardProcess,
    queue_udp,
    typed,
    wait_for,
)
from tests.support.supervised import HOSTS, Supervised, queue_all

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]


def tshark(capture: Path, *fields: str) -> list[list[str]]:
    """Fields of each frame."""
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-T", "fields", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def replayed(capture: Path) -> int:
    """Packets that `replay` reads."""
    words = ["replay", "--summary", "--format", "json", str(capture)]
    done = subprocess.run(
        [sys.executable, "-m", "nfq_guard", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode < 2, done.stderr
    return int(json.loads(done.stdout)["packets"])


def test_packets_of_one_queue(namespace: Make, tmp_path: Path) -> None:
    """Headers with nanoseconds, interface and comment; hashed if so configured; also in a file."""
    inside = namespace("packets")
    queue_udp(inside)
    control = tmp_path / "s"
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\nrules = "none"\ncontrol_socket = "{control}"\n'
        f'capture_dir = "{tmp_path}"\n{THAT_PORT_POLICY}'
    )
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", str(config)).ready() as guard,
    ):
        udp.send(30, size=100)
        wait_for(lambda: bool(guard.events("packets_saved")))
        assert len(udp.received()) == 30
        plain, hashed = tmp_path / "plain.pcapng", tmp_path / "hashed.pcapng"
        said = typed(control, "dump", "--pcap", str(plain), "--packets", "20")
        assert said == f"wrote 20 packets to {plain}\n"
        typed(control, "dump", "--pcap", str(hashed), "--hash-addresses")
        nothing = tmp_path / "nothing.pcapng"
        typed(control, "dump", "--pcap", str(nothing), "192.0.2.1")
        assert guard.stop() == 0
    (event,) = guard.events("packets_saved")
    assert event["packets"] == 30
    fields = (
        "frame.comment", "frame.interface_name", "frame.cap_len", "frame.len", "ip.src",
        "udp.dstport", "frame.time_epoch",
    )  # fmt: skip
    for capture, frames in ((plain, 20), (hashed, 30), (Path(event["path"]), 30)):
        found = tshark(capture, *fields)
        assert len(found) == frames
        for comment, interface, size, length, source, port, when in found:
            assert comment.startswith("INVALID ")
            assert comment.endswith("rule that-port: drop; verdict accept (in enforce: drop)")
            assert (interface, size, length, port) == ("lo", "28", "128", str(PORT))
            assert (source == "127.0.0.1") is (capture != hashed)
            assert len(when.partition(".")[2]) == 9
        assert replayed(capture) == frames
    assert tshark(nothing, "frame.number") == []


def test_packets_of_several_queues(namespace: Make, tmp_path: Path) -> None:
    """In one file, in the order of their times."""
    inside = namespace("packets")
    queue_all(inside, bypass=True)
    guarded = Supervised(inside, tmp_path)
    capture = tmp_path / "all.pcapng"
    try:
        with guarded.start() as guard:
            guarded.send()
            wait_for(lambda: len(guard.events("packet_judged")) == len(HOSTS))
            guarded.ask("dump", "--pcap", str(capture))
            assert guard.stop() == 0
    finally:
        guarded.udp.close()
    found = tshark(capture, "ip.dst", "frame.time_epoch")
    assert {address for address, _ in found} == set(HOSTS)
    times = [when for _, when in found]
    assert times == sorted(times)
