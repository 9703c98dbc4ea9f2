# SPDX-License-Identifier: MIT
"""Replays captures of lab runs: the same packets are INVALID as on the live kernel."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.reader import Capture
from nfq_guard.cli import main
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import SYN, Packet, Segment
from tests.support.healthy import renumbered

pytestmark = pytest.mark.kernel


class Lab:
    """Runs a scenario without mitigation, with captures of its links."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def run(self, scenario: str) -> int:
        """Run it; returns how many packets the kernel called INVALID."""
        words = ["lab", "run", scenario, "--mitigation", "none", "--pcap", str(self._folder)]
        main([*words, "--format", "json"])
        counted: int = json.loads(self._capsys.readouterr().out)["invalid"]
        return counted

    def records(self, scenario: str, link: str) -> list[Frame]:
        """The frames of a link."""
        with closing(Capture(str(self._folder / f"{scenario}-none-{link}.pcap"))) as capture:
            return [frame for frames in capture.batches() for frame in frames]

    def candidates(self, frames: list[Frame]) -> list[int]:
        """The frames that a host which saw the beginning may have called INVALID."""
        replayer = Replayer(ReplaySettings())
        assert [*replayer.replay(renumbered(frames)), *replayer.finish()] == []
        return [one.frame for one in outside(replayer.streams.began_before)]

    def replay(self, scenario: str, link: str, *words: str) -> list[dict[str, Any]]:
        """The INVALID packets of a link, by our conntrack."""
        capture = self._folder / f"{scenario}-none-{link}.pcap"
        assert main(["replay", str(capture), "--format", "json", *words]) == 0
        return [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]


def _is_syn(frame: Frame) -> bool:
    packet = decode(frame.octets)
    return (
        isinstance(packet, Packet) and isinstance(packet.l4, Segment) and packet.l4.flags & SYN > 0
    )


@pytest.fixture
def lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    return Lab(tmp_path, capsys)


def test_asymmetric_route(lab: Lab) -> None:
    """The router sees one direction; each packet after the SYN is INVALID in both."""
    counted = lab.run("asymmetric")
    invalid = lab.replay("asymmetric", "router")
    assert len(invalid) == counted > 0
    assert {one["reason"] for one in invalid} == {"bad-transition"}


def test_reply_that_escapes_its_translation(lab: Lab) -> None:
    """On the pod's link the stray reply is INVALID, and nothing else.

    The kernel counts a second packet there: the client's RST to the pod's own address, which has
    no entry on a host that translates. The link after the translation does not show that.
    """
    assert lab.run("kube-proxy-dnat") == 2
    (stray,) = lab.replay("kube-proxy-dnat", "inner")
    assert (stray["src"], stray["sport"], stray["reason"]) == ("10.244.0.2", 8080, "seq-over")
    (again,) = lab.replay("kube-proxy-dnat", "inner", "--assume-nat", "dnat")
    assert (again["action"], again["rule"]) == ("drop", "translated")
    # From its middle on, the flow shows no INVALID packet: the stray is a candidate, and it alone.
    records = lab.records("kube-proxy-dnat", "inner")
    # Behind the last SYN, which a slow machine sends again, and the ACK that follows it.
    middle = 1 + max(number for number, frame in enumerate(records, 1) if _is_syn(frame))
    assert lab.candidates(records[middle:]) == [stray["frame"] - middle]


def test_late_retransmission(lab: Lab) -> None:
    """Kubernetes #74839: INVALID under 5.15, valid under 6.1 and on the running kernel."""
    assert lab.run("late-retransmission") == 0
    assert lab.replay("late-retransmission", "inner", "--kernel", "6.1") == []
    (late,) = lab.replay("late-retransmission", "inner", "--kernel", "5.15")
    assert late["reason"] == "seq-under"
