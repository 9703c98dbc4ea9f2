# SPDX-License-Identifier: MIT
"""The target of faults: a gateway, its daemon, and the accounting of its packets."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import parse
from tests.faults.gateway import POLICY, Gateway, Stream
from tests.support.queue import GuardProcess

_READINGS: Final = 50
_READING_S: Final = 0.02


class Size(NamedTuple):
    """The number of injections."""

    reloads: int
    corrupted: int
    packets: int
    signals: int
    starts: int
    requests: int
    entries: int
    soak_s: int
    inputs: int
    transfers: int


SHORT: Final = Size(
    reloads=20,
    corrupted=60,
    packets=5_000,
    signals=2,
    starts=2,
    requests=200,
    entries=5_000,
    soak_s=6,
    inputs=3_000,
    transfers=100,
)
# The whole campaign takes about half an hour on a quiet machine, 14 minutes of it the soak.
LONG: Final = Size(
    reloads=1_000, corrupted=1_000, packets=400_000, signals=20, starts=10, requests=10_000,
    entries=1 << 20, soak_s=600, inputs=300_000, transfers=2_000,
)  # fmt: skip


class Rig:
    """A separate gateway for one fault, with its configuration and its daemon."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self.config = folder / "c.toml"
        self.socket = folder / "s"

    def text(self, *lines: str, policy: str = POLICY) -> str:
        head = ["[daemon]", 'mode = "enforce"', f'control_socket = "{self.socket}"', *lines]
        return "\n".join(head) + "\n" + policy

    def start(
        self,
        *lines: str,
        log: str = "log",
        env: dict[str, str] | None = None,
        policy: str = POLICY,
    ) -> GuardProcess:
        self.config.write_text(self.text(*lines, policy=policy))
        host = self.gateway.host
        return GuardProcess(host, self.folder / log, "--config", str(self.config), env=env)

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.socket))
            request = {"command": command, "arguments": arguments}
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as lines:
                found: dict[str, Any] = json.loads(lines.readline())
        return found


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Two namespaces and a folder, for one fault."""
    folder.mkdir()
    with Namespace("peer") as peer, Namespace("host") as host, Gateway(peer, host) as gateway:
        yield Rig(gateway, folder)


class Account(NamedTuple):
    """The fates of a stream's packets."""

    sent: int
    arrived: int
    judged: int
    dropped: int
    shed: int
    unjudged: int
    counted: int
    discrepancy: str

    @property
    def exact(self) -> bool:
        """Whether each packet has exactly one fate, by independent counters."""
        fates = self.judged + self.shed + self.unjudged
        return (
            not self.discrepancy
            and self.unjudged >= 0
            and fates == self.sent
            and self.counted == self.unjudged
        )


def account(stream: Stream, guard: GuardProcess, shed: int) -> Account:
    """The account of a stopped daemon that served the whole stream.

    Args:
        stream: The stream, ended.
        guard: The daemon, stopped.
        shed: The kernel's count of packets dropped at a full queue or buffer.
    """
    (stopped,) = guard.events("stopped")
    judged = stopped["packets"]
    dropped = stopped["actions"].get("drop", 0)
    # Packets that arrived unjudged passed by the fail mode. The daemon counts them in another way.
    unjudged = len(stream.arrived) - (judged - dropped)
    counted = stopped.get("queue_full_passes", 0) + stopped.get("buffer_full_passes", 0)
    return Account(
        sent=stream.sent,
        arrived=len(stream.arrived),
        judged=judged,
        dropped=dropped,
        shed=shed,
        unjudged=unjudged,
        counted=counted,
        discrepancy=stream.discrepancy(),
    )


def shed(namespace: Namespace) -> int:
    """The packets that the kernel dropped from the queues."""
    text = namespace.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
    return sum(line.queue_dropped + line.user_dropped for line in parse(text).values())


def files(pid: int) -> int:
    """Number of open files of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def fewest_files(pid: int) -> int:
    """The fewest open files within a second: checks of the rules and clients have some, too."""
    found = []
    for _ in range(_READINGS):
        time.sleep(_READING_S)
        found.append(files(pid))
    return min(found)


def rss_kb(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])
