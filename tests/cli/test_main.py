# SPDX-License-Identifier: MIT
"""What all commands share: one-line errors, exit statuses, and an output that goes away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_guard.cli import COMMANDS, main
from tests.support.conversation import Conversation

COMMAND = [sys.executable, "-m", "nfq_guard"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path.cwd())}
SPEAKING = ["check", "--explain-rule", "preset:default"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["nonsense"], "'nonsense'"),
        (["run", "--queue", "x"], "argument --queue: invalid int value: 'x' (see nfq-guard run"),
        (["lab", "run", "nowhere"], "'nowhere'"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nfq-guard: ")
    assert said in line


def test_summaries_keep_their_capitals() -> None:
    done = subprocess.run(
        [*COMMAND, "report", "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "Make an HTML report" in done.stdout
    assert all(summary[0].islower() for summary in COMMANDS.values())


def test_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *SPEAKING], stdout=full, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
        )
    assert done.returncode == 1
    assert done.stderr == b"nfq-guard: the output cannot be written: No space left on device\n"


def test_reader_gone_is_no_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *SPEAKING], stdout=writing, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_closed_output_is_no_crash() -> None:
    """Nor does a file that is opened get the number of standard output, and the output."""
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *SPEAKING]
    done = subprocess.run(words, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupted_is_not_fine(tmp_path: Path) -> None:
    """A script must not take half a matrix for a whole one."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = ["replay", str(fifo)]
    with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        with fifo.open("wb"):  # returns once it is being read
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def loading(
    command: str, number: signal.Signals, *words: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that gets a signal just when it is about to load its module."""
    code = (
        "import os, sys\n"
        "class Signal:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == 'nfq_guard.cli.{command}': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Signal)\n"
        "from nfq_guard.cli import main\n"
        f"sys.exit(main(['{command}', *sys.argv[1:]]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, check=False, env=ENVIRONMENT
    )


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_reload_that_comes_early_ends_nothing(number: signal.Signals) -> None:
    """As logrotate may ask for one while the daemon is still loading."""
    done = loading("run", number, "--config", "/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith(b"nfq-guard: /nonexistent: ")


def test_interrupted_while_loading_is_no_complaint() -> None:
    done = loading("check", signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize("words", [[], ["lab", "run"], ["lab", "matrix"], ["replay"], ["run"]])
def test_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_names_of_files_are_octets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a host of another time and language has named them."""
    talk = Conversation()
    talk.open()
    talk.client("PA", seq=90_000_000, ack=1, length=10)
    capture = talk.save(tmp_path / os.fsdecode(b"caf\xe9.pcap"))
    out = str(tmp_path / "page.html")
    events = tmp_path / os.fsdecode(b"\xff.jsonl")
    events.write_bytes(b"")
    for words in (
        ["replay", "--format", "json", capture, talk.save(tmp_path / "other")],
        ["explain", "--format", "json", capture, "4"],
        ["explain", capture, "4"],
        ["whatif", "--format", "json", capture, "--policy", "preset:default"],
        ["whatif", capture, "--policy", "preset:default"],
    ):
        assert main(words) == 0
        assert "caf\\" in capsys.readouterr().out
    assert main(["report", str(events), "-o", out]) == 0
