# SPDX-License-Identifier: MIT
"""A daemon of several queues in its own namespace, and ways to disturb its workers."""

import ctypes
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import parse
from tests.support.queue import PORT, Datagrams, GuardProcess, typed

FIRST, LAST = 3, 5
QUEUES = list(range(FIRST, LAST + 1))
# Enough pairs of addresses that each queue gets some.
HOSTS = [f"127.0.1.{number}" for number in range(1, 25)]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD: Final = 438
_IN_CLOSE_NOWRITE: Final = 0x10


class Supervised:
    """A daemon of three queues, and the packets sent through it."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self.directory = directory
        self.socket = directory / "s"
        self.config = directory / "c.toml"
        self.udp = Datagrams(namespace, "0.0.0.0")  # noqa: S104 - of its own namespace
        self.configure("log")

    def text(self, action: str, *lines: str) -> str:
        """A configuration with `action` for the packets sent."""
        head = f"""
[daemon]
queues = "{FIRST}-{LAST}"
mode = "enforce"
rules = "none"
log_interval_s = 0
control_socket = "{self.socket}"
"""
        policy = f"""
[policy]
default = "allow"
on_unknown = "allow"
[[policy.rule]]
name = "rule-{action}"
dport = {PORT}
action = "{action}"
"""
        return head + "\n".join(lines) + policy

    def configure(self, action: str, *lines: str) -> None:
        self.config.write_text(self.text(action, *lines))

    def start(self, log: str = "log", env: dict[str, str] | None = None) -> GuardProcess:
        """Start the daemon in a process group of its own.

        In an orphaned process group, as under setsid, the kernel discards the signals that stop a
        process.
        """
        words = ("--config", str(self.config))
        return GuardProcess(
            self.namespace, self.directory / log, *words, env=env, process_group=0
        ).ready()

    def send(self, each: int = 1) -> int:
        """Send packets over all queues; returns their number."""
        for host in HOSTS:
            for _ in range(each):
                self.udp.sender.sendto(b"1234", (host, PORT))
        return each * len(HOSTS)

    def received(self) -> int:
        return len(self.udp.received())

    def idle(self) -> bool:
        return all(line.waiting == 0 for line in self.bound().values())

    def bound(self) -> dict[int, Any]:
        text = self.namespace.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
        return dict(parse(text))

    def ask(self, *words: str, status: int = 0) -> str:
        return typed(self.socket, *words, status=status)

    @contextmanager
    def asked(self, command: str, **arguments: object) -> Iterator[Callable[[], dict[str, Any]]]:
        """Send a request; the response is read later.

        Without the command: starting an interpreter would take most of the time of a test, and on
        a busy machine longer than a worker may be silent.
        """
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.socket))
            request = {"command": command} | ({"arguments": arguments} if arguments else {})
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as lines:
                yield lambda: json.loads(lines.readline())

    def status(self) -> dict[str, Any]:
        with self.asked("status") as response:
            found: dict[str, Any] = response()["message"]
        return found

    def pids(self) -> list[int]:
        return [queue["pid"] for queue in self.status()["queues"]]

    def all_serving(self) -> bool:
        return all(queue["state"] == "serving" for queue in self.status()["queues"])


def queue_all(namespace: Namespace, *, bypass: bool) -> None:
    """Queue every UDP packet that the namespace sends, over all queues."""
    balance = ["NFQUEUE", "--queue-balance", f"{FIRST}:{LAST}"]
    words = ["-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", *balance]
    namespace.run("iptables", *words, *(["--queue-bypass"] if bypass else []))


@contextmanager
def record_sockets_of(pid: int) -> Iterator[list[socket.socket]]:
    """Copies of the sockets to workers, or to the daemon, that a process holds.

    A message sent on one looks like one of the process. There are two for each worker: one for
    messages, one for log lines, which the worker does not read.
    """
    found: list[socket.socket] = []
    targets: set[str] = set()
    pidfd = os.pidfd_open(pid)
    try:
        for number in sorted(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()):
            try:
                target = str(Path(f"/proc/{pid}/fd/{number}").readlink())
            except FileNotFoundError:  # closed since it was listed
                continue
            if not target.startswith("socket:") or target in targets:
                continue  # a worker's log holds a descriptor of its own for the same socket
            targets.add(target)
            copied = _LIBC.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
            if copied < 0 and ctypes.get_errno() == errno.EBADF:
                continue
            assert copied >= 0, os.strerror(ctypes.get_errno())
            end = socket.socket(fileno=copied)
            if end.family == socket.AF_UNIX and end.type & socket.SOCK_SEQPACKET == (
                socket.SOCK_SEQPACKET
            ):
                found.append(end)
            else:
                end.close()
        yield found
    finally:
        for end in found:
            end.close()
        os.close(pidfd)


class Reads:
    """Watches by inotify(7) whether a file is read."""

    def __init__(self, path: Path) -> None:
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK)
        assert self._fd >= 0
        assert _LIBC.inotify_add_watch(self._fd, bytes(path), _IN_CLOSE_NOWRITE) >= 0
        self._seen = False

    def seen(self) -> bool:
        with suppress(BlockingIOError):
            self._seen = bool(os.read(self._fd, 4096)) or self._seen
        return self._seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
