# SPDX-License-Identifier: MIT
"""Written captures, read back by our reader, scapy and tshark."""

import shutil
import subprocess
from pathlib import Path

import pytest
from scapy.utils import PcapNgReader

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.reader import Capture
from nfq_guard.capture.writer import PcapngWriter
from tests.support.missing import cannot_run

RAW_UDP = bytes.fromhex("4500001c0001000040117ccd7f0000017f0000010035003500080000")
ETHERNET_UDP = bytes(12) + b"\x08\x00" + RAW_UDP
FRAMES = [
    (Frame(4, 1_700_000_000_123_456_789, 101, 28, RAW_UDP, 0), "seq-over by 17 bytes"),
    (Frame(9, 1_700_000_001_000_000_000, 1, 99, ETHERNET_UDP, 1), ""),
    (Frame(11, -5, 101, 28, RAW_UDP, 0), "ümlaut"),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "shown.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        for frame, comment in FRAMES:
            writer.write(frame, comment)
    return path


def test_our_reader(written: Path) -> None:
    capture = Capture(str(written))
    frames = [frame for batch in capture.batches() for frame in batch]
    capture.close()
    assert [frame.octets for frame in frames] == [RAW_UDP, ETHERNET_UDP, RAW_UDP]
    assert [frame.wire_len for frame in frames] == [28, 99, 28]
    assert [frame.linktype for frame in frames] == [101, 1, 101]
    assert [frame.time_ns for frame in frames] == [
        1_700_000_000_123_456_789,
        1_700_000_001_000_000_000,
        0,
    ]


def test_scapy(written: Path) -> None:
    with PcapNgReader(str(written)) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == [RAW_UDP, ETHERNET_UDP, RAW_UDP]
    assert packets[0].comment == b"seq-over by 17 bytes"


def test_tshark(written: Path) -> None:
    if shutil.which("tshark") is None:
        cannot_run("needs tshark")
    lines = subprocess.run(
        ["tshark", "-n", "-r", str(written), "-T", "fields", "-e", "frame.comment"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert lines == ["seq-over by 17 bytes", "", "ümlaut"]
