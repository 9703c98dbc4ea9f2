# SPDX-License-Identifier: MIT
"""`explain` draws the whole life of a flow: both ends, holes of the capture, and doubts."""

import json
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.cli import main
from tests.support.conversation import Conversation
from tests.support.healthy import renumbered

_WIDTH = 80


class Ladder:
    """Explains one frame of a conversation."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "talk.pcap"
        self.capsys = capsys

    def lines(self, talk: Conversation, frame: int) -> list[str]:
        name = talk.save(self.path)
        assert main(["explain", name, str(frame)]) == 0
        text = self.capsys.readouterr().out
        lines: list[str] = text.partition("Its flow in the whole capture\n")[2].splitlines()
        return lines[: lines.index("")]

    def record(self, talk: Conversation, frame: int) -> dict[str, Any]:
        name = talk.save(self.path)
        assert main(["explain", name, str(frame), "--format", "json"]) == 0
        life: dict[str, Any] = json.loads(self.capsys.readouterr().out)["life"]
        return life


@pytest.fixture
def ladder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ladder:
    return Ladder(tmp_path, capsys)


def conversation(family: int = 4) -> Conversation:
    talk = Conversation(family=family)
    talk.open()
    talk.client("PA", 1, 1, length=18)
    talk.server("A", 1, 19)
    talk.server("PA", 1, 19, length=1000)
    talk.client("A", 19, 1001)
    return talk


@pytest.mark.parametrize("zero", [1000, 2**32 - 10, 2**31 - 10])
def test_a_syn_that_conntrack_ignores_is_no_origin(ladder: Ladder, zero: int) -> None:
    talk = Conversation(client_isn=zero)
    talk.open()
    talk.client("S", 500_000)
    talk.client("PA", 1, 1, length=18)
    steps = ladder.record(talk, 5)["steps"]
    assert [step["ignored"] for step in steps] == [False, False, False, True, False]
    assert [step["seq"] for step in steps] == [0, 0, 1, 500_000, 1]


def test_a_number_without_an_origin(ladder: Ladder) -> None:
    """An RST does not show where its sender began."""
    talk = Conversation()
    talk.client("R", 19)
    assert [step["seq"] for step in ladder.record(talk, 1)["steps"]] == [None]
    assert any("R 1019 --" in line for line in ladder.lines(talk, 1))


def test_from_the_first_packet_to_the_last(ladder: Ladder) -> None:
    talk = conversation()
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    assert ladder.lines(talk, 8) == [
        "    left 10.0.0.1:40000, right 10.0.0.2:80, 9 packets:",
        "          1     0.0000 S 0 ----------------------------> SYN_SENT",
        "          2     0.0100 <--------------------- SA 0 ack 1 SYN_RECV",
        "          3     0.0200 A 1 ack 1 ----------------------> ESTABLISHED",
        "          4     0.0300 PA 1+18 ack 1 ------------------> ESTABLISHED",
        "          5     0.0400 <--------------------- A 1 ack 19 ESTABLISHED",
        "          6     0.0500 <--------------- PA 1+1000 ack 19 ESTABLISHED",
        "          7     0.0600 A 19 ack 1001 ------------------> ESTABLISHED",
        "  >       8     0.0700 <---------- PA 10000000+31 ack 19 INVALID seq-over",
        "          9     0.0800 R 19 ---------------------------> CLOSE",
        "    Before this packet: ESTABLISHED, seen in both directions, assured.",
    ]


def test_hole_and_doubt(ladder: Ladder) -> None:
    talk = conversation()
    del talk.frames[5]
    talk.frames = renumbered(talk.frames)
    lines = ladder.lines(talk, 6)
    assert lines[6:8] == [
        "                       ~~ 1000 bytes not in the capture, by frame 6",
        "  >       6     0.0600 A 19 ack 1001 ------------------> INVALID ack-over?",
    ]
    life = ladder.record(talk, 3)
    assert life["holes"] == [{"kind": "unseen-data", "frame": 6, "missing": 1000}]
    assert life["steps"][-1]["doubt"] == "unseen-data"
    assert (life["flow"], life["packets"]) == ("10.0.0.1:40000 > 10.0.0.2:80", 6)


@pytest.mark.parametrize("frame", [1, 5, 150, 405])
def test_long_flow(ladder: Ladder, frame: int) -> None:
    """Its beginning, its end, the frame and those around it; what is INVALID; how many others."""
    talk = conversation()
    for start in range(1001, 201_001, 1000):
        talk.server("A", start, 19, length=1000)
        talk.client("A", 19, start + 1000)
    talk.client("FA", 19, 201_001)
    lines = ladder.lines(talk, frame)
    assert len(lines) < 25
    shown = [int(line[4:11]) for line in lines if line[4:11].strip().isdigit()]
    assert {1, 2, 3, 4, frame - 1, frame, frame + 1, 405, 408} - {0} <= set(shown)
    left_out = sum(int(line.split()[1]) for line in lines if " more packet" in line)
    assert len(shown) + left_out == 408


def test_flow_with_many_invalid_packets(ladder: Ladder) -> None:
    talk = conversation()
    for number in range(300):
        talk.server("PA", 10_000_000 + number, 19, length=31)
    assert len(ladder.lines(talk, 100)) < 50


def test_long_names_and_numbers(ladder: Ladder) -> None:
    """IPv6, days of capture, and numbers of ten digits keep to 80 columns."""
    talk = conversation(family=6)
    talk.now += 40 * 86_400
    talk.server("PA", 3_000_000_000, 3_000_000_000, length=1400)
    talk.server("SA", 3_000_000_000, 3_000_000_000, length=1400)
    lines = ladder.lines(talk, 8)
    assert max(map(len, lines)) <= _WIDTH
    assert any("3456000.07" in line for line in lines)


def test_another_protocol(ladder: Ladder) -> None:
    talk = Conversation()
    talk.client("S", 0)
    (opening,) = talk.frames
    datagram = bytearray(opening.octets[:28])
    datagram[2:4], datagram[9], datagram[10:12] = b"\0\x1c", 17, b"\0\0"
    datagram[24:28] = b"\0\x08\0\0"
    talk.frames.clear()
    talk.add(bytes(datagram))
    lines = ladder.lines(talk, 1)
    assert lines[1] == "  >       1     0.0000 udp len 0 ----------------------> NEW"
    step = ladder.record(talk, 1)["steps"][0]
    assert (step["flags"], step["seq"], step["length"]) == (None, None, None)


def test_frame_without_a_flow(ladder: Ladder) -> None:
    talk = conversation()
    talk.add(bytes(range(1, 30)))
    assert ladder.record(talk, 8) is None
