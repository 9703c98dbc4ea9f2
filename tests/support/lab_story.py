# SPDX-License-Identifier: MIT
"""A lab run for demonstration: resets in dry-run, none in mode enforce.

Clients keep connections to a service that the host translates. A broken device on their way sends
segments beyond the window, old ones once more, and damaged ones. The kernel, its conntrack, the
connections, the RSTs and the guard are real.
"""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.wiretap import Tap, checksums_in_software
from tests.support.overrun import PLAIN, REDIRECTED, Connection, Overrun
from tests.support.queue import GuardProcess, import_path, typed

_CLIENTS: Final = 8
_STEP_S: Final = 0.2
# Beyond any window that these connections offer.
_BEYOND: Final = 200_000
# An old segment, further back than any window.
_OLD: Final = -(8 << 20)


class LabStory:
    """A demonstration in progress.

    Attributes:
        events: The guard's log.
        capture: What the host's interface received and sent, after `write_capture`.
        control_socket: Control socket of the guard.
        died: Number of client connections that were reset.
    """

    def __init__(self, place: Path, overrun: Overrun, host: Namespace, tap: Tap) -> None:
        self.events = place / "log"
        self.capture = place / "h0.pcap"
        self.control_socket = place / "s"
        self.died = 0
        self._overrun = overrun
        self._host = host
        self._tap = tap
        self._numbers = random.Random(1)  # noqa: S311 - the same story in every run
        self._clients = [overrun.connect(REDIRECTED) for _ in range(_CLIENTS)]
        self._plain = overrun.connect(PLAIN)

    def command(self, *words: str) -> list[str]:
        """A command of the guard, run on the host."""
        return self._host.argv(
            ["env", f"PYTHONPATH={import_path()}", sys.executable, "-m", "nfq_guard", *words]
        )

    def go_on(self, seconds: float) -> None:
        """Let the clients and the broken device send for a time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._step()
            time.sleep(_STEP_S)

    def enforce(self) -> None:
        """Switch to mode enforce, with connections that are still alive."""
        time.sleep(_STEP_S)  # the last RST may be in transit
        for place in range(len(self._clients)):
            self._exchange(place)
        typed(self.control_socket, "mode", "enforce")

    def write_capture(self) -> None:
        """Write the capture so far."""
        self._tap.drain()
        self._tap.write_pcap(self.capture)

    def _exchange(self, place: int) -> Connection:
        """Exchange data over a connection; a reset one is counted and replaced."""
        if not self._clients[place].exchange(self._numbers.randrange(100, 3000)):
            self.died += 1
            self._clients[place] = self._overrun.connect(REDIRECTED)
        return self._clients[place]

    def _step(self) -> None:
        numbers = self._numbers
        place = numbers.randrange(len(self._clients))
        one = self._exchange(place)
        kind = numbers.random()
        if kind < 0.35:
            distance = numbers.randrange(1 << numbers.randrange(8, 22))
            for _ in range(numbers.randrange(1, 4)):
                self._overrun.send(one, _BEYOND + distance, data=100)
        elif kind < 0.45:
            for _ in range(3):
                self._overrun.send(self._plain, _OLD, data=100)
        elif kind < 0.5:
            self._overrun.send(self._plain, 0, data=100, is_damaged=True)
        self._tap.drain()


@contextmanager
def lab_story(place: Path) -> Iterator[LabStory]:
    """A lab with a guard in dry-run; the guard runs until the block ends."""
    config = place / "guard.toml"
    config.write_text(
        f'[daemon]\nmode = "dry-run"\nlog_interval_s = 1\nlog_allowed = true\n'
        f'control_socket = "{place / "s"}"\n[policy]\ninclude = "preset:default"\n'
    )
    with ExitStack() as stack:
        peer, host = (stack.enter_context(Namespace(name)) for name in ("peer", "host"))
        overrun = stack.enter_context(Overrun(peer, host))
        for space, interface in ((peer, "p0"), (host, "h0")):
            checksums_in_software(space, interface)
        tap = Tap(host, "h0", "h0")
        stack.callback(tap.close)
        guard = GuardProcess(host, place / "log", "--config", str(config)).ready()
        stack.enter_context(guard)
        yield LabStory(place, overrun, host, tap)
        assert guard.stop() == 0, guard.stderr()
