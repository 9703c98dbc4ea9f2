# SPDX-License-Identifier: MIT
"""`nfq-guard top` on a pseudo-terminal, over a daemon that judges real INVALID packets."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.overrun import PLAIN, REDIRECTED, Overrun
from tests.support.queue import GuardProcess, wait_for

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


class Terminal:
    """A program on its own pseudo-terminal, and its output there."""

    def __init__(self, *words: str, rows: int = 24, columns: int = 160) -> None:
        self.main, side = pty.openpty()
        self._resize(rows, columns)
        # pytest's workers set these variables, which curses prefers to the terminal's size.
        size = {"COLUMNS", "LINES"}
        environment = {name: value for name, value in os.environ.items() if name not in size}
        self.process = subprocess.Popen(
            words,
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env=environment | {"TERM": "xterm-256color"},
        )
        os.close(side)
        os.set_blocking(self.main, False)
        self.written = b""

    def _resize(self, rows: int, columns: int) -> None:
        self.size = rows, columns
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._resize(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def read(self) -> bytes:
        while True:
            try:
                part = os.read(self.main, 1 << 16)
            except (BlockingIOError, OSError):
                return self.written
            if not part:
                return self.written
            self.written += part

    def press(self, keys: str, until: str) -> None:
        """Type `keys`, then wait until the program writes `until`."""
        self.written = b""
        os.write(self.main, keys.encode())
        self.shows(until)

    def shows(self, text: str) -> None:
        """Wait for `text`.

        curses writes only what has changed, so a resize forces a full redraw every second.
        """
        deadline = time.monotonic() + 15
        again = time.monotonic() + 1
        while text.encode() not in self.read():
            if time.monotonic() > again:
                again += 1
                rows, columns = self.size
                self.resize(rows, columns ^ 1)
            assert time.monotonic() < deadline, self.written[-2000:]
            assert self.process.poll() is None, self.written[-2000:]
            time.sleep(0.02)

    def ends(self) -> int:
        status = self.process.wait(timeout=60)
        self.read()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=60)
        os.close(self.main)


@pytest.fixture
def guarded(namespace: Make, tmp_path: Path) -> Iterator[Path]:
    """Control socket of a daemon that has judged packets of two flows."""
    socket_path = tmp_path / "s"
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nmode = "enforce"\nlog_interval_s = 1\ncontrol_socket = "{socket_path}"\n'
        '[policy]\ndefault = "drop"\non_unknown = "log"\ni_know = "drops everything"\n'
    )
    peer, host = namespace("peer"), namespace("host")
    with (
        Overrun(peer, host) as overrun,
        GuardProcess(host, tmp_path / "log", "--config", str(config)).ready() as guard,
    ):
        connections = [overrun.connect(REDIRECTED), overrun.connect(PLAIN)]
        overrun.overrun(connections, 6)
        wait_for(lambda: len(guard.events("packet_judged")) >= 2)
        yield socket_path
        assert overrun.arrived() == 0


def top(socket_path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nfq_guard", "top", "--socket", str(socket_path), *words]


def test_keys(guarded: Path) -> None:
    with Terminal(*top(guarded, "--interval", "0.2")) as terminal:
        terminal.shows("nfq-guard enforce")
        terminal.shows("seq-over")
        terminal.shows(f":{PLAIN}")
        terminal.press("?", "pause and resume")
        terminal.press("?", "? help")
        terminal.press("s", "s sort (RATE)")
        terminal.press("/", "only flows with: ")
        terminal.press("8080", "_")
        terminal.press("\r", "'8080'")
        terminal.press("\r", "Does it begin where the receiver has offered room?")
        terminal.press("\x1b", "REASONS")
        terminal.press("p", "PAUSED")
        terminal.press("p", "pause")
        terminal.resize(10, 40)
        terminal.shows("nfq-guard")
        terminal.resize(2, 5)
        terminal.resize(30, 120)
        terminal.press("/", "only flows with: 8080_")
        terminal.press("\x1b", "quit")
        terminal.resize(30, 121)  # forces a full redraw
        terminal.shows(f":{PLAIN}")
        os.write(terminal.main, b"q")
        assert terminal.ends() == 0
        assert b"\x1b[?1049l" in terminal.written, "the screen is restored"


def test_interrupt(guarded: Path) -> None:
    with Terminal(*top(guarded)) as terminal:
        terminal.shows("nfq-guard enforce")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends() == 130
        assert b"\x1b[?1049l" in terminal.written, "the screen is restored"


def test_no_colour(guarded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Terminal(*top(guarded)) as terminal:
        terminal.shows("seq-over")
        os.write(terminal.main, b"q")
        assert terminal.ends() == 0
        assert b"\x1b[31m" not in terminal.written


def test_json_output(guarded: Path) -> None:
    words = top(guarded, "--format", "json", "--count", "2", "--interval", "0.1")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    first, _ = (json.loads(line) for line in done.stdout.splitlines())
    assert first["status"]["reasons"]["seq-over"]["drop"] == 6
    flows = {each["flow"]["b_port"]: each["events"][-1]["nat"] for each in first["flows"]}
    assert flows == {REDIRECTED: "dnat", PLAIN: "none"}


@pytest.mark.parametrize(
    ("words", "status"),
    [([], 2), (["--interval", "0"], 2)],
)
def test_usage_errors(guarded: Path, words: list[str], status: int) -> None:
    done = subprocess.run(top(guarded, *words), capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1


def test_an_unsupported_terminal(guarded: Path) -> None:
    with Terminal("env", "TERM=nonsense", *top(guarded)) as terminal:
        assert terminal.ends() == 2
        assert b"top cannot use this terminal" in terminal.written


def test_no_running_daemon(tmp_path: Path) -> None:
    with Terminal(*top(tmp_path / "s")) as terminal:
        assert terminal.ends() == 3
        assert b"not running" in terminal.written
