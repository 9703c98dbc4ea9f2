# SPDX-License-Identifier: MIT
"""`nfq-guard replay` with text and JSON output."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.capture.reader import Capture
from nfq_guard.cli import main
from nfq_guard.cli.progress import Progress
from tests.support import captures
from tests.support.conversation import RAW, Conversation


@pytest.fixture
def talk() -> Conversation:
    """A flow with a wrong ACK in frame 5 and a late retransmission in frame 6.

    The right ACK in frame 7 shows that the first one was wrong, and that no data is missing.
    """
    talk = Conversation()
    talk.open()
    talk.server("PA", 1, 1, length=100)
    talk.client("A", 1, 20_000)
    talk.server("A", 0 - 70_000, 1, length=100)
    talk.client("A", 1, 101)
    talk.add(b"\0" * 20)
    return talk


@pytest.fixture
def capture(talk: Conversation, tmp_path: Path) -> str:
    return talk.save(tmp_path / "talk.pcap")


def objects(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["replay", "--format", "json", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The documented fields, and five more."""
    (only,) = objects(capsys, capture)
    assert only == {
        "frame": 5,
        "time": 1700000000.05,
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "sport": 40000,
        "dport": 80,
        "proto": "tcp",
        "ctstate": "INVALID",
        "ignored": False,
        "reason": "ack-over",
        "breach": {"bound": "ack-over", "actual": 25000, "limit": 5101, "distance": 19899},
        "state": "ESTABLISHED",
        "action": "allow",
        "rule": "window",
        "detail": None,
        "doubt": None,
        "doubt_detail": None,
        "absent": None,
        "caused_by": None,
    }


def test_time_is_exact(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A float would lose the nanoseconds; the number is written out."""
    main(["replay", "--format", "json", "--all", capture])
    first = capsys.readouterr().out.splitlines()[0]
    assert '"time":1700000000.010000000,' in first


def test_all(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = objects(capsys, "--all", capture)
    assert [one["ctstate"] for one in found] == [
        "NEW",
        *["ESTABLISHED"] * 3,
        "INVALID",
        "ESTABLISHED",
        "ESTABLISHED",
        None,
    ]
    assert [one["ignored"] for one in found] == [False] * 5 + [True, False, False]
    assert found[-1]["absent"] == "no IP packet"


@pytest.mark.parametrize(
    ("kernel", "reasons"),
    [
        ("5.10", ["ack-over", "seq-under"]),
        ("5.15.0-91", ["ack-over", "seq-under"]),
        ("6.18", ["ack-over"]),
    ],
)
def test_kernel(
    capture: str, capsys: pytest.CaptureFixture[str], kernel: str, reasons: list[str]
) -> None:
    found = objects(capsys, "--kernel", kernel, capture)
    assert [one["reason"] for one in found] == reasons


def test_sysctls(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert objects(capsys, "--be-liberal", capture) == []


def test_only_and_flow(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert objects(capsys, "--only", "seq-over", capture) == []
    assert len(objects(capsys, "--only", "seq-over", "--only", "ack-over", capture)) == 1
    assert len(objects(capsys, "--flow", "10.0.0.2-10.0.0.1", capture)) == 1
    assert objects(capsys, "--flow", "10.0.0.2-10.0.0.3", capture) == []


def test_text(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A heading, a row, a summary; no colours, since this is no terminal."""
    assert main(["replay", capture]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["frame", "time", "packet", "reason", "state", "policy", "why"]
    assert lines[1].split()[:2] == ["5", "0.040000"]
    assert "ack-over" in lines[1]
    assert "ack 19899 bytes beyond 5101" in lines[1]
    text = "\n".join(lines)
    assert "8 frames over 0.1 s of capture, 7 packets in 1 flow, rules of kernel 6.1" in text
    assert "1  allow (rule window)" in text
    assert "\x1b" not in text


def test_colours_on_a_terminal(
    capture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["replay", "--all", capture])
    assert "\x1b[31mack-over" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["replay", "--all", capture])
    assert "\x1b" not in capsys.readouterr().out


def test_summary_alone(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    (whole,) = objects(capsys, "--summary", capture)
    assert (whole["frames"], whole["packets"], whole["flows"]) == (8, 7, 1)
    assert whole["ctstate"]["INVALID"] == 1
    assert whole["reason"] == {"ack-over": 1}
    assert whole["flow"] == {"10.0.0.1:40000 > 10.0.0.2:80": 1}
    assert whole["without_packet"] == {"no IP packet": 1}
    main(["replay", "--summary", capture])
    assert capsys.readouterr().out.startswith("8 frames")


@pytest.fixture
def reset(tmp_path: Path) -> str:
    """A segment far beyond the window in frame 5, and the RST that answers it in frame 6."""
    talk = Conversation()
    talk.open()
    talk.server("PA", 1, 1, length=100)
    talk.server("PA", 9_000_000, 1, length=100)
    talk.client("R", 1)
    return talk.save(tmp_path / "reset.pcap")


def test_a_reset_is_linked_to_the_packet_that_it_answers(
    reset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when conntrack takes the RST for a valid one, as here."""
    *_, last = objects(capsys, "--all", reset)
    assert (last["frame"], last["ctstate"]) == (6, "ESTABLISHED")
    assert last["caused_by"] == {"frame": 5, "reason": "seq-over", "delay_s": 0.01}
    (whole,) = objects(capsys, "--summary", reset)
    assert whole["caused_resets"] == 1
    main(["replay", "--summary", reset])
    shown = capsys.readouterr().out
    assert "RSTs that answer an INVALID packet\n  1  seq-over: frame 6 answers frame 5" in shown


def test_write_links_a_reset(
    reset: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "shown.pcapng"
    main(["replay", "--all", "--write", str(target), reset])
    assert capsys.readouterr().out
    assert b"frame 6: ESTABLISHED, answers frame 5" in target.read_bytes()


def test_write(capture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exactly the shown packets, unchanged."""
    target = tmp_path / "shown.pcapng"
    main(["replay", "--write", str(target), capture])
    main(["replay", "--write", str(target), capture])
    assert "ack-over" in capsys.readouterr().out
    written = Capture(str(target))
    frames = [frame for batch in written.batches() for frame in batch]
    written.close()
    assert [frame.linktype for frame in frames] == [RAW]
    assert b"frame 5: INVALID ack-over: ack 25000 is 19899 bytes beyond" in target.read_bytes()


def test_write_leaves_what_it_reads(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(capture).read_bytes()
    assert main(["replay", "--write", capture, capture]) == 2
    assert "is an input file" in capsys.readouterr().err
    assert Path(capture).read_bytes() == before


def test_policy_file(capture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[policy]\ndefault = "log"\n[[policy.rule]]\n'
        'name = "mine"\nreason = "ack-over"\naction = "drop"\n'
    )
    (only,) = objects(capsys, "--policy", str(policy), capture)
    assert (only["action"], only["rule"]) == ("drop", "mine")


def test_several_files(
    capture: str, talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Merged by time, each packet with its file."""
    other = Conversation(sport=40001)
    other.now = talk.now - 0.055
    other.server("SA", 0, 1)
    second = other.save(tmp_path / "other.pcap")
    found = objects(capsys, capture, second)
    assert [(one["frame"], one["reason"], one["file"]) for one in found] == [
        (1, "no-entry", second),
        (5, "ack-over", capture),
    ]
    written = str(tmp_path / "written.pcapng")
    main(["replay", capture, second, "--write", written])
    assert f"{second}: syn+ack without an entry" in capsys.readouterr().out
    octets = Path(written).read_bytes()
    assert b"frame 1 of capture 2: INVALID no-entry" in octets
    assert b"frame 5 of capture 1: INVALID ack-over" in octets
    # The number is the one that `explain` takes.
    assert main(["explain", capture, "5"]) == 0
    assert "INVALID" in capsys.readouterr().out


def test_the_answered_packet_has_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = [Conversation(), Conversation()]
    talk = parts[0]
    talk.open()
    talk.server("A", 1, 9_000_001)
    first = talk.save(tmp_path / "first.pcap")
    parts[1].now = talk.now + 0.001
    parts[1].client("R", 9_000_001)
    second = parts[1].save(tmp_path / "second.pcap")
    *_, reset = objects(capsys, "--all", first, second)
    assert reset["file"] == second
    assert reset["frame"] == 1
    assert (reset["caused_by"]["frame"], reset["caused_by"]["file"]) == (4, first)


def test_cut_capture(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is replayed up to the cut, with a warning and status 0."""
    path = Path(capture)
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["replay", "--summary", capture]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("7 frames")
    assert re.fullmatch(
        r"nfq-guard: warning: .*talk.pcap: read up to frame 7: the file is truncated in the "
        r"record at byte \d+\n",
        said.err,
    )
    assert main(["replay", "--summary", "--format", "json", capture]) == 0
    (damage,) = json.loads(capsys.readouterr().out)["damage"]
    assert damage.endswith(said.err.partition("warning: ")[2].strip())


def test_a_clock_that_was_set_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The span of the capture is no negative number, and has all of its frames."""
    talk = Conversation()
    talk.open()
    start = talk.now
    for step in (1000.0, -3000.0, 1.0):
        talk.now = start + step
        talk.client("A", 1, 1)
    capture = talk.save(tmp_path / "back.pcap")
    assert main(["replay", "--summary", "--format", "json", capture]) == 0
    assert 4000 <= json.loads(capsys.readouterr().out)["span_s"] <= 4001
    assert main(["replay", "--summary", capture]) == 0
    assert "6 frames over 4,000.0 s of capture" in capsys.readouterr().out
    assert main(["explain", capture, "5"]) == 0
    assert " s before the first frame" in capsys.readouterr().out


def test_unknown_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error if every frame has it, a warning otherwise."""
    path = tmp_path / "usb.pcap"
    path.write_bytes(captures.pcap([(1, 0, b"x" * 40)], linktype=189))
    assert main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert "unsupported link type 189 (USB) in 1 frame, first in frame 1 (supported: BSD" in error
    path.write_bytes(
        captures.section()
        + captures.interface(189)
        + captures.interface(1)
        + captures.enhanced(b"x" * 40)
        + captures.enhanced(b"y" * 40, number=1)
    )
    assert main(["replay", str(path)]) == 0
    assert "warning:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-", "-"], "CAPTURE: standard input can be read only once"),
        (["--kernel", "new", "x"], "--kernel: expected"),
        (["--flow", "nonsense", "x"], "--flow: expected"),
        (["--timeout", "ESTABLISHED", "x"], "--timeout: expected whole seconds for ESTABLISHED"),
        (["--timeout", "NONE=5", "x"], "--timeout: expected STATE=S with one of SYN_SENT"),
        (["--timeout", f"CLOSE={'9' * 5000}", "x"], "--timeout: expected whole seconds for CLOSE"),
        (["/dev/null"], "/dev/null: the file is empty"),
        (["/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """One line, status 2."""
    assert main(["replay", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--flow-table", "0", "from 1"),
        ("--flow-table", "1_0", "from 1"),
        ("--max-retrans", "-1", "from 0"),
        ("--assume-wscale", "15", "from 0 to 14"),
    ],
)
def test_wrong_numbers(
    capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["replay", option, value, "x"])
    said = f"argument {option}: expected a whole number {expected}, found {value!r} "
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--write", "--report"])
def test_unwritable_file(capture: str, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["replay", option, "/nowhere/x", capture]) == 2
    assert "/nowhere/x: cannot be written: No such file" in capsys.readouterr().err


def test_timeouts(talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a shorter timeout the entry expires before the FIN arrives."""
    talk.client("FA", 1, 101, wait=100)
    name = talk.save(tmp_path / "late.pcap")
    assert len(objects(capsys, name)) == 1
    found = objects(capsys, "--timeout", "established=60", "--timeout", "udp=5", name)
    assert [one["reason"] for one in found] == ["ack-over", "no-entry"]


class Terminal:
    """Remembers what was written to it."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar with packets a second and the time left; it leaves nothing behind."""
    clock = iter([0.0, 0.1, 10.0, 20.0])
    monkeypatch.setattr("nfq_guard.cli.progress.time.monotonic", lambda: next(clock))
    terminal: Any = Terminal()
    progress = Progress(1000, terminal)
    progress.update(1, 1)
    assert terminal.text == ""
    progress.update(5000, 250)
    assert terminal.text.endswith(
        "[######..................]  25%  5,000 packets, 500/s, 0:30 left"
    )
    progress.clear()
    assert terminal.text.endswith("\r\x1b[K")
    assert progress.seconds == 20.0


def test_progress_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 7200.0])
    monkeypatch.setattr("nfq_guard.cli.progress.time.monotonic", lambda: next(clock))
    terminal: Any = Terminal()
    Progress(None, terminal).update(7200, 100)
    assert terminal.text == "\r\x1b[K7,200 packets, 1/s"


def test_no_progress_when_piped(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["replay", capture])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kernel", "rules", "doubt"),
    [
        ("5.14.0-427.el9", "5.14", "vendors backport"),
        ("4.18.0-513.el8", "5.10", "is not known"),
        ("6.0", "5.18", None),
    ],
)
def test_a_release_that_is_a_guess_is_called_one(
    capture: str, capsys: pytest.CaptureFixture[str], kernel: str, rules: str, doubt: str | None
) -> None:
    assert main(["replay", "--summary", "--kernel", kernel, capture]) == 0
    told = capsys.readouterr()
    assert f"rules of kernel {rules}{' (a guess)' if doubt else ''};" in told.out
    assert (doubt in told.err) if doubt else not told.err
    assert main(["replay", "--summary", "--format", "json", "--kernel", kernel, capture]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["kernel"] == rules
    assert (doubt in whole["kernel_doubt"]) if doubt else whole["kernel_doubt"] is None
    assert main(["explain", "--format", "json", "--kernel", kernel, capture, "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kernel"], found["kernel_doubt"]) == (rules, whole["kernel_doubt"])


def test_check_takes_any_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--kernel", "5.15.0-91-generic", "preset:default"]) == 0
    assert main(["check", "--kernel", "latest", "preset:default"]) == 2
    assert "expected a version such as" in capsys.readouterr().err


def test_nothing_invalid_and_nothing_selected_are_said(
    capture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = Conversation()
    fine.open()
    lossy = Conversation()
    lossy.open()
    lossy.client("A", 1, 1 + 100_000)
    unsure = lossy.save(tmp_path / "lossy.pcap")
    for words, said in (
        ([fine.save(tmp_path / "fine.pcap")], "No packet is INVALID."),
        ([unsure, "--summary"], "No packet is INVALID beyond doubt."),
        ([capture, "--only", "seq-over"], "No INVALID packet is selected by --only."),
        ([capture, "--only", "seq-over", "--summary"], "No INVALID packet is selected"),
    ):
        assert main(["replay", *words]) == 0
        assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("option", ["--write", "--report"])
def test_a_file_that_cannot_be_written_to_its_end_is_named(
    capture: str, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["replay", capture, option, "/dev/full"]) == 1
    error = capsys.readouterr().err
    assert "/dev/full: cannot be written: No space left on device" in error
    assert error.count("\n") == 1


def test_every_reader_of_captures_refuses_an_unknown_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usb.pcap"
    path.write_bytes(captures.pcap([(1, 0, b"x" * 40)], linktype=189))
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 2
    assert "unsupported link type 189 (USB) in 1 frame" in capsys.readouterr().err


def test_a_format_that_is_not_known_has_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ERF capture has no magic number."""
    path = tmp_path / "a capture.erf"
    path.write_bytes(b"\x01" + bytes(63))
    for words in (["replay"], ["whatif", "--policy", "preset:strict"], ["explain"]):
        assert main([*words, str(path), *(["1"] if words == ["explain"] else [])]) == 2
        assert f"editcap -F pcap '{path}' OUT" in capsys.readouterr().err


def test_the_selection_that_was_given_is_named(
    capture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--only", "rst-outside"], "--only."),
        (["--flow", "1.2.3.4:5-1.2.3.4:6"], "--flow."),
        (["--only", "rst-outside", "--flow", "1.2.3.4:5-1.2.3.4:6"], "--only and --flow."),
    ):
        assert main(["replay", capture, *words]) == 0
        assert f"No INVALID packet is selected by {said}\n" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_refused_first(
    capture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in (tmp_path / "none" / "page.html", tmp_path):
        assert main(["replay", capture, "--report", str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"nfq-guard: --report: {path}: cannot be written: ")


def test_help_names_every_state_with_a_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "SCTP_ESTABLISHED, " in text


def test_more_captures_than_open_files(tmp_path: Path) -> None:
    """A ring of tcpdump may have more files than a shell may open at first."""
    talk = Conversation()
    talk.open()
    name = talk.save(tmp_path / "part.pcap")
    words = [sys.executable, "-m", "nfq_guard", "replay", "--summary", *[name] * 200]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("No packet is INVALID")


@pytest.mark.parametrize(
    ("days", "option", "noted"), [(6, [], 1), (6, ["--no-timeouts"], 0), (4, [], 0)]
)
def test_a_gap_in_which_every_entry_expires(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    days: int,
    option: list[str],
    noted: int,
) -> None:
    """Or the clock was set, as on a host without one: the file does not tell."""
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=10)
    talk.server("A", 1, 11)
    talk.client("FA", 11, 1, wait=days * 86_400)
    talk.server("FA", 1, 12)
    assert main(["replay", "--summary", *option, talk.save(tmp_path / "gap.pcap")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    note = (
        "no frame for 6 days before frame 6: every entry has expired there by the kernel's timeouts"
    )
    assert said.count(f"{note}; not if the clock was set (--no-timeouts)") == noted
    assert ("INVALID by reason" in said) == bool(noted)
