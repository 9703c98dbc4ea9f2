# SPDX-License-Identifier: MIT
"""The real daemon at work in the router's namespace."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import orjson

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation

_READY_LIMIT_S: Final = 15.0
_STOP_LIMIT_S: Final = 5.0
_MODES: Final = {Mitigation.GUARD: "enforce", Mitigation.GUARD_DRY_RUN: "dry-run"}

Event = Mapping[str, object]


class Guard:
    """`nfq-guard run`, with its own rules, from `start` until `close`."""

    def __init__(self, router: Namespace, mitigation: Mitigation, directory: Path) -> None:
        """Start it; its files go to `directory`, a new one, which stays when it is closed."""
        self._events = directory / "events.jsonl"
        self._complaints = directory / "stderr"
        notify = directory / "notify"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(notify))
        self._ready.settimeout(0.1)
        with self._events.open("wb") as stdout, self._complaints.open("wb") as stderr:
            self._process = router.popen(
                sys.executable,
                "-m",
                "nfq_guard",
                "run",
                "--mode",
                _MODES[mitigation],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=os.environ | {"NOTIFY_SOCKET": str(notify), "NO_COLOR": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Return when the daemon says READY=1.

        Raises:
            UnavailableError: It ends instead, or does not come to that.
        """
        for _ in range(int(_READY_LIMIT_S / 0.1)):
            try:
                if b"READY=1" in self._ready.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                if self._process.poll() is not None:
                    break
        said = self._complaints.read_text(encoding="utf-8", errors="replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        raise UnavailableError(f"the guard did not start: {last}")

    def close(self) -> None:
        """Stop it; every packet that it has judged is in `events` then."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._ready.close()

    def events(self) -> list[Event]:
        """The packets judged so far, one event each, or one for several that are alike."""
        lines = self._events.read_bytes().splitlines(keepends=True)
        events = [orjson.loads(line) for line in lines if line.endswith(b"\n") and line[:1] == b"{"]
        return [event for event in events if event.get("event") == "packet_judged"]

    def log(self) -> bytes:
        """Everything that the daemon has logged."""
        return self._events.read_bytes()


def count(events: list[Event], **wanted: str) -> int:
    """Packets in those events whose fields are as `wanted`."""
    return sum(
        int(str(event.get("count") or 1))
        for event in events
        if all(event.get(field) == value for field, value in wanted.items())
    )
