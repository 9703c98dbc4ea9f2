# SPDX-License-Identifier: MIT
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

from nfq_guard.cli import main
from nfq_guard.cli.dump import _end
from tests.support.conversation import Conversation
from tests.support.events import event


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.1:", "10.0.0.1:x", "[::1", ""])
def test_no_address(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["dump", text, "--socket", "/nonexistent"]) == 2
    assert "expected ADDRESS or ADDRESS:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("10.0.0.1", ("10.0.0.1", None)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("2001:DB8:0::1", ("2001:db8::1", None)),
    ],
)
def test_ends(text: str, end: tuple[str, int | None]) -> None:
    assert _end(text) == end


RECORDING = "".join(
    json.dumps(one) + "\n"
    for one in (
        event(),
        event(timestamp="2026-11-23T02:00:01Z", first="2026-11-23T02:00:00Z", count=3),
        event(timestamp="2026-11-23T02:00:02Z", dport=40001, reason="no-entry", breach=None),
        event(timestamp="2026-11-23T02:00:03Z", src="192.0.2.9", dst="192.0.2.1"),
        {"event": "events_suppressed", "timestamp": "2026-11-23T02:00:04Z", "packets": 5},
    )
)
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """As logrotate leaves it."""
    file = tmp_path / "events.jsonl.2.gz"
    file.write_bytes(gzip.compress(RECORDING.encode()))
    return str(file)


def _flows(capsys: Printed, *words: str) -> list[tuple[str, int, int]]:
    """The flows that are printed: an address, a port and the number of packets."""
    assert main(["dump", *words, "--format", "json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(one["flow"]["b"], one["flow"]["b_port"], one["packets"]) for one in found]


def test_the_flows_of_a_recording(recording: str, capsys: Printed) -> None:
    whole = [("192.0.2.9", 8080, 1), ("192.0.2.2", 40001, 1), ("192.0.2.2", 40000, 4)]
    events = ("--events", recording)
    assert main(["dump", *events]) == 0
    out, err = capsys.readouterr()
    assert "5 packets have no event: a limit of events was hit" in err
    assert "tcp 10.244.0.2:8080 - 192.0.2.2:40000: 4 packets" in out
    assert _flows(capsys, *events) == whole
    assert _flows(capsys, "192.0.2.2", *events) == whole[1:]
    assert _flows(capsys, "192.0.2.2:40000", *events) == whole[2:]
    assert _flows(capsys, "--flows", "1", *events) == whole[:1]
    assert main(["dump", "192.0.2.77", *events]) == 0
    assert capsys.readouterr().out == "no flow with that end\n"


def test_the_flows_of_standard_input() -> None:
    words = (sys.executable, "-m", "nfq_guard", "dump", "--events", "-", "--format", "json")
    done = subprocess.run(words, input=RECORDING, text=True, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 3


def test_a_recording_without_events(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "events.jsonl"
    file.touch()
    assert main(["dump", "--events", str(file)]) == 0
    assert capsys.readouterr().out == "no event\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pcap", "x"], "events have no packets"),
    ],
)
def test_what_does_not_go_with_a_recording(
    recording: str, capsys: Printed, words: list[str], said: str
) -> None:
    assert main(["dump", "--events", recording, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--flows", "0"], "argument --flows: expected a whole number from 1, found '0'"),
        (["--events", "x", "--flows", "0"], "--flows: expected a whole number from 1"),
        (["--pcap", "x", "--packets", "0"], "--packets: expected a whole number from 1"),
        (["--pcap", "x", "--flows", "1"], "--pcap writes packets: not with --flows or --format"),
        (["--pcap", "x", "--format", "json"], "--pcap writes packets: not with --flows or"),
        (["--pcap", "-"], "--pcap: expected the name of a file, found '-'; standard output is"),
    ],
)
def test_arguments_that_do_nothing(
    capsys: Printed, tmp_path: Path, words: list[str], said: str
) -> None:
    try:
        status: object = main(["dump", "--socket", str(tmp_path / "none"), *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_flows_of_a_port_are_limited_after_they_are_chosen(
    capsys: Printed, recording: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon chooses by address alone."""
    assert main(["dump", "--events", recording, "--format", "json"]) == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked: list[dict[str, object]] = []

    class Fake:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def request(self, _: str, **arguments: int) -> object:
            asked.append({**arguments})
            return whole[: arguments.get("flows")]

    monkeypatch.setattr("nfq_guard.cli.dump.connected", lambda _: Fake())
    assert _flows(capsys, "192.0.2.2:40000", "--flows", "1") == [("192.0.2.2", 40000, 4)]
    assert _flows(capsys, "--flows", "1") == [("192.0.2.9", 8080, 1)]
    assert asked == [{"address": "192.0.2.2"}, {"flows": 1}]


def test_events_of_a_flow_have_their_name(capsys: Printed, recording: str) -> None:
    """As the schema of events requires."""
    assert main(["dump", "--events", recording, "--format", "json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        for one in json.loads(line)["events"]:
            assert one["event"] == "packet_judged"


def test_what_is_no_recording(tmp_path: Path, capsys: Printed) -> None:
    talk = Conversation(client_isn=1)
    talk.open()
    capture = talk.save(tmp_path / "talk.pcap")
    other = tmp_path / "other"
    other.write_text("nothing of the kind\n", encoding="ascii")
    for name, said in ((capture, "a capture: use replay"), (str(other), "found none")):
        assert main(["dump", "--events", name]) == 2
        assert said in capsys.readouterr().err
