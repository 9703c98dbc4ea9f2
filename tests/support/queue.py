# SPDX-License-Identifier: MIT
"""Packets through a real queue: rules, senders, and the daemon as a process."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
from nfq_guard.nfqueue.counters import QueueCounters, parse
from tests.support import identity

QUEUE = 7
# asm-generic/socket.h; Python does not name them.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
PORT = 9999
# Drops packets to the port, and logs the rest.
THAT_PORT_POLICY = f"""
[policy]
default = "log"
on_unknown = "log"
[[policy.rule]]
name = "that-port"
dport = {PORT}
action = "drop"
"""


def configured(path: Path, *lines: str, policy: str = THAT_PORT_POLICY) -> str:
    """Write a configuration for our queue, with a control socket next to it; returns its path."""
    head = ("[daemon]", f"queue = {QUEUE}", 'rules = "none"', f'control_socket = "{path}.sock"')
    path.write_text("\n".join([*head, *lines]) + "\n" + policy, encoding="utf-8")
    return str(path)


def queue_udp(namespace: Namespace, *, bypass: bool = True, chain: str = "OUTPUT") -> None:
    """Queue every UDP packet that the namespace sends."""
    words = ["-t", "mangle", "-A", chain, "-p", "udp", "-j", "NFQUEUE", "--queue-num", str(QUEUE)]
    for program in ("iptables", "ip6tables"):
        namespace.run(program, *words, *(["--queue-bypass"] if bypass else []))


def kernel_line(namespace: Namespace) -> QueueCounters:
    """The kernel's line about our queue."""
    text = namespace.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
    return parse(text)[QUEUE]


class Datagrams:
    """A sender and a receiver of UDP on the namespace's loopback."""

    def __init__(self, namespace: Namespace, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with namespace.entered():
            self.receiver = socket.socket(family, socket.SOCK_DGRAM)
            self.sender = socket.socket(family, socket.SOCK_DGRAM)
        self.receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        # Packets that wait in the queue still count against their sender's buffer.
        self.sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 24)
        self.receiver.bind((host, PORT))
        self.receiver.setblocking(False)
        self._to = (host, PORT)

    def send(self, count: int, size: int = 20) -> None:
        for number in range(count):
            self.sender.sendto(number.to_bytes(4, "big") + bytes(size - 4), self._to)

    def received(self) -> list[int]:
        """Numbers of the datagrams that arrived."""
        numbers: list[int] = []
        while True:
            try:
                numbers.append(int.from_bytes(self.receiver.recv(1 << 16)[:4], "big"))
            except BlockingIOError:
                return numbers

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def import_path() -> str:
    """The import path, with the tree first."""
    return os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])


@contextmanager
def default_socket() -> Iterator[None]:
    """Serialise tests that start a daemon at the host's default control socket."""
    with (Path(tempfile.gettempdir()) / "nfq-guard-default-socket").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _names_a_socket(words: Sequence[str]) -> bool:
    if "--config" not in words:
        return False
    config = Path(words[words.index("--config") + 1])
    return config.exists() and "control_socket" in config.read_text(encoding="utf-8")


class GuardProcess:
    """`nfq-guard run` in a namespace; its log and its standard error are files.

    An unread pipe could fill up, and every test would have to close it.
    """

    _at_default: ClassVar[list["GuardProcess"]] = []

    def __init__(
        self,
        namespace: Namespace,
        log: Path,
        *words: str,
        stdout: int | None = None,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        process_group: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log = log
        self._stderr = log.with_name(f"{log.name}.stderr")
        self._resources = ExitStack()
        if not _names_a_socket(words):
            # Not for the second daemon of a test, which must find the socket in use.
            if not self._at_default:
                self._resources.enter_context(default_socket())
            self._at_default.append(self)
            self._resources.callback(self._at_default.remove, self)
        # The log may contain events of an earlier daemon.
        self._starts_before = len(self.events("started")) if log.exists() else 0
        with log.open("ab") as out, self._stderr.open("wb") as complaints:
            self.process = subprocess.Popen(
                namespace.argv([*prefix, sys.executable, "-m", "nfq_guard", "run", *words]),
                stdout=out if stdout is None else stdout,
                stderr=complaints,
                env={**os.environ, "PYTHONPATH": import_path(), **(env or {})},
                process_group=process_group,
                pass_fds=pass_fds,
            )

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        lines = self.log.read_bytes().splitlines()
        # A test may wait for one event among thousands, and would otherwise parse all of them each
        # time.
        word = f'"{name}"'.encode() if name else b""
        found = [json.loads(line) for line in lines if word in line and line.endswith(b"}")]
        return [event for event in found if name in {None, event.get("event")}]

    def ready(self) -> Self:
        try:
            wait_for(self._has_started_or_ended)
            assert self.process.poll() is None, self.stderr()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _numbered(self) -> identity.Numbered | None:
        """The kernel's count; None unless the daemon has all of its queues since its start."""
        started = self.events("started")[self._starts_before :]
        if len(started) != 1 or self.events("worker_restarted"):
            return None
        queues = started[0].get("queues") or [started[0]["queue"]]
        return identity.numbered(self.process.pid, queues)

    def _has_started_or_ended(self) -> bool:
        started = len(self.events("started")) > self._starts_before
        return started or self.process.poll() is not None

    def stderr(self) -> str:
        """Its standard error until it ended."""
        self.process.wait(timeout=limit(30))
        return self._stderr.read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM, *, is_quiet: bool = True) -> int:
        """Send a signal and wait; returns the exit status.

        Args:
            number: The signal.
            is_quiet: Whether no packet comes on its own; False where TCP sends again what was
                dropped.

        Raises:
            AssertionError: It ended in order, and has lost count of a packet.
        """
        kernel = self._numbered() if number == signal.SIGTERM else None
        if kernel is not None and not is_quiet:
            kernel = kernel._replace(is_exact=False)
        self.process.send_signal(number)
        status = self.process.wait(timeout=limit(30))
        if kernel is not None and status == 0:
            identity.require_one_fate_each(self.events("stopped")[-1], kernel)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=limit(30))
        self._resources.close()


def typed(control_socket: Path, *words: str, status: int = 0) -> str:
    """The output of a command for a daemon; its error message if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nfq_guard", *words, "--socket", str(control_socket)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait until the condition holds; fail after `timeout_s`, scaled to this machine."""
    limit_s = limit(timeout_s)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s in vain"
        time.sleep(0.01)
