# SPDX-License-Identifier: MIT
"""The real daemon, running in the router's namespace."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.child import environment
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation
from nfq_guard.lab.pace import limit

_READY_LIMIT_S: Final = 15.0
_STOP_LIMIT_S: Final = 5.0
_MODES: Final = {
    Mitigation.GUARD: "enforce",
    Mitigation.GUARD_HEAL: "enforce",
    Mitigation.GUARD_DRY_RUN: "dry-run",
}
# The default `[policy]` table by mitigation; empty for the default policy.
_POLICIES: Final = {
    Mitigation.GUARD: "",
    Mitigation.GUARD_HEAL: '[policy]\ninclude = "preset:heal"\n',
    Mitigation.GUARD_DRY_RUN: "",
}

# Records one event a packet, independently of this machine's configuration.
_CONFIG: Final = """\
[daemon]
log = "-"
log_format = "json"
log_interval_s = 0
control_socket = ""
"""

Event = Mapping[str, Any]


class Guard:
    """A running `nfq-guard run` with its own rules; stopped by `close`."""

    def __init__(
        self, router: Namespace, mitigation: Mitigation, directory: Path, policy: str = ""
    ) -> None:
        """Start the daemon.

        Args:
            router: The namespace to run it in.
            mitigation: One of `outcome.GUARDED`.
            directory: An empty directory for its files, which `close` leaves in place.
            policy: The table `[policy]` as TOML; empty for that of the mitigation.
        """
        self._router = router
        self._overdue = False
        self._events = directory / "events.jsonl"
        self._stderr = directory / "stderr"
        notify = directory / "notify"
        config = directory / "nfq-guard.toml"
        config.write_text(_CONFIG + (policy or _POLICIES[mitigation]), encoding="utf-8")
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(notify))
        self._ready.settimeout(0.1)
        with self._events.open("wb") as stdout, self._stderr.open("wb") as stderr:
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
                env=environment() | {"NOTIFY_SOCKET": str(notify), "NO_COLOR": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait for the daemon's READY=1.

        Raises:
            UnavailableError: The daemon exited, or was not ready in time.
        """
        limit_s = limit(_READY_LIMIT_S)
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                if b"READY=1" in self._ready.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                if self._process.poll() is not None:
                    raise UnavailableError(
                        f"the guard exited with status {self._process.returncode} before it was "
                        f"ready: {self._last_error()}"
                    ) from None
        raise UnavailableError(
            f"the guard was not ready within {limit_s:.0f} s of its start: {self._last_error()}"
        )

    def close(self) -> None:
        """Stop the daemon, after which `report` is available."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(limit(_STOP_LIMIT_S))
            except subprocess.TimeoutExpired:
                self._overdue = True
                self._process.kill()
                self._process.wait()
        self._ready.close()

    def waiting(self) -> int:
        """Packets in the kernel's queues that have no verdict yet."""
        with self._router.entered():
            table = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text(
                encoding="ascii"
            )
        return sum(int(line.split()[2]) for line in table.splitlines())

    def log(self) -> bytes:
        """The daemon's log, JSON lines."""
        return self._events.read_bytes()

    def report(self) -> "Report":
        """The daemon's own totals, after `close`.

        Raises:
            UnavailableError: The daemon did not end in an orderly way.
        """
        events: list[Event] = [orjson.loads(line) for line in self.log().splitlines()]
        stopped = next((event for event in events if event["event"] == "stopped"), None)
        if stopped is None:
            how = (
                f"was killed because it had not stopped {limit(_STOP_LIMIT_S):.0f} s after SIGTERM"
                if self._overdue
                else f"exited with status {self._process.returncode} without a final report"
            )
            raise UnavailableError(f"the guard {how}: {self._last_error()}")
        actions = stopped["actions"]
        return Report(
            queued=stopped["packets"],
            drops=actions.get("drop", 0) + actions.get("heal", 0),
            judged=tuple(event for event in events if event["event"] == "packet_judged"),
        )

    def _last_error(self) -> str:
        lines = self._stderr.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no error message")


@dataclass(frozen=True, slots=True)
class Report:
    """The guard's totals for a run.

    Attributes:
        queued: Packets judged.
        drops: Packets judged whose action drops them, in either mode.
        judged: The `packet_judged` events.
    """

    queued: int
    drops: int
    judged: tuple[Event, ...]
