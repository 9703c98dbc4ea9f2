# SPDX-License-Identifier: MIT
"""`replay --flows`: the history of each TCP flow."""

import json
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.cli import main
from nfq_guard.replay.flow_list import ListedFlowRecord
from nfq_guard.replay.listing import MOST_LISTED
from tests.support import captures
from tests.support.conversation import RAW, Conversation

_DAY = 86_400.0


def listed(
    talk: Conversation, folder: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> list[dict[str, Any]]:
    path = talk.save(folder / "talk.pcap")
    assert main(["replay", "--flows", "--format", "json", *words, path]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_flow_from_its_beginning_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=10)
    talk.server("A", 1, 20_000)
    talk.server("FA", 1, 11)
    talk.client("FA", 11, 2)
    talk.server("A", 2, 12)
    (flow,) = listed(talk, tmp_path, capsys)
    assert flow.keys() == ListedFlowRecord.__required_keys__
    assert flow["flow"] == "10.0.0.1:40000 > 10.0.0.2:80"
    assert (flow["first_frame"], flow["packets"], flow["answers"]) == (1, 4, 4)
    assert (flow["state"], flow["expired"]) == ("TIME_WAIT", False)
    assert (flow["fin"], flow["rst"], flow["renewed"]) == (True, False, None)
    assert sum(flow["invalid"].values()) + flow["in_doubt"] == 1
    assert not any(flow[name] for name in ("began_before", "one_way", "translated"))


def test_a_flow_that_goes_on_after_its_entry_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No packet is INVALID, but here a translating host would break the flow."""
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=10, wait=6 * _DAY)
    talk.server("A", 1, 11)
    talk.server("RA", 1, 11)
    (flow,) = listed(talk, tmp_path, capsys)
    assert flow["renewed"] == 4
    assert (flow["invalid"], flow["in_doubt"]) == ({}, 0)
    assert flow["rst"]
    (flow,) = listed(talk, tmp_path, capsys, "--no-timeouts")
    assert flow["renewed"] is None


def test_an_end_that_only_resets_is_in_the_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the client of a stray segment does: no direction is missing."""
    talk = Conversation()
    talk.server("PA", 1, 1, length=10)
    talk.client("R", 1)
    (flow,) = listed(talk, tmp_path, capsys)
    assert (flow["packets"], flow["answers"], flow["one_way"]) == (1, 1, False)


def test_a_new_connection_between_the_same_ports_is_another_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation()
    talk.open()
    talk.client("RA", 1, 1)
    talk.now += 3600
    talk.isns = (900_000, 700_000)
    talk.open()
    first, second = listed(talk, tmp_path, capsys)
    assert (first["first_frame"], second["first_frame"]) == (1, 5)
    assert (first["renewed"], second["renewed"]) == (None, None)
    assert (first["state"], first["expired"]) == ("CLOSE", True)
    assert (second["state"], second["expired"]) == ("ESTABLISHED", False)


def test_a_repeated_syn_is_no_continuation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation()
    talk.client("S", 0)
    talk.client("S", 0, wait=3600)
    (flow,) = listed(talk, tmp_path, capsys)
    assert (flow["packets"], flow["renewed"]) == (2, None)


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation()
    talk.client("PA", 1, 1, length=10)
    talk.client("PA", 11, 1, length=10, wait=6 * _DAY)
    talk.client("RA", 21, 1, wait=6 * _DAY)
    path = talk.save(tmp_path / "talk.pcap")
    assert main(["replay", "--flows", "--strict", path]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (
        "10.0.0.1:40000 > 10.0.0.2:80: from frame 1, 3 packets and 0 back, ESTABLISHED (expired), "
        "1 no-entry, continued in frame 2 after its entry had gone, began before the capture, "
        "one way only"
    )


def test_the_list_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation()
    talk.client("S", 0)
    (first,) = talk.frames
    records = [
        (1_700_000_000, 0, first.octets[:20] + port.to_bytes(2, "big") + first.octets[22:])
        for port in range(1, MOST_LISTED + 3)
    ]
    path = tmp_path / "scan.pcap"
    path.write_bytes(captures.pcap(records, linktype=RAW))
    assert main(["replay", "--flows", "--format", "json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == MOST_LISTED
    assert "2 more flows are not listed" in err


@pytest.mark.parametrize("words", [["--all"], ["--flow", "10.0.0.1:1-10.0.0.2:2"]])
def test_options_that_do_not_go_with_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Conversation().save(tmp_path / "talk.pcap")
    assert main(["replay", "--flows", *words, path]) == 2
    assert "--flows" in capsys.readouterr().err
