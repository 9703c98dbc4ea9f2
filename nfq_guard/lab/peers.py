# SPDX-License-Identifier: MIT
"""The handles by which a run leads the two ends of its connection (`peer_main`)."""

import select
import subprocess
import sys
from typing import Final, Self

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.netns import Namespace

_START_LIMIT_S: Final = 10.0
# What a peer needs on top of the time it was given, on a machine that is busy with other things.
_SLACK_S: Final = 5.0


class Peer:
    """One end of the connection, a process inside a namespace; ended by `close`."""

    def __init__(self, namespace: Namespace, *words: str) -> None:
        """Start it; `words` are the arguments of `peer_main`."""
        self._process = namespace.popen(
            sys.executable,
            "-m",
            "nfq_guard.lab.peer_main",
            *words,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, which closes its connection."""
        self._process.kill()
        self._process.communicate()

    def hear(self, limit_s: float) -> str:
        """The next word of the peer.

        Raises:
            UnavailableError: It said nothing for `limit_s`, or has ended.
        """
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], limit_s)[0]:
            raise UnavailableError(f"a peer of the lab said nothing for {limit_s} s")
        word = stdout.readline().strip()
        if not word:
            raise UnavailableError("a peer of the lab ended before its time")
        return word

    def tell(self, line: str) -> None:
        """Hand it one line on its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def serve(namespace: Namespace, address: str, port: int, octets: int) -> Peer:
    """A server that listens on `address` and answers each request with `octets`."""
    return Peer(namespace, "serve", address, str(port), str(octets))


def wait_for_server(server: Peer) -> None:
    """Return when it listens.

    Raises:
        UnavailableError: It does not come to that.
    """
    server.hear(_START_LIMIT_S)


class Client:
    """A client with one connection."""

    def __init__(
        self, namespace: Namespace, address: str, port: int, octets: int, rcvbuf: int
    ) -> None:
        """Connect; the answer to each request has `octets`."""
        self._peer = Peer(namespace, "ask", address, str(port), str(octets), str(rcvbuf))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def connected(self) -> str:
        """`connected`, `reset` or `timeout`."""
        return self._peer.hear(_START_LIMIT_S)

    def ask(self, limit_s: float) -> str:
        """Send the next request and wait: `answered`, `reset` or `timeout`."""
        self._peer.tell(str(limit_s))
        return self._peer.hear(limit_s + _SLACK_S)
