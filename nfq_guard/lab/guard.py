# SPDX-License-Identifier: MIT
"""The real daemon at work in the router's namespace."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation

_READY_LIMIT_S: Final = 15.0
_STOP_LIMIT_S: Final = 5.0
_MODES: Final = {Mitigation.GUARD: "enforce", Mitigation.GUARD_DRY_RUN: "dry-run"}

# Every packet an event, whatever this machine's own configuration says.
_CONFIG: Final = """\
[daemon]
log = "-"
log_format = "json"
log_interval_s = 0
control_socket = ""
"""

Event = Mapping[str, Any]


class Guard:
    """`nfq-guard run`, with its own rules, from `start` until `close`."""

    def __init__(
        self, router: Namespace, mitigation: Mitigation, directory: Path, policy: str = ""
    ) -> None:
        """Start it with `policy`, the table `[policy]` as TOML, or else its default policy.

        Its files go to `directory`, a new one, which stays when it is closed.
        """
        self._router = router
        self._events = directory / "events.jsonl"
        self._complaints = directory / "stderr"
        notify = directory / "notify"
        config = directory / "nfq-guard.toml"
        config.write_text(_CONFIG + policy, encoding="utf-8")
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(notify))
        self._ready.settimeout(0.1)
        with self._events.open("wb") as stdout, self._complaints.open("wb") as stderr:
            self._process = router.popen(
                sys.executable,
                "-m",
                "nfq_guard",
                "run",
                "--config",
                str(config),
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
        raise UnavailableError(f"the guard did not start: {self._last_words()}")

    def close(self) -> None:
        """Stop it; its account is in `report` then."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._ready.close()

    def waiting(self) -> int:
        """Packets that wait in the kernel's queues for a verdict."""
        with self._router.entered():
            table = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text(
                encoding="ascii"
            )
        return sum(int(line.split()[2]) for line in table.splitlines())

    def log(self) -> bytes:
        """Everything that the daemon has logged."""
        return self._events.read_bytes()

    def report(self) -> "Report":
        """What it did, by its own account, after `close`.

        Raises:
            UnavailableError: It ended without an account.
        """
        events: list[Event] = [orjson.loads(line) for line in self.log().splitlines()]
        account = next((event for event in events if event["event"] == "stopped"), None)
        if account is None:
            raise UnavailableError(f"the guard ended before its time: {self._last_words()}")
        actions = account["actions"]
        return Report(
            queued=account["packets"],
            drops=actions.get("drop", 0),
            judged=tuple(event for event in events if event["event"] == "packet_judged"),
        )

    def _last_words(self) -> str:
        said = self._complaints.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(said) if line.strip()), "it said nothing")


@dataclass(frozen=True, slots=True)
class Report:
    """What the guard did in a run.

    Attributes:
        queued: Packets that it judged.
        drops: Of these, those that its policy said to drop, whatever the mode.
        judged: The events of those packets that it had something to say of.
    """

    queued: int
    drops: int
    judged: tuple[Event, ...]
