# SPDX-License-Identifier: MIT
"""The two ends of a connection, each a process of its own inside its namespace.

`serve ADDRESS PORT OCTETS` answers each request line with OCTETS of data on the connection that
it came by. `ask ADDRESS PORT RCVBUF` connects once and sends one request for each line on its
standard input, which is the number of seconds to wait for the answer. Both tell what happens in
one word a line on standard output, and end when their standard input does: nothing stays behind
when the process that started them dies.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

_CONNECT_TIMEOUT_S: Final = 3.0


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def serve(address: str, port: int, octets: int) -> None:
    """Answer requests, one connection after the other, until standard input ends."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with socket.create_server((address, port)) as listener:
        _say("listening")
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    while connection.recv(4096):
                        connection.sendall(b"x" * octets)
                    _say("closed")
                except ConnectionError:
                    _say("reset")


def ask(address: str, port: int, octets: int, rcvbuf: int) -> None:
    """Connect, then send one request for each line on standard input."""
    with socket.socket() as connection:
        if rcvbuf:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_CONNECT_TIMEOUT_S)
        _say(_attempt(lambda: connection.connect((address, port)), "connected"))
        for line in sys.stdin:
            connection.settimeout(float(line))
            _say(_attempt(lambda: _exchange(connection, octets), "answered"))


def _exchange(connection: socket.socket, octets: int) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    left = octets
    while left:
        received = connection.recv(min(left, 65536))
        if not received:
            raise ConnectionResetError
        left -= len(received)


def _attempt(act: Callable[[], None], word: str) -> str:
    try:
        act()
    except ConnectionError:
        return "reset"
    except TimeoutError:
        return "timeout"
    return word


def main(words: Sequence[str]) -> None:
    """Be the end that `words` asks for."""
    role, address, port, *numbers = words
    if role == "serve":
        serve(address, int(port), int(numbers[0]))
    else:
        ask(address, int(port), int(numbers[0]), int(numbers[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
