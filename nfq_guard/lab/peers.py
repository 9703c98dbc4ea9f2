# SPDX-License-Identifier: MIT
"""Handles on the two peer processes of a connection (`peer_main`)."""

import select
import subprocess
import sys
from typing import Final, Self

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.child import environment
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit

_START_LIMIT_S: Final = 10.0
# Added to a peer's own timeout, for a busy machine.
_SLACK_S: Final = 5.0


class Peer:
    """One peer process inside a namespace; ended by `close`."""

    def __init__(self, namespace: Namespace, *words: str) -> None:
        """Start the process; `words` are the arguments of `peer_main`."""
        self._process = namespace.popen(
            sys.executable,
            "-m",
            "nfq_guard.lab.peer_main",
            *words,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, which closes its connection."""
        self._process.kill()
        self._process.communicate()

    def receive(self, limit_s: float, what: str) -> str:
        """The next event that the peer reports; an error names it `what`.

        Raises:
            UnavailableError: Nothing came within `limit_s`, or the peer has exited.
        """
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], limit_s)[0]:
            raise UnavailableError(
                f"a peer of the lab did not report within {limit_s:.0f} s: {what}"
            )
        word = stdout.readline().strip()
        if not word:
            raise UnavailableError(f"a peer of the lab exited before it reported: {what}")
        return word

    def send(self, line: str) -> None:
        """Write one line to its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def serve(namespace: Namespace, address: str, port: int, size: int) -> Peer:
    """Start a server that answers each request with `size` bytes."""
    return Peer(namespace, "serve", address, str(port), str(size))


def wait_for_server(server: Peer) -> None:
    """Wait until the server listens.

    Raises:
        UnavailableError: It exited, or was not ready in time.
    """
    server.receive(limit(_START_LIMIT_S), "listening")


class Client:
    """A client with one connection."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int,
        size: int,
        rcvbuf: int,
        *,
        is_fast: bool,
    ) -> None:
        """Start the client, which connects and expects answers of `size` bytes.

        With `is_fast` its SYN carries the first request.
        """
        opening = "fast" if is_fast else "plain"
        self._peer = Peer(namespace, "ask", address, str(port), str(size), str(rcvbuf), opening)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def connected(self) -> str:
        """The outcome of connecting: `connected`, `reset` or `timeout`."""
        return self._peer.receive(limit(_START_LIMIT_S), "connecting")

    def ask(self, limit_s: float) -> str:
        """Send the next request; its outcome is `answered`, `reset` or `timeout`."""
        self._peer.send(str(limit_s))
        return self._peer.receive(limit_s + limit(_SLACK_S), "the answer to a request")
