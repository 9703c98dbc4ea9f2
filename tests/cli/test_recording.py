# SPDX-License-Identifier: MIT
"""Events from files, compressed files, standard input and the journal."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from nfq_guard.cli import main
from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.shadow import disagreement
from nfq_guard.telemetry.events import AllowedUnrecorded, Event, all_fields, timestamp
from nfq_guard.telemetry.journal import JournalRenderer
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import EventReader
from tests.support.judgments import DROP_TRANSLATED, judgment, snapshot

_POLICY = ("--policy", "preset:strict")


def _events() -> list[Event]:
    plain = judgment()
    rich = judgment(flow=snapshot())
    rich.shadow = disagreement(DROP_TRANSLATED, Decision(Action.ALLOW, "other"))
    when, first = "2026-01-02T03:04:05.000006Z", "2026-01-02T03:04:01.000006Z"

    def event(made: Any, **fold: Any) -> Event:  # noqa: ANN401 - as `packet_judged` takes it
        return packet_judged(
            made, mode=Mode.DRY_RUN, queue_num=0, evidence=Evidence.BPF, when=when, **fold
        )

    return [
        event(plain),
        event(rich, count=3, first=first, distances={100: 1, 7: 2}),
        event(rich, count=3, first=first, distances={100: 3}),
        AllowedUnrecorded(packets=5),
    ]


def _lines() -> bytes:
    return b"".join(orjson.dumps(all_fields(event)) + b"\n" for event in _events())


def _entry(event: Event) -> bytes:
    """The event as `journalctl -o json` prints it."""
    datagram: bytes = JournalRenderer()(None, "info", {"event": event, "at": timestamp()})
    entry: dict[str, Any] = {"__REALTIME_TIMESTAMP": "1767323045000006"}
    for line in datagram.decode().splitlines():
        key, _, value = line.partition("=")
        if not value:
            continue
        known = entry.get(key)
        if known is None:
            entry[key] = value
        else:
            entry[key] = [*known, value] if isinstance(known, list) else [known, value]
    return orjson.dumps(entry) + b"\n"


def test_the_journal_has_the_same_events() -> None:
    of_file, of_journal = EventReader(), EventReader()
    from_file = list(of_file.read(io.BytesIO(_lines())))
    other = orjson.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": "Started"}) + b"\n"
    entries = b"".join(map(_entry, _events())) + other
    from_journal = list(of_journal.read(io.BytesIO(entries)))
    assert [read.event for read in from_journal] == [read.event for read in from_file]
    assert len(from_file) == 3
    assert of_file.unrecorded.allowed == of_journal.unrecorded.allowed == 5
    assert of_file.skipped == of_journal.skipped == 0
    assert of_journal.others == 2


@pytest.mark.parametrize("compressed", [False, True])
def test_rotated_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *, compressed: bool
) -> None:
    path = tmp_path / "events.jsonl.1"
    path.write_bytes(gzip.compress(_lines()) if compressed else _lines())
    assert main(["whatif", str(path), *_POLICY, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["packets"], found["unrecorded"]["allowed"]) == (7, 5)
    page = tmp_path / "page.html"
    assert main(["report", str(path), "-o", str(page)]) == 0
    assert "5 packets have no event" in page.read_text()


def test_a_file_with_a_byte_order_mark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As editors of Windows write it."""
    path, page = tmp_path / "events.jsonl", tmp_path / "page.html"
    path.write_bytes(b"\xef\xbb\xbf" + _lines())
    assert main(["whatif", str(path), *_POLICY, "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert (json.loads(captured.out)["packets"], captured.err) == (7, "")
    assert main(["report", str(path), "-o", str(page)]) == 0
    assert "skipped" not in capsys.readouterr().err


def test_a_file_that_ends_too_early(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(_lines())[:-4])
    assert main(["whatif", str(path), *_POLICY]) == 0
    assert "not read to the end: the compressed file is truncated" in capsys.readouterr().err


def test_a_text_is_read_whatever_its_first_line_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    for start, skipped in ((b"-- Boot 7 --\n", 1), (b"\xef\xbb\xbf", 0)):
        path.write_bytes(start + _lines())
        assert main(["whatif", str(path), *_POLICY, "--format", "json"]) == 0
        output = capsys.readouterr()
        assert json.loads(output.out)["packets"] == 7
        assert output.err.count("skipped 1 line") == skipped


def test_the_report_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, empty = tmp_path / "events.jsonl", tmp_path / "doctor.jsonl"
    path.write_bytes(b"nonsense\n" + _lines())
    words = ["report", str(path), "-o", str(tmp_path / "page.html")]
    assert main(words) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"nfq-guard: {path}: skipped 1 line that is not an event",
        f"nfq-guard: {path}: 5 packets have no event: allowed without log_allowed",
    ]
    empty.touch()
    assert main([*words, "--doctor", str(empty)]) == 2
    assert f"{empty}: expected the output of doctor" in capsys.readouterr().err


def test_each_kind_of_file_has_its_commands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    events, capture = tmp_path / "events.jsonl", tmp_path / "capture.pcap"
    events.write_bytes(_lines())
    capture.write_bytes(bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000"))
    assert main(["replay", str(events)]) == 2
    assert "events are for whatif and report" in capsys.readouterr().err
    assert main(["report", str(capture), "-o", str(tmp_path / "page.html")]) == 2
    assert "a capture: use replay or whatif" in capsys.readouterr().err


def test_an_empty_recording_has_no_packets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, page = tmp_path / "empty", tmp_path / "page.html"
    path.touch()
    assert main(["whatif", str(path), *_POLICY]) == 0
    assert "0 INVALID packets" in capsys.readouterr().out
    assert main(["report", str(path), "-o", str(page)]) == 0
    assert "no events" in page.read_text()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("/dev/full", "a device; expected a file or a pipe"), ("''", "the name is empty")],
)
def test_a_recording_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, problem: str
) -> None:
    given = name.strip("'")
    for words in (["why", given], ["report", given, "-o", str(tmp_path / "page")]):
        assert main(words) == 2
        assert capsys.readouterr().err == f"nfq-guard: {name}: cannot be read: {problem}\n"
