# SPDX-License-Identifier: MIT
"""The two peers of a connection, each a process inside its namespace.

`serve ADDRESS PORT BYTES` answers each request with BYTES of data on the same connection.
`ask ADDRESS PORT BYTES RCVBUF` connects once and sends one request for each line on its standard
input, which holds the number of seconds to wait for the answer. Both report each event as one
word a line on standard output, and exit at the end of their standard input, so neither outlives
the process that started it.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

_CONNECT_TIMEOUT_S: Final = 3.0


def _report(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _domain(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _exit_at_end_of_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def serve(address: str, port: int, size: int) -> None:
    """Answer requests, one connection after the other, until standard input ends."""
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    with socket.create_server((address, port), family=_domain(address)) as listener:
        _report("listening")
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    while connection.recv(4096):
                        connection.sendall(b"x" * size)
                    _report("closed")
                except ConnectionError:
                    _report("reset")


def ask(address: str, port: int, size: int, rcvbuf: int) -> None:
    """Connect, then send one request for each line on standard input."""
    with socket.socket(_domain(address)) as connection:
        if rcvbuf:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_CONNECT_TIMEOUT_S)
        _report(_attempt(lambda: connection.connect((address, port)), "connected"))
        for line in sys.stdin:
            connection.settimeout(float(line))
            _report(_attempt(lambda: _exchange(connection, size), "answered"))


def _exchange(connection: socket.socket, size: int) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    left = size
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


def main(arguments: Sequence[str]) -> None:
    """Run as the server or the client."""
    role, address, port, *numbers = arguments
    if role == "serve":
        serve(address, int(port), int(numbers[0]))
    else:
        ask(address, int(port), int(numbers[0]), int(numbers[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
