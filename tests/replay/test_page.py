# SPDX-License-Identifier: MIT
"""`replay --report`: the page of a capture."""

from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.errors import EXIT_OK, EXIT_USAGE
from tests.support import captures
from tests.support.conversation import RAW, Conversation


def talk_with_stray() -> Conversation:
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=18)
    talk.server("A", 1, 19)
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    return talk


def page_of(folder: Path, *words: str) -> str:
    page = folder / "page.html"
    assert main(["replay", "--report", str(page), *words]) == EXIT_OK
    return page.read_text(encoding="utf-8")


def test_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = talk_with_stray().save(tmp_path / "talk.pcap")
    text = page_of(tmp_path, capture)
    assert "seq-over" in text
    assert "10.0.0.1:40000" in text
    assert "talk.pcap" in text
    assert "preset:strict" in text
    out, err = capsys.readouterr()
    assert "INVALID by reason" in out
    assert err == f"nfq-guard: {tmp_path}/page.html: 1 INVALID packet in 1 flow\n"


def test_page_of_one_policy_and_of_selected_packets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = talk_with_stray().save(tmp_path / "talk.pcap")
    text = page_of(tmp_path, capture, "--policy", "preset:observe", "--format", "json")
    assert "preset:observe" in text
    assert "preset:strict" not in text
    assert "10.0.0.1:40000" in text
    page_of(tmp_path, capture, "--only", "ack-over", "--summary")
    assert "0 INVALID packets in 0 flows" in capsys.readouterr().err


def test_page_says_what_the_capture_leaves_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding in doubt is no fact on the page either."""
    talk = talk_with_stray()
    del talk.frames[3]
    octets = Path(talk.save(tmp_path / "lossy.pcap")).read_bytes()
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(octets[:-3])
    text = page_of(tmp_path, str(cut))
    assert "not counted above" in text
    assert "cut.pcap" in text
    assert "1 INVALID packet in 1 flow" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0, 0xFFFFFFFF])
def test_any_time(seconds: int, tmp_path: Path) -> None:
    records = [(seconds, 0, frame.octets) for frame in talk_with_stray().frames]
    path = tmp_path / "time.pcap"
    path.write_bytes(captures.pcap(records, linktype=RAW))
    assert "seq-over" in page_of(tmp_path, str(path))


def test_page_of_a_capture_is_not_that_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = talk_with_stray().save(tmp_path / "talk.pcap")
    assert main(["replay", "--report", capture, capture]) == EXIT_USAGE
    assert "is an input file" in capsys.readouterr().err


def test_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = talk_with_stray().save(tmp_path / "talk.pcap")
    page = tmp_path / "missing" / "page.html"
    assert main(["replay", "--report", str(page), capture]) == EXIT_USAGE
    assert "cannot be written" in capsys.readouterr().err
